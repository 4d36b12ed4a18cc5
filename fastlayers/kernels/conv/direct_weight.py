"""Weight gradient of `direct`: GEMMs over the pixels of slabs, read in place or copied.

Each chunk of slabs has sums of its own, which are added in order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastlayers.kernels.conv.slabs import ImageSize, Slabs, open_slab, slab_at
from fastlayers.kernels.gemm.gemm import gemm, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import FETCH, Bias, Block, Epilogue, Left, Right, Size, Target
from fastlayers.kernels.gemm.tile import gemm_tile
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import add_run, no_table, view
from fastlayers.kernels.layout import square_side, swap_axes_image
from fastlayers.kernels.reduce import add_rows, sum_workers
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["WeightFacts", "conv2d_backward_weight"]


class WeightFacts(NamedTuple):
    """A weight gradient: sums over chunks of slabs, of blocks of rows of it."""

    source: ImageSize
    target: ImageSize
    slabs: Slabs
    groups: int
    column_step: int
    taps: int
    pixels_at: int  # in `tables`, behind the offsets of the runs; then the outputs
    runs: int
    length: int
    slab_count: int
    chunks: int
    block_rows: int
    tasks: int
    few_channels: bool
    tables: Any


@kernel
def _chunk_slabs(chunk, facts):
    """First slab of a chunk, and the one after its last."""
    slabs, chunks = facts.slab_count, facts.chunks
    return slabs * chunk // chunks, slabs * (chunk + 1) // chunks


@kernel
def _slab_rows(slab, facts):
    """Offsets of a slab's rows in the input and in the output's gradient, and of the latter."""
    rows = slab.images * slab.rows
    outputs_at = facts.pixels_at + facts.slabs.images_each * facts.slabs.rows_each
    row = slab.image * facts.target.height + slab.row
    at = row * facts.target.width * facts.target.channels
    return view(facts.tables, facts.pixels_at, rows), view(facts.tables, outputs_at, rows), at


@kernel
def _weight_task(task, worker, x, dy, zeros, facts, work, parts):
    """Weight gradient of one chunk of slabs and one block of output channels.

    Six channels, of which the GEMM makes tiles of 4, 1 and 1, have a tile of their own.
    """
    m, groups, length, lanes = facts.target.channels, facts.groups, facts.length, lanes_of(parts)
    per_group, depth = m // groups, facts.source.channels // groups
    chunk, block = divmod(task, (per_group + facts.block_rows - 1) // facts.block_rows)
    j = block * facts.block_rows
    rows = min(facts.block_rows, per_group - j)
    k, column = facts.taps * depth, facts.column_step * facts.source.channels
    width = panel_width(length, lanes)
    start, stop = _chunk_slabs(chunk, facts)
    for number in range(start, stop):
        add, slab = int(number > start), slab_at(number, facts.slabs)
        source, base = open_slab(slab, worker, x, facts.source, facts.slabs, work)
        pixels, outputs, from_row = _slab_rows(slab, facts)
        lines, epilogue = slab.images * slab.rows, Epilogue(-np.inf, add, FETCH)
        for g in range(groups):
            a = Left(dy, from_row + g * per_group + j, 1, m, no_table(), outputs)
            for run in range(facts.runs):
                at = base + g * depth + facts.tables[run]
                out = (chunk * m + g * per_group + j) * k + run * length
                b, c = Right(source, at, width, column, pixels), Target(parts, out, k, no_table())
                if rows == 6 and width == lanes:
                    block = Block(0, length, 0, lines, facts.target.width)
                    gemm_tile((6, 1, 1), block, a, b, Bias(zeros, 0), c, epilogue)
                    continue
                product = Size(rows, length, lines, facts.target.width)
                gemm(product, a, b, Bias(zeros, 0), c, epilogue)


@kernel
def _few_channels_task(task, worker, x, dy, zeros, facts, work, parts):
    """Transposed weight gradient of one chunk of slabs, for inputs of few channels.

    The rows are the cells of a receptive field and vectors run over the output channels, as a
    run of 9 inputs would fill 9 of 16 lanes.
    """
    m, rows, lanes = facts.target.channels, facts.block_rows, lanes_of(parts)
    column = facts.column_step * facts.source.channels
    start, stop = _chunk_slabs(task, facts)
    for number in range(start, stop):
        add, slab = int(number > start), slab_at(number, facts.slabs)
        source, base = open_slab(slab, worker, x, facts.source, facts.slabs, work)
        pixels, outputs, from_row = _slab_rows(slab, facts)
        a = Left(source, base, 0, column, view(facts.tables, 0, rows), pixels)
        b = Right(dy, from_row, panel_width(m, lanes), m, outputs)
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
