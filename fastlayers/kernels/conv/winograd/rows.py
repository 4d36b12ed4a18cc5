"""Convolution with kernels 5 wide, by Winograd's transform along rows: lanes run over images.

Few channels fill few lanes, but a batch fills all. F(4, 5) needs 8 products for 4 neighbours in a
row instead of 20, and each of its points is a convolution down the columns: a matrix product whose
rows are output channels, whose sums go over input channels and the kernel's rows, and whose columns
are the vectors of (output row, tile of the row). They are contiguous, so no place is wasted.

A block is as many images as a vector has lanes. Its transformed rows are
``v[point, channel, row, tile, lane]`` and ``z[point, filter, row of a piece, tile, lane]``; a piece
is a few output rows that reach the same rows of the kernel, so that zeros above and below the image
are left out. ``form = (sizes, left, tiles, strides, starts, pooled)`` has ``sizes = ((N, H, W, C),
(OH, OW, M))``; the columns of zeros on the left; the tiles of a row; the elements from point to
point of v, from point to point and from filter to filter of z; where in a worker's memory z begins,
a row of inputs, rows of outputs, the filters' sums and the next worker's; and 2 for a max pooling
of 2x2 that follows, or 1.
"""

from __future__ import annotations

from fastlayers.kernels.conv.winograd.rows_tiles import (
    FACTORS,
    ORIGIN,
    PAIRS,
    POINTS,
    ROWS,
    STEP,
    TAPS,
    VECTOR_BYTES,
    VECTORS,
    dot_tile,
    pool_rows,
    product_tile,
    slots,
    transform_gradients,
    transform_inputs,
    transform_outputs,
    write_cells,
)
from fastlayers.kernels.ir.runs import add_run, clear_run, copy_run, no_table, transpose_block
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "POINTS",
    "ROWS",
    "STEP",
    "TAPS",
    "VECTORS",
    "conv2d_winograd_rows",
    "conv2d_winograd_rows_backward_weight",
    "slots",
]


@kernel
def _gather_row(x, at, image, count, elements, row, row_at):
    """``row[row_at + e * lanes + n] = x[at + n * image + e]``, zeros for n >= count."""
    lanes = VECTOR_BYTES // x.itemsize
    for e in range(0, elements, lanes):
        source = (x, at + e, image)
        target = (row, row_at + e * lanes, lanes, lanes, no_table())
        transpose_block(count, min(lanes, elements - e), source, target)


