"""Winograd convolution F(m x m, 3 x 3), m = 4 or 2, on channels-last arrays.

The stride is 1, and there are at least a vector's lanes of channels on either side. A convolution
of dilation d is d independent ones of every d-th row or column: a tile's pixels are d apart, and
tiles of the d phases begin side by side. A `geometry` is ``(size, out size, padding, dilation,
tiles)`` of an image, each for rows and columns; a padding may be negative. Tiles are numbered
through (N, tile row, tile column).
Points of the transform are numbered xi < (m + 2)^2; matrices of all xi lie one after the other,
each with one cache line behind it, since 36 streams at a multiple of 4 KiB would share the eight
lines of one set of L1.
"""

from __future__ import annotations

from fastlayers.kernels.gemm import gemm, packed_size, panel_width, prepare_gemm
from fastlayers.kernels.micro import add_run, clear_run, view
from fastlayers.kernels.transform import (
    transform_filter,
    transform_input,
    transform_output,
    untransform_filter,
    untransform_output,
)
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = [
    "FILTER_ROWS",
    "filter_size",
    "forward_work",
    "gradient_row",
    "gradient_work",
    "matrix_stride",
    "panel_work",
    "transform_weight",
    "winograd",
    "winograd_backward_weight",
    "winograd_backward_weight_by_panels",
    "winograd_by_panels",
]

# Rows of a panel of the weight that are transformed at once: 9 x 8 x 32 float32 are 9 KiB in L1.
FILTER_ROWS = 8
# Filters of one block of the weight's gradient, a multiple of every register tile's rows: its 36
# products with a panel are 36 x 48 x 32 float32, 216 KiB.
GRADIENT_ROWS = 48
# Tiles of a task that only transforms.
TRANSFORM_TILES = 8


@kernel
def _borrow(array):
    """Give the same array without an owner, so that calls count no references.

    A call of `gemm` counts those of its operands with atomic operations that threads contend for.
    """
    return view(array, 0, array.size)


@kernel
def row_length(channels, lanes):
    """Elements from one tile to the next in a transformed matrix: whole panels.

    Rows of a multiple of 1 KiB, of which a panel's 12 would share few sets of L1, get a vector
    more.
    """
    width = panel_width(channels, lanes)
    row = (channels + width - 1) // width * width
    return row + lanes if row % (16 * lanes) == 0 else row


@kernel
def matrix_stride(step, channels, lanes):
    """Elements from one xi to the next in a transformed block of `step` tiles."""
    return step * row_length(channels, lanes) + lanes


@kernel
def forward_work(tile, step, channels, filters, lanes):
    """Elements of a worker's buffer: transformed inputs, products, and a pixel to throw away."""
    strides = matrix_stride(step, channels, lanes) + matrix_stride(step, filters, lanes)
    return (tile + 2) * (tile + 2) * strides + row_length(filters, lanes)


@kernel
def filter_stride(k, columns, lanes):
    """Elements from one xi to the next in a transformed weight."""
    return packed_size(k, columns, lanes) + lanes


@kernel
def filter_size(tile, k, columns, lanes):
    """Elements of a transformed weight."""
    return (tile + 2) * (tile + 2) * filter_stride(k, columns, lanes)


@kernel
def _transform_rows(tile, weight, sizes, transposed, first, p, lanes, work, at, u, u_at, u_xi):
    """Transform `FILTER_ROWS` rows, from `p`, of the panel that begins at column `first`.

    ``sizes = (k, columns)`` of the GEMMs' B. The taps, innermost in the weight (M, C, 3, 3), go
    through a small buffer ``[k][tap][width]``.
    """
    k, columns = sizes
    width = panel_width(columns, lanes)
    rows, valid = min(FILTER_ROWS, k - p), min(width, columns - first)
    row = 9 * width
    for i in range(rows if transposed else valid):
        for j in range(valid if transposed else rows):
            if transposed:  # rotated by half a turn
                source = ((p + i) * columns + first + j) * 9 + 8
                target, turn = at + i * row + j, -1
            else:
                source = ((first + i) * k + p + j) * 9
                target, turn = at + j * row + i, 1
            for t in range(9):
                work[target + t * width] = weight[source + turn * t]
    for i in range(rows):
        if tile == 4:
            transform_filter(4, work, at + i * row, width, u, u_at + i * width, u_xi)
        else:
            transform_filter(2, work, at + i * row, width, u, u_at + i * width, u_xi)


