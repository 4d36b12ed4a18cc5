"""Convolution of few channels a group, depthwise above all, on channels-last arrays.

Lanes run over channels: a vector holds `per_vector` whole groups. A task goes down a band of rows
with a cache line of channels at a time. It packs each row that is read once, to a slab that stays
in L1: with zeros around it, and with a copy for each input channel of a group, permuted to the
order in which the vector's output channels read them. `grouped_tile` has the tiles and their steps,
`ops.conv.depthwise` makes the table that tells where in the slab the taps of an output pixel lie.

The input gradient is such a convolution too, of dy. Its rows and columns are those of one phase
for each remainder by the stride, with the taps that fall on it; forward has one phase.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastlayers.kernels.conv.grouped_tile import (
    Channels,
    Steps,
    correlate_pixels,
    pack_pixels,
    weight_pixels,
)
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import clear_run, flat, prefetch_run
from fastlayers.kernels.ir.vectors import LINE
from fastlayers.kernels.reduce import add_rows, sum_workers
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["BLOCK", "Call", "Facts", "Phase", "Sizes", "Slab", "correlate", "correlate_weight"]

# Vectors of channels that go down a band together: a cache line of each pixel.
BLOCK = max(1, LINE // cpu.vector_bytes())


import os
PF = int(os.environ.get("DWPF", "3"))


class Phase(NamedTuple):
    """Output pixels with the same taps, a row of the table of phases."""

    row: int  # the first, and the first column
    column: int
    rows: int
    columns: int
    first: int  # its steps are those from the first to before the last
    last: int


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


class Slab(NamedTuple):
    """Packed rows of one vector of channels: row, input channel of a group, plane, pixel, lane.

    Column c of the input is pixel ``(c + left) // column_in`` of plane ``(c + left) % column_in``.
    """

    top: int  # its first row, counted from the row of the first output row
    reach: int  # rows that an output row reads
    left: int
    columns: int  # with the zeros
    plane: int  # elements
    row: int
    elements: int


class Facts(NamedTuple):
    """A pass over groups of channels, cut into bands, and into tasks of an image or a part."""

    shuffled: Any  # empty where a group has one input and one output channel
    sizes: Sizes
    slab: Slab
    transposed: int  # 1 for the input gradient, which reads the output's channels
    kernel: int  # elements of a kernel
    band_rows: int
    piece_rows: int  # of a task, whole bands
    chunk_rows: int  # of a partial sum of the weight gradient, of all images' rows
    phases: Any  # (phases, 6), see `Phase`
    deltas: Any  # of each step's row
    offsets: Any  # of each step, in the slab
    order: Any  # in 32-bit words, of the channels in a vector of x
    taps: Any  # (steps, 2): an element of the kernel, and a channel read, counted in its group


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
    return Steps(facts.offsets, first, last)


@kernel
def _pack_taps(v, worker, weight, facts, packed):
    """Pack one vector of a flat (M, C/G, R*S) weight as ``[vector][step][lane]``.

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
def _pack_rows(x, image, first, last, v, facts, slab_row, work, at):
    """Pack rows ``[first, last)`` of an image, the first of which is row `slab_row` of the slab."""
    sizes, slab, lanes = facts.sizes, facts.slab, lanes_of(x)
    group_in, step = sizes.read // sizes.groups, sizes.column_in
    channel, exist = _first_group(sizes, v) * group_in, sizes.per_vector * group_in
    end = min(sizes.width + slab.left, slab.columns)
    at += slab_row * slab.row
    for row in range(image * sizes.height + first, image * sizes.height + last):
        target = at
        for depth in range(group_in):
            order = (facts.order, depth * lanes * x.itemsize // 4)
            for plane in range(step):
                # The first column of the plane that exists.
                pixel = (max(0, slab.left - plane) + step - 1) // step
                column = pixel * step + plane
                if column < end:
                    pack_pixels(
                        facts.shuffled,
                        (end - column + step - 1) // step,
                        Channels(
                            x,
                            (row * sizes.width + column - slab.left) * sizes.read + channel,
                            step * sizes.read,
                            exist,
                        ),
                        order,
                        (work, target + pixel * lanes),
                    )
                target += slab.plane
        at += slab.row


@kernel
def _correlate_piece(task, worker, arrays, facts, floor):
    """One piece of an image, band by band.

    Pieces are whole images where there are many: two threads in neighbouring bands took each
    other's lines of y, twice as slow.
    """
    rows, size, work = facts.phases[0, 2], facts.piece_rows, arrays[4]
    pieces = (rows + size - 1) // size
    n, top = task // pieces, task % pieces * size
    base = worker * BLOCK * facts.slab.elements
    clear_run(work, base, BLOCK * facts.slab.elements)
    vectors = _vectors(facts.sizes)
    for start in range(top, min(top + size, rows), facts.band_rows):
        stop = min(start + facts.band_rows, top + size, rows)
        for v in range(0, vectors, BLOCK):
            block = (v, min(v + BLOCK, vectors))
            _correlate_band(n, start, stop, block, base, arrays, facts, floor)


@kernel
def _correlate_band(n, start, stop, block, base, arrays, facts, floor):
    """Rows ``[start, stop)`` of all phases of an image, for a block of vectors."""
    x, packed, bias, y, work = arrays
    sizes, slab, lanes = facts.sizes, facts.slab, lanes_of(x)
    group_out = sizes.written // sizes.groups
    top = start * sizes.row_in + slab.top
    ready = max(0, top)
    calls = (_vectors(sizes) + BLOCK - 1) // BLOCK
    share = (sizes.row_in * sizes.width * sizes.read) // calls
    ahead = (n * sizes.height + stop * sizes.row_in - slab.top) * sizes.width * sizes.read + (block[0]//BLOCK) * share * (stop-start)
    yshare = (sizes.row_out * sizes.out_width * sizes.written) // calls
    yahead = (n * sizes.out_height + stop * sizes.row_out) * sizes.out_width * sizes.written + (block[0]//BLOCK) * yshare * (stop-start)
    for u in range(start, stop):
        first = max(ready, u * sizes.row_in + slab.top)
        last = min(sizes.height, u * sizes.row_in + slab.top + slab.reach)
        if PF & 1:
            prefetch_run(x, ahead, share)
            ahead += share
        if PF & 2:
            prefetch_run(y, yahead, yshare)
            yahead += yshare
        for v in range(block[0], block[1]):
            at = base + (v - block[0]) * slab.elements
            _pack_rows(x, n, first, last, v, facts, first - top, work, at)
            at += (u - start) * sizes.row_in * slab.row
            channel = _first_group(sizes, v) * group_out
            for i in range(facts.phases.shape[0]):
                phase = _phase(facts.phases, i)
                if u >= phase.rows:
                    continue
                row = n * sizes.out_height + phase.row + u * sizes.row_out
                pixel = row * sizes.out_width + phase.column
                correlate_pixels(
                    phase.columns,
                    (work, at),
                    _steps_inside(facts, phase.first, phase.last, u),
                    (packed, v * facts.deltas.size * lanes),
                    (bias, channel),
                    floor,
                    Channels(
                        y,
                        pixel * sizes.written + channel,
                        sizes.column_out * sizes.written,
                        sizes.per_vector * group_out,
                    ),
                )
        ready = max(ready, last)


@kernel
def correlate(x, weight, bias, facts, call, packed, work, y):
    """``y = max(floor, bias + weight * x)`` for the taps of the tables; all arrays are flat.

    `facts` are `Facts`, `call` is a `Call`; the weight is packed to `packed`, and `work` has `BLOCK`
    slabs for each worker.
    """
    facts, call = named(Facts, facts), named(Call, call)
    few = sum_workers(packed.size, call.workers)
    parallel_for(_pack_taps, _vectors(facts.sizes), few, (weight, facts, packed))
    pieces = (facts.phases[0, 2] + facts.piece_rows - 1) // facts.piece_rows
    arguments = ((x, packed, bias, y, work), facts, call.floor)
    parallel_for(_correlate_piece, facts.sizes.images * pieces, call.workers, arguments)


@kernel
def _weight_chunk(chunk, worker, x, dy, facts, work, parts):
    """Sums over some rows of all images."""
    sizes, size, slabs = facts.sizes, parts.shape[1], BLOCK * facts.slab.elements
    sums, vectors = flat(parts), _vectors(sizes)
    clear_run(sums, chunk * size, size)
    clear_run(work, worker * slabs, slabs)
    row = chunk * facts.chunk_rows
    end = min(row + facts.chunk_rows, sizes.images * sizes.out_height)
    while row < end:
        n, start = row // sizes.out_height, row % sizes.out_height
        stop = min(start + facts.band_rows, sizes.out_height, start + end - row)
        for v in range(0, vectors, BLOCK):
            block = (v, min(v + BLOCK, vectors))
            operands = (x, dy, work, sums)
            _weight_band(n, start, stop, block, worker * slabs, operands, facts, chunk * size)
        row += stop - start


@kernel
def _weight_band(n, start, stop, block, base, arrays, facts, sums_at):
    """Add the products of rows ``[start, stop)`` of dy, for a block of vectors, to a chunk's sums."""
    x, dy, work, sums = arrays
    sizes, slab, lanes = facts.sizes, facts.slab, lanes_of(x)
    group_out = sizes.written // sizes.groups
    total = facts.deltas.size * lanes
    top = start * sizes.row_in + slab.top
    ready = max(0, top)
    for u in range(start, stop):
        first = max(ready, u * sizes.row_in + slab.top)
        last = min(sizes.height, u * sizes.row_in + slab.top + slab.reach)
        for v in range(block[0], block[1]):
            at = base + (v - block[0]) * slab.elements
            _pack_rows(x, n, first, last, v, facts, first - top, work, at)
            at += (u - start) * sizes.row_in * slab.row
            channel = _first_group(sizes, v) * group_out
            pixel = (n * sizes.out_height + u) * sizes.out_width
            weight_pixels(
                sizes.out_width,
                (work, at),
                _steps_inside(facts, 0, facts.deltas.size, u),
                (sums, sums_at + v * (total + lanes), total),
                Channels(
                    dy, pixel * sizes.written + channel, sizes.written, sizes.per_vector * group_out
                ),
            )
        ready = max(ready, last)


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
def correlate_weight(x, dy, facts, workers, work, parts, dw, db):
    """Weight gradient (M, C/G, R*S) and bias gradient (M,), of flat arrays and forward `Facts`.

    Each chunk of rows has a row of `parts`, which has one vector more than there are steps for each
    vector of channels: the sum of dy. `work` has `BLOCK` slabs for each worker.
    """
    facts = named(Facts, facts)
    parallel_for(_weight_chunk, parts.shape[0], workers, (x, dy, facts, work, parts))
    sums, size = flat(parts), parts.shape[1]
    add_rows(sums, size, parts.shape[0], workers)
    few = sum_workers(size, workers)
    parallel_for(_unpack_taps, _vectors(facts.sizes), few, (sums, facts, dw, db))
