"""Winograd convolution F(m x m, 3 x 3), m = 4 or 2, on channels-last arrays.

Sixth of the folder's files: the forward pass, and the input gradient, which is a convolution with
filters rotated by 180 degrees and transposed. `tiles` says how tiles and matrices lie in memory.
"""

from __future__ import annotations

from typing import NamedTuple

from fastlayers.kernels.conv.winograd.filters import transform_filter
from fastlayers.kernels.conv.winograd.tiles import (
    TRANSFORM_TILES,
    Tiles,
    matrix_stride,
    patch_elements,
    points,
    prepare_inputs,
    prepare_outputs,
    row_length,
    transform_inputs,
    transform_outputs,
    transform_task,
)
from fastlayers.kernels.conv.winograd.transform import Output, Transformed
from fastlayers.kernels.gemm.gemm import gemm_batch, packed_size, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import PLAIN, Batch, Bias, Left, Right, Size, Target
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import clear_run, no_table, view
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "Call",
    "Facts",
    "block_elements",
    "filter_elements",
    "panel_elements",
    "winograd",
    "winograd_by_panels",
]

# Rows of a panel of the weight that are transformed at once: 9 x 8 x 32 float32 are 9 KiB in L1.
FILTER_ROWS = 8


class Facts(NamedTuple):
    """A convolution of blocks of `step` tiles, or by panels of filters, for which `step` is 0."""

    tiles: Tiles
    transposed: bool  # whether the weight is (C, M, 3, 3), rotated by 180 degrees
    step: int
    worker_elements: int
    zeros: int  # elements for the longest row of pixels and a tile more
    stream: int  # whether y, of whole aligned vectors, is written by non-temporal stores


class Call(NamedTuple):
    """What changes from call to call."""

    floor: float
    workers: int


@kernel
def _filter_stride(tiles):
    """Elements from one xi to the next in a transformed weight."""
    return packed_size(tiles.channels, tiles.filters, tiles.lanes) + tiles.lanes


@kernel(inner=True)
def filter_elements(tiles):
    """Elements of a transformed weight."""
    return points(tiles) * _filter_stride(tiles)


@kernel
def _transform_rows(facts, weight, first, p, work, taps, u):
    """Transform `FILTER_ROWS` rows, from `p`, of the panel that begins at filter `first`, to u.

    A row of the GEMMs' B are the filters' taps at a channel. The taps, innermost in the weight
    (M, C, 3, 3), go through a small buffer ``[row][tap][width]`` at `taps`.
    """
    channels, filters = facts.tiles.channels, facts.tiles.filters
    width = u.row
    rows, valid = min(FILTER_ROWS, channels - p), min(width, filters - first)
    row = 9 * width
    for i in range(rows if facts.transposed else valid):
        for j in range(valid if facts.transposed else rows):
            if facts.transposed:
                source = ((p + i) * filters + first + j) * 9 + 8
                target, tap = taps + i * row + j, -1
            else:
                source = ((first + i) * channels + p + j) * 9
                target, tap = taps + j * row + i, 1
            for t in range(9):
                work[target + t * width] = weight[source + tap * t]
    for i in range(rows):
        out = Transformed(u.array, u.at + i * width, width, u.point)
        if facts.tiles.tile == 4:
            transform_filter(4, work, taps + i * row, out)
        else:
            transform_filter(2, work, taps + i * row, out)


@kernel
def _filter_task(task, worker, facts, weight, work, u):
    """Transform a few rows of one panel of the weight to their place in ``[xi][panel][k][width]``.

    For the weight (M, C, 3, 3) as the GEMMs' B: forward wants (C, M) for every xi, the input
    gradient (M, C) of the rotated filters.
    """
    tiles = facts.tiles
    width = panel_width(tiles.filters, tiles.lanes)
    blocks = (tiles.channels + FILTER_ROWS - 1) // FILTER_ROWS
    first, p = task // blocks * width, task % blocks * FILTER_ROWS
    out = Transformed(u, first * tiles.channels + p * width, width, _filter_stride(tiles))
    _transform_rows(facts, weight, first, p, work, worker * facts.worker_elements, out)


def block_elements(tiles: Tiles, step: int) -> int:
    """Elements of a worker's buffer: transformed inputs, products, and a tile's pixels.

    Before, it holds the taps of `FILTER_ROWS` rows of the weight, which are less.
    """
    lanes = tiles.lanes
    blocks = matrix_stride(step, tiles.channels, lanes) + matrix_stride(step, tiles.filters, lanes)
    elements: int = points(tiles) * blocks + patch_elements(tiles)
    return elements


