"""Sums, means, extrema and other reductions over axes.

References
----------
https://docs.pytorch.org/docs/stable/torch.html#reduction-ops
"""

from __future__ import annotations

import math
import operator
from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor, wants_grad
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.promotion import floating
from fastlayers.functions.registry import numpy_names, register
from fastlayers.functions.table import recorded

__all__ = [
    "amax",
    "amin",
    "argmax",
    "argmin",
    "bincount",
    "count_nonzero",
    "logsumexp",
    "mean",
    "nanmean",
    "nansum",
    "sum",
]


def axis(op: str, ndim: int, dim: Any) -> int:
    """One axis, from 0; a 0-d tensor has one too.

    Raises
    ------
    TypeError, IndexError
        If `dim` is not an integer, or not an axis.
    """
    try:
        at = operator.index(dim)  # of tensors and arrays without axes too
    except TypeError:
        at = None
    if at is None or isinstance(dim, bool):
        raise TypeError(f"{op}: dim must be an integer, got {type(dim).__name__} {dim!r}")
    most = max(ndim, 1)
    if not -most <= at < most:
        raise IndexError(f"{op}: dim must be in [{-most}, {most - 1}], got {at}")
    return at % most


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


def summand(x: np.ndarray, dtype: Any) -> np.ndarray:
    """The terms of sums and products: integers and booleans become int64."""
    if dtype is None:
        dtype = x.dtype if x.dtype.kind == "f" else np.int64
    return x.astype(dtype, copy=False)


@recorded()
def sum(x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sum over one, several or all axes; int64 for integers and booleans."""
    over = axes("sum", x.ndim, dim)
    a = summand(x, dtype)
    y = a.sum(over, a.dtype, keepdims=keepdim)
    return y, lambda dy: spread(dy, x.shape, over, keepdim).astype(x.dtype)


@recorded()
def nansum(x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """`sum` with NaN taken as 0."""
    over = axes("nansum", x.ndim, dim)
    a, counts = summand(x, dtype), ~np.isnan(x)
    y = np.where(counts, a, a.dtype.type(0)).sum(over, a.dtype, keepdims=keepdim)
    return y, lambda dy: (spread(dy, x.shape, over, keepdim) * counts).astype(x.dtype)


def count_of(x: np.ndarray, over: tuple[int, ...]) -> int:
    return math.prod(x.shape[i] for i in over)


def real(op: str, x: np.ndarray, dtype: Any) -> np.ndarray:
    kind = x.dtype if dtype is None else np.dtype(dtype)
    if kind.kind != "f":
        raise RuntimeError(f"{op}: input must be floating point, got {kind}")
    return x.astype(kind, copy=False)


@recorded()
def mean(x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Mean over one, several or all axes.

    Raises
    ------
    RuntimeError
        If the input and `dtype` are not floating point.
    """
    a = real("mean", x, dtype)
    over = axes("mean", x.ndim, dim)
    count = a.dtype.type(count_of(x, over))
    y = np.asarray(a.sum(over, keepdims=keepdim) / count)
    return y, lambda dy: spread(dy / count, x.shape, over, keepdim).astype(x.dtype)


@numpy_names
def nanmean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Mean of the elements that are not NaN."""
    counts = ~np.isnan(tensor(input).array())
    number = counts.sum(axes("nanmean", counts.ndim, dim), keepdims=keepdim)
    total = nansum(input, dim, keepdim, dtype=dtype)
    return total / Tensor(np.asarray(number, total.dtype))


register("nanmean", nanmean, in_place=False)


@recorded(saves=(0,))
def logsumexp(x: np.ndarray, dim: Any, keepdim: bool = False) -> Any:
    """``log(sum(e^x))``, without overflow."""
    a, over = floating(x), axes("logsumexp", x.ndim, dim)
    most = a.max(over, keepdims=True, initial=-np.inf)
    most = np.where(np.isfinite(most), most, a.dtype.type(0))
    y = np.log(np.exp(a - most).sum(over, keepdims=True)) + most

    def gradient(dy: np.ndarray) -> Any:
        return spread(dy, x.shape, over, keepdim) * np.exp(a - np.where(y == -np.inf, 0, y))

    return y if keepdim else y.squeeze(over), gradient


def ties(dy: np.ndarray, chosen: np.ndarray, over: tuple[int, ...] | None) -> np.ndarray:
    """A gradient along reduced axes, spread evenly among the elements that were chosen."""
    return np.asarray(chosen * (dy / chosen.sum(over, keepdims=True, dtype=dy.dtype)))


def _extreme(name: str, find: Any) -> Any:
    @recorded(saves=(0,), saves_output=True)
    def function(x: np.ndarray, dim: Any = (), keepdim: bool = False) -> Any:
        over = axes(name, x.ndim, dim)
        if not all(x.shape[i] for i in over):
            raise IndexError(f"{name}: input must have elements along dim, got shape {x.shape}")
        y = np.asarray(find(x, axis=over, keepdims=keepdim))

        def gradient(dy: np.ndarray) -> Any:
            chosen = x == spread(y, x.shape, over, keepdim)
            return ties(spread(dy, x.shape, over, keepdim), chosen, over)

        return y, gradient

    function.__doc__ = f"{name[1:].capitalize()}imum; equal ones share the gradient evenly."
    return register(name, function, in_place=False)


amax = _extreme("amax", np.max)
amin = _extreme("amin", np.min)


def _position(name: str, find: Any) -> Any:
    @numpy_names
    def function(input: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
        x = tensor(input).array()
        over = None if dim is None else axis(name, x.ndim, dim)
        if not x.ndim:
            return Tensor(np.zeros((), np.int64))
        if x.size == 0 if over is None else x.shape[over] == 0:
            raise IndexError(f"{name}: input must have elements along dim, got shape {x.shape}")
        return Tensor(np.asarray(find(x, axis=over, keepdims=keepdim)))

    function.__doc__ = f"Index of the first {name[3:]}imum, over all elements or along an axis."
    return register(name, function, in_place=False)


argmax = _position("argmax", np.argmax)
argmin = _position("argmin", np.argmin)


@numpy_names
def count_nonzero(input: Any, dim: Any = None) -> Tensor:
    """The number of elements that are not 0."""
    x = tensor(input).array()
    return Tensor(np.asarray(np.count_nonzero(x, axes("count_nonzero", x.ndim, dim)), np.int64))


register("count_nonzero", count_nonzero, in_place=False)


def bincount(input: Any, weights: Any = None, minlength: int = 0) -> Tensor:
    """How often each of the integers from 0 occurs, or the sums of the weights of each.

    Parameters
    ----------
    input : Tensor
        Integers, not negative, along one axis.
    weights : Tensor, optional
        One for each, without a gradient.
    minlength : int
        Minimum length of the result.

    Raises
    ------
    RuntimeError
        If the input is anything else, or a gradient of the weights is required.
    """
    x = tensor(input).array()
    if x.dtype.kind not in "iu" or x.ndim != 1 or (x.size and x.min() < 0) or minlength < 0:
        raise RuntimeError(
            f"bincount: input must be integers from 0 along one axis, and minlength not negative, "
            f"got {x.dtype} of shape {x.shape} and {minlength}"
        )
    if weights is None:
        return Tensor(np.bincount(x.astype(np.int64), minlength=minlength))
    if wants_grad((tensor(weights),)):
        raise RuntimeError("bincount: weights must not require a gradient, got some that do")
    given = tensor(weights).array()
    counts = np.bincount(x.astype(np.int64), given, minlength)
    return Tensor(counts.astype(np.float32 if given.dtype == np.float32 else np.float64))


register("bincount", bincount, in_place=False)
