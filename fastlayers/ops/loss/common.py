"""What losses share: reductions, class weights and gradients of scalars."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.layout import raveled
from fastlayers.runtime import memory

__all__ = [
    "REDUCTIONS",
    "as_array",
    "class_axis",
    "class_weights",
    "elementwise_gradient",
    "quiet",
    "reduced",
    "same_arrays",
]

REDUCTIONS = ("none", "mean", "sum")
# NaN and infinity come without warnings, as they do from kernels.
quiet = np.errstate(all="ignore")


def as_array(grad_output: Any) -> Any:
    """A number as an array; anything else as it is."""
    return np.asarray(grad_output) if isinstance(grad_output, (float, np.floating)) else grad_output


def class_axis(op: str, x: np.ndarray) -> int:
    """The axis of an input's classes, of which there must be some."""
    axis = 1 if x.ndim > 1 else 0
    if x.ndim == 0 or x.shape[axis] == 0:
        raise ValueError(
            f"{op}: input must be (N, C), (C,) or (N, C, ...) with classes, got {check.describe(x)}"
        )
    return axis


@functools.lru_cache(maxsize=64)
def _ones(size: int, dtype: np.dtype) -> np.ndarray:
    return np.ones(size, dtype)


def class_weights(op: str, weight: Any, classes: int, dtype: np.dtype) -> np.ndarray:
    """The weight of each class, checked; ones if there is no `weight`."""
    if weight is None:
        return _ones(classes, dtype)
    return memory.writable_view(check.vector(op, "weight", weight, classes, dtype))


def reduced(losses: np.ndarray, reduction: str) -> np.ndarray:
    """The elements' losses, or their sum or mean."""
    if reduction == "none":
        return losses
    # In one order, whatever that of the arguments is: NumPy's sums follow it.
    total = raveled(losses).sum() / losses.dtype.type(losses.size if reduction == "mean" else 1)
    return np.asarray(total, losses.dtype)


def elementwise_gradient(op: str, grad_output: Any, x: np.ndarray, reduction: str) -> np.ndarray:
    """Gradient of each element's loss, to be broadcast."""
    shape = x.shape if reduction == "none" else ()
    dy = check.gradient(op, as_array(grad_output), shape, x.dtype)
    return dy / x.dtype.type(x.size) if reduction == "mean" and x.size else dy


def same_arrays(op: str, input: Any, target: Any, reduction: Any) -> tuple[np.ndarray, np.ndarray]:
    """Input and target, checked to have one shape and dtype."""
    x = check.array(op, "input", input)
    t = check.array(op, "target", target)
    check.same_shape(op, "target", t, x.shape)
    check.same_dtype(op, "target", t, x.dtype)
    check.one_of(op, "reduction", reduction, REDUCTIONS)
    return x, t