@kernel
def _winograd_block(block, worker, inputs, facts, zeros, work, out):
    """All of the convolution for one block of `step` tiles."""
    x, u = inputs
    tiles, step = facts.tiles, facts.step
    channels, filters, lanes = tiles.channels, tiles.filters, tiles.lanes
    first = block * step
    count = min(step, tiles.total - first)
    at = worker * facts.worker_elements
    v = Transformed(work, at, row_length(channels, lanes), matrix_stride(step, channels, lanes))
    at += points(tiles) * v.point
    p = Transformed(work, at, row_length(filters, lanes), matrix_stride(step, filters, lanes))
    patch = at + points(tiles) * p.point
    transform_inputs(tiles, x, first, count, zeros, work, patch, v)
    width = panel_width(filters, lanes)
    none = no_table()
    a, b = Left(work, v.at, v.row, 1, none, none), Right(u, 0, width * channels, width, none)
    c = Target(work, p.at, p.row, none)
    batch = Batch(points(tiles), v.point, _filter_stride(tiles), p.point)
    gemm_batch(batch, Size(count, filters, 1, channels), a, b, Bias(zeros, 0), c, PLAIN)
    transform_outputs(tiles, p, out, 0, filters, first, count, patch)


@kernel
def winograd(x, weight, bias, facts, call, u, work, y):
    """3x3 convolution of flat x (N, H, W, C) with weight (M, C, 3, 3), into flat y.

    Bias (M,); values below the floor are raised to it. There is room for `filter_elements` in u and
    for each worker's `block_elements` in `work`, with the zeros behind them.
    """
    facts, call = named(Facts, facts), named(Call, call)
    prepare_gemm(y)
    prepare_inputs(y)
    prepare_outputs(y)
    tiles, workers = facts.tiles, call.workers
    zeros = view(work, workers * facts.worker_elements, facts.zeros)
    clear_run(zeros, 0, zeros.size)
    width = panel_width(tiles.filters, tiles.lanes)
    panels = (tiles.filters + width - 1) // width
    rows = (tiles.channels + FILTER_ROWS - 1) // FILTER_ROWS
    parallel_for(_filter_task, panels * rows, workers, (facts, weight, work, u))
    blocks = (tiles.total + facts.step - 1) // facts.step
    out = Output(y, bias, call.floor, facts.stream)
    parallel_for(_winograd_block, blocks, workers, ((x, u), facts, zeros, work, out))


def panel_elements(tiles: Tiles) -> int:
    """Elements of a worker's buffer by panels: taps, a panel of the weight, products, a tile."""
    width = 2 * tiles.lanes
    strides = tiles.channels * width + tiles.lanes + tiles.total * width + tiles.lanes
    patch = (tiles.tile + 2) ** 2 * max(tiles.channels, width)
    elements: int = 9 * FILTER_ROWS * width + patch + points(tiles) * strides
    return elements


@kernel
def _winograd_panel(panel, worker, weight, facts, v, zeros, work, out):
    """Convolution with one panel of filters, whose transform need not leave the cache."""
    tiles = facts.tiles
    channels, filters, lanes, count = tiles.channels, tiles.filters, tiles.lanes, tiles.total
    width = panel_width(filters, lanes)
    first = panel * width
    columns = min(width, filters - first)
    taps = worker * facts.worker_elements
    u = Transformed(work, taps + 9 * FILTER_ROWS * width, width, channels * width + lanes)
    at = u.at + points(tiles) * u.point
    p = Transformed(work, at, width, count * width + lanes)
    for row in range(0, channels, FILTER_ROWS):
        part = Transformed(work, u.at + row * width, width, u.point)
        _transform_rows(facts, weight, first, row, work, taps, part)
    none = no_table()
    a = Left(v.array, 0, v.row, 1, none, none)
    b = Right(work, u.at, width * channels, width, none)
    c, batch = Target(work, p.at, width, none), Batch(points(tiles), v.point, u.point, p.point)
    gemm_batch(batch, Size(count, columns, 1, channels), a, b, Bias(zeros, 0), c, PLAIN)
    patch = at + points(tiles) * p.point
    transform_outputs(tiles, p, out, first, columns, 0, count, patch)


@kernel
def winograd_by_panels(x, weight, bias, facts, call, transformed, work, y):
    """`winograd` for few tiles and many filters: tasks are panels of filters.

    A transformed weight is four times as large, and for 512 x 512 took 5.5 of 19.3 ms to write to
    memory. M is a multiple of a vector's lanes; `transformed` holds all transformed inputs, `work`
    each worker's `panel_elements`, with the zeros behind them.
    """
    facts, call = named(Facts, facts), named(Call, call)
    prepare_gemm(y)
    prepare_inputs(y)
    prepare_outputs(y)
    tiles, workers, share = facts.tiles, call.workers, facts.worker_elements
    channels, lanes = tiles.channels, tiles.lanes
    zeros = view(work, workers * share, facts.zeros)
    clear_run(zeros, 0, zeros.size)
    stride = matrix_stride(tiles.total, channels, lanes)
    v = Transformed(transformed, 0, row_length(channels, lanes), stride)
    tasks = (tiles.total + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    parallel_for(transform_task, tasks, workers, (x, tiles, zeros, work, share, v))
    width = panel_width(tiles.filters, lanes)
    panels = (tiles.filters + width - 1) // width
    out = Output(y, bias, call.floor, facts.stream)
    parallel_for(_winograd_panel, panels, workers, (weight, facts, v, zeros, work, out))
