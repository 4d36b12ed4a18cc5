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
    is_shared,
    matrix_stride,
    patch_elements,
    points,
    prepare_inputs,
    prepare_outputs,
    row_length,
    share_size,
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
# Rows of a task that transforms part of a panel: 10 us.
SHARED_ROWS = 64


class Facts(NamedTuple):
    """A convolution of blocks of `step` tiles, or by panels of filters, for which `step` is 0."""

    tiles: Tiles
    transposed: bool  # whether the weight is (C, M, 3, 3), rotated by 180 degrees
    step: int
    groups: int  # of panels of filters, and tiles of a task, where workers share a block
    shared_tiles: int
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


@kernel(inner=True)
def _block_tiles(block, facts):
    """First tile of a block, and how many it has."""
    first = block * facts.step
    return first, min(facts.step, facts.tiles.total - first)


@kernel(inner=True)
def _inputs(share, facts, work):
    """The transformed inputs of a block, which are at the beginning of a worker's buffer."""
    tiles, at = facts.tiles, share * facts.worker_elements
    point = matrix_stride(facts.step, tiles.channels, tiles.lanes)
    return Transformed(work, at, row_length(tiles.channels, tiles.lanes), point)


@kernel(inner=True)
def _products_at(worker, facts):
    """Where a worker's products are, and the pixels of a tile."""
    tiles, step = facts.tiles, facts.step
    channels, filters, lanes = tiles.channels, tiles.filters, tiles.lanes
    at = worker * facts.worker_elements + points(tiles) * matrix_stride(step, channels, lanes)
    return at, at + points(tiles) * matrix_stride(step, filters, lanes)