@kernel
def _filter_task(task, worker, tile, weight, sizes, transposed, lanes, work, u):
    """Transform a few rows of one panel to their place in ``[xi][panel][k][width]``."""
    k, columns = sizes
    width = panel_width(columns, lanes)
    blocks = (k + FILTER_ROWS - 1) // FILTER_ROWS
    first, p = task // blocks * width, task % blocks * FILTER_ROWS
    at, stride = worker * 9 * FILTER_ROWS * width, filter_stride(k, columns, lanes)
    out = first * k + p * width
    _transform_rows(tile, weight, sizes, transposed, first, p, lanes, work, at, u, out, stride)


@kernel
def transform_weight(tile, weight, sizes, transposed, lanes, workers, work, u):
    """Transform and pack a flat (M, C, 3, 3) weight as the GEMMs' B of ``sizes = (k, columns)``.

    Forward wants (C, M) for every xi, the input's gradient (M, C) of the rotated filters.
    `work` holds ``workers * 9 * FILTER_ROWS * panel_width`` elements, u `filter_size`.
    """
    k, columns = sizes
    width = panel_width(columns, lanes)
    panels, blocks = (columns + width - 1) // width, (k + FILTER_ROWS - 1) // FILTER_ROWS
    arguments = (tile, weight, sizes, transposed, lanes, work, u)
    parallel_for(_filter_task, panels * blocks, workers, arguments)


@kernel
def _first_tile(first, geometry):
    """Image, tile row and tile column of a tile."""
    down, across = geometry[4]
    n, rest = divmod(first, down * across)
    i, j = divmod(rest, across)
    return n, i, j


@kernel
def _start(index, tile, dilation):
    """First row of a row of tiles, or first column."""
    if dilation == 1:
        return index * tile
    return index + index // dilation * dilation * (tile - 1)


@kernel
def _corner(tile, i, j, dilation):
    """First row and column of a tile."""
    return _start(i, tile, dilation[0]), _start(j, tile, dilation[1])


@kernel
def _next_tile(n, i, j, geometry):
    down, across = geometry[4]
    if j + 1 < across:
        return n, i, j + 1
    if i + 1 < down:
        return n, i + 1, 0
    return n + 1, 0, 0


@kernel
def _transform_inputs(tile, x, channels, geometry, first, count, zeros, v, v_at, v_row, v_xi):
    """Input transform of tiles ``[first, first + count)`` to rows of `v`."""
    (height, width), _, padding, dilation, _ = geometry
    n, i, j = _first_tile(first, geometry)
    image = (height, width, channels, *dilation)
    for t in range(count):
        row, column = _corner(tile, i, j, dilation)
        corner = (n * height * width * channels, row - padding[0], column - padding[1])
        if tile == 4:
            transform_input(4, x, corner, image, zeros, v, v_at + t * v_row, v_xi)
        else:
            transform_input(2, x, corner, image, zeros, v, v_at + t * v_row, v_xi)
        n, i, j = _next_tile(n, i, j, geometry)


@kernel
def _transform_outputs(
    tile,
    p,
    p_at,
    p_row,
    p_xi,
    bias,
    floor,
    y,
    filters,
    begin,
    columns,
    geometry,
    first,
    count,
    dump,
):
    """Output transform of tiles ``[first, first + count)`` from rows of `p`.

    p holds `columns` of the filters, from `begin`; `dump` is where it has room for a pixel outside
    of the image.
    """
    _, (height, width), _, dilation, _ = geometry
    n, i, j = _first_tile(first, geometry)
    image = (height, width, filters, *dilation)
    for t in range(count):
        corner = (n * height * width * filters + begin, *_corner(tile, i, j, dilation))
        added, at = (bias, begin, floor), p_at + t * p_row
        if tile == 4:
            transform_output(4, p, at, p_xi, added, y, corner, image, columns, p, dump)
        else:
            transform_output(2, p, at, p_xi, added, y, corner, image, columns, p, dump)
        n, i, j = _next_tile(n, i, j, geometry)


@kernel
def _winograd_block(
    block, worker, tile, x, u, bias, floor, sizes, geometry, tiles, step, lanes, zeros, work, y
):
    """All of the convolution for one block of `step` tiles."""
    channels, filters = sizes
    u, zeros, work = _borrow(u), _borrow(zeros), _borrow(work)
    points = (tile + 2) * (tile + 2)
    first = block * step
    count = min(step, tiles - first)
    v_row, p_row = row_length(channels, lanes), row_length(filters, lanes)
    v_xi, p_xi = matrix_stride(step, channels, lanes), matrix_stride(step, filters, lanes)
    v_at = worker * forward_work(tile, step, channels, filters, lanes)
    p_at = v_at + points * v_xi
    width, u_xi = panel_width(filters, lanes), filter_stride(channels, filters, lanes)
    _transform_inputs(tile, x, channels, geometry, first, count, zeros, work, v_at, v_row, v_xi)
    for xi in range(points):
        a = (work, v_at + xi * v_xi, v_row, 1)
        b = (u, xi * u_xi, width * channels, width)
        c = (work, p_at + xi * p_xi, p_row)
        gemm(count, filters, channels, a, b, (zeros, 0, 0), c, lanes)
    _transform_outputs(
        tile,
        work,
        p_at,
        p_row,
        p_xi,
        bias,
        floor,
        y,
        filters,
        0,
        filters,
        geometry,
        first,
        count,
        p_at + points * p_xi,
    )


