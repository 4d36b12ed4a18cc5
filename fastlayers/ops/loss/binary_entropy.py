"""Binary cross entropy of logits."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.loss.common import elementwise_gradient, quiet, reduced, same_arrays

__all__ = [
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "binary_cross_entropy_with_logits_by_target",
]


def _factor(op: str, name: str, value: Any, x: np.ndarray) -> np.ndarray | None:
    """A factor that broadcasts against the input."""
    if value is None:
        return None
    factor = check.array(op, name, value)
    check.same_dtype(op, name, factor, x.dtype)
    try:
        fits = np.broadcast_shapes(factor.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{op}: {name} must broadcast to the input's shape {x.shape}, "
            f"got {check.describe(value)}"
        )
    return factor


@quiet
def binary_cross_entropy_with_logits(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    reduction: str = "mean",
    pos_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Cross entropy of independent binary targets under the sigmoid of logits.

    ``loss = weight * (pos_weight * t * softplus(-x) + (1 - t) * softplus(x))`` with
    ``softplus(x) = log(1 + exp(x))``, without overflow.

    The loss of an infinite logit is infinite, or NaN where its target is the one it predicts, as 0
    times infinity is; PyTorch's is NaN for all targets of minus infinity. The gradient is finite.

    Parameters
    ----------
    input, target : ndarray
        Logits, and targets in [0, 1], of the same shape and dtype, float32 or float64.
    weight, pos_weight : ndarray, optional
        Factors that broadcast against the input, of all losses and of those of positive targets.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    ndarray
        A scalar (0-d), or the input's shape without reduction.

    Raises
    ------
    TypeError, ValueError
        For shapes or dtypes that do not fit, and unknown reductions.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy_with_logits.html
    """
    op = "binary_cross_entropy_with_logits"
    x, t = same_arrays(op, input, target, reduction)
    factors = _factor(op, "weight", weight, x), _factor(op, "pos_weight", pos_weight, x)
    positive = t if factors[1] is None else t * factors[1]
    losses = positive * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
    return reduced(np.asarray(losses if factors[0] is None else losses * factors[0]), reduction)


@quiet
def binary_cross_entropy_with_logits_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    reduction: str = "mean",
    pos_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Input gradient of `binary_cross_entropy_with_logits`.

    ``weight * ((1 - t) * sigmoid(x) - pos_weight * t * sigmoid(-x)) * grad_output``.
    """
    op = "binary_cross_entropy_with_logits_backward"
    x, t = same_arrays(op, input, target, reduction)
    factors = _factor(op, "weight", weight, x), _factor(op, "pos_weight", pos_weight, x)
    positive = t if factors[1] is None else t * factors[1]
    # exp(-softplus(-x)) is sigmoid(x), exact at both ends.
    slope = (1 - t) * np.exp(-np.logaddexp(0, -x)) - positive * np.exp(-np.logaddexp(0, x))
    slope = slope if factors[0] is None else slope * factors[0]
    return np.asarray(slope * elementwise_gradient(op, grad_output, x, reduction))


@quiet
def binary_cross_entropy_with_logits_by_target(
    grad_output: np.ndarray,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    reduction: str = "mean",
    pos_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Target gradient of `binary_cross_entropy_with_logits`.

    ``weight * (pos_weight * softplus(-x) - softplus(x)) * grad_output``, without a pos_weight
    ``-weight * x * grad_output``.
    """
    op = "binary_cross_entropy_with_logits_by_target"
    x, _ = same_arrays(op, input, target, reduction)
    factors = _factor(op, "weight", weight, x), _factor(op, "pos_weight", pos_weight, x)
    slope = -x
    if factors[1] is not None:
        slope = factors[1] * np.logaddexp(0, -x) - np.logaddexp(0, x)
    slope = slope if factors[0] is None else slope * factors[0]
    return np.asarray(slope * elementwise_gradient(op, grad_output, x, reduction))
