"""Convolution of few channels a group, depthwise above all, on channels-last arrays.

Lanes run over channels: a vector holds `per_vector` whole groups. A task goes down the rows of an
image with as many vectors as fit in L1. It packs each row that is read once, to a ring of rows:
with zeros on both sides, and with a copy for each input channel of a group, permuted to the order
in which the vector's output channels read them. `grouped_tile` has the tiles and their steps,
`ops.conv.depthwise` makes the tables that tell where in the ring the taps of an output pixel lie.
Where packing would cost too much, at a stride of 2, taps read x in place.

The input gradient is such a convolution too, of dy. Its rows and columns are those of one phase
for each remainder by the stride, with the taps that fall on it. Forward has one phase; in place it
has one more for each way in which an output pixel lacks taps at the edges.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastlayers.kernels.conv.grouped_tile import (
    Ahead,
    Channels,
    Steps,
    correlate_pixels,
    pack_pixels,
    weight_pixels,
)
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import clear_run, flat, view
from fastlayers.kernels.reduce import add_rows, sum_workers
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "Call",
    "Facts",
    "Groups",
    "Phase",
    "Ring",
    "Sizes",
    "correlate",
    "correlate_weight",
]


class Phase(NamedTuple):
    """Output pixels with the same taps, a row of the table of phases."""

    row: int  # the first, and the first column
    column: int
    rows: int
    columns: int
    first_run: int  # its steps are those from the first to before the last
    last_run: int
    first_tap: int
    last_tap: int


class Sizes(NamedTuple):
    """Images that are read and written.

    Row u of a phase is row ``phase.row + u * row_out`` of the output, and its taps are rows
    ``u * row_in + ...`` of the input; the columns alike.
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


class Groups(NamedTuple):
    """How groups of channels fill vectors."""

    groups: int
    per_vector: int
    vectors: int  # that hold all; the last one begins early where groups are left over
    depth: int  # input channels of a group
    each: int  # output channels of a group


class Ring(NamedTuple):
    """Packed rows of one vector of channels: row, input channel of a group, plane, pixel, lane.

    It is empty where taps read x in place.

    Row r of the input is row ``(r - top) % rows``. Column c is pixel ``(c + left) // column_in`` of
    plane ``(c + left) % column_in``, where the first column with zeros is that of ``-left``.
    """

    top: int  # the first row that the first output row reads
    rows: int  # as many as an output row reads
    row: int  # elements
    elements: int
    pixel: int  # from one pixel to the next
    copies: int  # to a row: for each input channel of a group, and each plane; 0 in place
    table: Any  # (copies, 4): where a copy's order is, its source, its pixels, and its target


class Facts(NamedTuple):
    """A pass over groups of channels, cut into tasks of an image or a part of its rows."""

    shuffled: Any  # empty where a group has one input and one output channel
    sizes: Sizes
    groups: Groups
    ring: Ring
    transposed: int  # 1 for the input gradient, which reads the output's channels
    kernel: int  # elements of a kernel
    block: int  # vectors of channels that go down an image together
    piece_rows: int  # of a task
    chunk_rows: int  # of a partial sum of the weight gradient, of all images' rows
    phases: Any  # (phases, 8), see `Phase`
    run_rows: Any  # of each run of taps
    runs: Any  # where in the ring it begins, by the place of the row of the first tap
    tap_rows: Any  # the same of single taps
    taps: Any
    order: Any  # in 32-bit words, of the channels in a vector of x
    elements: Any  # (taps, 3): of the kernel, channel of a group, and the first tap with both


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
        phases[i, 7],
    )


@kernel
def _first_group(groups, vector):
    return min(vector * groups.per_vector, groups.groups - groups.per_vector)


@kernel
def _inside(rows, first, last, top, height):
    """Those of the steps from the first to before the last whose rows exist."""
    while first < last and top + rows[first] < 0:
        first += 1
    while first < last and top + rows[last - 1] >= height:
        last -= 1
    return first, last


@kernel
def _steps_inside(facts, phase, row):
    """The steps of a phase whose rows exist."""
    top, height = row * facts.sizes.row_in, facts.sizes.height
    first, last = _inside(facts.run_rows, phase.first_run, phase.last_run, top, height)
    taps = _inside(facts.tap_rows, phase.first_tap, phase.last_tap, top, height)
    place = top % facts.ring.rows if facts.ring.copies else 0
    runs, singles = facts.run_rows.size, facts.tap_rows.size
    return Steps(
        view(facts.runs, place * runs, runs),
        first,
        last,
        view(facts.taps, place * singles, singles),
        taps[0],
        taps[1],
    )