@kernel(inner=True)
def _group_filters(group, groups, tiles):
    """First filter of a group of panels, and how many it has."""
    width = panel_width(tiles.filters, tiles.lanes)
    panels = (tiles.filters + width - 1) // width
    first = panels * group // groups * width
    return first, min(panels * (group + 1) // groups * width, tiles.filters) - first


@kernel
def _multiply_tiles(run, columns, worker, v, u, facts, zeros, work, out):
    """Products of tiles, transformed to v, and some filters, transformed back.

    ``run = (first, count)`` of tiles, and ``columns = (first, count)`` of filters.
    """
    (first, count), (begin, columns) = run, columns
    tiles = facts.tiles
    channels, lanes = tiles.channels, tiles.lanes
    at, patch = _products_at(worker, facts)
    width = panel_width(tiles.filters, lanes)
    none = no_table()
    p = Transformed(work, at, row_length(columns, lanes), matrix_stride(count, columns, lanes))
    a = Left(v.array, v.at, v.row, 1, none, none)
    b = Right(u, begin * channels, width * channels, width, none)
    c = Target(work, p.at, p.row, none)
    batch = Batch(points(tiles), v.point, _filter_stride(tiles), p.point)
    gemm_batch(batch, Size(count, columns, 1, channels), a, b, Bias(zeros, 0), c, PLAIN)
    transform_outputs(tiles, p, out, begin, columns, first, count, patch)


@kernel
def _winograd_block(block, worker, inputs, facts, zeros, work, out):
    """All of the convolution for one block of `step` tiles."""
    x, u = inputs
    first, count = _block_tiles(block, facts)
    v, (_, patch) = _inputs(worker, facts, work), _products_at(worker, facts)
    transform_inputs(facts.tiles, x, first, count, zeros, work, patch, v)
    columns = (0, facts.tiles.filters)
    _multiply_tiles((first, count), columns, worker, v, u, facts, zeros, work, out)


@kernel
def _shared_inputs(task, worker, x, begin, facts, zeros, work):
    """Transform a few tiles of one of the blocks from `begin`, which the workers share."""
    parts = (facts.step + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    share, start = task // parts, task % parts * TRANSFORM_TILES
    first, count = _block_tiles(begin + share, facts)
    some = min(TRANSFORM_TILES, count - start)
    if some > 0:
        v, (_, patch) = _inputs(share, facts, work), _products_at(worker, facts)
        rows = Transformed(work, v.at + start * v.row, v.row, v.point)
        transform_inputs(facts.tiles, x, first + start, some, zeros, work, patch, rows)


@kernel
def _shared_products(task, worker, u, begin, facts, zeros, work, out):
    """Products of tiles of one of the blocks from `begin` and some filters, transformed back."""
    groups, size = facts.groups, facts.shared_tiles
    pieces = (facts.step + size - 1) // size
    share, part = task // (pieces * groups), task % (pieces * groups)
    start = part // groups * size
    first, count = _block_tiles(begin + share, facts)
    some = min(size, count - start)
    if some > 0:
        v, columns = _inputs(share, facts, work), _group_filters(part % groups, groups, facts.tiles)
        rows = Transformed(work, v.at + start * v.row, v.row, v.point)
        run = (first + start, some)
        _multiply_tiles(run, columns, worker, rows, u, facts, zeros, work, out)


@kernel
def winograd(x, weight, bias, facts, call, u, work, y):
    """3x3 convolution of flat x (N, H, W, C) with weight (M, C, 3, 3), into flat y.

    Bias (M,); values below the floor are raised to it. There is room for `filter_elements` in u and
    for each worker's `block_elements` in `work`, with the zeros behind them. Workers share blocks,
    which changes no bit of the result, where each would get few of them.
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
    pieces = (facts.step + facts.shared_tiles - 1) // facts.shared_tiles
    if facts.groups * pieces == 1 or not is_shared(blocks, workers):
        parallel_for(_winograd_block, blocks, workers, ((x, u), facts, zeros, work, out))
        return
    parts = (facts.step + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    each = share_size(blocks, workers)
    for begin in range(0, blocks, each):
        some = min(each, blocks - begin)
        parallel_for(_shared_inputs, some * parts, workers, (x, begin, facts, zeros, work))
        tasks = some * pieces * facts.groups
        parallel_for(_shared_products, tasks, workers, (u, begin, facts, zeros, work, out))


def panel_elements(tiles: Tiles) -> int:
    """Elements of a worker's buffer by panels: taps, a panel of the weight, products, a tile."""
    width = 2 * tiles.lanes
    strides = tiles.channels * width + tiles.lanes + tiles.total * width + tiles.lanes
    patch = (tiles.tile + 2) ** 2 * max(tiles.channels, width)
    elements: int = 9 * FILTER_ROWS * width + patch + points(tiles) * strides
    return elements


@kernel(inner=True)
def _panel_inputs(v_array, tiles):
    """The transformed inputs of all tiles."""
    stride = matrix_stride(tiles.total, tiles.channels, tiles.lanes)
    return Transformed(v_array, 0, row_length(tiles.channels, tiles.lanes), stride)


@kernel(inner=True)
def _panel_filters(share, facts, work):
    """A transformed panel of the weight, in a worker's buffer behind the taps."""
    tiles = facts.tiles
    width = panel_width(tiles.filters, tiles.lanes)
    at = share * facts.worker_elements + 9 * FILTER_ROWS * width
    return Transformed(work, at, width, width * tiles.channels + tiles.lanes)


@kernel
def _transform_panel(panel, start, stop, worker, weight, facts, work, u):
    """Transform rows ``[start, stop)`` of a panel of the weight to u."""
    taps = worker * facts.worker_elements
    for row in range(start, stop, FILTER_ROWS):
        part = Transformed(work, u.at + row * u.row, u.row, u.point)
        _transform_rows(facts, weight, panel * u.row, row, work, taps, part)


@kernel
def _multiply_panel(panel, start, count, worker, u, facts, v_array, zeros, work, out):
    """Products of tiles and a transformed panel of the weight, transformed back."""
    tiles = facts.tiles
    channels, lanes, width = tiles.channels, tiles.lanes, u.row
    first = panel * width
    columns = min(width, tiles.filters - first)
    at = _panel_filters(worker, facts, work).at + points(tiles) * u.point
    p = Transformed(work, at, width, tiles.total * width + lanes)
    v, none = _panel_inputs(v_array, tiles), no_table()
    a = Left(v.array, v.at + start * v.row, v.row, 1, none, none)
    b = Right(work, u.at, width * channels, width, none)
    c, batch = Target(work, p.at, width, none), Batch(points(tiles), v.point, u.point, p.point)
    gemm_batch(batch, Size(count, columns, 1, channels), a, b, Bias(zeros, 0), c, PLAIN)
    patch = at + points(tiles) * p.point
    transform_outputs(tiles, p, out, first, columns, start, count, patch)


@kernel
def _winograd_panel(panel, worker, weight, facts, v_array, zeros, work, out):
    """Convolution with one panel of filters, whose transform need not leave the cache."""
    tiles, u = facts.tiles, _panel_filters(worker, facts, work)
    _transform_panel(panel, 0, tiles.channels, worker, weight, facts, work, u)
    _multiply_panel(panel, 0, tiles.total, worker, u, facts, v_array, zeros, work, out)


@kernel
def _shared_filters(task, worker, begin, weight, facts, work):
    """Transform some rows of one of the panels from `begin`, which workers share."""
    channels = facts.tiles.channels
    parts = (channels + SHARED_ROWS - 1) // SHARED_ROWS
    share, start = task // parts, task % parts * SHARED_ROWS
    stop, u = min(start + SHARED_ROWS, channels), _panel_filters(share, facts, work)
    _transform_panel(begin + share, start, stop, worker, weight, facts, work, u)


@kernel
def _shared_panel(task, worker, begin, facts, v_array, zeros, work, out):
    """Products of some tiles and one of those panels, transformed back."""
    total, size = facts.tiles.total, facts.shared_tiles
    pieces = (total + size - 1) // size
    share, start = task // pieces, task % pieces * size
    u, count = _panel_filters(share, facts, work), min(size, total - start)
    _multiply_panel(begin + share, start, count, worker, u, facts, v_array, zeros, work, out)


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
    zeros = view(work, workers * share, facts.zeros)
    clear_run(zeros, 0, zeros.size)
    v = _panel_inputs(transformed, tiles)
    tasks = (tiles.total + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    parallel_for(transform_task, tasks, workers, (x, tiles, zeros, work, share, v))
    width = panel_width(tiles.filters, tiles.lanes)
    panels = (tiles.filters + width - 1) // width
    out = Output(y, bias, call.floor, facts.stream)
    pieces = (tiles.total + facts.shared_tiles - 1) // facts.shared_tiles
    if pieces == 1 or not is_shared(panels, workers):
        arguments = (weight, facts, transformed, zeros, work, out)
        parallel_for(_winograd_panel, panels, workers, arguments)
        return
    parts = (tiles.channels + SHARED_ROWS - 1) // SHARED_ROWS
    each = share_size(panels, workers)
    for begin in range(0, panels, each):
        some = min(each, panels - begin)
        parallel_for(_shared_filters, some * parts, workers, (begin, weight, facts, work))
        products = (begin, facts, transformed, zeros, work, out)
        parallel_for(_shared_panel, some * pieces, workers, products)
