"""Variances and standard deviations over axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axes, count_of, mean, real, spread
from fastlayers.functions.registry import numpy_names
from fastlayers.functions.table import recorded

__all__ = ["std", "std_mean", "var", "var_mean"]


def _deviations(x: np.ndarray, over: tuple[int, ...], correction: float) -> tuple[Any, Any]:
    """Deviations from the mean, and the divisor for the sum of their squares, if above 0."""
    count = count_of(x, over)
    centred = x - x.sum(over, keepdims=True) / x.dtype.type(count)
    return centred, x.dtype.type(count - correction)


def _correction(dim: Any, unbiased: bool | None, correction: float | None) -> tuple[Any, float]:
    """The axes, and what is subtracted from the number of elements; `unbiased` may come first."""
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
        The older name of `correction`: True for 1, False for 0; may be passed in place of `dim`.
    keepdim : bool
    correction : float
    """
    dim, correction = _correction(dim, unbiased, correction)
    x, over = real("var", x, None), axes("var", x.ndim, dim)
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
    x, over = real("std", x, None), axes("std", x.ndim, dim)
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
