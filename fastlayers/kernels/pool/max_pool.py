"""Maxima over windows of channels-last images (N, H, W, C), vectorised over the channels."""

from __future__ import annotations

from fastlayers.kernels.ir.runs import clear_run, flat
from fastlayers.kernels.layout import inside
from fastlayers.kernels.pool.loops import spilled
from fastlayers.kernels.pool.windows import max_window, max_windows
from fastlayers.kernels.pool.windows_gradient import gather_pairs, gather_window, spread_windows
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["max_pool2d", "max_pool2d_backward", "max_pool2d_gather", "max_pool2d_pairs"]


@kernel
def _max_pool2d_rows(
    chunk,
    worker,
    x,
    shape,
    out_size,
    geometry,
    square,
    span,
    runs,
    alike,
    table,
    floor,
    y,
    cells,
):
    (kh, kw), (sh, sw), (ph, pw), (dh, dw) = geometry
    (height, width, depth), (oh, ow) = shape, out_size
    first, spill, row = chunk * span, spilled(depth), chunk * span
    last = min(first + span, y.size // (ow * depth))
    end, step = last * ow * depth, sw * depth
    # From the end of a row's windows to the next row's.
    jump = sh * width * depth - ow * step
    while row < last:
        n, i = row // oh, row % oh
        image, rows, columns, j = n * height * width * depth, (2 * kh + 1) * i, (2 * kh + 1) * oh, 0
        some, rows, count = table[rows], rows + 1, min(oh - i, last - row) if alike else 1
        for _ in range(runs):
            behind, whole = table[columns], table[columns + 1]
            columns += 2
            out, at, pixels = (row * ow + j) * depth, image + j * step, behind - j
            if some * whole == 0:
                pixels = 0
            elif spill:
                # Not those whose vectors reach over the end of x or of the chunk's y.
                reach = at + table[rows + kh - 1] + table[columns + kw - 1] + spill
                room, space = x.size - reach, end - spill - out
                while count > 1 and (
                    space < (count * ow - 1) * depth
                    or room < (count - 1) * (jump + ow * step) + (ow - 1) * step
                ):
                    count -= 1
                if count == 1 and min(room - (pixels - 1) * step, space - (pixels - 1) * depth) < 0:
                    pixels = max(0, min(pixels, room // step + 1, space // depth + 1))
            size = (count, pixels)
            if depth <= 8:
                max_windows(
                    8,
                    square,
                    y,
                    cells,
                    out,
                    x,
                    at,
                    table,
                    rows,
                    columns,
                    (kh, kw),
                    size,
                    step,
                    jump,
                    depth,
                    floor,
                )
            else:
                max_windows(
                    16,
                    square,
                    y,
                    cells,
                    out,
                    x,
                    at,
                    table,
                    rows,
                    columns,
                    (kh, kw),
                    size,
                    step,
                    jump,
                    depth,
                    floor,
                )
            j += pixels
            while j < behind:
                top = i * sh - ph
                r0, r1 = inside(top, dh, kh, height)
                s0, s1 = inside(j * sw - pw, dw, kw, width)
                down, along = (r0, r1, dh * width * depth), (s0, s1, dw * depth, kw)
                at = image + (top * width + j * sw - pw) * depth
                max_window(y, cells, (row * ow + j) * depth, x, at, down, along, depth, floor)
                j += 1
            columns += 2 * kw
        row += count


@kernel(unroll=True)
def max_pool2d(x, square, sizes, table, floor, workers, y, cells):
    """Maximum of each window, and the window's cell ``r * KW + s`` that holds it.

    Parameters
    ----------
    x : array
        (N, H, W, C).
    square : tuple of int
        As long as both sides of the window, for which the loop over its cells is then compiled; or
        empty.
    sizes : array
        int64: kernel, stride, padding and dilation, pairs; output rows of a task; runs of output
        columns; whether the windows of all rows lie alike, which takes one run, and see some of the
        image.
    table : array
        int64: for each output row whether there is anything of its windows, the distances of their
        rows from the image's first pixel, in elements, and the numbers ``r * KW`` of their first
        cells, where rows outside of the image are replaced by the next one inside; then for each
        run of columns whose windows are cut off alike the column behind it, and the same of it.
    floor : float
        Least value of the output: 0 for ReLU, NaN for none. Where it stands instead of a maximum
        the cell is the largest number.
    workers : int
    y, cells : array
        (N, OH, OW, C); cells of an unsigned type whose largest number is no cell.
    """
    g = sizes
    geometry = (g[0], g[1]), (g[2], g[3]), (g[4], g[5]), (g[6], g[7])
    rows, span = y.shape[0] * y.shape[1], g[8]
    # Flat views made here: reshaping in a task counts references, with atomics that the
    # threads contend for.
    arguments = (
        flat(x),
        x.shape[1:],
        y.shape[1:3],
        geometry,
        square,
        span,
        g[9],
        g[10],
        table,
        x.dtype.type(floor),
        flat(y),
        flat(cells),
    )
    parallel_for(_max_pool2d_rows, (rows + span - 1) // span, workers, arguments)


@kernel
def _spread(known, dx, at, dy, cells, y, out, lines, width, rows, pixels, depth, floor):
    if depth <= 8:
        spread_windows(
            8, known, dx, at, dy, cells, y, out, lines, width, rows, pixels, depth, floor
        )
    else:
        spread_windows(
            16, known, dx, at, dy, cells, y, out, lines, width, rows, pixels, depth, floor
        )


@kernel
def _tiled_rows(
    chunk, worker, known, dy, cells, y, out_size, window, span, table, floor, dx, shape
):
    (kh, kw), (oh, ow), (height, width, depth) = window, out_size, shape
    first, spill = chunk * span, spilled(depth)
    count = min(span, dy.size // (ow * depth) - first)
    line, last = width * depth, first + count
    end = (last // oh * height + last % oh * kh) * line
    n, i, k = first // oh, first % oh, 0
    while k < count:
        out, at = (first + k) * ow * depth, (n * height + i * kh) * line
        rows = min(count - k, oh - i) if width == ow * kw else 1
        while (
            spill
            and rows > 0
            and (at + rows * kh * line + spill > end or out + rows * ow * depth + spill > dy.size)
        ):
            rows -= 1
        if rows > 0 and width == ow * kw:
            _spread(known, dx, at, dy, cells, y, out, (0, kh), kw, rows, ow, depth, floor)
            at += rows * kh * line
        else:
            rows = 1
            for r in range(kh):
                pixels = ow
                if spill:
                    room = (end - spill - at - (kw - 1) * depth) // (kw * depth) + 1
                    pixels = max(0, min(ow, room, (dy.size - spill - out) // depth + 1))
                _spread(known, dx, at, dy, cells, y, out, (r, r + 1), kw, 1, pixels, depth, floor)
                for j in range((ow - pixels) * kw):
                    cell, spot = 2 * (r * kw + j % kw), at + (pixels * kw + j) * depth
                    there, along = out + (pixels + j // kw) * depth, (cell, cell + 2)
                    gather_window(dx, spot, dy, cells, y, there, table, (0, 2), along, depth, floor)
                clear_run(dx, at + ow * kw * depth, (width - ow * kw) * depth)
                at += line
        k += rows
        i += rows
        if i == oh:
            clear_run(dx, at, (height - oh * kh) * line)
            n, i = n + 1, 0


@kernel
def max_pool2d_backward(known, dy, cells, y, window, span, table, floor, workers, dx):
    """Gradient of windows that lie side by side from the first pixel on; writes dx once.

    dy and cells are (N, OH, OW, C), the output y is flat or None: where it is not above `floor` dy
    counts as 0. `known` is a tuple as long as a window's row, for which the loop is then compiled,
    or empty. `window` is a pair, `span` the output rows of a task, and `table` holds (0, k) for
    each cell k of a window.
    """
    arguments = (
        known,
        flat(dy),
        flat(cells),
        y,
        dy.shape[1:3],
        window,
        span,
        table,
        dy.dtype.type(floor),
        flat(dx),
        dx.shape[1:],
    )
    rows = dy.shape[0] * dy.shape[1]
    parallel_for(_tiled_rows, (rows + span - 1) // span, workers, arguments)


@kernel
def _gathered_rows(chunk, worker, dy, cells, y, image, span, table, floor, dx, shape):
    height, width, depth = shape
    first = chunk * span
    for row in range(first, min(first + span, dx.size // (width * depth))):
        n, i = row // height, row % height
        rows = (table[i], table[i + 1])
        for j in range(width):
            at, here = (row * width + j) * depth, height + 1 + j
            columns = (table[here], table[here + 1])
            gather_window(dx, at, dy, cells, y, n * image, table, rows, columns, depth, floor)


@kernel
def max_pool2d_gather(dy, cells, y, span, table, floor, workers, dx):
    """As `max_pool2d_backward`, for any windows: adds for each input pixel what its windows give.

    ``table[i] .. table[i + 1]`` are where the table holds (distance in elements, number of the
    first cell of the window's row) of the output rows that see input row i, for all rows, and then
    ``(distance, number of the cell in its row)`` of the output columns alike.
    """
    arguments = (
        flat(dy),
        flat(cells),
        y,
        dy.shape[1] * dy.shape[2] * dy.shape[3],
        span,
        table,
        dy.dtype.type(floor),
        flat(dx),
        dx.shape[1:],
    )
    rows = dx.shape[0] * dx.shape[1]
    parallel_for(_gathered_rows, (rows + span - 1) // span, workers, arguments)


@kernel
def _paired_rows(chunk, worker, dy, cells, y, out_size, span, floor, dx, shape):
    (oh, ow), (height, width, depth) = out_size, shape
    line, first = width * depth, chunk * span
    for row in range(first, min(first + span, dy.size // (ow * depth))):
        n, i = row // oh, row % oh
        below = ow * depth if i + 1 < oh else 0
        odd = line if 2 * i + 1 < height else 0
        at, out, even = (n * height + 2 * i) * line, row * ow * depth, width % 2 == 0
        gather_pairs(dx, at, odd, dy, cells, y, out, below, ow, even, depth, floor)


@kernel
def max_pool2d_pairs(dy, cells, y, span, floor, workers, dx):
    """As `max_pool2d_backward`, for windows of 3 x 3 in steps of 2 with a padding of 1."""
    arguments = (
        flat(dy),
        flat(cells),
        y,
        dy.shape[1:3],
        span,
        dy.dtype.type(floor),
        flat(dx),
        dx.shape[1:],
    )
    rows = dy.shape[0] * dy.shape[1]
    parallel_for(_paired_rows, (rows + span - 1) // span, workers, arguments)
