"""Joining of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.promotion import common
from fastlayers.functions.reduction import axis
from fastlayers.functions.registry import NUMPY, numpy_names
from fastlayers.functions.shape import reshape
from fastlayers.functions.table import result
from fastlayers.ops.layout import ordered

__all__ = [
    "atleast_1d",
    "atleast_2d",
    "atleast_3d",
    "cat",
    "column_stack",
    "concat",
    "concatenate",
    "dstack",
    "hstack",
    "stack",
    "vstack",
]


def _given(op: str, tensors: Any) -> list[Tensor]:
    """The tensors to join; anything else is rejected, as in PyTorch."""
    if isinstance(tensors, Tensor) or not isinstance(tensors, (list, tuple)):
        raise TypeError(
            f"{op}: tensors must be a list or tuple of tensors, got {type(tensors).__name__}"
        )
    for i, x in enumerate(tensors):
        if not isinstance(x, (Tensor, np.ndarray)):
            raise TypeError(f"{op}: tensors must be tensors, got {type(x).__name__} at {i}")
    if not tensors:
        error = ValueError if op == "cat" else RuntimeError  # as PyTorch
        raise error(f"{op}: tensors must hold at least one (non-empty), got none")
    return [tensor(x) for x in tensors]


@numpy_names
def cat(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors along an existing axis; empty ones of shape (0,) are skipped.

    Parameters
    ----------
    tensors : sequence of Tensor
        Of the same lengths along all other axes; the result has their common dtype.
    dim : int

    Raises
    ------
    TypeError, ValueError
        If they are not tensors, or there are none.
    RuntimeError
        If they have other lengths, or no axis.
    """
    given = _given("cat", tensors)
    dtype = common(tuple(given))
    parts = [x for x in given if x.shape != (0,)] or given[:1]
    first = parts[0].shape
    at = axis("cat", len(first), dim)
    for i, x in enumerate(parts):
        if not x.ndim:
            raise RuntimeError(f"cat: tensors must have an axis, got a zero-dimensional one at {i}")
        rest = (*x.shape[:at], *x.shape[at + 1 :])
        if len(x.shape) != len(first) or rest != (*first[:at], *first[at + 1 :]):
            raise RuntimeError(
                f"cat: sizes of tensors must match except in dimension {dim}, "
                f"got {tuple(first)} and {tuple(x.shape)}"
            )
    arrays = [x.array() for x in parts]
    ends = np.cumsum([array.shape[at] for array in arrays])[:-1]
    length = sum(array.shape[at] for array in arrays)
    out = ordered(arrays[0], (*first[:at], length, *first[at + 1 :]), dtype)
    np.concatenate(arrays, at, out=out, casting="unsafe")

    def gradient(dy: np.ndarray) -> tuple[np.ndarray | None, ...]:
        found = iter(np.split(dy, ends, at))
        used = {id(x) for x in parts}
        return tuple(next(found) if id(x) in used else np.zeros(x.shape, dy.dtype) for x in given)

    return result("cat", out, tuple(given), gradient)


@numpy_names
def stack(tensors: Sequence[Tensor], dim: int = 0) -> Tensor:
    """Join tensors of one shape along a new axis.

    Raises
    ------
    RuntimeError
        If their shapes differ.
    """
    given = _given("stack", tensors)
    for x in given:
        if x.shape != given[0].shape:
            raise RuntimeError(
                f"stack: tensors must have equal size, "
                f"got {tuple(given[0].shape)} and {tuple(x.shape)}"
            )
    at, dtype = axis("stack", given[0].ndim + 1, dim), common(tuple(given))
    out = np.stack([np.asarray(x.array(), dtype) for x in given], at)
    return result("stack", out, tuple(given), lambda dy: tuple(np.moveaxis(dy, at, 0)))


def _with_axes(x: Tensor, ndim: int) -> Tensor:
    """The tensor with axes of length 1 in front, up to `ndim` axes."""
    return x if x.ndim >= ndim else reshape(x, *(1,) * (ndim - x.ndim), *x.shape)


def hstack(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors along their second axis; 1-d tensors along their only one."""
    given = [_with_axes(x, 1) for x in _given("hstack", tensors)]
    return cat(given, 0 if given[0].ndim == 1 else 1)


def vstack(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors along their first axis; one axis is a row."""
    return cat([_with_axes(x, 2) for x in _given("vstack", tensors)])


def dstack(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors along their third axis; vectors and matrices get one."""
    return cat([atleast_3d(x) for x in _given("dstack", tensors)], 2)


def column_stack(tensors: Sequence[Tensor]) -> Tensor:
    """Join tensors along their second axis; a vector is a column."""
    given = [x if x.ndim > 1 else reshape(x, x.numel(), 1) for x in _given("column_stack", tensors)]
    return cat(given, 1)


def _at_least(ndim: int, fill: Any) -> Any:
    def function(*tensors: Any) -> Any:
        if len(tensors) == 1 and not isinstance(tensors[0], (tuple, list)):
            x = tensor(tensors[0])
            return x if x.ndim >= ndim else reshape(x, *fill(x.shape))
        listed = tensors[0] if len(tensors) == 1 else tensors
        return tuple(function(x) for x in listed)

    function.__name__ = function.__qualname__ = f"atleast_{ndim}d"
    function.__doc__ = f"The tensor, or each of several, with at least {ndim} axes."
    return function


atleast_1d = _at_least(1, lambda shape: (1,))
atleast_2d = _at_least(2, lambda shape: (1,) * (2 - len(shape)) + shape)
# A matrix gets its third axis at the end, a vector is in the middle.
atleast_3d = _at_least(
    3, lambda shape: (*shape, 1) if len(shape) == 2 else (1, *(shape or (1,)), 1)
)


concat = concatenate = cat
NUMPY |= {np.concatenate: cat, np.stack: stack, np.hstack: hstack, np.vstack: vstack}
