"""Pooling over windows of channels-last images (N, H, W, C), vectorised over the channels."""

from __future__ import annotations

from fastlayers.kernels.layout import inside
from fastlayers.kernels.runs import add_run, add_where_run, clear_run, max_window
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["max_pool2d", "max_pool2d_backward", "window_mean", "window_mean_backward"]


@kernel
def _max_pool2d_image(n, worker, x, shape, geometry, y, offsets, out_size):
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry
    height, width, depth = shape
    oh, ow = out_size
    for i in range(oh):
        top = i * sh - ph
        r0, r1 = inside(top, dh, kh, height)
        for j in range(ow):
            left = j * sw - pw
            s0, s1 = inside(left, dw, kw, width)
            first = ((n * height + top) * width + left) * depth
            out = ((n * oh + i) * ow + j) * depth
            rows, columns = (r0, r1, dh * width * depth), (s0, s1, dw * depth, kw)
            max_window(y, out, offsets, x, first, rows, columns, depth)


@kernel
def max_pool2d(x, geometry, workers, y, offsets):
    """Maximum of each window, and the window's cell ``r * KW + s`` that holds it.

    ``geometry = (kernel, stride, padding, dilation)``, pairs. y and offsets are (N, OH, OW, C),
    offsets of an unsigned type that holds KH*KW - 1.
    """
    # Flat views made here: reshaping in a task counts references, with atomics that the
    # threads contend for.
    flat_x, flat_y, flat_offsets = x.reshape(x.size), y.reshape(y.size), offsets.reshape(y.size)
    arguments = (flat_x, x.shape[1:], geometry, flat_y, flat_offsets, y.shape[1:3])
    parallel_for(_max_pool2d_image, x.shape[0], workers, arguments)


@kernel
def _max_pool2d_backward_image(n, worker, dy, offsets, out_size, geometry, dx, shape):
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry
    height, width, depth = shape
    oh, ow = out_size
    clear_run(dx, n * height * width * depth, height * width * depth)
    for i in range(oh):
        top = i * sh - ph
        r0, r1 = inside(top, dh, kh, height)
        for j in range(ow):
            left = j * sw - pw
            s0, s1 = inside(left, dw, kw, width)
            out = ((n * oh + i) * ow + j) * depth
            for r in range(r0, r1):
                for s in range(s0, s1):
                    at = ((n * height + top + r * dh) * width + left + s * dw) * depth
                    add_where_run(dx, at, dy, offsets, out, r * kw + s, depth)


@kernel
def max_pool2d_backward(dy, offsets, geometry, workers, dx):
    """Add each output's gradient to the cell that held the maximum; dx is (N, H, W, C)."""
    flat_dy, flat_offsets, flat_dx = (
        dy.reshape(dy.size),
        offsets.reshape(dy.size),
        dx.reshape(dx.size),
    )
    arguments = (flat_dy, flat_offsets, dy.shape[1:3], geometry, flat_dx, dx.shape[1:])
    parallel_for(_max_pool2d_backward_image, dx.shape[0], workers, arguments)


@kernel
def _window_mean_image(n, worker, x, shape, rows, columns, counts, y):
    height, width, depth = shape
    oh, ow = counts.shape
    for i in range(oh):
        for j in range(ow):
            out = ((n * oh + i) * ow + j) * depth
            clear_run(y, out, depth)
            for row in range(rows[i, 0], rows[i, 1]):
                for column in range(columns[j, 0], columns[j, 1]):
                    at = ((n * height + row) * width + column) * depth
                    add_run(y, out, x, at, depth)
            for c in range(depth):
                y[out + c] /= counts[i, j]


@kernel
def window_mean(x, rows, columns, counts, workers, y):
    """``y[i, j] = sum(x[rows[i, 0]:rows[i, 1], columns[j, 0]:columns[j, 1]]) / counts[i, j]``.

    rows (OH, 2) and columns (OW, 2) hold the windows' bounds within the image.
    """
    arguments = (x.reshape(x.size), x.shape[1:], rows, columns, counts, y.reshape(y.size))
    parallel_for(_window_mean_image, y.shape[0], workers, arguments)


@kernel
def _window_mean_backward_image(n, worker, dy, rows, columns, counts, dx, shape, work):
    height, width, depth = shape
    oh, ow = counts.shape
    share = worker * depth
    clear_run(dx, n * height * width * depth, height * width * depth)
    for i in range(oh):
        for j in range(ow):
            out = ((n * oh + i) * ow + j) * depth
            for c in range(depth):
                work[share + c] = dy[out + c] / counts[i, j]
            for row in range(rows[i, 0], rows[i, 1]):
                for column in range(columns[j, 0], columns[j, 1]):
                    at = ((n * height + row) * width + column) * depth
                    add_run(dx, at, work, share, depth)


@kernel
def window_mean_backward(dy, rows, columns, counts, workers, work, dx):
    """Give each cell of a window ``dy[i, j] / counts[i, j]``; work holds workers * C elements."""
    flat_dy, flat_dx = dy.reshape(dy.size), dx.reshape(dx.size)
    arguments = (flat_dy, rows, columns, counts, flat_dx, dx.shape[1:], work)
    parallel_for(_window_mean_backward_image, dx.shape[0], workers, arguments)
