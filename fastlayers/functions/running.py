"""Products over axes, and running sums and products along one."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.functions.reduction import axis, summand
from fastlayers.functions.registry import register
from fastlayers.functions.table import recorded

__all__ = ["cumprod", "cumsum", "prod"]


@recorded()
def prod(x: np.ndarray, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> Any:
    """Product over one or all axes; int64 for integers and booleans."""
    over = None if dim is None else axis("prod", x.ndim, dim)
    a = summand(x, dtype)
    flat = a.reshape(-1, 1) if over is None or not x.ndim else np.moveaxis(a, over, 0)
    y = flat.prod(0, a.dtype).reshape(() if over is None or not x.ndim else flat.shape[1:])
    y = np.expand_dims(y, over) if keepdim and over is not None and x.ndim else y

    def gradient(dy: np.ndarray) -> Any:
        others = np.ones_like(flat)  # the product of all others, even where one is 0
        others[1:] = np.cumprod(flat[:-1], 0)
        others[:-1] *= np.cumprod(flat[:0:-1], 0)[::-1]
        dx = others * dy.reshape(flat.shape[1:])
        return dx.reshape(x.shape) if over is None or not x.ndim else np.moveaxis(dx, 0, over)

    return y, gradient


@recorded()
def cumsum(x: np.ndarray, dim: Any, *, dtype: Any = None) -> Any:
    """Cumulative sum along an axis; int64 for integers and booleans."""
    along = axis("cumsum", x.ndim, dim)
    a = np.atleast_1d(summand(x, dtype))

    def gradient(dy: np.ndarray) -> Any:
        back = np.flip(np.atleast_1d(dy), along)
        return np.flip(np.cumsum(back, along), along).reshape(x.shape).astype(x.dtype)

    return np.cumsum(a, along, a.dtype).reshape(x.shape), gradient


@recorded(saves=(0,))
def cumprod(x: np.ndarray, dim: Any, *, dtype: Any = None) -> Any:
    """Cumulative product along an axis; int64 for integers and booleans."""
    along = axis("cumprod", x.ndim, dim)
    a = np.moveaxis(np.atleast_1d(summand(x, dtype)), along, 0)
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