@kernel
def _pack_taps(v, worker, weight, facts, packed):
    """Pack one vector of a flat (M, C/G, R*S) weight as ``[vector][tap][lane]``.

    Lanes are channels that are written: those of M, or of C for the input gradient.
    """
    groups, taps, lanes = facts.groups, facts.elements, lanes_of(packed)
    count, group_out = taps.shape[0], groups.each
    group_stride = group_out * groups.depth * facts.kernel
    out_stride, in_stride = groups.depth * facts.kernel, facts.kernel
    if facts.transposed:
        out_stride, in_stride = facts.kernel, group_out * facts.kernel
    first, at = _first_group(groups, v), v * count * lanes
    for lane in range(groups.per_vector * group_out):
        source = (first + lane // group_out) * group_stride + lane % group_out * out_stride
        for k in range(count):
            packed[at + k * lanes + lane] = weight[source + taps[k, 0] + taps[k, 1] * in_stride]
    for lane in range(groups.per_vector * group_out, lanes):
        for k in range(count):
            packed[at + k * lanes + lane] = 0


@kernel
def _pack_rows(x, n, u, ready, block, facts, work, base):
    """Pack the rows from `ready` on that output row u reads, for a block of vectors.

    Returns the first row that is not packed.
    """
    sizes, groups, ring = facts.sizes, facts.groups, facts.ring
    step, lanes = sizes.column_in * sizes.read, groups.per_vector * groups.depth
    table, top = ring.table, u * sizes.row_in + ring.top
    last = min(sizes.height, top + ring.rows)
    for row in range(max(ready, top), last if ring.copies else 0):
        x_at = (n * sizes.height + row) * sizes.width * sizes.read
        at = base + (row - ring.top) % ring.rows * ring.row
        for v in range(block[0], block[1]):
            channel = _first_group(groups, v) * groups.depth
            for j in range(ring.copies):
                pack_pixels(
                    facts.shuffled,
                    table[j, 2],
                    Channels(x, x_at + channel + table[j, 1], step, lanes),
                    (facts.order, table[j, 0]),
                    (work, at + table[j, 3]),
                )
            at += ring.elements
    return max(ready, last)


@kernel
def _place(n, u, phase, v, first, facts, base):
    """Where what output row u reads of vector v lies: in its ring, or in x, flat."""
    sizes, ring = facts.sizes, facts.ring
    if ring.copies:
        return base + (v - first) * ring.elements
    pixel = (n * sizes.height + u * sizes.row_in) * sizes.width + phase.column * sizes.column_in
    return pixel * sizes.read + _first_group(facts.groups, v)


@kernel
def _next_rows(x, n, row, block, facts, columns):
    """The rows from one on that the next output row reads, prefetched while this one is computed.

    Only where a block has all channels, so that they are read in the order of memory.
    """
    sizes, vectors = facts.sizes, facts.groups.vectors
    at = (n * sizes.height + row) * sizes.width * sizes.read
    whole = block[1] - block[0] == vectors
    each = sizes.row_in * sizes.width * sizes.read // (vectors * columns) if whole else 0
    return Ahead(x, at, each)


@kernel
def _correlate_piece(task, worker, arrays, facts, floor):
    """One piece of an image, a block of channels after the other.

    Pieces are whole images where there are many: two threads in neighbouring bands took each
    other's lines of y, twice as slow.
    """
    rows, size, work = facts.phases[0, 2], facts.piece_rows, arrays[4]
    pieces = (rows + size - 1) // size
    n, top = task // pieces, task % pieces * size
    base, vectors = worker * facts.block * facts.ring.elements, facts.groups.vectors
    clear_run(work, base, facts.block * facts.ring.elements)
    for v in range(0, vectors, facts.block):
        block = (v, min(v + facts.block, vectors))
        _correlate_block(n, top, min(top + size, rows), block, base, arrays, facts, floor)


@kernel
def _correlate_block(n, start, stop, block, base, arrays, facts, floor):
    """Rows ``[start, stop)`` of all phases of an image, for a block of vectors."""
    x, packed, bias, y, work = arrays
    sizes, groups, ring, lanes = facts.sizes, facts.groups, facts.ring, lanes_of(x)
    y_step, y_lanes = sizes.column_out * sizes.written, groups.per_vector * groups.each
    vector_size = facts.elements.shape[0] * lanes
    ready = 0
    for u in range(start, stop):
        ready = _pack_rows(x, n, u, ready, block, facts, work, base)
        for i in range(facts.phases.shape[0]):
            phase = _phase(facts.phases, i)
            if u < phase.rows:
                row = n * sizes.out_height + phase.row + u * sizes.row_out
                y_at = (row * sizes.out_width + phase.column) * sizes.written
                steps = _steps_inside(facts, phase, u)
                ahead = _next_rows(x, n, ready, block, facts, phase.columns)
                each = ahead.each if i == 0 else 0
                for v in range(block[0], block[1]):
                    channel = _first_group(groups, v) * groups.each
                    correlate_pixels(
                        phase.columns,
                        (work, _place(n, u, phase, v, block[0], facts, base), ring.pixel),
                        steps,
                        (packed, v * vector_size),
                        (bias, channel),
                        floor,
                        Channels(y, y_at + channel, y_step, y_lanes),
                        Ahead(x, ahead.at + (v - block[0]) * phase.columns * each, each),
                    )


@kernel
def correlate(x, weight, bias, facts, call, packed, work, y):
    """``y = max(floor, bias + weight * x)`` for the taps of the tables; all arrays are flat.

    `facts` are `Facts`, `call` is a `Call`; the weight is packed to `packed`, and `work` has a
    block of rings for each worker.
    """
    facts, call = named(Facts, facts), named(Call, call)
    few = sum_workers(packed.size, call.workers)
    parallel_for(_pack_taps, facts.groups.vectors, few, (weight, facts, packed))
    pieces = (facts.phases[0, 2] + facts.piece_rows - 1) // facts.piece_rows
    arguments = ((x, packed, bias, y, work), facts, call.floor)
    parallel_for(_correlate_piece, facts.sizes.images * pieces, call.workers, arguments)


@kernel
def _weight_chunk(chunk, worker, x, dy, facts, work, parts):
    """Sums over some rows of all images."""
    sizes, size, vectors = facts.sizes, parts.shape[1], facts.groups.vectors
    rings = facts.block * facts.ring.elements
    base, sums = worker * rings, flat(parts)
    clear_run(sums, chunk * size, size)
    clear_run(work, base, rings)
    row = chunk * facts.chunk_rows
    end = min(row + facts.chunk_rows, sizes.images * sizes.out_height)
    while row < end:
        n, start = row // sizes.out_height, row % sizes.out_height
        stop = min(sizes.out_height, start + end - row)
        for v in range(0, vectors, facts.block):
            block = (v, min(v + facts.block, vectors))
            _weight_block(n, start, stop, block, base, (x, dy, work, sums), facts, chunk * size)
        row += stop - start


@kernel
def _weight_block(n, start, stop, block, base, arrays, facts, sums_at):
    """Add the products of rows ``[start, stop)`` of dy, of some vectors, to a chunk's sums."""
    x, dy, work, sums = arrays
    sizes, groups, ring, lanes = facts.sizes, facts.groups, facts.ring, lanes_of(x)
    dy_lanes, total = groups.per_vector * groups.each, facts.elements.shape[0] * lanes
    ready = 0
    for u in range(start, stop):
        ready = _pack_rows(x, n, u, ready, block, facts, work, base)
        for i in range(facts.phases.shape[0]):
            phase = _phase(facts.phases, i)
            ahead = _next_rows(x, n, ready, block, facts, phase.columns)
            steps, each = _steps_inside(facts, phase, u), ahead.each if i == 0 else 0
            dy_at = (n * sizes.out_height + u) * sizes.out_width + phase.column
            for v in range(block[0], block[1]):
                channel = _first_group(groups, v) * groups.each
                weight_pixels(
                    phase.columns,
                    (work, _place(n, u, phase, v, block[0], facts, base), ring.pixel),
                    steps,
                    (sums, sums_at + v * (total + lanes), total),
                    Channels(dy, dy_at * sizes.written + channel, sizes.written, dy_lanes),
                    sizes.out_width * sizes.written,
                    Ahead(x, ahead.at + (v - block[0]) * phase.columns * each, each),
                )


@kernel
def _unpack_taps(v, worker, sums, facts, dw, db):
    """One vector of the weight gradient (M, C/G, R*S) and bias gradient of their sums, all flat."""
    groups, taps, lanes = facts.groups, facts.elements, lanes_of(sums)
    count, at = taps.shape[0], v * (taps.shape[0] + 1) * lanes
    first = _first_group(groups, v) * groups.each
    for k in range(count):  # of phases with the same tap
        if taps[k, 2] != k:
            for lane in range(lanes):
                sums[at + taps[k, 2] * lanes + lane] += sums[at + k * lanes + lane]
    for lane in range(groups.per_vector * groups.each):
        row = (first + lane) * groups.depth
        for k in range(count):
            if taps[k, 2] == k:
                place = (row + taps[k, 1]) * facts.kernel + taps[k, 0]
                dw[place] = sums[at + k * lanes + lane]
        db[first + lane] = sums[at + count * lanes + lane]


@kernel
def correlate_weight(x, dy, facts, workers, work, parts, dw, db):
    """Weight gradient (M, C/G, R*S) and bias gradient (M,), of flat arrays and forward `Facts`.

    Each chunk of rows has a row of `parts`, which has one vector more than there are taps for each
    vector of channels: the sum of dy. `work` has a block of rings for each worker.
    """
    facts = named(Facts, facts)
    parallel_for(_weight_chunk, parts.shape[0], workers, (x, dy, facts, work, parts))
    sums, size = flat(parts), parts.shape[1]
    add_rows(sums, size, parts.shape[0], workers)
    few = sum_workers(size, workers)
    parallel_for(_unpack_taps, facts.groups.vectors, few, (sums, facts, dw, db))
