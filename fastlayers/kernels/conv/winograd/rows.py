"""Convolution with kernels 5 wide, by Winograd's transform along rows: lanes run over images.

Eighth of the folder's files; `rows_tiles` has what is done to vectors. Few channels fill few lanes,
but a batch fills all. F(4, 5) needs 8 products for 4 neighbours in a row instead of 20, and each of
its points is a convolution down the columns: a matrix product whose rows are output channels, whose
sums go over input channels and the kernel's rows, and whose columns are the vectors of (output row,
tile of the row), which are contiguous.

A block is as many images as a vector has lanes. Its transformed rows are
``v[point, channel, row, tile, lane]`` and ``z[point, filter, row of a piece, tile, lane]``. A piece
is a few output rows that reach the same rows of the kernel: zeros outside the image are left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import clear_run, copy_run, no_table, transpose_block, view
from fastlayers.kernels.reduce import add_rows, sum_workers
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "POINTS",
    "ROWS",
    "STEP",
    "TAPS",
    "VECTORS",
    "Call",
    "Facts",
    "Places",
    "Weight",
    "conv2d_winograd_rows",
    "conv2d_winograd_rows_backward_weight",
    "slots",
]

TASKS = 4  # of each worker, where there are more than two, to make up for uneven ones


class Weight(NamedTuple):
    """Sizes of a weight, and where its elements are.

    Those of the weight of the input gradient: rotated by 180 degrees and transposed.
    """

    filters: int
    depth: int
    rows: int
    first: int  # offset of the first element, then steps
    filter_step: int
    channel_step: int
    row_step: int
    tap_step: int


class Places(NamedTuple):
    """Elements from point to point of v and z and from filter to filter of z; parts of the memory.

    v is at the beginning of a worker's memory.
    """

    v_point: int
    z_point: int
    z_filter: int
    z: int
    in_row: int  # a row of inputs
    out_row: int  # rows of outputs
    totals: int  # the filters' sums


class Facts(NamedTuple):
    """A convolution of blocks of images."""

    weight: Weight
    images: int
    height: int
    width: int
    channels: int
    out_height: int
    out_width: int
    top: int  # rows of zeros, which are not in memory, and columns
    left: int
    tiles: int  # of a row
    pooled: int  # 2 for a max pooling of 2x2 that follows, or 1
    chunks: int  # of blocks, in the weight gradient
    worker_elements: int
    weight_elements: int  # of u, the transformed weight
    part_elements: int  # of a chunk's sums
    places: Places
    pieces: Any  # (output row, output rows, first entry, entries) of the tables
    filter_table: Any  # offsets of (channel, kernel row) in u and in v
    image_table: Any


class Call(NamedTuple):
    """What changes from call to call."""

    channels_first: bool
    floor: float
    workers: int


@kernel
def _gather_row(x, at, image, count, elements, row, row_at):
    """``row[row_at + e * lanes + n] = x[at + n * image + e]``, zeros for n >= count."""
    lanes = VECTOR_BYTES // x.itemsize
    for e in range(0, elements, lanes):
        source = (x, at + e, image)
        target = (row, row_at + e * lanes, lanes, lanes, no_table())
        transpose_block(count, min(lanes, elements - e), source, target)


@kernel
def _transform_images(block, rows, x, channels_first, facts, work, at):
    """The transformed rows ``rows = (first, last)``, but for the last, of a block of images, v."""
    height, width, channels, tiles = facts.height, facts.width, facts.channels, facts.tiles
    lanes = VECTOR_BYTES // x.itemsize
    first, image = block * lanes, height * width * channels
    count = min(lanes, facts.images - first)
    row, depth = at + facts.places.in_row, 1 if channels_first else channels
    clear_run(work, row, (STEP * tiles + TAPS - 1) * depth * lanes)
    for channel in range(0, channels, depth):
        for i in range(rows[0], rows[1]):
            start = first * image + (channel * height + i * depth) * width
            to = row + facts.left * depth * lanes
            _gather_row(x, start, image, count, width * depth, work, to)
            for c in range(depth):
                source = (work, row + c * lanes, depth * lanes)
                to = at + ((channel + c) * height + i) * tiles * lanes
                transform_inputs(tiles, source, (work, to, facts.places.v_point))


@kernel
def _multiply_piece(piece, i, rows, u, facts, work, at):
    """The products of v and the transformed weight for `rows` rows of one piece, from i, z."""
    places = facts.places
    lanes = VECTOR_BYTES // work.itemsize
    row = facts.tiles * lanes
    first, count = facts.pieces[piece, 2], facts.pieces[piece, 3]
    tables = (facts.filter_table, facts.image_table, first, count)
    groups = (facts.weight.filters + ROWS - 1) // ROWS
    for p in range(POINTS):
        for g in range(groups):
            a = (u, (p * groups + g) * (u.size // (POINTS * groups)))
            for j in range(0, rows * row, VECTORS * lanes):
                b = (work, at + p * places.v_point + i * row + j)
                z = at + places.z + p * places.z_point + g * ROWS * places.z_filter + j
                product_tile(a, b, tables, (work, z, places.z_filter))


@kernel
def _untransform_rows(r, bias, floor, facts, work, at):
    """Row r of a piece's outputs, or r and the one below pooled to one and to its cells."""
    places, m, tiles = facts.places, facts.weight.filters, facts.tiles
    lanes = VECTOR_BYTES // work.itemsize
    row, wide = at + places.out_row, STEP * tiles * lanes
    pair, step = at + places.totals - 2 * wide, m * lanes  # two rows of one channel
    for channel in range(m):
        to = row + channel * lanes
        for half in range(facts.pooled):
            z = at + places.z + channel * places.z_filter + (r + half) * tiles * lanes
            target = (work, pair + half * wide, lanes)
            if facts.pooled == 1:
                target = (work, to, step)
            transform_outputs(tiles, (work, z, places.z_point), target, bias[channel], floor)
        if facts.pooled == 2:
            cell = (work, to + wide * m, step)
            pool_rows(facts.out_width // 2, (work, pair, wide), (work, to, step), cell)


@kernel
def _write_row(i, first, facts, work, at, outputs):
    """Write row i of the outputs, or what was pooled to it, of the images from `first`."""
    y, cells = outputs
    pooled, m = facts.pooled, facts.weight.filters
    lanes = VECTOR_BYTES // y.itemsize
    row, wide = at + facts.places.out_row, STEP * facts.tiles * lanes
    count = min(lanes, facts.images - first)
    length = facts.out_width // pooled * m
    image = facts.out_height // pooled * length
    out = first * image + i // pooled * length
    for e in range(0, length, lanes):
        some = min(lanes, length - e)
        target = (y, out + e, image, some, no_table())
        transpose_block(some, count, (work, row + e * lanes, lanes), target)
        if pooled == 2:
            source = (work, row + wide * m + e * lanes)
            write_cells(some, count, source, cells, out + e, image)


@kernel
def _forward_band(task, worker, inputs, facts, call, bands, work, outputs):
    """A band of output rows of one block of images."""
    x, u, bias = inputs
    block, band = divmod(task, bands)
    begin, end = _band_row(band, bands, facts), _band_row(band + 1, bands, facts)
    at = worker * facts.worker_elements
    low = max(0, begin - facts.top)
    rows = (low, max(low, min(end - 1 + facts.weight.rows - facts.top, facts.height)))
    _transform_images(block, rows, x, call.channels_first, facts, work, at)
    first = block * (VECTOR_BYTES // x.itemsize)
    for piece in range(facts.pieces.shape[0]):
        i = max(begin, facts.pieces[piece, 0])
        count = min(end, facts.pieces[piece, 0] + facts.pieces[piece, 1]) - i
        if count <= 0:
            continue
        _multiply_piece(piece, i, count, u, facts, work, at)
        for r in range(0, count - facts.pooled + 1, facts.pooled):
            _untransform_rows(r, bias, call.floor, facts, work, at)
            _write_row(i + r, first, facts, work, at, outputs)


@kernel(inner=True)
def _band_row(band, bands, facts):
    """First row of a band, which is not inside of a window."""
    if band == bands:
        return facts.out_height
    return facts.out_height * band // bands // facts.pooled * facts.pooled


@kernel
def _transform_group(group, worker, weight, facts, u):
    """One group of ``u[point, group of filters, depth * kernel row, filter]``, of ``G w``."""
    depth, rows, tap = facts.depth, facts.rows, facts.tap_step
    point = u.size // POINTS
    if (group + 1) * ROWS > facts.filters:
        for p in range(POINTS):
            clear_run(u, p * point + group * depth * rows * ROWS, depth * rows * ROWS)
    for f in range(group * ROWS, min((group + 1) * ROWS, facts.filters)):
        for k in range(depth * rows):
            at = facts.first + f * facts.filter_step
            at += k // rows * facts.channel_step + k % rows * facts.row_step
            to = (group * depth * rows + k) * ROWS + f % ROWS
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
def conv2d_winograd_rows(x, weight, bias, facts, call, work, y, cells):
    """``y = max(floor, bias + x * weight)``, pooled with its `cells`; all arrays are flat.

    x is of either memory layout, y channels-last. Behind the workers' memory in `work` is the
    transformed weight. Each band transforms all rows that it reads, so that many of them, which
    change no bit of the result, are for many workers only.
    """
    facts, call = named(Facts, facts), named(Call, call)
    u = view(work, call.workers * facts.worker_elements, facts.weight_elements)
    groups = (facts.weight.filters + ROWS - 1) // ROWS
    few = sum_workers(u.size, call.workers)
    parallel_for(_transform_group, groups, few, (weight, facts.weight, u))
    lanes = VECTOR_BYTES // x.itemsize
    blocks = (facts.images + lanes - 1) // lanes
    wanted = call.workers if call.workers <= 2 else TASKS * call.workers
    bands = (wanted + blocks - 1) // max(1, blocks)
    bands = max(1, min(bands, facts.out_height // facts.weight.rows))
    arguments = ((x, u, bias), facts, call, bands, work, (y, cells))
    parallel_for(_forward_band, blocks * bands, call.workers, arguments)


@kernel
def _transform_piece(piece, first, dy, facts, work, at):
    """Transform the gradients of one piece, of images from `first`, to z, and add up their sums."""
    places, m, tiles = facts.places, facts.weight.filters, facts.tiles
    oh, ow = facts.out_height, facts.out_width
    lanes = VECTOR_BYTES // dy.itemsize
    row, totals = at + places.out_row, at + places.totals
    i, count = facts.pieces[piece, 0], min(lanes, facts.images - first)
    for r in range(facts.pieces[piece, 1]):
        start = (first * oh + i + r) * ow * m
        _gather_row(dy, start, oh * ow * m, count, ow * m, work, row)
        for channel in range(m):
            source = (work, row + channel * lanes, m * lanes)
            z = at + places.z + channel * places.z_filter + r * tiles * lanes
            to = (work, z, places.z_point)
            transform_gradients(tiles, source, to, (work, totals + channel * lanes))


@kernel
def _columns(facts):
    """Groups of filters, and tiles of the tables' entries, of a part's sums."""
    groups = (facts.weight.filters + ROWS - 1) // ROWS
    return groups, facts.filter_table.size // VECTORS


@kernel
def _add_piece(piece, facts, work, at, parts, part):
    """Add the products of v and z of one piece to a chunk's sums."""
    places, table = facts.places, facts.image_table
    lanes = VECTOR_BYTES // work.itemsize
    row = facts.tiles * lanes
    i, rows = facts.pieces[piece, 0], facts.pieces[piece, 1]
    first, count = facts.pieces[piece, 2], facts.pieces[piece, 3]
    groups, columns = _columns(facts)
    tile = (facts.part_elements - facts.weight.filters) // (POINTS * groups * columns)
    for p in range(POINTS):
        b = (work, at + p * places.v_point + i * row)
        for g in range(groups):
            z = at + places.z + p * places.z_point + g * ROWS * places.z_filter
            a = (work, z, places.z_filter)
            for k in range(first, first + count, VECTORS):
                column = (p * groups + g) * columns + k // VECTORS
                c = (parts, part + column * tile)
                dot_tile(rows * row, a, b, (table, k), c)


@kernel
def _weight_chunk(chunk, worker, images, facts, channels_first, work, parts):
    """Sums of products of a chunk of blocks, for all points."""
    x, dy = images
    m, chunks, size = facts.weight.filters, facts.chunks, facts.part_elements
    lanes = VECTOR_BYTES // x.itemsize
    at = worker * facts.worker_elements
    totals = at + facts.places.totals
    blocks = (facts.images + lanes - 1) // lanes
    clear_run(parts, chunk * size, size)
    clear_run(work, totals, m * lanes)
    clear_run(work, at + facts.places.out_row, STEP * facts.tiles * m * lanes)
    for block in range(blocks * chunk // chunks, blocks * (chunk + 1) // chunks):
        _transform_images(block, (0, facts.height), x, channels_first, facts, work, at)
        for piece in range(facts.pieces.shape[0]):
            _transform_piece(piece, block * lanes, dy, facts, work, at)
            _add_piece(piece, facts, work, at, parts, chunk * size)
    for channel in range(m):
        for lane in range(lanes):
            total = work[totals + channel * lanes + lane]
            parts[(chunk + 1) * size - m + channel] += total


@kernel
def _untransform_filter(f, worker, parts, facts, dw):
    """``dw[filter, channel, row] = G^T u`` of one filter's sums in the first chunk of `parts`."""
    rows, table = facts.weight.rows, facts.filter_table
    groups, columns = _columns(facts)
    tile = (facts.part_elements - facts.weight.filters) // (POINTS * groups * columns)
    size = facts.weight.depth * rows * TAPS
    clear_run(dw, f * size, size)
    for k in range(table.size):
        if table[k] < 0:
            continue
        at = (f // ROWS * columns + k // VECTORS) * tile
        at += f % ROWS * VECTORS + k % VECTORS
        point = groups * columns * tile
        to = (f * facts.weight.depth * rows + table[k] // ROWS) * TAPS
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
def conv2d_winograd_rows_backward_weight(x, dy, facts, call, work, parts, dw, db):
    """Gradients of dy by weight and bias, dw and db; arguments as in `conv2d_winograd_rows`.

    Each of the chunks of blocks has its sums in `parts`, so that the order of additions does not
    depend on the number of threads.
    """
    facts, call = named(Facts, facts), named(Call, call)
    size = facts.part_elements
    arguments = ((x, dy), facts, call.channels_first, work, parts)
    parallel_for(_weight_chunk, facts.chunks, call.workers, arguments)
    add_rows(parts, size, facts.chunks, call.workers)
    copy_run(db, 0, parts, size - db.size, db.size)
    few = sum_workers(size, call.workers)
    parallel_for(_untransform_filter, facts.weight.filters, few, (parts, facts, dw))
