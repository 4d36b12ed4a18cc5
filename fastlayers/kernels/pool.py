"""Pooling over windows of channels-last images (N, H, W, C), vectorised over the channels."""

from __future__ import annotations

import numpy as np

from fastlayers.kernels.micro import add_run, add_where_run, clear_run, max_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["max_pool2d", "max_pool2d_backward", "window_mean", "window_mean_backward"]


@kernel
def _max_pool2d_row(task, worker, x, geometry, y, offsets):
    """One row of outputs."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry
    _, height, width, depth = x.shape
    n, i = divmod(task, y.shape[1])
    source, best, cells = x.reshape(x.size), y.reshape(y.size), offsets.reshape(y.size)
    for j in range(y.shape[2]):
        out = (task * y.shape[2] + j) * depth
        first = True
        for r in range(kh):
            row = i * sh - ph + r * dh
            if row < 0 or row >= height:
                continue
            for s in range(kw):
                column = j * sw - pw + s * dw
                if 0 <= column < width:
                    at = ((n * height + row) * width + column) * depth
                    max_run(best, out, cells, source, at, r * kw + s, first, depth)
                    first = False
        if first:  # a dilated window can lie in the padding alone
            best[out : out + depth] = -np.inf
            cells[out : out + depth] = 0


@kernel
def max_pool2d(x, geometry, workers, y, offsets):
    """Maximum of each window, and the window's cell ``r * KW + s`` that holds it.

    ``geometry = (kernel, stride, padding, dilation)``, pairs. y and offsets are (N, OH, OW, C), offsets of an unsigned type that holds KH*KW - 1.
    """
    parallel_for(_max_pool2d_row, y.shape[0] * y.shape[1], workers, (x, geometry, y, offsets))


@kernel
def _max_pool2d_backward_image(n, worker, dy, offsets, geometry, dx):
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry
    _, height, width, depth = dx.shape
    _, oh, ow, _ = dy.shape
    target, source, cells = dx.reshape(dx.size), dy.reshape(dy.size), offsets.reshape(dy.size)
    dx[n] = 0
    for i in range(oh):
        for j in range(ow):
            out = ((n * oh + i) * ow + j) * depth
            for r in range(kh):
                row = i * sh - ph + r * dh
                if row < 0 or row >= height:
                    continue
                for s in range(kw):
                    column = j * sw - pw + s * dw
                    if 0 <= column < width:
                        at = ((n * height + row) * width + column) * depth
                        add_where_run(target, at, source, cells, out, r * kw + s, depth)


@kernel
def max_pool2d_backward(dy, offsets, geometry, workers, dx):
    """Add each output's gradient to the cell that held the maximum; dx is (N, H, W, C)."""
    parallel_for(
        _max_pool2d_backward_image, dx.shape[0], workers, (dy, offsets, geometry, dx)
    )


@kernel
def _window_mean_row(task, worker, x, rows, columns, counts, y):
    _, height, width, depth = x.shape
    n, i = divmod(task, y.shape[1])
    source, sums = x.reshape(x.size), y.reshape(y.size)
    for j in range(y.shape[2]):
        out = (task * y.shape[2] + j) * depth
        clear_run(sums, out, depth)
        for row in range(rows[i, 0], rows[i, 1]):
            for column in range(columns[j, 0], columns[j, 1]):
                at = ((n * height + row) * width + column) * depth
                add_run(sums, out, source, at, depth)
        for c in range(depth):
            sums[out + c] /= counts[i, j]


@kernel
def window_mean(x, rows, columns, counts, workers, y):
    """``y[i, j] = sum(x[rows[i, 0]:rows[i, 1], columns[j, 0]:columns[j, 1]]) / counts[i, j]``.

    rows (OH, 2) and columns (OW, 2) hold the windows' bounds within the image.
    """
    tasks = y.shape[0] * y.shape[1]
    parallel_for(_window_mean_row, tasks, workers, (x, rows, columns, counts, y))


@kernel
def _window_mean_backward_image(n, worker, dy, rows, columns, counts, dx):
    dx[n] = 0
    for i in range(dy.shape[1]):
        for j in range(dy.shape[2]):
            for row in range(rows[i, 0], rows[i, 1]):
                for column in range(columns[j, 0], columns[j, 1]):
                    for c in range(dy.shape[3]):
                        dx[n, row, column, c] += dy[n, i, j, c] / counts[i, j]


@kernel
def window_mean_backward(dy, rows, columns, counts, workers, dx):
    """Give each cell of a window ``dy[i, j] / counts[i, j]``."""
    arguments = (dy, rows, columns, counts, dx)
    parallel_for(_window_mean_backward_image, dx.shape[0], workers, arguments)
