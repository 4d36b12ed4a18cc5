"""Negative log-likelihood of class indices."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.layout import kernel_ready
from fastlayers.ops.loss.common import REDUCTIONS, as_array, class_axis, class_weights, quiet
from fastlayers.runtime import memory

__all__ = ["nll_loss", "nll_loss_backward"]


class _Classes:
    """Checked arguments of a loss over classes, as rows of (samples, classes)."""

    def __init__(
        self, op: str, input: Any, target: Any, weight: Any, ignore_index: Any, reduction: Any
    ) -> None:
        self.x = x = check.array(op, "input", input)
        check.one_of(op, "reduction", reduction, REDUCTIONS)
        self.axis = axis = class_axis(op, x)
        classes = x.shape[axis]
        self.shape = x.shape[:axis] + x.shape[axis + 1 :]
        self.ignore_index = check.integer(op, "ignore_index", ignore_index, -(2**63))
        labels = check.labels(op, target, self.shape, classes, self.ignore_index)
        self.labels = memory.writable_view(labels).reshape(-1)
        self.weight = class_weights(op, weight, classes, x.dtype)
        last = x if axis == x.ndim - 1 else np.moveaxis(x, axis, -1)
        self.rows = kernel_ready(last).reshape(-1, classes)
        self.reduction, self._weighted = reduction, weight is not None

    def _mean(self, total: Any) -> Any:
        """A sum over the weights of the targets that are not ignored; NaN where there are none."""
        kept = self.labels != self.ignore_index
        if self._weighted:
            weight = self.weight[self.labels[kept]].sum()
        else:
            weight = self.x.dtype.type(np.count_nonzero(kept))
        return total / weight if weight else np.nan

    def reduce(self, losses: np.ndarray) -> np.ndarray:
        """The rows' losses, or their sum or mean; a mean over nothing is NaN."""
        if self.reduction == "none":
            return losses.reshape(self.shape)
        total = losses.sum()
        if self.reduction == "mean":
            total = self._mean(total)
        return np.asarray(total, self.x.dtype)

    def row_gradients(self, op: str, grad_output: Any) -> np.ndarray:
        """Gradient of each row's loss."""
        shape = self.shape if self.reduction == "none" else ()
        dy = check.gradient(op, as_array(grad_output), shape, self.x.dtype)
        if self.reduction == "mean":
            dy = np.asarray(self._mean(dy), self.x.dtype)
        return np.ascontiguousarray(np.broadcast_to(dy, self.shape)).reshape(-1)

    def restore(self, rows: np.ndarray) -> np.ndarray:
        """A result for each row and class in the shape of the input."""
        out = rows.reshape(*self.shape, rows.shape[1])
        return out if self.axis == out.ndim - 1 else np.moveaxis(out, -1, self.axis)


@quiet
def nll_loss(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> np.ndarray:
    """Negative log-likelihood of class indices, ``loss = -w[t] * input[t]``.

    Parameters
    ----------
    input : ndarray
        Log-probabilities (N, C), (C,) or (N, C, d1, ...), float32 or float64.
    target, weight, ignore_index, reduction
        As in `cross_entropy`.

    Returns
    -------
    ndarray
        A scalar (0-d), or the target's shape without reduction.

    Raises
    ------
    TypeError, ValueError
        For wrong shapes, dtypes or options, and targets that are no class.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.nll_loss.html
    """
    classes = _Classes("nll_loss", input, target, weight, ignore_index, reduction)
    kept = np.flatnonzero(classes.labels != classes.ignore_index)
    losses = memory.zeros(len(classes.rows), classes.x.dtype)
    label = classes.labels[kept]
    losses[kept] = -classes.weight[label] * classes.rows[kept, label]
    return classes.reduce(losses)


@quiet
def nll_loss_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> np.ndarray:
    """Input gradient of `nll_loss`: ``-w[t] * grad_output`` at each target, else 0."""
    op = "nll_loss_backward"
    classes = _Classes(op, input, target, weight, ignore_index, reduction)
    kept = np.flatnonzero(classes.labels != classes.ignore_index)
    dx = memory.zeros(classes.rows.shape, classes.x.dtype)
    label = classes.labels[kept]
    dx[kept, label] = -classes.weight[label] * classes.row_gradients(op, grad_output)[kept]
    return classes.restore(dx)
