"""Reference for `fastlayers.ops.pool.max_pool`."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from fastlayers.reference.types import Array, Labels, Size
from fastlayers.reference.windows import Pads, add_windows, inner, pad, pair, windows

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
]


def max_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Array | tuple[Array, Labels]:
    """Give the maximum of each window and, on request, its position ``row * W + column``.

    ``y[..., i, j] = max_rs x[..., i SH - PH + r DH, j SW - PW + s DW]`` over the cells inside the
    image: (..., H, W) gives (..., OH, OW). NaN is the largest value, the first of equals wins.
    https://pytorch.org/docs/stable/generated/torch.nn.MaxPool2d.html
    """
    y, offsets = max_pool2d_forward(input, kernel_size, stride, padding, dilation, ceil_mode)
    if not return_indices:
        return y
    return y, _positions(offsets, input.shape[-1], kernel_size, stride, padding, dilation)


def max_pool2d_forward(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
    ceil_mode: bool = False,
    activation: str | None = None,
) -> tuple[Array, Labels]:
    """Give what `max_pool2d` gives, and the cell ``r * KW + s`` of each window's maximum.

    With the activation "relu", outputs are at least 0, and the cell of a 0 is the largest number.
    """
    kernel, stride = pair(kernel_size), kernel_size if stride is None else stride
    pads = _pads(input.shape[-2:], kernel, stride, padding, dilation, ceil_mode)
    fields = windows(pad(input, pads, -np.inf), kernel, stride, dilation)
    valid = windows(pad(np.ones(input.shape[-2:]), pads), kernel, stride, dilation) > 0
    y = fields.max((-4, -3))
    hits = valid & ((fields == y[..., None, None, :, :]) | np.isnan(fields))
    cells = hits.reshape(*hits.shape[:-4], kernel[0] * kernel[1], *hits.shape[-2:]).argmax(-3)
    cells = cells.astype(np.uint8 if kernel[0] * kernel[1] < 256 else np.uint32)
    if activation:
        cells[y <= 0] = np.iinfo(cells.dtype).max
        y = np.maximum(y, y.dtype.type(0))
    return y, cells


def max_pool2d_backward(
    grad_output: Array,
    offsets: Labels,
    input_shape: tuple[int, ...],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    dilation: Size = 1,
) -> Array:
    """Give the gradient of `max_pool2d_forward`: each window's goes to its maximum.

    ``dx[..., i SH - PH + r DH, j SW - PW + s DW] += dy[..., i, j]`` for the window's (r, s).
    """
    (kh, kw), stride = pair(kernel_size), kernel_size if stride is None else stride
    cells = np.arange(kh * kw).reshape(kh, kw, 1, 1)
    hits = offsets[..., None, None, :, :] == cells
    d = np.where(hits, grad_output[..., None, None, :, :], grad_output.dtype.type(0))
    # The windows of ceil mode begin with those of floor mode, so its padding serves both.
    pads = _pads(input_shape[-2:], (kh, kw), stride, padding, dilation, ceil_mode=True)
    dx = pad(np.zeros(input_shape, grad_output.dtype), pads)
    add_windows(dx, d, stride, dilation)
    return inner(dx, pads)


def avg_pool2d(
    input: Array,
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Give the mean of each window: (..., H, W) gives (..., OH, OW).

    ``y[..., i, j] = sum_rs x[..., i SH - PH + r, j SW - PW + s] / count[i, j]`` where the count is
    of cells inside the image, with its padding if that is included, or `divisor_override`.
    https://pytorch.org/docs/stable/generated/torch.nn.AvgPool2d.html
    """
    stride = kernel_size if stride is None else stride
    pads = _pads(input.shape[-2:], kernel_size, stride, padding, 1, ceil_mode)
    total: Array = windows(pad(input, pads), kernel_size, stride).sum((-4, -3))
    if divisor_override is not None:
        return total / divisor_override
    count = _counts(input.shape[-2:], kernel_size, stride, padding, pads, count_include_pad)
    return total / count.astype(input.dtype)