@kernel
def winograd(tile, x, u, bias, floor, sizes, geometry, tiles, step, lanes, workers, zeros, work, y):
    """3x3 convolution of flat x (N, H, W, C) with `u` of `transform_weight`, into flat y.

    ``sizes = (C, M)``, bias (M,), values below `floor` are raised to it. `tiles` of all images
    are cut into blocks of `step`; `zeros` holds ``max(C, M)`` zeros and `work`
    ``workers * forward_work`` elements.
    """
    prepare_gemm(y)
    blocks = (tiles + step - 1) // step
    arguments = (tile, x, u, bias, floor, sizes, geometry, tiles, step, lanes, zeros, work, y)
    parallel_for(_winograd_block, blocks, workers, arguments)


@kernel
def gradient_row(channels, lanes):
    """Channels of a row of partial sums: whole panels."""
    width = panel_width(channels, lanes)
    return (channels + width - 1) // width * width


@kernel
def gradient_blocks(sizes, lanes):
    """Blocks of filters and panels of channels of a weight gradient."""
    channels, filters = sizes
    width = panel_width(channels, lanes)
    return (filters + GRADIENT_ROWS - 1) // GRADIENT_ROWS, (channels + width - 1) // width


@kernel
def gradient_work(tile, step, channels, filters, lanes):
    """Elements of a worker's buffer: both transformed blocks, and a block of products."""
    strides = matrix_stride(step, channels, lanes) + matrix_stride(step, filters, lanes)
    products = GRADIENT_ROWS * panel_width(channels, lanes) + lanes
    return (tile + 2) * (tile + 2) * (strides + products)


@kernel
def _transform_gradients(tile, dy, filters, geometry, first, count, zeros, w, w_at, w_row, w_xi):
    """Adjoint of `_transform_outputs`, from dy to rows of `w`."""
    _, (height, width), _, dilation, _ = geometry
    n, i, j = _first_tile(first, geometry)
    image = (height, width, filters, *dilation)
    for t in range(count):
        corner = (n * height * width * filters, *_corner(tile, i, j, dilation))
        if tile == 4:
            untransform_output(4, dy, corner, image, zeros, w, w_at + t * w_row, w_xi)
        else:
            untransform_output(2, dy, corner, image, zeros, w, w_at + t * w_row, w_xi)
        n, i, j = _next_tile(n, i, j, geometry)


@kernel
def _add_products(tile, v, w, count, block, sizes, lanes, zeros, work, work_at, sums, sums_at):
    """Add to `sums` (M, 9, C) the gradient of `count` tiles for one block of filters and channels.

    ``v = (array, offset, row, xi)`` and w alike are the transformed inputs and gradients;
    ``block = (filters, channels)`` counts blocks of `GRADIENT_ROWS` and panels.
    """
    channels, filters = sizes
    v_array, v_at, v_row, v_xi = v
    w_array, w_at, w_row, w_xi = w
    points, width = (tile + 2) * (tile + 2), panel_width(channels, lanes)
    i, j = block[0] * GRADIENT_ROWS, block[1] * width
    rows, columns = min(GRADIENT_ROWS, filters - i), min(width, channels - j)
    stride = GRADIENT_ROWS * width + lanes
    for xi in range(points):
        a = (w_array, w_at + xi * w_xi + i, 1, w_row)
        b = (v_array, v_at + xi * v_xi + j, width, v_row)
        c = (work, work_at + xi * stride, width)
        gemm(rows, columns, count, a, b, (zeros, 0, 0), c, lanes)
    row = gradient_row(channels, lanes)
    for r in range(rows):
        du, out = work_at + r * width, sums_at + (i + r) * 9 * row + j
        if tile == 4:
            untransform_filter(4, work, du, stride, sums, out, row, width)
        else:
            untransform_filter(2, work, du, stride, sums, out, row, width)


