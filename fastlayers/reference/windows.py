"""Windows over images, which convolution and pooling share."""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from fastlayers.reference.types import Array, Size

__all__ = ["Pads", "add_windows", "inner", "pad", "pair", "windows"]

T = TypeVar("T")
Pads = tuple[tuple[int, int], tuple[int, int]]


def pair(value: T | Sequence[T]) -> tuple[T, T]:
    """Give (rows, columns): a single value stands for both."""
    if isinstance(value, Sequence):
        first, second = value if len(value) == 2 else (value[0], value[0])
        return first, second
    return value, value


def pad(x: Array, pads: Pads, value: float = 0) -> Array:
    """Give images (..., H, W) with ((top, bottom), (left, right)) cells of `value` around them."""
    return np.pad(x, [(0, 0)] * (x.ndim - 2) + list(pads), constant_values=value)


def inner(x: Array, pads: Pads) -> Array:
    """Give the images without their padding, as a view."""
    (top, bottom), (left, right) = pads
    return x[..., top : x.shape[-2] - bottom, left : x.shape[-1] - right]


def windows(x: Array, kernel: Size, stride: Size, dilation: Size = 1) -> Array:
    """Give all windows (..., KH, KW, OH, OW) of padded images (..., H, W), as a view.

    ``view[..., r, s, i, j] = x[..., i * SH + r * DH, j * SW + s * DW]``.
    """
    (kh, kw), (sh, sw), (dh, dw) = pair(kernel), pair(stride), pair(dilation)
    span = dh * (kh - 1) + 1, dw * (kw - 1) + 1
    view = sliding_window_view(x, span, axis=(-2, -1), writeable=True)
    return np.moveaxis(view[..., ::sh, ::sw, ::dh, ::dw], (-2, -1), (-4, -3))


def add_windows(x: Array, d: Array, stride: Size, dilation: Size = 1) -> None:
    """Add the windows `d` (..., KH, KW, OH, OW) onto `x` (..., H, W): the adjoint of `windows`."""
    kh, kw, oh, ow = d.shape[-4:]
    view = windows(x, (kh, kw), stride, dilation)[..., :oh, :ow]
    for r, s in np.ndindex(kh, kw):  # one (r, s) has distinct cells, two may share some
        view[..., r, s, :, :] += d[..., r, s, :, :]