def avg_pool2d_backward(
    grad_output: Array,
    input_shape: tuple[int, ...],
    kernel_size: Size,
    stride: Size | None = None,
    padding: Size = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Array:
    """Give the gradient of `avg_pool2d`: each window's is spread evenly over its cells.

    ``dx[..., i SH - PH + r, j SW - PW + s] += dy[..., i, j] / count[i, j]``.
    """
    kernel, stride = pair(kernel_size), kernel_size if stride is None else stride
    pads = _pads(input_shape[-2:], kernel, stride, padding, 1, ceil_mode)
    if divisor_override is None:
        count = _counts(input_shape[-2:], kernel, stride, padding, pads, count_include_pad)
        share = grad_output / count.astype(grad_output.dtype)
    else:
        share = grad_output / divisor_override
    dx = pad(np.zeros(input_shape, grad_output.dtype), pads)
    shape = *share.shape[:-2], *kernel, *share.shape[-2:]
    add_windows(dx, np.broadcast_to(share[..., None, None, :, :], shape), stride)
    return inner(dx, pads)


def adaptive_avg_pool2d(input: Array, output_size: int | Sequence[int | None] | None) -> Array:
    """Give means over a grid of `output_size` bins: (..., H, W) gives (..., OH, OW).

    ``y[..., i, j]`` is the mean of rows ``floor(i H / OH)`` to ``ceil((i + 1) H / OH)``
    (exclusive) and of columns likewise.
    https://pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html
    """
    height, width = input.shape[-2:]
    rows, columns = pair(output_size)
    oh, ow = height if rows is None else rows, width if columns is None else columns
    y = np.empty((*input.shape[:-2], oh, ow), input.dtype)
    for at, cells in _bins(input.shape[-2:], (oh, ow)):
        y[at] = input[cells].mean((-2, -1))
    return y


def adaptive_avg_pool2d_backward(grad_output: Array, input_shape: tuple[int, ...]) -> Array:
    """Give the gradient of `adaptive_avg_pool2d`: each bin's is spread evenly over its cells."""
    dx = np.zeros(input_shape, grad_output.dtype)
    for at, cells in _bins(input_shape[-2:], grad_output.shape[-2:]):
        share = grad_output[at][..., None, None]
        dx[cells] += share / (dx[cells].shape[-2] * dx[cells].shape[-1])
    return dx


def _pads(
    size: Sequence[int], kernel: Size, stride: Size, padding: Size, dilation: Size, ceil_mode: bool
) -> Pads:
    """Give ((top, bottom), (left, right)), to which `ceil_mode` adds at the ends.

    The windows then are ``ceil((H + 2 PH - span) / SH) + 1``, but all start before the padding
    at the end.
    """
    (ph, pw), more = pair(padding), [0, 0]
    if ceil_mode:
        axes = zip(size, pair(kernel), pair(stride), (ph, pw), pair(dilation), strict=True)
        for axis, (n, k, s, p, d) in enumerate(axes):
            left_over = -(n + 2 * p - d * (k - 1) - 1) % s
            last = n + 2 * p + left_over - d * (k - 1) - 1
            more[axis] = left_over if last < n + p else 0
    return (ph, ph + more[0]), (pw, pw + more[1])


def _positions(
    offsets: Labels,
    width: int,
    kernel_size: Size,
    stride: Size | None,
    padding: Size,
    dilation: Size,
) -> Labels:
    """Turn cells of windows into positions ``row * W + column`` of the image."""
    (sh, sw), (ph, pw) = pair(kernel_size if stride is None else stride), pair(padding)
    (dh, dw), (_, kw) = pair(dilation), pair(kernel_size)
    r, s = np.divmod(offsets.astype(np.int64), kw)
    i, j = np.arange(offsets.shape[-2])[:, None], np.arange(offsets.shape[-1])
    positions: Labels = (i * sh - ph + r * dh) * width + j * sw - pw + s * dw
    return positions


def _counts(
    size: Sequence[int],
    kernel: Size,
    stride: Size,
    padding: Size,
    pads: Pads,
    count_include_pad: bool,
) -> Array:
    """Give the number of cells (OH, OW) that each window's sum is divided by."""
    (_, bottom), (_, right) = pads
    ph, pw = pair(padding)
    cells = pad(np.ones(size), ((ph, ph), (pw, pw)), count_include_pad)
    cells = pad(cells, ((0, bottom - ph), (0, right - pw)))
    counts: Array = windows(cells, kernel, stride).sum((-4, -3))
    return counts


def _bins(
    size: Sequence[int], output_size: Sequence[int]
) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Give the index of each output cell and that of its bin of input cells."""
    (h, w), (oh, ow) = size, output_size
    for i, j in np.ndindex(oh, ow):
        rows = slice(i * h // oh, -(-(i + 1) * h // oh))
        columns = slice(j * w // ow, -(-(j + 1) * w // ow))
        yield (..., i, j), (..., rows, columns)
