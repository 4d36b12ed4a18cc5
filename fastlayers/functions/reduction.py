"""Sums, means and extremes over axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.table import recorded, register, tensor

__all__ = ["argmax", "argmin", "mean", "sum"]


def axis(op: str, ndim: int, dim: Any) -> int:
    """One axis, from 0; a 0-d tensor has one too.

    Raises
    ------
    TypeError, IndexError
        If `dim` is no integer, or no axis.
    """
    if isinstance(dim, Tensor):
        dim = dim.item()
    if not isinstance(dim, (int, np.integer)) or isinstance(dim, bool):
        raise TypeError(f"{op}: dim must be an integer, got {type(dim).__name__} {dim!r}")
    most = max(ndim, 1)
    if not -most <= dim < most:
        raise IndexError(f"{op}: dim must be in [{-most}, {most - 1}], got {dim}")
    return int(dim) % most


def axes(op: str, ndim: int, dim: Any) -> tuple[int, ...]:
    """Several axes, from 0: all for None and for an empty tuple."""
    if dim is None or (isinstance(dim, (tuple, list)) and not dim):
        return tuple(range(ndim))
    given = dim if isinstance(dim, (tuple, list)) else (dim,)
    found = tuple(axis(op, ndim, d) for d in given)
    if len(set(found)) < len(found):
        raise RuntimeError(f"{op}: dim must not repeat an axis, got {tuple(given)}")
    return found if ndim else ()


def spread(
    dy: np.ndarray, shape: tuple[int, ...], over: tuple[int, ...], keepdim: bool
) -> np.ndarray:
    """A gradient or a result of a reduction, along the axes that it was reduced over."""
    return np.broadcast_to(dy if keepdim else np.expand_dims(dy, over), shape)


@recorded(numpy=np.sum)
def sum(
    x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """Sum over one, several or all axes; of integers and booleans in int64."""
    over = axes("sum", x.ndim, dim)
    if dtype is None and x.dtype.kind in "biu":
        dtype = np.int64
    y = x.sum(over, dtype, keepdims=keepdim)
    return y, lambda dy: spread(dy, x.shape, over, keepdim).astype(x.dtype)


@recorded(numpy=np.mean)
def mean(
    x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Any:
    """Mean over one, several or all axes."""
    if x.dtype.kind != "f" and dtype is None:
        raise RuntimeError(f"mean: input must be floating point, got {x.dtype}; use dtype=")
    over = axes("mean", x.ndim, dim)
    with np.errstate(all="ignore"):
        count = np.prod([x.shape[i] for i in over], dtype=np.int64)
        y = x.sum(over, dtype, keepdims=keepdim)
        y = np.asarray(y / y.dtype.type(count))
    scale = y.dtype.type(count)
    return y, lambda dy: spread(dy / scale, x.shape, over, keepdim).astype(x.dtype)


def _position(name: str, find: Any) -> Any:
    def function(input: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
        x = tensor(input).array()
        over = None if dim is None else axis(name, x.ndim, dim)
        if not x.ndim:
            return Tensor(np.zeros((), np.int64))
        if x.size == 0 if over is None else x.shape[over] == 0:
            raise IndexError(f"{name}: input must have elements along dim, got shape {x.shape}")
        return Tensor(np.asarray(find(x, axis=over, keepdims=keepdim)))

    function.__doc__ = f"Index of the first {name[3:]}imum, over all elements or along an axis."
    return register(name, function, find, in_place=False)


argmax = _position("argmax", np.argmax)
argmin = _position("argmin", np.argmin)
