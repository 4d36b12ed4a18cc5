"""Maximum pooling of images."""

from __future__ import annotations

import functools
import math
from typing import Any, Literal, overload

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.layout import to_channels_last
from fastlayers.ops.pool.max_routes import MaxShape
from fastlayers.ops.pool.window import (
    IntPair,
    Sizes,
    cached,
    channels_last_gradient,
    channels_last_images,
    input_shape_of,
    restored,
)
from fastlayers.ops.pool.window import window as checked_window

__all__ = [
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "max_pool2d_indices",
    "max_pool2d_shape",
    "reasons",
]

# Neither a maximum nor an output is at or below it, so that all gradients pass.
NO_FLOOR = math.nan


@functools.lru_cache(maxsize=256, typed=True)
def _forward_shape(op: str, shape: Sizes, ceil_mode: bool, *options: Any) -> MaxShape:
    n, height, width, depth = check.shape(op, shape)
    window = checked_window(op, *options)
    oh, ow = window.out_size(op, (height, width), ceil_mode)
    check.possible(op, "the output", (n, depth, oh, ow), 4)
    return MaxShape((n, height, width, depth), (n, oh, ow, depth), window)


def max_pool2d_shape(
    input_shape: tuple[int, int, int, int],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> tuple[int, int, int, int]:
    """Shape (N, C, OH, OW) of `max_pool2d` of an input of shape (N, C, H, W); checks the options.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.
    """
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 4:
        given = check.describe(input_shape)
        raise ValueError(f"max_pool2d_shape: input_shape must be (N, C, H, W), got {given}")
    n, c, h, w = input_shape
    options = (kernel_size, stride, padding, dilation)
    n, h, w, c = cached(_forward_shape, "max_pool2d", (n, h, w, c), ceil_mode, *options).out_shape
    return n, c, h, w


def max_pool2d_forward(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    *,
    activation: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`max_pool2d` that also returns what its gradient needs, and may include a ReLU.

    Parameters
    ----------
    input, kernel_size, stride, padding, dilation, ceil_mode
        As in `max_pool2d`.
    activation : {None, "relu"}
        "relu": the output is at least 0, which is the pooled ReLU of the input, as it is the ReLU
        of the pooled input.

    Returns
    -------
    y : ndarray
        The maxima.
    offsets : ndarray
        Of the shape of y and the smallest unsigned type that serves: the cell ``r * KW + s`` of
        each window that holds the maximum. Where a ReLU made the output 0 it is the type's largest
        number, which is no cell, so that the gradient is that of both.
    """
    op = "max_pool2d"
    x = channels_last_images(op, input)
    options = (kernel_size, stride, padding, dilation)
    shape = cached(_forward_shape, op, x.shape, ceil_mode, *options)
    floor = 0.0 if check.is_relu(op, activation) else NO_FLOOR
    y, cells = shape.forward.run(x, floor)
    return restored(y, input.ndim), restored(cells, input.ndim)


@overload
def max_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = ...,
    padding: IntPair = ...,
    dilation: IntPair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> np.ndarray: ...


@overload
def max_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = ...,
    padding: IntPair = ...,
    dilation: IntPair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[True] = ...,
) -> tuple[np.ndarray, np.ndarray]: ...


def max_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Maximum of each window: ``y[i, j] = max over r, s of input[i * stride + r * dilation, ...]``.

    Padding counts as minus infinity, NaN wins over numbers and infinity, and ties go to the first
    cell, also those of several NaNs, where PyTorch takes the last.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    kernel_size : int or (int, int)
    stride : int or (int, int), optional
        `kernel_size` by default.
    padding : int or (int, int)
        At most half of `kernel_size`.
    dilation : int or (int, int)
    ceil_mode : bool
        Round the output's size up, so that windows may reach over the edge.
    return_indices : bool
        Also return the position ``h * W + w`` of each maximum, int64.

    Returns
    -------
    ndarray or (ndarray, ndarray)
        (N, C, OH, OW) or (C, OH, OW), ``OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride
        + 1``.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or option, or a window larger than the padded input.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.max_pool2d.html
    """
    options = (kernel_size, stride, padding, dilation, ceil_mode)
    y, offsets = max_pool2d_forward(input, *options)
    if not return_indices:
        return y
    return y, max_pool2d_indices(offsets, input.shape, kernel_size, stride, padding, dilation)


def max_pool2d_indices(
    offsets: np.ndarray,
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
) -> np.ndarray:
    """PyTorch's indices ``h * W + w`` (int64) of the maxima from `max_pool2d_forward`'s offsets."""
    op = "max_pool2d_indices"
    window = checked_window(op, kernel_size, stride, padding, dilation)
    offsets = check.offsets(op, offsets, getattr(offsets, "shape", ()))
    (sh, sw), (ph, pw), (dh, dw) = window.stride, window.padding, window.dilation
    r, s = np.divmod(offsets.astype(np.int64), window.kernel[1])
    width = input_shape_of(op, input_shape)[2]
    rows = np.arange(offsets.shape[-2])[:, None] * sh - ph + r * dh
    columns = np.arange(offsets.shape[-1]) * sw - pw + s * dw
    return np.asarray(rows * width + columns)


@functools.lru_cache(maxsize=256, typed=True)
def _backward_shape(
    op: str, given: tuple[int, ...], out_shape: tuple[int, ...], *options: Any
) -> MaxShape:
    images = input_shape_of(op, given)
    n, height, width, depth = images
    window = checked_window(op, *options)
    sizes = [window.windows((height, width), False), window.out_size(op, (height, width), True)]
    sizes = [size for size in sizes if min(size) > 0]  # of images smaller than a window the latter
    expected = (*given[:-2], *sizes[0])
    if out_shape[:-2] != expected[:-2] or out_shape[-2:] not in sizes:
        raise ValueError(
            f"{op}: grad_output must have shape {expected} for input_shape {given}, got {out_shape}"
        )
    check.possible(op, "the gradient", given, 4)
    oh, ow = out_shape[-2:]
    return MaxShape(images, (n, oh, ow, depth), window)


def max_pool2d_backward(
    grad_output: np.ndarray,
    offsets: np.ndarray,
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    output: np.ndarray | None = None,
) -> np.ndarray:
    """Input gradient of `max_pool2d`: each output's goes to the cell of its maximum.

    Parameters
    ----------
    grad_output, offsets : ndarray
        Of the shape of `max_pool2d_forward`'s results.
    input_shape : tuple of int
        Shape of the input.
    kernel_size, stride, padding, dilation
        As they were given to `max_pool2d_forward`.
    output : ndarray, optional
        The output, to include the gradient of a ReLU before the pooling: a gradient passes only
        where the output is above 0. Offsets of `max_pool2d_forward` with an activation say so
        themselves.

    Returns
    -------
    ndarray
        Of shape `input_shape`.
    """
    op = "max_pool2d_backward"
    given = input_shape if type(input_shape) is tuple else check.shape(op, input_shape)
    ndim = len(given)
    dy = channels_last_gradient(op, grad_output, ndim)
    offsets = check.offsets(op, offsets, grad_output.shape)
    options = (kernel_size, stride, padding, dilation)
    shape = cached(_backward_shape, op, given, offsets.shape, *options)
    cells = to_channels_last(offsets if ndim == 4 else offsets[None])
    y, floor = None, NO_FLOOR
    if output is not None:
        y = check.array(op, "output", output, (ndim,))
        check.same_shape(op, "output", y, grad_output.shape)
        check.same_dtype(op, "output", y, dy.dtype)
        y, floor = to_channels_last(y if ndim == 4 else y[None]).reshape(-1), 0.0
    return restored(shape.backward.run(dy, cells, y, floor), ndim)


def reasons(
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> list[tuple[str, str, str]]:
    """Each pass of `max_pool2d` of an input of shape `input_shape`, what computes it, and why."""
    op, options = "max_pool2d", (kernel_size, stride, padding, dilation)
    shape: MaxShape = cached(
        _forward_shape, op, input_shape_of(op, input_shape), ceil_mode, *options
    )
    return shape.reasons()
