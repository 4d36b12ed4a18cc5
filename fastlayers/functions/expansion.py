"""Tensors repeated along axes without copies, and the shapes that broadcast together."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axis
from fastlayers.functions.registry import NUMPY, method
from fastlayers.functions.shape import sizes
from fastlayers.functions.table import unbroadcast, view

__all__ = ["broadcast_tensors", "broadcast_to"]


def expanded(op: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` repeated along new axes and those of length 1, without a copy.

    Raises
    ------
    RuntimeError
        If other lengths differ.
    """
    extra = len(shape) - array.ndim
    fits = extra >= 0 and -1 not in shape[:extra] and min(shape, default=0) >= -1
    if fits:
        whole = tuple(
            array.shape[i - extra] if size == -1 else size for i, size in enumerate(shape)
        )
        lengths = zip(array.shape, whole[extra:], strict=True)
        fits = all(old in (1, new) for old, new in lengths)
    if not fits:
        raise RuntimeError(
            f"{op}: shape must have the lengths of {array.shape} but for those of 1 and new axes "
            f"in front (the expanded size must match the existing size), got {shape}"
        )
    strides = (0,) * extra + tuple(
        0 if old == 1 != new else step
        for old, new, step in zip(array.shape, whole[extra:], array.strides, strict=True)
    )
    return np.lib.stride_tricks.as_strided(array, whole, strides)


@view
def expand(x: np.ndarray, *size: Any, implicit: bool = False) -> Any:
    """Repeat axes of length 1, and along new axes in front, without copies; -1 keeps a length.

    Raises
    ------
    RuntimeError
        If another axis would change.
    """
    shape, before = sizes("expand", size, "size"), x.shape
    return lambda array: expanded("expand", array, shape), lambda dy: unbroadcast(dy, before)


def broadcast_to(input: Tensor, size: Any) -> Tensor:
    """`Tensor.expand`."""
    return expand(input, size)


def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """All tensors, each expanded to their common shape.

    Raises
    ------
    RuntimeError
        If the shapes don't broadcast.
    """
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        tensors = tuple(tensors[0])
    return tuple(expand(x, together("broadcast_tensors", *tensors)) for x in tensors)


def together(op: str, *tensors: Any) -> tuple[int, ...]:
    """The shape that tensors broadcast to.

    Raises
    ------
    RuntimeError
        If there is none.
    """
    shapes = [tuple(np.shape(x) if not isinstance(x, Tensor) else x.shape) for x in tensors]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise RuntimeError(
            f"{op}: shapes must be the same or 1 along each axis (the size of tensor a must match "
            f"the size of tensor b), got {', '.join(map(str, shapes))}"
        ) from None


@view
def unfold(x: np.ndarray, dimension: int, size: int, step: int) -> Any:
    """Windows along an axis, `step` apart, as a new last axis: a view.

    Raises
    ------
    RuntimeError
        If the axis is shorter than a window, or `step` is not positive.
    """
    at, whole = axis("unfold", x.ndim, dimension), x if x.ndim else x.reshape(1)
    if not 0 <= size <= whole.shape[at] or step < 1:
        raise RuntimeError(
            f"unfold: size must be in [0, {whole.shape[at]}] and step positive, "
            f"got {size} and {step}"
        )
    count = (whole.shape[at] - size) // step + 1

    def look(array: np.ndarray) -> np.ndarray:
        if not array.ndim:  # one window, without an axis for windows
            return array.reshape(1)[:size]
        shape: list[int] = list(array.shape)
        strides = list(array.strides)
        shape[at], strides[at] = count, step * strides[at]
        return np.lib.stride_tricks.as_strided(array, (*shape, size), (*strides, array.strides[at]))

    def gradient(dy: np.ndarray) -> np.ndarray:
        dx = np.zeros_like(whole, dy.dtype)
        front, dy = np.moveaxis(dx, at, -1), dy if x.ndim else dy[None]
        for i in range(count):  # windows may overlap
            front[..., i * step : i * step + size] += np.take(dy, i, at)
        return dx.reshape(x.shape)

    return look, gradient


method(lambda self, other: expand(self, other.shape), "expand_as")
method(broadcast_to, "broadcast_to")
NUMPY[np.broadcast_to] = broadcast_to
