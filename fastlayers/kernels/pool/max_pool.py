"""Maxima over windows of channels-last images (N, H, W, C), vectorised over the channels.

Images of the output are (N, OH, OW, C); `floor` is the least value of the output: 0 for ReLU, NaN
for none. Gradients take `dy` and `cells` as the forward pass gave them, and the output `y` flat or
None: where it is not above `floor` dy counts as 0.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from numba.np.unsafe.ndarray import to_fixed_tuple

from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import clear_run, flat
from fastlayers.kernels.layout import inside
from fastlayers.kernels.pool.loops import LANES, Images, image_sizes, spilled_lanes
from fastlayers.kernels.pool.windows import Cells, Maxima, Sweep, max_window, max_windows
from fastlayers.kernels.pool.windows_gradient import (
    OutputGradient,
    PairedRows,
    TiledRows,
    gather_pairs,
    gather_window,
    spread_windows,
)
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "TileFacts",
    "WindowPlan",
    "max_pool2d",
    "max_pool2d_gather",
    "max_pool2d_pairs",
    "max_pool2d_tiles",
]


class WindowPlan(NamedTuple):
    """Cells of a window, strides, padding before the image, dilation, and the cut of the output."""

    height: int
    width: int
    stride_down: int
    stride_across: int
    top: int
    left: int
    dilation_down: int
    dilation_across: int
    task_rows: int  # output rows of a task
    column_runs: int  # of windows that the image's edge cuts off alike
    rows_alike: int  # 1 if all rows of windows are, in one run: several can be done in one loop


PLAN_FIELDS = len(WindowPlan._fields)


class WindowFacts(NamedTuple):
    """All that tasks of a maximum pooling read; see `max_pool2d`."""

    images: Images
    window: WindowPlan
    unrolled: Any
    table: Any


class TileFacts(NamedTuple):
    """Windows that lie side by side from the first pixel on."""

    height: int
    width: int
    unrolled: Any  # a tuple as long as a window's row, to unroll it, or empty
    task_rows: int  # output rows of a task
    table: Any  # (0, k) for each cell k of a window


@kernel
def _whole_vectors(rows, pixels, room, space, images, steps):
    """How many rows, and pixels of each, have vectors that end within x and the task's y.

    All pixels of several rows, or the first ones of one row. `room` elements of x and `space` of y
    are left after the vectors of the first pixel; ``steps = (from pixel to pixel, from row to
    row)`` are distances in x.
    """
    line, (step, down) = images.out_width * images.depth, steps
    while rows > 1 and (
        space < rows * line - images.depth
        or room < (rows - 1) * down + (images.out_width - 1) * step
    ):
        rows -= 1
    last = pixels - 1
    if rows == 1 and min(room - last * step, space - last * images.depth) < 0:
        pixels = max(0, min(pixels, room // step + 1, space // images.depth + 1))
    return rows, pixels


@kernel
def _max_pool2d_rows(chunk, worker, x, facts, floor, y, cells):
    images, window, table = facts.images, facts.window, facts.table
    depth, (height, width) = images.depth, (window.height, window.width)
    line, spill, row = images.out_width * depth, spilled_lanes(depth), chunk * window.task_rows
    last = min(row + window.task_rows, y.size // line)
    end, step = last * line, window.stride_across * depth
    down = window.stride_down * images.width * depth
    row_step = window.dilation_down * images.width * depth
    column_step = window.dilation_across * depth
    while row < last:
        n, i = row // images.out_height, row % images.out_height
        image, at_row = n * images.height * images.width * depth, (2 * height + 1) * i
        at_columns, j = (2 * height + 1) * images.out_height, 0
        row_in_image, rows = table[at_row], at_row + 1
        count = min(images.out_height - i, last - row) if window.rows_alike else 1
        for _ in range(window.column_runs):
            run_end, column_in_image = table[at_columns], table[at_columns + 1]
            columns = at_columns + 2
            out, at, pixels = row * line + j * depth, image + j * step, run_end - j
            if row_in_image * column_in_image == 0:
                pixels = 0
            elif spill:
                reach = at + table[rows + height - 1] + table[columns + width - 1] + spill
                room, space = x.size - reach, end - spill - out
                count, pixels = _whole_vectors(count, pixels, room, space, images, (step, down))
            maxima, source = Maxima(y, cells, out), (x, at)
            entries = Cells(table, rows, columns, height, width)
            sweep = Sweep(count, pixels, step, down - images.out_width * step, depth)
            if depth <= 8:
                max_windows(8, facts.unrolled, maxima, source, entries, sweep, floor)
            else:
                max_windows(16, facts.unrolled, maxima, source, entries, sweep, floor)
            for column in range(j + pixels, run_end):
                top = i * window.stride_down - window.top
                left = column * window.stride_across - window.left
                r0, r1 = inside(top, window.dilation_down, height, images.height)
                s0, s1 = inside(left, window.dilation_across, width, images.width)
                source = (x, image + (top * images.width + left) * depth)
                maxima = Maxima(y, cells, row * line + column * depth)
                in_rows, in_columns = (r0, r1, row_step), (s0, s1, column_step, width)
                max_window(maxima, source, in_rows, in_columns, depth, floor)
            j, at_columns = run_end, columns + 2 * width
        row += count


@kernel(unroll=True)
def max_pool2d(x, unrolled, plan, table, floor, workers, y, cells):
    """Maximum of each window, and the window's cell ``r * KW + s`` that holds it.

    Parameters
    ----------
    x : array
        (N, H, W, C).
    unrolled : tuple of int
        As long as both sides of the window, for which the loop over its cells is then compiled; or
        empty.
    plan : array
        int64, a `WindowPlan`.
    table : array
        int64: for each output row whether any cell of its windows is in the image, the distances of
        their rows from the image's first pixel, in elements, and the numbers ``r * KW`` of their
        first cells, where rows outside of the image are replaced by the next one inside; then for
        each run of columns whose windows are cut off alike the column after it, and the same of
        it.
    floor : float
        Where it stands instead of a maximum the cell is the largest number.
    workers : int
    y, cells : array
        (N, OH, OW, C); cells of an unsigned type whose largest number is no cell.
    """
    window = named(WindowPlan, to_fixed_tuple(plan, PLAN_FIELDS))
    facts = WindowFacts(image_sizes(x, y), window, unrolled, table)
    # Flat views made here: reshaping in a task counts references, with atomics that the
    # threads contend for.
    arguments = (flat(x), facts, x.dtype.type(floor), flat(y), flat(cells))
    rows = y.shape[0] * y.shape[1]
    chunks = (rows + window.task_rows - 1) // window.task_rows
    parallel_for(_max_pool2d_rows, chunks, workers, arguments)


@kernel
def _spread(unrolled, target, gradient, tiles, floor):
    if tiles.depth <= 8:
        spread_windows(8, unrolled, target, gradient, tiles, floor)
    else:
        spread_windows(16, unrolled, target, gradient, tiles, floor)


@kernel
def _tiled_row(images, facts, gradient, floor, dx, at, end):
    """Gradient of one row of windows, whose last vectors may not be written whole.

    It begins with element `at` of dx, and nothing is written from `end` on.
    """
    height, width = facts.height, facts.width
    depth, ow = images.depth, images.out_width
    dy, cells, y, out = gradient
    spill, line = spilled_lanes(depth), images.width * depth
    for r in range(height):
        pixels = ow
        if spill:
            room = (end - spill - at - (width - 1) * depth) // (width * depth) + 1
            pixels = max(0, min(ow, room, (dy.size - spill - out) // depth + 1))
        tiles = TiledRows(r, r + 1, width, 1, pixels, depth)
        _spread(facts.unrolled, (dx, at), gradient, tiles, floor)
        for j in range((ow - pixels) * width):
            cell, target = 2 * (r * width + j % width), (dx, at + (pixels * width + j) * depth)
            other = OutputGradient(dy, cells, y, out + (pixels + j // width) * depth)
            gather_window(target, other, facts.table, (0, 2), (cell, cell + 2), depth, floor)
        clear_run(dx, at + ow * width * depth, (images.width - ow * width) * depth)
        at += line


@kernel
def _tiled_rows(chunk, worker, images, facts, gradients, floor, dx):
    dy, cells, y = gradients
    height, width = facts.height, facts.width
    depth, oh, ow = images.depth, images.out_height, images.out_width
    first, spill = chunk * facts.task_rows, spilled_lanes(depth)
    count = min(facts.task_rows, dy.size // (ow * depth) - first)
    line, last = images.width * depth, first + count
    end = (last // oh * images.height + last % oh * height) * line
    n, i, k = first // oh, first % oh, 0
    while k < count:
        out, at = (first + k) * ow * depth, (n * images.height + i * height) * line
        gradient = OutputGradient(dy, cells, y, out)
        rows = min(count - k, oh - i) if images.width == ow * width else 0
        while (
            spill
            and rows > 0
            and (
                at + rows * height * line + spill > end or out + rows * ow * depth + spill > dy.size
            )
        ):
            rows -= 1
        if rows > 0:
            tiles = TiledRows(0, height, width, rows, ow, depth)
            _spread(facts.unrolled, (dx, at), gradient, tiles, floor)
        else:
            rows = 1
            _tiled_row(images, facts, gradient, floor, dx, at, end)
        at += rows * height * line
        k += rows
        i += rows
        if i == oh:
            clear_run(dx, at, (images.height - oh * height) * line)
            n, i = n + 1, 0


@kernel
def max_pool2d_tiles(dy, cells, y, facts, floor, workers, dx):
    """Input gradient of windows that lie side by side, `TileFacts`; writes dx once."""
    facts, gradients = named(TileFacts, facts), (flat(dy), flat(cells), y)
    arguments = (image_sizes(dx, dy), facts, gradients, dy.dtype.type(floor), flat(dx))
    rows = dy.shape[0] * dy.shape[1]
    parallel_for(_tiled_rows, (rows + facts.task_rows - 1) // facts.task_rows, workers, arguments)


@kernel
def _paired_rows(chunk, worker, images, task_rows, gradients, floor, dx):
    dy, cells, y = gradients
    line, out_line = images.width * images.depth, images.out_width * images.depth
    first, even = chunk * task_rows, images.width % 2 == 0
    for row in range(first, min(first + task_rows, dy.size // out_line)):
        n, i = row // images.out_height, row % images.out_height
        below = out_line if i + 1 < images.out_height else 0
        odd_line = line if 2 * i + 1 < images.height else 0
        target = (dx, (n * images.height + 2 * i) * line)
        gradient = OutputGradient(dy, cells, y, row * out_line)
        followed = (row + 2) * out_line + LANES <= dy.size
        pairs = PairedRows(odd_line, below, images.out_width, even, images.depth, followed)
        gather_pairs(target, gradient, pairs, floor)


@kernel
def max_pool2d_pairs(dy, cells, y, task_rows, floor, workers, dx):
    """Input gradient of windows of 3 x 3 in steps of 2 with a padding of 1.

    A task takes `task_rows` rows of dy, and two of dx for each.
    """
    gradients = (flat(dy), flat(cells), y)
    arguments = (image_sizes(dx, dy), task_rows, gradients, dy.dtype.type(floor), flat(dx))
    rows = dy.shape[0] * dy.shape[1]
    parallel_for(_paired_rows, (rows + task_rows - 1) // task_rows, workers, arguments)


@kernel
def _gathered_rows(chunk, worker, images, task_rows, table, gradients, floor, dx):
    height, width, depth = images.height, images.width, images.depth
    out_image, first = images.out_height * images.out_width * depth, chunk * task_rows
    dy, cells, y = gradients
    for row in range(first, min(first + task_rows, dx.size // (width * depth))):
        n, i = row // height, row % height
        rows, gradient = (table[i], table[i + 1]), OutputGradient(dy, cells, y, n * out_image)
        for j in range(width):
            target, here = (dx, (row * width + j) * depth), height + 1 + j
            columns = (table[here], table[here + 1])
            gather_window(target, gradient, table, rows, columns, depth, floor)


@kernel
def max_pool2d_gather(dy, cells, y, task_rows, table, floor, workers, dx):
    """Input gradient of any windows: each pixel adds what the windows give that see it.

    ``table[i] .. table[i + 1]`` are where the table holds (distance in elements, number of the
    first cell of the window's row) of the output rows that see input row i, for all rows, and then
    ``(distance, number of the cell in its row)`` of the output columns alike. A task takes
    `task_rows` rows of dx.
    """
    gradients = (flat(dy), flat(cells), y)
    arguments = (image_sizes(dx, dy), task_rows, table, gradients, dy.dtype.type(floor), flat(dx))
    rows = dx.shape[0] * dx.shape[1]
    parallel_for(_gathered_rows, (rows + task_rows - 1) // task_rows, workers, arguments)
