"""Means over rectangles of channels-last images (N, H, W, C), vectorised over the channels."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastlayers.kernels.ir.runs import add_run, clear_run, copy_run, flat, view
from fastlayers.kernels.pool.loops import Images, image_sizes, spilled_lanes
from fastlayers.kernels.pool.windows_gradient import OutputGradient, gather_window
from fastlayers.kernels.pool.windows_mean import (
    MeanTiles,
    mean_tiles,
    mean_window,
    spread_mean,
    sum_rows,
)
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["image_mean", "tile_mean", "tiled_mean_backward", "window_mean", "window_mean_backward"]

# Pixels of a window that is read one vector of channels after the other.
SMALL = 64


class WindowFacts(NamedTuple):
    """All that tasks of `window_mean` read; see there."""

    images: Images
    rows: Any
    columns: Any
    divisors: Any
    task_rows: int


class TileFacts(NamedTuple):
    """Windows that lie side by side from the first pixel on."""

    images: Images
    height: int
    width: int
    unrolled: Any  # a tuple as long as a window's row, to unroll it, or empty
    task_rows: int  # output rows of a task


@kernel
def _window_mean_rows(chunk, worker, x, facts, y):
    images, first, one = facts.images, chunk * facts.task_rows, y.dtype.type(1)
    width, depth, ow = images.width, images.depth, images.out_width
    for row in range(first, min(first + facts.task_rows, y.size // (ow * depth))):
        n, i = row // images.out_height, row % images.out_height
        top = (n * images.height + facts.rows[i, 0]) * width
        lines, step = facts.rows[i, 1] - facts.rows[i, 0], width * depth
        for j in range(ow):
            left, right = facts.columns[j, 0], facts.columns[j, 1]
            out, at = (y, (row * ow + j) * depth), (top + left) * depth
            divisor, more = facts.divisors[i, j], False
            # Large windows are read line by line, each for all channels: mean over 56 x 56 pixels
            # of 64 channels, 1.07 to 0.83 ms.
            batch = lines if lines * (right - left) <= SMALL else 1
            for k in range(max(1, lines // max(1, batch))):
                by = divisor if (k + 1) * batch >= lines else one
                part = (x, at + k * step)
                mean_window(out, part, (batch, step), right - left, depth, by, more)
                more = True


@kernel(opt=3, unroll=True)
def window_mean(x, rows, columns, divisors, task_rows, workers, y):
    """``y[i, j] = sum(x[rows[i, 0]:rows[i, 1], columns[j, 0]:columns[j, 1]]) / divisors[i, j]``.

    rows (OH, 2) and columns (OW, 2) hold the windows' bounds within the image; a task takes
    `task_rows` rows of y.
    """
    facts = WindowFacts(image_sizes(x, y), rows, columns, divisors, task_rows)
    chunks = (y.shape[0] * y.shape[1] + task_rows - 1) // task_rows
    parallel_for(_window_mean_rows, chunks, workers, (flat(x), facts, flat(y)))


@kernel
def _tile_rows(chunk, worker, x, facts, divisor, y):
    images, side, row = facts.images, facts.height, chunk * facts.task_rows
    depth, oh, ow = images.depth, images.out_height, images.out_width
    line, spill = images.width * depth, spilled_lanes(depth)
    last = min(row + facts.task_rows, y.size // (ow * depth))
    end = last * ow * depth
    while row < last:
        n, i = row // oh, row % oh
        count, out = min(oh - i, last - row), row * ow * depth
        at = (n * images.height + side * i) * line
        # Not those windows whose vectors reach over the end of x or of the task's y: of all rows
        # but one no window is, of that one the first.
        whole = ow
        while (
            spill
            and count * whole > 0
            and (
                out + ((count - 1) * ow + whole - 1) * depth + spill > end
                or at + ((count * side - 1) * images.width + whole * side - 1) * depth + spill
                > x.size
            )
        ):
            if count > 1:
                count -= 1
            else:
                whole -= 1
        size = (count if whole else 0, whole)
        if depth <= 8:
            mean_tiles(8, facts.unrolled, (y, out), (x, at), size, line, depth, divisor)
        else:
            mean_tiles(16, facts.unrolled, (y, out), (x, at), size, line, depth, divisor)
        # The others one by one, in the order of additions of tiles: row by row.
        for j in range(whole, ow):
            for r in range(side):
                by = divisor if r == side - 1 else y.dtype.type(1)
                target, source = (y, out + j * depth), (x, at + r * line + j * side * depth)
                mean_window(target, source, (1, line), side, depth, by, r > 0)
        row += count


@kernel
def tile_mean(x, square, divisor, task_rows, workers, y):
    """Means of square windows that lie side by side from the first pixel on.

    `square` is a tuple as long as their sides, for which the loop over the cells is then compiled;
    a task takes `task_rows` rows of y.
    """
    facts = TileFacts(image_sizes(x, y), len(square), len(square), square, task_rows)
    chunks = (y.shape[0] * y.shape[1] + task_rows - 1) // task_rows
    parallel_for(_tile_rows, chunks, workers, (flat(x), facts, x.dtype.type(divisor), flat(y)))


@kernel
def _image_mean_image(n, worker, x, shape, divisor, width, sums, y):
    pixels, depth = shape
    start, size = worker * width, pixels * depth
    sum_rows((sums, start), (x, n * size), size, width)
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
    arguments = (flat(x), shape, x.dtype.type(divisor), width, sums, flat(y))
    parallel_for(_image_mean_image, x.shape[0], workers, arguments)


@kernel
def _tiled_mean_rows(chunk, worker, dy, facts, factor, dx):
    images, height, width = facts.images, facts.height, facts.width
    depth, oh, ow = images.depth, images.out_height, images.out_width
    line, first = images.width * depth, chunk * facts.task_rows
    last = min(first + facts.task_rows, dy.size // (ow * depth))
    tiles = MeanTiles(height, width, line, ow, depth)
    for row in range(first, last):
        n, i = row // oh, row % oh
        at, source = (n * images.height + i * height) * line, (dy, row * ow * depth)
        # What spills over must be written later, by this task.
        if depth <= 8 and (last - row - 1) * ow * depth >= 8:
            spread_mean(8, facts.unrolled, (dx, at), source, tiles, factor)
        else:
            spread_mean(16, facts.unrolled, (dx, at), source, tiles, factor)
        if ow * width < images.width:
            for r in range(height):
                rest = (images.width - ow * width) * depth
                clear_run(dx, at + r * line + ow * width * depth, rest)
        if i == oh - 1:
            clear_run(dx, at + height * line, (images.height - oh * height) * line)


@kernel
def tiled_mean_backward(unrolled, dy, window, divisor, task_rows, workers, dx):
    """As `window_mean_backward` for windows that lie side by side from the first pixel on.

    `window` is their size, `divisor` that of all; a task takes `task_rows` rows of dy. `unrolled`
    is a tuple as long as a window's row, for which the loop is then compiled, or empty.
    """
    facts = TileFacts(image_sizes(dx, dy), window[0], window[1], unrolled, task_rows)
    chunks = (dy.shape[0] * dy.shape[1] + task_rows - 1) // task_rows
    arguments = (flat(dy), facts, dy.dtype.type(1 / divisor), flat(dx))
    parallel_for(_tiled_mean_rows, chunks, workers, arguments)


@kernel
def _repeat_run(dx, at, size, count):
    """Repeat the `size` elements at `at` until there are `count`, by ever longer copies."""
    done = size
    while done < count:
        more = min(done, count - done)
        copy_run(dx, at + done, dx, at, more)
        done += more


@kernel
def _quotient_rows(chunk, worker, dy, images, divisors, task_rows, quotients):
    """The gradient of each sum of a window."""
    depth, ow, first = images.depth, images.out_width, chunk * task_rows
    for row in range(first, min(first + task_rows, dy.size // (ow * depth))):
        for j in range(ow):
            at, divisor = (row * ow + j) * depth, divisors[row % images.out_height, j]
            values, out = view(dy, at, depth), view(quotients, at, depth)
            for c in range(depth):
                out[c] = values[c] / divisor


@kernel
def _window_mean_backward_rows(task, worker, images, table, task_rows, quotients, dx):
    width, depth, pieces = images.width, images.depth, (images.height + task_rows - 1) // task_rows
    n, top = task // pieces, task % pieces * task_rows
    bottom = min(top + task_rows, images.height)
    image = n * images.out_height * images.out_width * depth
    gradient, none = OutputGradient(quotients, None, None, image), dx.dtype.type(0)
    row_runs, column_runs = table[0], table[1]
    for k in range(row_runs):
        here = 2 + 4 * k
        first, last = max(top, table[here]), min(bottom, table[here] + table[here + 1])
        if first >= last:
            continue
        rows = (table[here + 2], table[here + 3])
        line = (n * images.height + first) * width * depth
        for m in range(column_runs):
            there = 2 + 4 * (row_runs + m)
            at = line + table[there] * depth
            columns = (table[there + 2], table[there + 3])
            gather_window((dx, at), gradient, table, rows, columns, depth, none)
            _repeat_run(dx, at, depth, table[there + 1] * depth)
        for _ in range(first + 1, last):
            copy_run(dx, line + width * depth, dx, line, width * depth)
            line += width * depth


@kernel
def window_mean_backward(dy, divisors, table, cut, workers, quotients, dx):
    """Give each input pixel the sum of ``dy[i, j] / divisors[i, j]`` of the windows that hold it.

    Parameters
    ----------
    dy, divisors : array
        (N, OH, OW, C) and (OH, OW).
    table : array
        int64: the numbers of runs of rows and of columns, through which the same windows go; for
        each run of rows its first row, its length, and where in the table its windows begin and
        end; then the runs of columns alike; then for each window of a run its distance in elements
        from the first one, and 0.
    cut : (int, int)
        Rows of dy that a task divides, and rows of dx of a task.
    workers : (int, int)
        For the division and for the rest.
    quotients : array
        Workspace of dy's size.
    dx : array
        (N, H, W, C).
    """
    images, (out_rows, task_rows) = image_sizes(dx, dy), cut
    chunks = (dy.shape[0] * dy.shape[1] + out_rows - 1) // out_rows
    arguments = (flat(dy), images, divisors, out_rows, quotients)
    parallel_for(_quotient_rows, chunks, workers[0], arguments)
    tasks = dx.shape[0] * ((images.height + task_rows - 1) // task_rows)
    arguments = (images, table, task_rows, quotients, flat(dx))
    parallel_for(_window_mean_backward_rows, tasks, workers[1], arguments)
