"""The axes of tensors in another order: views."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axes, axis
from fastlayers.functions.registry import NUMPY, method
from fastlayers.functions.shape import in_place, sizes
from fastlayers.functions.table import view

__all__ = ["moveaxis", "movedim", "permute", "swapaxes", "swapdims", "t", "transpose"]


def _reordered(order: tuple[int, ...]) -> Any:
    back = tuple(int(i) for i in np.argsort(order))
    return lambda array: array.transpose(order), lambda dy: dy.transpose(back)


@view
def permute(x: np.ndarray, *dims: Any) -> Any:
    """The axes in the order `dims`.

    Raises
    ------
    RuntimeError
        If `dims` does not name each axis once.
    """
    given = sizes("permute", dims, "dims")
    if len(given) != x.ndim:
        raise RuntimeError(f"permute: dims must name the {x.ndim} axes once each, got {given}")
    return _reordered(axes("permute", x.ndim, given))


@view
def transpose(x: np.ndarray, dim0: int, dim1: int) -> Any:
    """Exchange two axes."""
    first, second = axis("transpose", x.ndim, dim0), axis("transpose", x.ndim, dim1)
    order = list(range(x.ndim))
    if order:
        order[first], order[second] = second, first
    return _reordered(tuple(order))


@view
def t(x: np.ndarray) -> Any:
    """The transpose of a matrix; tensors with fewer axes unchanged.

    Raises
    ------
    RuntimeError
        If there are more axes.
    """
    if x.ndim > 2:
        raise RuntimeError(f"t: input must have at most 2 axes, got shape {x.shape}")
    return _reordered(tuple(range(x.ndim))[::-1])


def _reversed(self: Tensor) -> Tensor:
    """The axes in reverse order."""
    return permute(self, *reversed(range(self.ndim)))


def _matrices(self: Tensor) -> Tensor:
    """Each matrix of the last two axes transposed.

    Raises
    ------
    RuntimeError
        If there are fewer axes.
    """
    if self.ndim < 2:
        raise RuntimeError(f"mT: the tensor must have at least 2 axes, got {tuple(self.shape)}")
    return transpose(self, -2, -1)


@view
def movedim(x: np.ndarray, source: Any, destination: Any) -> Any:
    """Move axes to other positions; the rest keep their order.

    Raises
    ------
    RuntimeError
        If an axis is named twice, or the numbers of positions and axes differ.
    """
    pair = [list(d) if isinstance(d, (tuple, list)) else [d] for d in (source, destination)]
    old, new = ([axis("movedim", x.ndim, d) for d in dims] for dims in pair)
    if len(old) != len(new) or len(set(old)) < len(old) or len(set(new)) < len(new):
        raise RuntimeError(
            f"movedim: source and destination must each name as many axes once, "
            f"got {source} and {destination}"
        )
    order = [i for i in range(x.ndim) if i not in old]
    for to, at in sorted(zip(new, old, strict=True)):
        order.insert(to, at)
    return _reordered(tuple(order) if x.ndim else ())


Tensor.T, Tensor.mT = property(_reversed), property(_matrices)  # type: ignore[attr-defined]
swapaxes = swapdims = transpose
method(transpose, "swapaxes", "swapdims")
moveaxis = movedim
method(movedim, "moveaxis")
in_place(transpose, "transpose_", "swapaxes_", "swapdims_")
in_place(t, "t_")


def _numpy_transpose(a: Tensor, axes: Any = None) -> Tensor:
    return _reversed(a) if axes is None else permute(a, axes)


NUMPY |= {np.transpose: _numpy_transpose, np.swapaxes: transpose, np.moveaxis: movedim}
