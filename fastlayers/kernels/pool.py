"""Pooling over windows of channels-last images (N, H, W, C), vectorised over the channels."""

from __future__ import annotations

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["max_pool2d", "max_pool2d_backward", "window_mean", "window_mean_backward"]


@kernel
def _max_pool2d_row(task, worker, x, geometry, y, offsets):
    """One row of outputs."""
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry
    n, i = divmod(task, y.shape[1])
    for j in range(y.shape[2]):
        first = True
        for r in range(kh):
            row = i * sh - ph + r * dh
            if row < 0 or row >= x.shape[1]:
                continue
            for s in range(kw):
                column = j * sw - pw + s * dw
                if column < 0 or column >= x.shape[2]:
                    continue
                cell = offsets.dtype.type(r * kw + s)
                for c in range(x.shape[3]):
                    value, best = x[n, row, column, c], y[n, i, j, c]
                    # Strictly greater, so that ties stay with the first cell; the first NaN
                    # wins, since nothing compares greater and no second NaN replaces it.
                    better = first or value > best or (value != value and best == best)
                    y[n, i, j, c] = value if better else best
                    offsets[n, i, j, c] = cell if better else offsets[n, i, j, c]
                first = False


@kernel
def max_pool2d(x, geometry, workers, y, offsets):
    """Maximum of each window, and the window's cell ``r * KW + s`` that holds it.

    ``geometry = (kernel, stride, padding, dilation)``, pairs; every window must hold a cell of
    the image. y and offsets are (N, OH, OW, C), offsets of an unsigned type that holds KH*KW - 1.
    """
    parallel_for(_max_pool2d_row, y.shape[0] * y.shape[1], workers, (x, geometry, y, offsets))


@kernel
def _max_pool2d_backward_image(n, worker, dy, offsets, geometry, dx):
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry
    zero = dy.dtype.type(0)
    dx[n] = zero
    for i in range(dy.shape[1]):
        for j in range(dy.shape[2]):
            for r in range(kh):
                row = i * sh - ph + r * dh
                if row < 0 or row >= dx.shape[1]:
                    continue
                for s in range(kw):
                    column = j * sw - pw + s * dw
                    if column < 0 or column >= dx.shape[2]:
                        continue
                    cell = offsets.dtype.type(r * kw + s)
                    for c in range(dy.shape[3]):
                        hit = offsets[n, i, j, c] == cell
                        dx[n, row, column, c] += dy[n, i, j, c] if hit else zero


@kernel
def max_pool2d_backward(dy, offsets, geometry, workers, dx):
    """Add each output's gradient to the cell that held the maximum; dx is (N, H, W, C)."""
    parallel_for(
        _max_pool2d_backward_image, dx.shape[0], workers, (dy, offsets, geometry, dx)
    )


@kernel
def _window_mean_row(task, worker, x, rows, columns, scale, y):
    n, i = divmod(task, y.shape[1])
    for j in range(y.shape[2]):
        for c in range(x.shape[3]):
            y[n, i, j, c] = 0
        for row in range(rows[i, 0], rows[i, 1]):
            for column in range(columns[j, 0], columns[j, 1]):
                for c in range(x.shape[3]):
                    y[n, i, j, c] += x[n, row, column, c]
        for c in range(x.shape[3]):
            y[n, i, j, c] *= scale[i, j]


@kernel
def window_mean(x, rows, columns, scale, workers, y):
    """``y[i, j] = scale[i, j] * sum(x[rows[i, 0]:rows[i, 1], columns[j, 0]:columns[j, 1]])``.

    rows (OH, 2) and columns (OW, 2) hold the windows' bounds within the image.
    """
    tasks = y.shape[0] * y.shape[1]
    parallel_for(_window_mean_row, tasks, workers, (x, rows, columns, scale, y))


@kernel
def _window_mean_backward_image(n, worker, dy, rows, columns, scale, dx):
    dx[n] = 0
    for i in range(dy.shape[1]):
        for j in range(dy.shape[2]):
            for row in range(rows[i, 0], rows[i, 1]):
                for column in range(columns[j, 0], columns[j, 1]):
                    for c in range(dy.shape[3]):
                        dx[n, row, column, c] += scale[i, j] * dy[n, i, j, c]


@kernel
def window_mean_backward(dy, rows, columns, scale, workers, dx):
    """Give each cell of a window ``scale[i, j] * dy[i, j]``."""
    arguments = (dy, rows, columns, scale, dx)
    parallel_for(_window_mean_backward_image, dx.shape[0], workers, arguments)
