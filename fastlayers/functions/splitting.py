"""Parts of a tensor along an axis: views."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axis
from fastlayers.functions.registry import method, numpy_names
from fastlayers.functions.shape import sizes
from fastlayers.functions.table import view

__all__ = ["chunk", "narrow", "select", "split", "tensor_split", "unbind"]


@view
def narrow(x: np.ndarray, dim: int, start: Any, length: int) -> Any:
    """`length` elements along an axis, from `start` on.

    Raises
    ------
    IndexError, RuntimeError
        If they are not in the tensor.
    """
    at, start, length = axis("narrow", x.ndim, dim), int(start), int(length)
    size = x.shape[at] if x.ndim else 0
    if not -size <= start <= size:
        raise IndexError(f"narrow: start must be in [{-size}, {size}], got {start}")
    start += size if start < 0 else 0
    if length < 0 or start + length > size:
        raise RuntimeError(
            f"narrow: start + length must be at most the size {size} of dim {dim}, got "
            f"{start} + {length}"
        )
    return _part((*(slice(None),) * at, slice(start, start + length)), x)


@view
def select(x: np.ndarray, dim: int, index: Any) -> Any:
    """The part at one index of an axis, without that axis.

    Raises
    ------
    IndexError
        If the index is out of range.
    """
    at, index = axis("select", x.ndim, dim), int(index)
    size = x.shape[at] if x.ndim else 0
    if not -size <= index < size:
        raise IndexError(f"select: index must be in [{-size}, {size - 1}], got {index}")
    return _part((*(slice(None),) * at, index, ...), x)


def _part(where: tuple[Any, ...], x: np.ndarray) -> Any:
    """The view ``x[where]``, and a function to its gradient."""

    def gradient(dy: np.ndarray) -> np.ndarray:
        dx = np.zeros_like(x, dy.dtype)
        dx[where] = dy
        return dx

    return lambda array: array[where], gradient


def _length(op: str, x: Tensor, dim: int) -> tuple[int, int]:
    """An axis and its length."""
    if not x.ndim:
        raise RuntimeError(f"{op}: input must be at least a 1-dimensional tensor, got a 0-d one")
    at = axis(op, x.ndim, dim)
    return at, x.shape[at]


@numpy_names
def split(tensor: Tensor, split_size_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of parts along an axis: of equal size, except that the last may be smaller, or of
    several.

    Raises
    ------
    RuntimeError
        If a size is negative, or several don't add up to the length.
    """
    at, whole = _length("split", tensor, dim)
    size = split_size_or_sections
    if isinstance(size, (list, tuple)):
        lengths = sizes("split", (size,), "split_size_or_sections")
        if sum(lengths) != whole or min(lengths, default=0) < 0:
            raise RuntimeError(
                f"split: split_size_or_sections must not be negative and sum exactly to {whole}, "
                f"got {list(lengths)}"
            )
    else:
        size = sizes("split", (size,), "split_size_or_sections")[0]
        if size < 0 or (size == 0 and whole):
            raise RuntimeError(f"split: split_size must be positive, got {size}")
        starts = range(0, whole, size) if size and whole else (0,)
        lengths = tuple(min(size, whole - start) for start in starts)
    ends = np.cumsum(lengths, dtype=np.int64)
    pairs = zip(ends.tolist(), lengths, strict=True)
    return tuple(narrow(tensor, at, end - length, length) for end, length in pairs)


@numpy_names
def chunk(input: Tensor, chunks: int, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of at most `chunks` parts along an axis, of equal size except for the last.

    Raises
    ------
    RuntimeError
        If `chunks` is not positive.
    """
    at, whole = _length("chunk", input, dim)
    if chunks < 1:
        raise RuntimeError(f"chunk: chunks must be greater than 0, got {chunks}")
    if not whole:
        return split(input, [0] * chunks, at)
    return split(input, -(-whole // chunks), at)


@numpy_names
def tensor_split(input: Tensor, indices_or_sections: Any, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of parts along an axis: a number of nearly equal ones, or split at indices.

    Raises
    ------
    RuntimeError
        If the number of parts is not positive.
    """
    at, whole = _length("tensor_split", input, dim)
    where = indices_or_sections
    where = where.tolist() if isinstance(where, Tensor) else where
    if isinstance(where, (list, tuple)):
        places = sizes("tensor_split", (where,), "indices_or_sections")
        marks = [slice(0, i).indices(whole)[1] for i in places]
    else:
        count = sizes("tensor_split", (where,), "indices_or_sections")[0]
        if count < 1:
            raise RuntimeError(f"tensor_split: sections must be greater than 0, got {count}")
        small, larger = divmod(whole, count)
        marks = [i * small + min(i, larger) for i in range(1, count)]
    pairs = zip([0, *marks], [*marks, whole], strict=True)
    return tuple(narrow(input, at, start, max(end - start, 0)) for start, end in pairs)


@numpy_names
def unbind(input: Tensor, dim: int = 0) -> tuple[Tensor, ...]:
    """Views of all parts along an axis, without it.

    Raises
    ------
    IndexError
        If there is no axis.
    """
    if not input.ndim:
        raise IndexError("unbind: input must have an axis, got a 0-d tensor (it has no dimensions)")
    at = axis("unbind", input.ndim, dim)
    return tuple(select(input, at, i) for i in range(input.shape[at]))


for _function in (split, chunk, tensor_split, unbind):
    method(_function, _function.__name__)
method(split, "split_with_sizes")
