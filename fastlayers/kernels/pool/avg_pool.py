"""Means over rectangles of channels-last images (N, H, W, C), vectorised over the channels."""

from __future__ import annotations

from fastlayers.kernels.ir.runs import add_run, clear_run, copy_run, flat
from fastlayers.kernels.pool.loops import spilled
from fastlayers.kernels.pool.windows_gradient import gather_window
from fastlayers.kernels.pool.windows_mean import mean_tiles, mean_window, spread_mean, sum_rows
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["image_mean", "tile_mean", "tiled_mean_backward", "window_mean", "window_mean_backward"]

# Pixels of a window that is read one vector of channels after the other.
SMALL = 64


@kernel
def _window_mean_rows(chunk, worker, x, shape, rows, columns, counts, span, y):
    height, width, depth = shape
    oh, ow = counts.shape
    first, one = chunk * span, y.dtype.type(1)
    for row in range(first, min(first + span, y.size // (ow * depth))):
        n, i = row // oh, row % oh
        top = (n * height + rows[i, 0]) * width
        lines, step = rows[i, 1] - rows[i, 0], width * depth
        for j in range(ow):
            left, right = columns[j, 0], columns[j, 1]
            out = (row * ow + j) * depth
            at, divisor, more = (top + left) * depth, counts[i, j], False
            # Large windows are read line by line, each for all channels: mean over 56 x 56 pixels
            # of 64 channels, 1.07 to 0.83 ms.
            batch = lines if lines * (right - left) <= SMALL else 1
            for k in range(max(1, lines // max(1, batch))):
                share = divisor if (k + 1) * batch >= lines else one
                here = at + k * step
                mean_window(y, out, x, here, (batch, step), right - left, depth, share, more)
                more = True


@kernel(opt=3, unroll=True)
def window_mean(x, rows, columns, counts, span, workers, y):
    """``y[i, j] = sum(x[rows[i, 0]:rows[i, 1], columns[j, 0]:columns[j, 1]]) / counts[i, j]``.

    rows (OH, 2) and columns (OW, 2) hold the windows' bounds within the image; a task takes `span`
    rows of y.
    """
    arguments = (flat(x), x.shape[1:], rows, columns, counts, span, flat(y))
    parallel_for(
        _window_mean_rows, (y.shape[0] * y.shape[1] + span - 1) // span, workers, arguments
    )


@kernel
def _tile_rows(chunk, worker, square, x, shape, out_size, divisor, span, y):
    (oh, ow), (height, width, depth), side = out_size, shape, len(square)
    line, row, spill = width * depth, chunk * span, spilled(depth)
    last = min(row + span, y.size // (ow * depth))
    end = last * ow * depth
    while row < last:
        n, i = row // oh, row % oh
        count, out, at = min(oh - i, last - row), row * ow * depth, (n * height + side * i) * line
        # Not those windows whose vectors reach over the end of x or of the task's y: of all rows
        # but one no window is, of that one the first.
        whole = ow
        while (
            spill
            and count * whole > 0
            and (
                out + ((count - 1) * ow + whole - 1) * depth + spill > end
                or at + ((count * side - 1) * width + whole * side - 1) * depth + spill > x.size
            )
        ):
            if count > 1:
                count -= 1
            else:
                whole -= 1
        tiles = (count if whole else 0, whole)
        if depth <= 8:
            mean_tiles(8, square, y, out, x, at, tiles, line, depth, divisor)
        else:
            mean_tiles(16, square, y, out, x, at, tiles, line, depth, divisor)
        # The others one by one, in the order of additions of tiles: row by row.
        for j in range(whole, ow):
            for r in range(side):
                share = divisor if r == side - 1 else y.dtype.type(1)
                here, there = out + j * depth, at + r * line + j * side * depth
                mean_window(y, here, x, there, (1, line), side, depth, share, r > 0)
        row += count


@kernel
def tile_mean(x, square, divisor, span, workers, y):
    """Means of square windows that lie side by side from the first pixel on.

    `square` is a tuple as long as their sides, for which the loop over the cells is then compiled;
    a task takes `span` rows of y.
    """
    arguments = (
        square,
        flat(x),
        x.shape[1:],
        y.shape[1:3],
        x.dtype.type(divisor),
        span,
        flat(y),
    )
    rows = y.shape[0] * y.shape[1]
    parallel_for(_tile_rows, (rows + span - 1) // span, workers, arguments)


@kernel
def _image_mean_image(n, worker, x, shape, divisor, width, sums, y):
    pixels, depth = shape
    start = worker * width
    sum_rows(sums, start, x, n * pixels * depth, pixels * depth, width)
    folds = width // depth
    while folds > 1:  # a power of two
        folds //= 2
        add_run(sums, start, sums, start + folds * depth, folds * depth)
    for c in range(depth):
        y[n * depth + c] = sums[start + c] / divisor


@kernel
def image_mean(x, divisor, width, workers, sums, y):
    """Mean of each image, ``y[n] = sum(x[n]) / divisor``.

    Pixels are summed `width` elements at a time, a multiple of the channels and of vectors; `sums`
    is a workspace of ``workers * width`` elements.
    """
    shape = (x.shape[1] * x.shape[2], x.shape[3])
    arguments = (
        flat(x),
        shape,
        x.dtype.type(divisor),
        width,
        sums,
        flat(y),
    )
    parallel_for(_image_mean_image, x.shape[0], workers, arguments)


@kernel
def _tiled_mean_rows(chunk, worker, known, dy, out_size, window, share, span, dx, shape):
    (kh, kw), (oh, ow), (height, width, depth) = window, out_size, shape
    line, first = width * depth, chunk * span
    last = min(first + span, dy.size // (ow * depth))
    for row in range(first, last):
        n, i = row // oh, row % oh
        at, out = (n * height + i * kh) * line, row * ow * depth
        # What spills over must be written later, by this task.
        if depth <= 8 and (last - row - 1) * ow * depth >= 8:
            spread_mean(8, known, dx, at, dy, out, window, line, ow, depth, share)
        else:
            spread_mean(16, known, dx, at, dy, out, window, line, ow, depth, share)
        if ow * kw < width:
            for r in range(kh):
                clear_run(dx, at + r * line + ow * kw * depth, (width - ow * kw) * depth)
        if i == oh - 1:
            clear_run(dx, at + kh * line, (height - oh * kh) * line)


@kernel
def tiled_mean_backward(known, dy, window, divisor, span, workers, dx):
    """As `window_mean_backward` for windows that lie side by side from the first pixel on.

    `window` is their size, `divisor` that of all; a task takes `span` rows of dy. `known` is a
    tuple as long as a window's row, for which the loop is then compiled, or empty.
    """
    arguments = (
        known,
        flat(dy),
        dy.shape[1:3],
        window,
        dy.dtype.type(1 / divisor),
        span,
        flat(dx),
        dx.shape[1:],
    )
    rows = dy.shape[0] * dy.shape[1]
    parallel_for(_tiled_mean_rows, (rows + span - 1) // span, workers, arguments)


@kernel
def _repeat_run(dx, at, size, count):
    """Repeat the `size` elements at `at` until there are `count`, by ever longer copies."""
    done = size
    while done < count:
        more = min(done, count - done)
        copy_run(dx, at + done, dx, at, more)
        done += more


@kernel
def _window_mean_backward_image(n, worker, dy, counts, table, dx, shape, share):
    height, width, depth = shape
    oh, ow = counts.shape
    # The gradient of each sum.
    image = n * oh * ow * depth
    for i in range(oh):
        for j in range(ow):
            at = image + (i * ow + j) * depth
            for c in range(depth):
                share[at + c] = dy[at + c] / counts[i, j]
    none = dy.dtype.type(0)
    row_runs, column_runs = table[0], table[1]
    for k in range(row_runs):
        here = 2 + 4 * k
        rows = (table[here + 2], table[here + 3])
        line = (n * height + table[here]) * width * depth
        for m in range(column_runs):
            there = 2 + 4 * (row_runs + m)
            at = line + table[there] * depth
            columns = (table[there + 2], table[there + 3])
            gather_window(dx, at, share, None, None, image, table, rows, columns, depth, none)
            _repeat_run(dx, at, depth, table[there + 1] * depth)
        for _ in range(1, table[here + 1]):
            copy_run(dx, line + width * depth, dx, line, width * depth)
            line += width * depth


@kernel
def window_mean_backward(dy, counts, table, workers, share, dx):
    """Give each input pixel the sum of ``dy[i, j] / counts[i, j]`` of the windows that hold it.

    Parameters
    ----------
    dy, counts : array
        (N, OH, OW, C) and (OH, OW).
    table : array
        int64: the numbers of runs of rows and of columns, through which the same windows go; for
        each run of rows its first row, its length, and where in the table its windows begin and
        end; then the runs of columns alike; then for each window of a run its distance in elements
        from the first one, and 0.
    workers : int
    share : array
        Workspace of dy's size.
    dx : array
        (N, H, W, C).
    """
    arguments = (
        flat(dy),
        counts,
        table,
        flat(dx),
        dx.shape[1:],
        share,
    )
    parallel_for(_window_mean_backward_image, dx.shape[0], workers, arguments)
