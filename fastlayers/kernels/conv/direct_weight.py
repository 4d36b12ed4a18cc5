"""Weight gradient of `direct`: GEMMs over the pixels of slabs, read in place or copied.

Each chunk of slabs has sums of its own, which are added in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastlayers.kernels.conv.panels import (
    Panels,
    Pixels,
    Region,
    copy_pixels,
    pack_region,
    prepare_pixels,
)
from fastlayers.kernels.conv.slabs import ImageSize, Slabs, open_slab, slab_at
from fastlayers.kernels.gemm.gemm import gemm, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import FETCH, Bias, Epilogue, Left, Right, Size, Target
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import add_run, no_table, view
from fastlayers.kernels.layout import square_side, swap_axes_image
from fastlayers.kernels.reduce import add_rows, sum_workers
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["WeightFacts", "conv2d_backward_weight"]

TILE_ROWS = cpu.tile_rows()


class WeightFacts(NamedTuple):
    """A weight gradient: sums over chunks of slabs, of blocks of rows of it."""

    source: ImageSize
    target: ImageSize
    slabs: Slabs
    region: Region
    groups: int
    taps: int
    slab_count: int
    chunks: int
    block_rows: int
    tasks: int
    few_channels: bool
    joined: bool  # the rows of a slab are one run of pixels
    step: int  # elements of the input from one output pixel to the next
    columns: int  # channels of the input that are packed at a time
    panel: int  # elements from one of their panels to the next
    dy_panel: int
    work: int  # elements of a worker's scratch memory
    dy_at: int  # where dy begins in it
    rows_at: int  # in `tables`, behind the offsets of taps or cells: the inputs of output rows,
    outputs_at: int  # these rows in a panel of dy,
    lines_at: int  # and the GEMM's rows in panels of dy
    tables: Any


@kernel
def _chunk_slabs(chunk, facts):
    """First slab of a chunk, and the one after its last."""
    slabs, chunks = facts.slab_count, facts.chunks
    return slabs * chunk // chunks, slabs * (chunk + 1) // chunks


@kernel
def _pack_gradient(dy, facts, slab, channels, width, out, at):
    """Pack a slab's pixels of dy in panels, for ``channels = (first, count)``."""
    m = facts.target.channels
    row = slab.image * facts.target.height + slab.row
    source = Pixels(dy, row * facts.target.width * m + channels[0], m, width)
    pixels = slab.images * slab.rows * facts.target.width
    copy_pixels(Panels(out, at, width, facts.dy_panel), source, pixels, channels[1])


@kernel
def _runs(slab, facts):
    """How many runs of how many pixels a slab has, and the tables of both operands' runs."""
    count, length = slab.images * slab.rows, facts.target.width
    if facts.joined:
        return 1, count * length, no_table(), no_table()
    rows = view(facts.tables, facts.rows_at, count)
    return count, length, rows, view(facts.tables, facts.outputs_at, count)