@kernel
def _transform_images(block, x, planar, form, work, at):
    """The transformed rows of a block of images, v."""
    ((images, height, width, channels), _), left, tiles, strides, starts, _ = form
    lanes = VECTOR_BYTES // x.itemsize
    first, image = block * lanes, height * width * channels
    count = min(lanes, images - first)
    row, depth = at + starts[1], 1 if planar else channels
    clear_run(work, row, (STEP * tiles + TAPS - 1) * depth * lanes)
    for line in range(height * channels // depth):
        start = first * image + line * width * depth
        _gather_row(x, start, image, count, width * depth, work, row + left * depth * lanes)
        channel, i = divmod(line, height)
        for c in range(depth):
            source = (work, row + c * lanes, depth * lanes)
            to = at + ((channel + c) * height + i) * tiles * lanes
            transform_inputs(tiles, source, (work, to, strides[0]))


@kernel
def _forward_block(
    block, worker, x, planar, u, bias, floor, form, pieces, table_a, table_b, work, y, cells
):
    """The output of one block of images."""
    ((images, _, _, _), (oh, ow, m)), _, tiles, (point, z_point, z_row), starts, pooled = form
    lanes = VECTOR_BYTES // x.itemsize
    at = worker * starts[4]
    z, row = at + starts[0], at + starts[2]
    wide = STEP * tiles * lanes
    pair = at + starts[3] - 2 * wide  # two rows of one channel
    _transform_images(block, x, planar, form, work, at)
    groups = (m + ROWS - 1) // ROWS
    first = block * lanes
    count = min(lanes, images - first)
    for piece in range(pieces.shape[0]):
        i, rows = pieces[piece, 0], pieces[piece, 1]
        tables = (table_a, table_b, pieces[piece, 2], pieces[piece, 3])
        for p in range(POINTS):
            for g in range(groups):
                a = (u, (p * groups + g) * (u.size // (POINTS * groups)))
                for j in range(0, rows * tiles * lanes, VECTORS * lanes):
                    b = (work, at + p * point + i * tiles * lanes + j)
                    c = (work, z + p * z_point + g * ROWS * z_row + j, z_row)
                    product_tile(a, b, tables, c)
        for r in range(0, rows - pooled + 1, pooled):
            for channel in range(m):
                to, step = row + channel * lanes, m * lanes
                for half in range(pooled):
                    at_row = z + channel * z_row + (r + half) * tiles * lanes
                    target = (work, to, step) if pooled == 1 else (work, pair + half * wide, lanes)
                    transform_outputs(tiles, (work, at_row, z_point), target, bias[channel], floor)
                if pooled == 2:
                    cell = (work, to + wide * m, step)
                    pool_rows(ow // 2, (work, pair, wide), (work, to, step), cell)
            length, image = ow // pooled * m, oh // pooled * (ow // pooled) * m
            out = first * image + (i + r) // pooled * length
            for e in range(0, length, lanes):
                some = min(lanes, length - e)
                target = (y, out + e, image, some, no_table())
                transpose_block(some, count, (work, row + e * lanes, lanes), target)
                if pooled == 2:
                    source = (work, row + wide * m + e * lanes)
                    write_cells(some, count, source, cells, out + e, image)


@kernel
def _transform_weight(weight, shape, strides, u):
    """``u[point, group of filters, depth * kernel row, filter]`` of ``G w`` along the rows.

    ``shape = (filters, depth, kernel rows)``, and `strides` of weight are the first element's
    place, then from filter to filter, channel to channel, row to row and tap to tap.
    """
    filters, depth, rows = shape
    start, of_filter, of_channel, of_row, tap = strides
    point = u.size // POINTS
    clear_run(u, 0, u.size)
    for f in range(filters):
        for k in range(depth * rows):
            at = start + f * of_filter + k // rows * of_channel + k % rows * of_row
            to = (f // ROWS * depth * rows + k) * ROWS + f % ROWS
            w0, w1, w2 = weight[at], weight[at + tap], weight[at + 2 * tap]
            w3, w4 = weight[at + 3 * tap], weight[at + 4 * tap]
            u[to] = ORIGIN * w0
            for i in range(3):
                p, q = PAIRS[i], PAIRS[i] * PAIRS[i]
                even = FACTORS[i] * (w0 + q * (w2 + q * w4))
                odd = FACTORS[i] * p * (w1 + q * w3)
                u[(2 * i + 1) * point + to] = even + odd
                u[(2 * i + 2) * point + to] = even - odd
            u[(POINTS - 1) * point + to] = w4


@kernel
def conv2d_winograd_rows(
    x,
    planar,
    weight,
    shape,
    strides,
    bias,
    floor,
    form,
    pieces,
    tables,
    workers,
    u,
    work,
    y,
    cells,
):
    """``y = max(floor, bias + x * weight)``, x of either memory layout, y channels-last, all flat.

    Where it is pooled, `cells` are those of the maxima.
    The integers are those of a `ops.conv.winograd_rows.Plan`; `shape` and `strides` say what a
    weight's elements are, so that turned and transposed ones give the gradient by the input.
    """
    _transform_weight(weight, shape, strides, u)
    lanes = VECTOR_BYTES // x.itemsize
    arguments = (x, planar, u, bias, floor, form, pieces, *tables, work, y, cells)
    parallel_for(_forward_block, (form[0][0][0] + lanes - 1) // lanes, workers, arguments)


@kernel
def _weight_chunk(chunk, worker, x, planar, dy, form, pieces, table, chunks, work, parts):
    """Sums of products of a chunk of blocks, for all points."""
    ((images, _, _, _), (oh, ow, m)), _, tiles, (point, z_point, z_row), starts, _ = form
    lanes = VECTOR_BYTES // x.itemsize
    at = worker * starts[4]
    z, row = at + starts[0], at + starts[2]
    totals = at + starts[3]
    groups = (m + ROWS - 1) // ROWS
    blocks = (images + lanes - 1) // lanes
    size = parts.size // chunks
    tile = (size - m) // (POINTS * groups * (table.size // VECTORS))
    clear_run(parts, chunk * size, size)
    clear_run(work, totals, m * lanes)
    clear_run(work, row, STEP * tiles * m * lanes)
    for block in range(blocks * chunk // chunks, blocks * (chunk + 1) // chunks):
        _transform_images(block, x, planar, form, work, at)
        first = block * lanes
        count = min(lanes, images - first)
        for piece in range(pieces.shape[0]):
            i, rows = pieces[piece, 0], pieces[piece, 1]
            for r in range(rows):
                start = (first * oh + i + r) * ow * m
                _gather_row(dy, start, oh * ow * m, count, ow * m, work, row)
                for channel in range(m):
                    source = (work, row + channel * lanes, m * lanes)
                    to = (work, z + channel * z_row + r * tiles * lanes, z_point)
                    transform_gradients(tiles, source, to, (work, totals + channel * lanes))
            for p in range(POINTS):
                b = (work, at + p * point + i * tiles * lanes)
                for g in range(groups):
                    a = (work, z + p * z_point + g * ROWS * z_row, z_row)
                    for k in range(pieces[piece, 2], pieces[piece, 2] + pieces[piece, 3], VECTORS):
                        column = (p * groups + g) * (table.size // VECTORS) + k // VECTORS
                        c = (parts, chunk * size + column * tile)
                        dot_tile(rows * tiles * lanes, a, b, (table, k), c)
    for channel in range(m):
        for lane in range(lanes):
            total = work[totals + channel * lanes + lane]
            parts[(chunk + 1) * size - m + channel] += total


@kernel
def _untransform_weight(parts, shape, table, tile, dw):
    """``dw[filter, channel, row] += G^T u`` of the sums in the first chunk of `parts`."""
    filters, depth, rows = shape
    groups = (filters + ROWS - 1) // ROWS
    columns = table.size // VECTORS
    clear_run(dw, 0, dw.size)
    for f in range(filters):
        for k in range(table.size):
            if table[k] < 0:
                continue
            at = (f // ROWS * columns + k // VECTORS) * tile
            at += f % ROWS * VECTORS + k % VECTORS
            point = groups * columns * tile
            to = (f * depth * rows + table[k] // ROWS) * TAPS
            dw[to] += ORIGIN * parts[at]
            for i in range(3):
                p, q = PAIRS[i], PAIRS[i] * PAIRS[i]
                plus, minus = parts[at + (2 * i + 1) * point], parts[at + (2 * i + 2) * point]
                even, odd = FACTORS[i] * (plus + minus), FACTORS[i] * p * (plus - minus)
                dw[to] += even
                dw[to + 1] += odd
                dw[to + 2] += q * even
                dw[to + 3] += q * odd
                dw[to + 4] += q * q * even
            dw[to + 4] += parts[at + (POINTS - 1) * point]


@kernel
def conv2d_winograd_rows_backward_weight(
    x, planar, dy, shape, form, pieces, tables, chunks, workers, work, parts, dw, db
):
    """Gradients of dy by weight and bias, dw and db; arguments as in `conv2d_winograd_rows`.

    Each of the `chunks` of blocks has its sums in `parts`, so that the order of additions does not
    depend on the number of threads.
    """
    arguments = (x, planar, dy, form, pieces, tables[1], chunks, work, parts)
    parallel_for(_weight_chunk, chunks, workers, arguments)
    size = parts.size // chunks
    for chunk in range(1, chunks):
        add_run(parts, 0, parts, chunk * size, size)
    groups = (shape[0] + ROWS - 1) // ROWS
    tile = (size - db.size) // (POINTS * groups * (tables[0].size // VECTORS))
    copy_run(db, 0, parts, size - db.size, db.size)
    _untransform_weight(parts, shape, tables[0], tile, dw)
