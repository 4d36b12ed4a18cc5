"""Squared error."""

from __future__ import annotations

import numpy as np

from fastlayers.ops.loss.common import elementwise_gradient, quiet, reduced, same_arrays

__all__ = ["mse_loss", "mse_loss_backward"]


@quiet
def mse_loss(input: np.ndarray, target: np.ndarray, reduction: str = "mean") -> np.ndarray:
    """Squared error, ``loss = (input - target)^2``.

    Parameters
    ----------
    input, target : ndarray
        Of the same shape and dtype, float32 or float64.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    ndarray
        A scalar (0-d), or the input's shape without reduction.

    Raises
    ------
    TypeError, ValueError
        For shapes or dtypes that differ, and unknown reductions.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.mse_loss.html
    """
    x, t = same_arrays("mse_loss", input, target, reduction)
    return reduced(np.asarray((x - t) ** 2), reduction)


@quiet
def mse_loss_backward(
    grad_output: np.ndarray, input: np.ndarray, target: np.ndarray, reduction: str = "mean"
) -> np.ndarray:
    """Input gradient of `mse_loss`: ``2 * (input - target) * grad_output``."""
    op = "mse_loss_backward"
    x, t = same_arrays(op, input, target, reduction)
    slope = x.dtype.type(2) * (x - t)
    return np.asarray(slope * elementwise_gradient(op, grad_output, x, reduction))