@kernel
def _weight_task(task, worker, x, dy, zeros, facts, work, parts):
    """Weight gradient of one chunk of slabs and one block of output channels.

    Both operands are packed, dy in panels as high as a tile, the input in panels of its columns.
    """
    m, lanes, tile = facts.target.channels, lanes_of(parts), TILE_ROWS
    per_group, depth = m // facts.groups, facts.source.channels // facts.groups
    chunk, block = divmod(task, (per_group + facts.block_rows - 1) // facts.block_rows)
    j = block * facts.block_rows
    rows, width = min(facts.block_rows, per_group - j), panel_width(depth, lanes)
    k, base = facts.taps * depth, worker * facts.work
    dy_base = base + facts.dy_at
    start, stop = _chunk_slabs(chunk, facts)
    for number in range(start, stop):
        slab, epilogue = slab_at(number, facts.slabs), Epilogue(-np.inf, int(number > start), FETCH)
        runs, length, x_runs, dy_runs = _runs(slab, facts)
        for g in range(facts.groups):
            first = g * per_group + j
            _pack_gradient(dy, facts, slab, (first, rows), tile, work, dy_base)
            a = Left(work, dy_base, 0, tile, view(facts.tables, facts.lines_at, rows), dy_runs)
            for c in range(0, depth, facts.columns):
                columns, panels = (
                    min(facts.columns, depth - c),
                    Panels(work, base, width, facts.panel),
                )
                inputs = (g * depth + c, columns)
                pack_region(x, facts.source, slab, facts.slabs, facts.region, inputs, panels)
                product = Size(rows, columns, runs, length)
                for tap in range(facts.taps):
                    at, out = base + facts.tables[tap], (chunk * m + first) * k + tap * depth + c
                    b = Right(work, at, facts.panel, facts.step, x_runs)
                    to = Target(parts, out, k, no_table())
                    gemm(product, a, b, Bias(zeros, 0), to, epilogue)


@kernel
def _few_channels_task(task, worker, x, dy, zeros, facts, work, parts):
    """Transposed weight gradient of one chunk of slabs, for inputs of few channels.

    The rows are the cells of a receptive field and vectors run over the output channels, as a
    run of 9 inputs would fill 9 of 16 lanes.
    """
    m, rows, base = facts.target.channels, facts.block_rows, worker * facts.work
    width = panel_width(m, lanes_of(parts))
    dy_base = base + facts.dy_at
    start, stop = _chunk_slabs(task, facts)
    for number in range(start, stop):
        add, slab = int(number > start), slab_at(number, facts.slabs)
        source, at = open_slab(slab, base, x, facts.source, facts.slabs, work)
        _pack_gradient(dy, facts, slab, (0, m), width, work, dy_base)
        _, _, pixels, outputs = _runs(slab, facts)
        a = Left(source, at, 0, facts.step, view(facts.tables, 0, rows), pixels)
        b = Right(work, dy_base, facts.dy_panel, width, outputs)
        c, epilogue = Target(parts, task * rows * m, m, no_table()), Epilogue(-np.inf, add, FETCH)
        product = Size(rows, m, slab.images * slab.rows, facts.target.width)
        gemm(product, a, b, Bias(zeros, 0), c, epilogue)


@kernel
def _sum_channel(m, worker, parts, shape, side, dw):
    """Add all chunks of one output channel in order, and swap (R*S, C) to (C, R*S)."""
    chunks, channels, taps, depth = shape
    length = taps * depth
    for chunk in range(1, chunks):
        add_run(parts, m * length, parts, (chunk * channels + m) * length, length)
    swap_axes_image(m, worker, parts, (taps, depth), side, dw)


@kernel
def _spread_cells(m, worker, parts, shape, dw):
    """Gather one output channel of sums (R, S, C, M) as (C, R, S)."""
    depth, taps, channels = shape
    for t in range(taps):
        for c in range(depth):
            dw[(m * depth + c) * taps + t] = parts[(t * depth + c) * channels + m]


@kernel
def conv2d_backward_weight(x, dy, zeros, facts, workers, work, parts, dw):
    """Weight gradient (M, C/G, R, S) of the images x and the output's gradient dy, all flat.

    Each chunk of slabs has its sums in `parts`, so the order of additions, and with it every bit of
    the result, is the same for any number of threads. `facts` are `WeightFacts`.
    """
    prepare_gemm(dw)
    prepare_pixels(dw)
    facts = named(WeightFacts, facts)
    arguments = (x, dy, zeros, facts, work, parts)
    m, taps, depth = facts.target.channels, facts.taps, facts.source.channels // facts.groups
    if facts.few_channels:
        parallel_for(_few_channels_task, facts.tasks, workers, arguments)
        size = facts.block_rows * m
        add_rows(parts, size, facts.chunks, workers)
        few = sum_workers(size, workers)
        parallel_for(_spread_cells, m, few, (parts, (depth, taps, m), dw))
        return
    parallel_for(_weight_task, facts.tasks, workers, arguments)
    few = sum_workers(facts.chunks * dw.size, workers)
    shape = (facts.chunks, m, taps, depth)
    parallel_for(_sum_channel, m, few, (parts, shape, square_side(dw), dw))
