"""Sums of products, by Einstein's convention."""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.promotion import common
from fastlayers.functions.table import result

__all__ = ["einsum"]

_LETTERS = string.ascii_uppercase + string.ascii_lowercase


def einsum(*args: Any) -> Tensor:
    """Sum of products of tensors' elements, by letters for their axes.

    Parameters
    ----------
    equation : str
        Such as "bij,bjk->bik": a letter for each axis of each tensor, and of the result. What the
        result lacks is summed over; a letter twice in one tensor takes its diagonal; "..." is for
        any axes. Without "->" the result has the letters that occur once, in their order.
    *operands : Tensor
        Or a single list; or, without an equation, alternating tensors and lists of integers.

    Returns
    -------
    Tensor

    Raises
    ------
    RuntimeError
        If the letters don't fit the tensors.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.einsum.html
    """
    equation, operands = _equation(args)
    terms, output = _terms(equation, [x.ndim for x in operands])
    _check_sizes(terms, operands)
    dtype = common(tuple(operands))
    arrays = [np.asarray(x.array(), dtype) for x in operands]
    out = _product(terms, arrays, output)

    def gradient(dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
        return tuple(
            _one_gradient(i, terms, arrays, output, dy) if x.requires_grad else None
            for i, x in enumerate(operands)
        )

    saved = tuple(operands) if len(operands) > 1 else ()
    return result("einsum", out, tuple(operands), gradient, saved)


def _product(terms: list[str], arrays: list[np.ndarray], output: str) -> np.ndarray:
    return np.array(np.einsum(f"{','.join(terms)}->{output}", *arrays, optimize=True))


def _one_gradient(
    i: int,
    terms: list[str],
    arrays: list[np.ndarray],
    output: str,
    dy: np.ndarray,
) -> np.ndarray:
    """The gradient of one operand: the product of dy and all others, in its letters."""
    others = [j for j in range(len(terms)) if j != i]
    sources = [output, *(terms[j] for j in others)]
    once = "".join(dict.fromkeys(terms[i]))
    found = "".join(letter for letter in once if any(letter in source for source in sources))
    part = _product(sources, [dy, *(arrays[j] for j in others)], found)
    # Along letters that are only summed over, each element has the same gradient; where the operand
    # has a single element for many, it gets their sum.
    part = part.reshape([part.shape[found.index(a)] if a in found else 1 for a in once])
    lengths = dict(zip(terms[i], arrays[i].shape, strict=True))
    summed = tuple(k for k, a in enumerate(once) if lengths[a] == 1 and part.shape[k] > 1)
    part = part.sum(summed, keepdims=True) if summed else part
    part = np.broadcast_to(part, [lengths[a] for a in once])
    if once == terms[i]:
        return part
    dx = np.zeros(arrays[i].shape, dy.dtype)
    diagonal = np.einsum(f"{terms[i]}->{once}", dx)
    diagonal[...] = part
    return dx


def _equation(args: tuple[Any, ...]) -> tuple[str, list[Tensor]]:
    """The equation as text, and the operands."""
    if not args:
        raise ValueError("einsum: an equation and operands must be given, got none")
    if isinstance(args[0], str):
        given = args[1:]
        if len(given) == 1 and isinstance(given[0], (list, tuple)):
            given = tuple(given[0])
        return args[0].replace(" ", ""), [tensor(x) for x in given]
    pairs = len(args) // 2
    terms = [_letters(args[2 * i + 1]) for i in range(pairs)]
    equation = ",".join(terms) + (f"->{_letters(args[-1])}" if len(args) % 2 else "")
    return equation, [tensor(args[2 * i]) for i in range(pairs)]


def _letters(axes: Any) -> str:
    numbers = [axis for axis in axes if axis is not ...]
    if not all(0 <= number < len(_LETTERS) for number in numbers):
        raise RuntimeError(f"einsum: axes must be numbers in [0, 52), got {axes!r}")
    return "".join("..." if axis is ... else _LETTERS[axis] for axis in axes)


def _terms(equation: str, ndims: list[int]) -> tuple[list[str], str]:
    """The letters of the operands and of the result, with letters in place of "..."."""
    left, arrow, output = equation.partition("->")
    terms = left.split(",")
    plain = equation.replace("...", "").replace("->", "").replace(",", "")
    if not all(letter in _LETTERS for letter in plain):
        raise RuntimeError(
            f"einsum: subscripts must be in [a-zA-Z], with '...', ',' and '->', got {equation!r}"
        )
    if len(terms) != len(ndims):
        raise RuntimeError(
            f"einsum: there must be as many operands as the equation has, {len(terms)}, "
            f"got {len(ndims)}"
        )
    free = [letter for letter in _LETTERS if letter not in plain]
    longest = 0
    for i, (term, ndim) in enumerate(zip(terms, ndims, strict=True)):
        more = ndim - len(term.replace("...", ""))
        if more < 0 or (more and "..." not in term) or term.count("...") > 1 or more > len(free):
            raise RuntimeError(
                f"einsum: the number of subscripts must match the number of dimensions {ndim} of "
                f"operand {i}, got {term!r}"
            )
        longest = max(longest, more)
        terms[i] = term.replace("...", "".join(free[:more][::-1]))
    rest = "".join(free[:longest][::-1])
    if not arrow:
        letters = "".join(terms)
        named = sorted(a for a in set(letters) if letters.count(a) == 1 and a in plain)
        return terms, rest + "".join(named)
    output = output.replace("...", rest, 1)
    for letter in output:
        if output.count(letter) > 1 or not any(letter in term for term in terms):
            raise RuntimeError(
                f"einsum: output subscripts must appear once, and in an operand, got {equation!r}"
            )
    return terms, output


def _check_sizes(terms: list[str], operands: list[Tensor]) -> None:
    """Reject letters of several lengths; 1 broadcasts, except within one operand."""
    sizes: dict[str, int] = {}
    for i, (term, x) in enumerate(zip(terms, operands, strict=True)):
        within: dict[str, int] = {}
        for letter, size in zip(term, x.shape, strict=True):
            known = sizes.get(letter, size)
            sizes[letter] = size if known == 1 else known
            if sizes[letter] != size != 1 or within.setdefault(letter, size) != size:
                raise RuntimeError(
                    f"einsum: subscript {letter} must have one size, got {size} for operand {i} "
                    f"and {known} before, which do not broadcast"
                )