@kernel
def _gradient_chunk(
    chunk, worker, tile, x, dy, sizes, geometry, tiles, step, span, lanes, zeros, work, parts
):
    """Weight gradient of tiles ``[chunk * span, (chunk + 1) * span)``, into its part."""
    channels, filters = sizes
    zeros, work = _borrow(zeros), _borrow(work)
    points = (tile + 2) * (tile + 2)
    v_row, w_row = row_length(channels, lanes), row_length(filters, lanes)
    v_xi, w_xi = matrix_stride(step, channels, lanes), matrix_stride(step, filters, lanes)
    v_at = worker * gradient_work(tile, step, channels, filters, lanes)
    w_at = v_at + points * v_xi
    products = w_at + points * w_xi
    blocks, panels = gradient_blocks(sizes, lanes)
    size = filters * 9 * gradient_row(channels, lanes)
    at = chunk * size
    clear_run(parts, at, size)
    last = min((chunk + 1) * span, tiles)
    for first in range(chunk * span, last, step):
        count = min(step, last - first)
        _transform_inputs(tile, x, channels, geometry, first, count, zeros, work, v_at, v_row, v_xi)
        _transform_gradients(
            tile, dy, filters, geometry, first, count, zeros, work, w_at, w_row, w_xi
        )
        v, w = (work, v_at, v_row, v_xi), (work, w_at, w_row, w_xi)
        for j in range(panels):
            for i in range(blocks):
                _add_products(
                    tile, v, w, count, (i, j), sizes, lanes, zeros, work, products, parts, at
                )


@kernel
def _sum_parts(m, worker, parts, chunks, sizes, lanes, dw):
    """Add the chunks of one filter in order, and turn (9, C) into (C, 3, 3)."""
    channels, filters = sizes
    row = gradient_row(channels, lanes)
    at, size = m * 9 * row, filters * 9 * row
    for chunk in range(1, chunks):
        add_run(parts, at, parts, at + chunk * size, 9 * row)
    for c in range(channels):
        for t in range(9):
            dw[(m * channels + c) * 9 + t] = parts[at + t * row + c]


@kernel
def _transform_task(task, worker, tile, x, dy, sizes, geometry, tiles, lanes, zeros, v, w):
    """Transform a few tiles of x, and of dy if it is not empty, to the matrices of all tiles."""
    channels, filters = sizes
    first = task * TRANSFORM_TILES
    count = min(TRANSFORM_TILES, tiles - first)
    row, xi = row_length(channels, lanes), matrix_stride(tiles, channels, lanes)
    _transform_inputs(tile, x, channels, geometry, first, count, zeros, v, first * row, row, xi)
    if dy.size > 0:
        row, xi = row_length(filters, lanes), matrix_stride(tiles, filters, lanes)
        at = first * row
        _transform_gradients(tile, dy, filters, geometry, first, count, zeros, w, at, row, xi)


@kernel
def _gradient_panel(task, worker, tile, sizes, tiles, lanes, zeros, v, w, work, sums):
    """Weight gradient of one block of filters and panel of channels."""
    channels, filters = sizes
    v, w, zeros, work = _borrow(v), _borrow(w), _borrow(zeros), _borrow(work)
    blocks, _ = gradient_blocks(sizes, lanes)
    i, j = task % blocks, task // blocks
    row, width = gradient_row(channels, lanes), panel_width(channels, lanes)
    for r in range(9 * i * GRADIENT_ROWS, 9 * min((i + 1) * GRADIENT_ROWS, filters)):
        clear_run(sums, r * row + j * width, width)
    v_all = (v, 0, row_length(channels, lanes), matrix_stride(tiles, channels, lanes))
    w_all = (w, 0, row_length(filters, lanes), matrix_stride(tiles, filters, lanes))
    at = worker * gradient_work(tile, 0, channels, filters, lanes)
    _add_products(tile, v_all, w_all, tiles, (i, j), sizes, lanes, zeros, work, at, sums, 0)


