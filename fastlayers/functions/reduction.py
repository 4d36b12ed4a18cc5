"""Sums, means, extremes and the like over axes, and running sums along one.

References
----------
https://docs.pytorch.org/docs/stable/torch.html#reduction-ops
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.promotion import floating
from fastlayers.functions.table import numpy_names, recorded, register, tensor

__all__ = [
    "amax",
    "amin",
    "argmax",
    "argmin",
    "count_nonzero",
    "cumprod",
    "cumsum",
    "logsumexp",
    "mean",
    "nanmean",
    "nansum",
    "prod",
    "std",
    "std_mean",
    "sum",
    "var",
    "var_mean",
]


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


def _summand(x: np.ndarray, dtype: Any) -> np.ndarray:
    """What sums and products are made of: integers and booleans become int64."""
    if dtype is None:
        dtype = x.dtype if x.dtype.kind == "f" else np.int64
    return x.astype(dtype, copy=False)


@recorded()
def sum(x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Sum over one, several or all axes; of integers and booleans in int64."""
    over = axes("sum", x.ndim, dim)
    a = _summand(x, dtype)
    y = a.sum(over, a.dtype, keepdims=keepdim)
    return y, lambda dy: spread(dy, x.shape, over, keepdim).astype(x.dtype)


@recorded()
def nansum(x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """`sum` with NaN taken as 0."""
    over = axes("nansum", x.ndim, dim)
    a, counts = _summand(x, dtype), ~np.isnan(x)
    y = np.where(counts, a, a.dtype.type(0)).sum(over, a.dtype, keepdims=keepdim)
    return y, lambda dy: (spread(dy, x.shape, over, keepdim) * counts).astype(x.dtype)


def _count(x: np.ndarray, over: tuple[int, ...]) -> int:
    return math.prod(x.shape[i] for i in over)


def _real(op: str, x: np.ndarray, dtype: Any) -> np.ndarray:
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
    a = _real("mean", x, dtype)
    over = axes("mean", x.ndim, dim)
    count = a.dtype.type(_count(x, over))
    y = np.asarray(a.sum(over, keepdims=keepdim) / count)
    return y, lambda dy: spread(dy / count, x.shape, over, keepdim).astype(x.dtype)


@numpy_names
def nanmean(input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Tensor:
    """Mean of what is not NaN."""
    counts = ~np.isnan(tensor(input).array())
    number = counts.sum(axes("nanmean", counts.ndim, dim), keepdims=keepdim)
    total = nansum(input, dim, keepdim, dtype=dtype)
    return total / Tensor(np.asarray(number, total.dtype))


register("nanmean", nanmean, in_place=False)


@recorded()
def prod(x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Product over one or all axes; of integers and booleans in int64."""
    over = None if dim is None else axis("prod", x.ndim, dim)
    a = _summand(x, dtype)
    flat = a.reshape(-1, 1) if over is None or not x.ndim else np.moveaxis(a, over, 0)
    y = flat.prod(0, a.dtype).reshape(() if over is None or not x.ndim else flat.shape[1:])
    y = np.expand_dims(y, over) if keepdim and over is not None and x.ndim else y

    def gradient(dy: np.ndarray) -> Any:
        others = np.ones_like(flat)  # the product of all others, also where one is 0
        others[1:] = np.cumprod(flat[:-1], 0)
        others[:-1] *= np.cumprod(flat[:0:-1], 0)[::-1]
        dx = others * dy.reshape(flat.shape[1:])
        return dx.reshape(x.shape) if over is None or not x.ndim else np.moveaxis(dx, 0, over)

    return y, gradient


def _deviations(x: np.ndarray, over: tuple[int, ...], correction: float) -> tuple[Any, Any]:
    """Deviations from the mean, and what the sum of their squares is divided by, if above 0."""
    count = _count(x, over)
    centred = x - x.sum(over, keepdims=True) / x.dtype.type(count)
    return centred, x.dtype.type(count - correction)


def _correction(dim: Any, unbiased: bool | None, correction: float | None) -> tuple[Any, float]:
    """The axes, and what is taken off the number of elements; `unbiased` may come first."""
    if isinstance(dim, bool):
        dim, unbiased = None, dim
    if correction is None:
        correction = 1 if unbiased is None else int(unbiased)
    return dim, correction


@recorded(saves=(0,))
def var(
    x: np.ndarray,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """Variance: squared deviations from the mean, over ``N - correction``, 1 by default.

    Parameters
    ----------
    x : Tensor
        Floating point.
    dim : int or sequence, optional
        The axes, all by default.
    unbiased : bool
        The older name of `correction`: True for 1, False for 0; may stand in the place of `dim`.
    keepdim : bool
    correction : float
    """
    dim, correction = _correction(dim, unbiased, correction)
    x, over = _real("var", x, None), axes("var", x.ndim, dim)
    centred, count = _deviations(x, over, correction)
    y = np.square(centred).sum(over, keepdims=keepdim) / np.maximum(count, 0)
    return y, lambda dy: centred * spread(dy * (x.dtype.type(2) / count), x.shape, over, keepdim)


@recorded(saves=(0,), saves_output=True)
def std(
    x: np.ndarray,
    dim: Any = None,
    unbiased: bool | None = None,
    keepdim: bool = False,
    *,
    correction: float | None = None,
) -> Any:
    """Standard deviation, the square root of `var`; where it is 0 the gradient is 0."""
    dim, correction = _correction(dim, unbiased, correction)
    x, over = _real("std", x, None), axes("std", x.ndim, dim)
    centred, count = _deviations(x, over, correction)
    squares = np.square(centred).sum(over, keepdims=keepdim)
    y = np.asarray(np.sqrt(squares / np.maximum(count, 0)))

    def gradient(dy: np.ndarray) -> Any:
        scale = np.where(y == 0, y.dtype.type(0), dy / (y * count))
        return centred * spread(scale, x.shape, over, keepdim)

    return y, gradient


@numpy_names
def var_mean(
    input: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, **options: Any
) -> tuple[Tensor, Tensor]:
    """`var` and `mean`."""
    over = None if isinstance(dim, bool) else dim
    return var(input, dim, unbiased, keepdim, **options), mean(input, over, keepdim)


@numpy_names
def std_mean(
    input: Any, dim: Any = None, unbiased: Any = None, keepdim: bool = False, **options: Any
) -> tuple[Tensor, Tensor]:
    """`std` and `mean`."""
    over = None if isinstance(dim, bool) else dim
    return std(input, dim, unbiased, keepdim, **options), mean(input, over, keepdim)


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
    """How many elements are not 0."""
    x = tensor(input).array()
    return Tensor(np.asarray(np.count_nonzero(x, axes("count_nonzero", x.ndim, dim)), np.int64))


register("count_nonzero", count_nonzero, in_place=False)


@recorded()
def cumsum(x: np.ndarray, dim: Any, *, dtype: Any = None) -> Any:
    """Running sum along an axis; of integers and booleans in int64."""
    along = axis("cumsum", x.ndim, dim)
    a = np.atleast_1d(_summand(x, dtype))

    def gradient(dy: np.ndarray) -> Any:
        back = np.flip(np.atleast_1d(dy), along)
        return np.flip(np.cumsum(back, along), along).reshape(x.shape).astype(x.dtype)

    return np.cumsum(a, along, a.dtype).reshape(x.shape), gradient


@recorded(saves=(0,))
def cumprod(x: np.ndarray, dim: Any, *, dtype: Any = None) -> Any:
    """Running product along an axis; of integers and booleans in int64."""
    along = axis("cumprod", x.ndim, dim)
    a = np.moveaxis(np.atleast_1d(_summand(x, dtype)), along, 0)
    y = np.cumprod(a, 0, a.dtype)

    def gradient(dy: np.ndarray) -> Any:
        """``dx[i] = y[i - 1] * (dy[i] + x[i + 1] * (dy[i + 1] + ...))``, right for 0 too."""
        rest = np.moveaxis(np.atleast_1d(dy), along, 0).copy()
        for i in range(len(a) - 2, -1, -1):
            rest[i] += a[i + 1] * rest[i + 1]
        rest[1:] *= y[:-1]
        return np.moveaxis(rest, 0, along).reshape(x.shape).astype(x.dtype)

    return np.moveaxis(y, 0, along).reshape(x.shape), gradient


register("cumsum", cumsum)
register("cumprod", cumprod)
