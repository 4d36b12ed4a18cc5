"""Maximum and average pooling of images."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, overload

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check
from fastlayers.ops.layout import from_channels_last, to_channels_last
from fastlayers.runtime import memory, threads

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "max_pool2d_indices",
]

IntPair = int | Sequence[int]


@dataclass(frozen=True, slots=True)
class _Window:
    """Checked options of a pooling window."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]
    ceil_mode: bool

    @property
    def geometry(self) -> tuple[tuple[int, int], ...]:
        return self.kernel, self.stride, self.padding, self.dilation

    def out_size(self, op: str, shape: tuple[int, ...]) -> tuple[int, int]:
        """Height and width of the output for an input of `shape`."""
        size = []
        for axis in range(2):
            given, stride = shape[axis - 2], self.stride[axis]
            extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = given + 2 * self.padding[axis] - extent
            out = (room + (stride - 1 if self.ceil_mode else 0)) // stride + 1
            # A last window that would start behind the image and its padding is left out.
            if self.ceil_mode and (out - 1) * stride >= given + self.padding[axis]:
                out -= 1
            if room < 0 and out < 1:
                raise ValueError(
                    f"{op}: kernel_size {self.kernel} with dilation {self.dilation} must fit "
                    f"the padded input, got input of shape {shape}"
                )
            size.append(out)
        return size[0], size[1]


def _window(
    op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any, ceil_mode: Any
) -> _Window:
    kernel = _check.pair(op, "kernel_size", kernel_size, 1)
    step = kernel if stride is None else _check.pair(op, "stride", stride, 1)
    pad = _check.pair(op, "padding", padding, 0)
    gap = _check.pair(op, "dilation", dilation, 1)
    if any(2 * p > k for p, k in zip(pad, kernel, strict=True)):
        raise ValueError(f"{op}: padding must be at most half of kernel_size {kernel}, got {pad}")
    return _Window(kernel, step, pad, gap, bool(ceil_mode))


def _images(op: str, input: Any) -> tuple[np.ndarray, bool]:
    """The input with a batch axis, and whether that was added."""
    input = _check.array(op, "input", input, (3, 4))
    if 0 in input.shape[-3:]:
        raise ValueError(f"{op}: input must have pixels and channels, got shape {input.shape}")
    return (input[None], True) if input.ndim == 3 else (input, False)


def _shape(op: str, input_shape: Any) -> tuple[int, int, int, int]:
    """The input's shape with a batch axis."""
    if not isinstance(input_shape, Sequence):
        raise TypeError(
            f"{op}: input_shape must be a tuple of integers, got {_check.describe(input_shape)}"
        )
    shape = tuple(_check.integer(op, "input_shape", size, 0) for size in input_shape)
    if len(shape) not in (3, 4):
        raise ValueError(f"{op}: input_shape must have 3 or 4 entries, got {shape}")
    n, c, h, w = (1, *shape) if len(shape) == 3 else shape
    return n, c, h, w


def _gradient(
    op: str, grad_output: Any, shape: tuple[int, ...], out_size: tuple[int, int], ndim: int
) -> np.ndarray:
    """The output's gradient as an (N, OH, OW, C) array."""
    dy = _check.array(op, "grad_output", grad_output, (ndim,))
    dy = dy[None] if dy.ndim == 3 else dy
    _check.same_shape(op, "grad_output", dy, (*shape[:2], *out_size))
    return to_channels_last(dy)


def _restored(last: np.ndarray, ndim: int) -> np.ndarray:
    """PyTorch's shape of an (N, H, W, C) result, without the batch axis for 3 dimensions."""
    images = from_channels_last(last)
    return images[0] if ndim == 3 else images