@kernel
def winograd_backward_weight_by_panels(
    tile, x, dy, sizes, geometry, tiles, lanes, workers, zeros, v, w, work, sums, dw
):
    """`winograd_backward_weight` for few tiles and many channels: tasks are blocks of the result.

    v holds ``(tile + 2)^2 * matrix_stride(tiles, C)`` elements, w alike for M; `work`
    ``workers * gradient_work`` for a step of 0, `sums` ``M * 9 * gradient_row(C)``.
    """
    prepare_gemm(dw)
    count = (tiles + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    arguments = (tile, x, dy, sizes, geometry, tiles, lanes, zeros, v, w)
    parallel_for(_transform_task, count, workers, arguments)
    blocks, panels = gradient_blocks(sizes, lanes)
    arguments = (tile, sizes, tiles, lanes, zeros, v, w, work, sums)
    parallel_for(_gradient_panel, blocks * panels, workers, arguments)
    parallel_for(_sum_parts, sizes[1], workers, (sums, 1, sizes, lanes, dw))


@kernel
def panel_work(tile, tiles, channels, lanes):
    """Elements of a worker's buffer by panels: taps, a panel of the weight, products, a pixel."""
    width = 2 * lanes
    strides = channels * width + lanes + tiles * width + lanes
    return 9 * FILTER_ROWS * width + (tile + 2) * (tile + 2) * strides + width


@kernel
def _winograd_panel(
    panel,
    worker,
    tile,
    weight,
    transposed,
    bias,
    floor,
    sizes,
    geometry,
    tiles,
    lanes,
    zeros,
    v,
    work,
    y,
):
    """Convolution with one panel of filters, whose transform need not leave the cache."""
    channels, filters = sizes
    v, zeros, work = _borrow(v), _borrow(zeros), _borrow(work)
    points, width = (tile + 2) * (tile + 2), panel_width(filters, lanes)
    first = panel * width
    columns = min(width, filters - first)
    taps = worker * panel_work(tile, tiles, channels, lanes)
    u_at, u_xi = taps + 9 * FILTER_ROWS * width, channels * width + lanes
    p_at, p_xi = u_at + points * u_xi, tiles * width + lanes
    for p in range(0, channels, FILTER_ROWS):
        _transform_rows(
            tile,
            weight,
            sizes,
            transposed,
            first,
            p,
            lanes,
            work,
            taps,
            work,
            u_at + p * width,
            u_xi,
        )
    v_row, v_xi = row_length(channels, lanes), matrix_stride(tiles, channels, lanes)
    for xi in range(points):
        a = (v, xi * v_xi, v_row, 1)
        b = (work, u_at + xi * u_xi, width * channels, width)
        c = (work, p_at + xi * p_xi, width)
        gemm(tiles, columns, channels, a, b, (zeros, 0, 0), c, lanes)
    _transform_outputs(
        tile,
        work,
        p_at,
        width,
        p_xi,
        bias,
        floor,
        y,
        filters,
        first,
        columns,
        geometry,
        0,
        tiles,
        p_at + points * p_xi,
    )


@kernel
def winograd_by_panels(
    tile,
    x,
    weight,
    transposed,
    bias,
    floor,
    sizes,
    geometry,
    tiles,
    lanes,
    workers,
    zeros,
    v,
    work,
    y,
):
    """`winograd` for few tiles and many filters: tasks are panels of filters.

    Takes the weight as `transform_weight` does, ``sizes = (C, M)`` of x and y. A transformed
    weight is four times as large, and for 512 x 512 took 5.5 of 19.3 ms to write to memory.
    M is a multiple of `lanes`; v holds ``(tile + 2)^2 * matrix_stride(tiles, C)`` elements,
    `work` ``workers * panel_work``.
    """
    prepare_gemm(y)
    count = (tiles + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    arguments = (tile, x, x[:0], sizes, geometry, tiles, lanes, zeros, v, v)
    parallel_for(_transform_task, count, workers, arguments)
    width = panel_width(sizes[1], lanes)
    panels = (sizes[1] + width - 1) // width
    arguments = (
        tile,
        weight,
        transposed,
        bias,
        floor,
        sizes,
        geometry,
        tiles,
        lanes,
        zeros,
        v,
        work,
        y,
    )
    parallel_for(_winograd_panel, panels, workers, arguments)


@kernel
def winograd_backward_weight(
    tile, x, dy, sizes, geometry, tiles, step, span, lanes, workers, zeros, work, parts, dw
):
    """Weight gradient (M, C, 3, 3) of flat x (N, H, W, C) and dy (N, OH, OW, M).

    Each chunk of `span` tiles, processed in blocks of `step`, has ``M * 9 * gradient_row(C)``
    elements in `parts`: bits do not depend on the number of threads. `work` holds
    ``workers * gradient_work`` elements, `zeros` ``max(C, M)`` zeros.
    """
    prepare_gemm(dw)
    chunks = max((tiles + span - 1) // span, 1)
    arguments = (tile, x, dy, sizes, geometry, tiles, step, span, lanes, zeros, work, parts)
    parallel_for(_gradient_chunk, chunks, workers, arguments)
    parallel_for(_sum_parts, sizes[1], workers, (parts, chunks, sizes, lanes, dw))
