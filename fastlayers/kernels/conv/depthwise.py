"""Convolution of few channels a group, depthwise above all, on channels-last arrays.

Lanes run over channels: a vector holds `per_vector` whole groups, whose inputs are permuted to
the order in which the vector's output channels read them. `grouped_tile` has the tile and its
steps, `ops.conv.depthwise` makes the tables that tell where the taps of an output pixel lie.

The input gradient is such a convolution too, of dy. Its rows and columns are those of one phase
for each remainder by the stride, with the taps that fall on it; forward has one phase.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastlayers.kernels.conv.grouped_tile import (
    Channels,
    Steps,
    Tile,
    correlate_tile,
    weight_tile,
)
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import clear_run, flat, prefetch_run
from fastlayers.kernels.reduce import add_rows, sum_workers
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["Call", "Facts", "Phase", "Sizes", "correlate", "correlate_weight"]


class Phase(NamedTuple):
    """Output pixels with the same taps, a row of the table of phases."""

    row: int  # the first, and the first column
    column: int
    rows: int
    columns: int
    first: int  # its steps are those from the first to before the last
    last: int
    masks: int  # where step 0's for the first tile would be in the table of steps; see `Steps`


class Sizes(NamedTuple):
    """Images that are read and written, and how groups of their channels fill vectors.

    Row u of a phase is row ``phase.row + u * row_out`` of the output, and its taps are rows
    ``u * row_in + deltas[step]`` of the input; the columns alike.
    """

    images: int
    height: int
    width: int
    out_height: int
    out_width: int
    row_in: int
    column_in: int
    row_out: int
    column_out: int
    read: int
    written: int
    groups: int
    per_vector: int


class Facts(NamedTuple):
    """A pass over groups of channels, cut into tiles, and into tasks of an image or a part."""

    tile: Tile
    sizes: Sizes
    transposed: int  # 1 for the input gradient, which reads the output's channels
    kernel: int  # elements of a kernel
    tile_pixels: int
    band_rows: int
    piece_rows: int  # of a task, whole bands
    chunk_rows: int  # of a partial sum of the weight gradient, of all images' rows
    reach: int  # from a row's first input row to behind the last that it reads
    phases: Any  # (phases, 7), see `Phase`
    deltas: Any  # of each step's row
    steps: Any  # see `grouped_tile.Steps`
    order: Any  # in 32-bit words, of the channels in a vector of x
    taps: Any  # (taps, 2): an element of the kernel, and a channel read, counted in its group


class Call(NamedTuple):
    """What changes from call to call."""

    floor: float
    workers: int


@kernel
def _phase(phases, i):
    return Phase(
        phases[i, 0],
        phases[i, 1],
        phases[i, 2],
        phases[i, 3],
        phases[i, 4],
        phases[i, 5],
        phases[i, 6],
    )


@kernel
def _vectors(sizes):
    """Vectors that hold all groups; the last one begins early where groups are left over."""
    return (sizes.groups + sizes.per_vector - 1) // sizes.per_vector


@kernel
def _first_group(sizes, vector):
    return min(vector * sizes.per_vector, sizes.groups - sizes.per_vector)


@kernel
def _steps_inside(facts, first, last, row):
    """Those of the steps whose rows exist."""
    deltas, top, height = facts.deltas, row * facts.sizes.row_in, facts.sizes.height
    while first < last and top + deltas[first] < 0:
        first += 1
    while first < last and top + deltas[last - 1] >= height:
        last -= 1
    return first, last


@kernel
def _pack_taps(v, worker, weight, facts, packed):
    """Pack one vector of a flat (M, C/G, R*S) weight as ``[vector][tap][lane]``.

    Lanes are channels that are written: those of M, or of C for the input gradient.
    """
    sizes, taps, lanes = facts.sizes, facts.taps, lanes_of(packed)
    count, per_vector = taps.shape[0], sizes.per_vector
    group_in, group_out = sizes.read // sizes.groups, sizes.written // sizes.groups
    group_stride = group_out * group_in * facts.kernel
    out_stride, in_stride = group_in * facts.kernel, facts.kernel
    if facts.transposed:
        out_stride, in_stride = facts.kernel, group_out * facts.kernel
    first, at = _first_group(sizes, v), v * count * lanes
    for lane in range(per_vector * group_out):
        source = (first + lane // group_out) * group_stride + lane % group_out * out_stride
        for k in range(count):
            packed[at + k * lanes + lane] = weight[source + taps[k, 0] + taps[k, 1] * in_stride]
    for lane in range(per_vector * group_out, lanes):
        for k in range(count):
            packed[at + k * lanes + lane] = 0


@kernel
def _correlate_piece(task, worker, arrays, facts, floor):
    """One piece of an image, band by band, in all phases.

    Tiles go down a band, so most of their inputs are in L1. Pieces are whole images where there
    are many: two threads in neighbouring bands took each other's lines of y, twice as slow.
    """
    sizes, rows, size = facts.sizes, facts.phases[0, 2], facts.piece_rows
    pieces = (rows + size - 1) // size
    n, top = task // pieces, task % pieces * size
    for start in range(top, min(top + size, rows), facts.band_rows):
        for i in range(facts.phases.shape[0]):
            phase = _phase(facts.phases, i)
            stop = start + max(0, min(facts.band_rows, top + size - start, phase.rows - start))
            tiles = (phase.columns + facts.tile_pixels - 1) // facts.tile_pixels
            # Of the rows below the band, prefetched by the first phase.
            share = sizes.row_in * sizes.width * sizes.read // (_vectors(sizes) * tiles)
            band = (n, start, stop, share if i == 0 else 0)
            _correlate_band(band, arrays, facts, phase, floor)


@kernel
def _correlate_band(band, arrays, facts, phase, floor):
    """Rows ``[start, stop)`` of a phase, for ``band = (image, start, stop, prefetched share)``."""
    n, start, stop, share = band
    x, packed, bias, y = arrays
    sizes, pixels = facts.sizes, facts.tile_pixels
    read, written, per_vector = sizes.read, sizes.written, sizes.per_vector
    group_in, group_out = read // sizes.groups, written // sizes.groups
    x_pixel, y_pixel = sizes.column_in * read, sizes.column_out * written
    vector_size = facts.deltas.size * len(facts.tile.span) * lanes_of(x)
    x_image, y_image = n * sizes.height, n * sizes.out_height
    masks = phase.masks
    ahead = (x_image + (stop - 1) * sizes.row_in + facts.reach) * sizes.width * read
    for t in range(0, phase.columns, pixels):
        for v in range(_vectors(sizes)):
            group = _first_group(sizes, v)
            weights, vector_bias = (packed, v * vector_size), (bias, group * group_out)
            x_first, y_first = t * x_pixel + group * group_in, t * y_pixel + group * group_out
            for u in range(start, stop):
                first, last = _steps_inside(facts, phase.first, phase.last, u)
                x_row = (x_image + u * sizes.row_in) * sizes.width * read
                y_row = y_image + phase.row + u * sizes.row_out
                y_row = (y_row * sizes.out_width + phase.column) * written
                prefetch_run(x, ahead, share)
                ahead += share
                correlate_tile(
                    facts.tile,
                    phase.columns - t,
                    Channels(x, x_row + x_first, x_pixel, per_vector * group_in),
                    Steps(facts.steps, first, last, masks, facts.order),
                    weights,
                    vector_bias,
                    floor,
                    Channels(y, y_row + y_first, y_pixel, per_vector * group_out),
                )
        masks += phase.last - phase.first


@kernel
def correlate(x, weight, bias, facts, call, packed, y):
    """``y = max(floor, bias + weight * x)`` for the taps of the tables; all arrays are flat.

    `facts` are `Facts`, `call` is a `Call`; the weight is packed to `packed`.
    """
    facts, call = named(Facts, facts), named(Call, call)
    few = sum_workers(packed.size, call.workers)
    parallel_for(_pack_taps, _vectors(facts.sizes), few, (weight, facts, packed))
    pieces = (facts.phases[0, 2] + facts.piece_rows - 1) // facts.piece_rows
    arguments = ((x, packed, bias, y), facts, call.floor)
    parallel_for(_correlate_piece, facts.sizes.images * pieces, call.workers, arguments)


@kernel
def _weight_chunk(chunk, worker, x, dy, facts, parts):
    """Sums over some rows of all images."""
    size = parts.shape[1]
    sums = flat(parts)
    clear_run(sums, chunk * size, size)
    start = chunk * facts.chunk_rows
    stop = min(start + facts.chunk_rows, facts.sizes.images * facts.sizes.out_height)
    for row in range(start, stop):
        _weight_row(row, x, dy, facts, sums, chunk * size)


@kernel
def _weight_row(row, x, dy, facts, sums, sums_at):
    """Add the products of a row of dy to a chunk's sums."""
    sizes, pixels = facts.sizes, facts.tile_pixels
    read, written, per_vector = sizes.read, sizes.written, sizes.per_vector
    group_in, group_out = read // sizes.groups, written // sizes.groups
    n, u = row // sizes.out_height, row % sizes.out_height
    first, last = _steps_inside(facts, 0, facts.deltas.size, u)
    x_row = (n * sizes.height + u * sizes.row_in) * sizes.width * read
    vectors, total = _vectors(sizes), facts.taps.shape[0] * lanes_of(x)
    calls = vectors * ((sizes.out_width + pixels - 1) // pixels)
    ahead = x_row + facts.reach * sizes.width * read
    share = sizes.row_in * sizes.width * read // calls
    dy_ahead = (row + 1) * sizes.out_width * written
    dy_share = sizes.out_width * written // calls
    masks = facts.phases[0, 6]
    for t in range(0, sizes.out_width, pixels):
        for v in range(vectors):
            prefetch_run(x, ahead, share)
            ahead += share
            prefetch_run(dy, dy_ahead, dy_share)
            dy_ahead += dy_share
            group = _first_group(sizes, v)
            x_at = x_row + t * sizes.column_in * read + group * group_in
            dy_at = (row * sizes.out_width + t) * written + group * group_out
            weight_tile(
                facts.tile,
                sizes.out_width - t,
                Channels(x, x_at, sizes.column_in * read, per_vector * group_in),
                Steps(facts.steps, first, last, masks, facts.order),
                (sums, sums_at + v * (total + lanes_of(x)), total),
                Channels(dy, dy_at, written, per_vector * group_out),
            )
        masks += facts.deltas.size


@kernel
def _unpack_taps(v, worker, sums, facts, dw, db):
    """One vector of the weight gradient (M, C/G, R*S) and bias gradient of their sums, all flat."""
    sizes, taps, lanes = facts.sizes, facts.taps, lanes_of(sums)
    group_in, group_out = sizes.read // sizes.groups, sizes.written // sizes.groups
    first, at = _first_group(sizes, v) * group_out, v * (taps.shape[0] + 1) * lanes
    for k in range(taps.shape[0]):
        for lane in range(sizes.per_vector * group_out):
            place = ((first + lane) * group_in + taps[k, 1]) * facts.kernel + taps[k, 0]
            dw[place] = sums[at + lane]
        at += lanes
    for lane in range(sizes.per_vector * group_out):
        db[first + lane] = sums[at + lane]


@kernel
def correlate_weight(x, dy, facts, workers, parts, dw, db):
    """Weight gradient (M, C/G, R*S) and bias gradient (M,), of flat arrays and forward `Facts`.

    Each chunk of rows has a row of `parts`, which has one vector more than there are taps for each
    vector of channels: the sum of dy.
    """
    facts = named(Facts, facts)
    parallel_for(_weight_chunk, parts.shape[0], workers, (x, dy, facts, parts))
    sums, size = flat(parts), parts.shape[1]
    add_rows(sums, size, parts.shape[0], workers)
    few = sum_workers(size, workers)
    parallel_for(_unpack_taps, _vectors(facts.sizes), few, (sums, facts, dw, db))