def max_pool2d_forward(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """`max_pool2d` that also returns what its gradient needs.

    Returns
    -------
    y : ndarray
        The maxima.
    offsets : ndarray
        Of the shape of y and the smallest unsigned type that serves: the cell ``r * KW + s`` of
        each window that holds the maximum.
    """
    op = "max_pool2d"
    images, unbatched = _images(op, input)
    window = _window(op, kernel_size, stride, padding, dilation, ceil_mode)
    size = window.out_size(op, images.shape)
    x = to_channels_last(images)
    y = memory.empty((x.shape[0], *size, x.shape[3]), x.dtype)
    cells = window.kernel[0] * window.kernel[1]
    offsets = memory.empty(y.shape, np.uint8 if cells <= 256 else np.uint32)
    workers = threads.workers_for(y.size * cells)
    kernels.pool.max_pool2d(x, window.geometry, workers, y, offsets)
    ndim = 3 if unbatched else 4
    return _restored(y, ndim), _restored(offsets, ndim)


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

    Padding counts as minus infinity, NaN wins over numbers, and ties go to the first cell.

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
    window = _window("max_pool2d_indices", kernel_size, stride, padding, dilation, False)
    (_, kw), (sh, sw), (ph, pw), (dh, dw) = window.geometry
    r, s = np.divmod(offsets.astype(np.int64), kw)
    rows = np.arange(offsets.shape[-2])[:, None] * sh - ph + r * dh
    columns = np.arange(offsets.shape[-1]) * sw - pw + s * dw
    return np.asarray(rows * input_shape[-1] + columns)


def max_pool2d_backward(
    grad_output: np.ndarray,
    offsets: np.ndarray,
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
) -> np.ndarray:
    """Gradient of `max_pool2d` by its input: each output's goes to the cell of its maximum.

    Parameters
    ----------
    grad_output, offsets : ndarray
        Of the shape of `max_pool2d_forward`'s results.
    input_shape : tuple of int
        Shape of the input.
    kernel_size, stride, padding, dilation
        As they were given to `max_pool2d_forward`.

    Returns
    -------
    ndarray
        Of shape `input_shape`.
    """
    op = "max_pool2d_backward"
    window = _window(op, kernel_size, stride, padding, dilation, False)
    if not isinstance(offsets, np.ndarray) or offsets.dtype not in (np.uint8, np.uint32):
        raise TypeError(
            f"{op}: offsets must be the second result of max_pool2d_forward, "
            f"got {_check.describe(offsets)}"
        )
    _check.same_shape(op, "offsets", offsets, np.shape(grad_output))
    shape = _shape(op, input_shape)
    sizes = [replace(window, ceil_mode=mode).out_size(op, shape) for mode in (False, True)]
    if offsets.shape[-2:] not in sizes:
        raise ValueError(
            f"{op}: grad_output must have {sizes[0]} rows and columns for input_shape "
            f"{tuple(input_shape)}, got shape {offsets.shape}"
        )
    dy = _gradient(op, grad_output, shape, offsets.shape[-2:], len(input_shape))
    cells = to_channels_last(offsets[None] if offsets.ndim == 3 else offsets)
    n, c, h, w = shape
    dx = memory.empty((n, h, w, c), dy.dtype)
    workers = threads.workers_for(dy.size * window.kernel[0] * window.kernel[1])
    kernels.pool.max_pool2d_backward(dy, cells, window.geometry, workers, dx)
    return _restored(dx, len(input_shape))


_Bounds = tuple[np.ndarray, np.ndarray, np.ndarray]


def _mean(input: np.ndarray, bounds: _Bounds, ndim: int) -> np.ndarray:
    """Mean over rectangles of channels-last images."""
    rows, columns, counts = bounds
    n, _, _, c = input.shape
    y = memory.empty((n, len(rows), len(columns), c), input.dtype)
    workers = threads.workers_for(max(input.size, y.size))
    kernels.pool.window_mean(input, rows, columns, counts.astype(input.dtype), workers, y)
    return _restored(y, ndim)


def _mean_backward(
    dy: np.ndarray, shape: tuple[int, int, int, int], bounds: _Bounds, ndim: int
) -> np.ndarray:
    rows, columns, counts = bounds
    n, c, h, w = shape
    dx = memory.empty((n, h, w, c), dy.dtype)
    workers = threads.workers_for(max(dx.size, dy.size))
    work = memory.empty(workers * c, dy.dtype)
    kernels.pool.window_mean_backward(dy, rows, columns, counts.astype(dy.dtype), workers, work, dx)
    return _restored(dx, ndim)


@functools.lru_cache(maxsize=256)
def _avg_bounds(
    size: tuple[int, int],
    out_size: tuple[int, int],
    window: _Window,
    count_include_pad: bool,
    divisor: int | None,
) -> _Bounds:
    """Windows cut off at the image's edge, and the count that each is divided by."""
    inside, counts = [], []
    for axis in range(2):
        pad = window.padding[axis]
        start = np.arange(out_size[axis]) * window.stride[axis] - pad
        stop = np.minimum(start + window.kernel[axis], size[axis] + pad)
        cut = np.stack([np.maximum(start, 0), np.minimum(stop, size[axis])], axis=1)
        inside.append(cut)
        counts.append(stop - start if count_include_pad else cut[:, 1] - cut[:, 0])
    area = np.multiply.outer(*counts) if divisor is None else np.full(out_size, divisor)
    return inside[0], inside[1], area


def _avg_options(
    op: str,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: Any,
    divisor_override: Any,
) -> _Window:
    if divisor_override is not None and (
        isinstance(divisor_override, bool)
        or not isinstance(divisor_override, (int, np.integer))
        or divisor_override == 0
    ):
        raise ValueError(
            f"{op}: divisor_override must be an integer other than 0, got {divisor_override!r}"
        )
    return _window(op, kernel_size, stride, padding, 1, ceil_mode)


def avg_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Mean of each window: ``y[i, j] = sum over r, s of input[...] / cells``.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    kernel_size, stride, padding : int or (int, int)
        As in `max_pool2d`; padding counts as 0.
    ceil_mode : bool
        Round the output's size up.
    count_include_pad : bool
        Count the padding's cells in the divisor.
    divisor_override : int, optional
        Divide by this instead of the number of cells.

    Returns
    -------
    ndarray
        (N, C, OH, OW) or (C, OH, OW).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or option, or a window larger than the padded input.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.avg_pool2d.html
    """
    op = "avg_pool2d"
    images, unbatched = _images(op, input)
    window = _avg_options(op, kernel_size, stride, padding, ceil_mode, divisor_override)
    size = window.out_size(op, images.shape)
    spatial = (images.shape[2], images.shape[3])
    bounds = _avg_bounds(spatial, size, window, bool(count_include_pad), divisor_override)
    return _mean(to_channels_last(images), bounds, 3 if unbatched else 4)


def avg_pool2d_backward(
    grad_output: np.ndarray,
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Gradient of `avg_pool2d` by its input, of shape `input_shape`.

    Every cell of a window gets the output's gradient divided by the window's divisor; the other
    arguments are those of `avg_pool2d`.
    """
    op = "avg_pool2d_backward"
    shape = _shape(op, input_shape)
    window = _avg_options(op, kernel_size, stride, padding, ceil_mode, divisor_override)
    size = window.out_size(op, shape)
    bounds = _avg_bounds(shape[2:], size, window, bool(count_include_pad), divisor_override)
    dy = _gradient(op, grad_output, shape, size, len(input_shape))
    return _mean_backward(dy, shape, bounds, len(input_shape))


@functools.lru_cache(maxsize=256)
def _adaptive_bounds(size: tuple[int, int], out_size: tuple[int, int]) -> _Bounds:
    """Windows from ``floor(i * H / OH)`` to ``ceil((i + 1) * H / OH)``."""
    bounds, counts = [], []
    for given, wanted in zip(size, out_size, strict=True):
        i = np.arange(wanted)
        cut = np.stack([i * given // wanted, -(-(i + 1) * given // wanted)], axis=1)
        bounds.append(cut)
        counts.append(cut[:, 1] - cut[:, 0])
    return bounds[0], bounds[1], np.multiply.outer(*counts)


def adaptive_avg_pool2d(
    input: np.ndarray, output_size: int | Sequence[int | None] | None
) -> np.ndarray:
    """Means over windows that are chosen so that the output has a given size.

    Row i averages the input's rows ``floor(i * H / OH)`` to ``ceil((i + 1) * H / OH) - 1``.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    output_size : int or (int or None, int or None)
        Height and width; None keeps the input's.

    Returns
    -------
    ndarray
        (N, C, OH, OW) or (C, OH, OW).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html
    """
    op = "adaptive_avg_pool2d"
    images, unbatched = _images(op, input)
    given = (images.shape[2], images.shape[3])
    if output_size is None:
        output_size = given
    elif isinstance(output_size, Sequence) and len(output_size) == 2:
        output_size = [g if o is None else o for o, g in zip(output_size, given, strict=True)]
    bounds = _adaptive_bounds(given, _check.pair(op, "output_size", output_size, 1))
    return _mean(to_channels_last(images), bounds, 3 if unbatched else 4)


def adaptive_avg_pool2d_backward(
    grad_output: np.ndarray, input_shape: tuple[int, ...]
) -> np.ndarray:
    """Gradient of `adaptive_avg_pool2d` by its input, of shape `input_shape`."""
    op = "adaptive_avg_pool2d_backward"
    shape = _shape(op, input_shape)
    grad_output = _check.array(op, "grad_output", grad_output, (len(input_shape),))
    size = (grad_output.shape[-2], grad_output.shape[-1])
    dy = _gradient(op, grad_output, shape, size, len(input_shape))
    return _mean_backward(dy, shape, _adaptive_bounds(shape[2:], size), len(input_shape))
