"""The weight gradient of Winograd convolution.

Seventh of the folder's files, beside `forward`: products of transformed inputs and gradients, tile
by tile or panel by panel.
"""

from __future__ import annotations

from typing import NamedTuple

from fastlayers.kernels.conv.winograd.filters import untransform_filter
from fastlayers.kernels.conv.winograd.tiles import (
    TRANSFORM_TILES,
    Tiles,
    is_shared,
    matrix_stride,
    patch_elements,
    points,
    prepare_gradients,
    prepare_inputs,
    row_length,
    share_size,
    transform_gradients,
    transform_inputs,
    transform_task,
)
from fastlayers.kernels.conv.winograd.transform import Transformed
from fastlayers.kernels.gemm.gemm import gemm_batch, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import PLAIN, Batch, Bias, Left, Right, Size, Target
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import add_run, clear_run, no_table, view
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "Facts",
    "sum_elements",
    "winograd_backward_weight",
    "winograd_backward_weight_by_panels",
    "worker_elements",
]

# Filters of one block of the weight gradient, a multiple of every register tile's rows: its 36
# products with a panel are 36 x 48 x 32 float32, 216 KiB.
GRADIENT_ROWS = 48


class Facts(NamedTuple):
    """A weight gradient, of chunks of `span` tiles that are done in blocks of `step`.

    By panels of the result there is one chunk, and `step` is 0.
    """

    tiles: Tiles
    step: int
    span: int
    shared_rows: int  # filters of a task where workers share a chunk; 0 if they never do
    worker_elements: int
    zeros: int  # elements, as in `forward.Facts`


@kernel(inner=True)
def _row(channels, lanes):
    """Channels of a row of partial sums: whole panels."""
    width = panel_width(channels, lanes)
    return (channels + width - 1) // width * width


@kernel(inner=True)
def sum_elements(tiles):
    """Elements of one chunk's sums (M, 9, C), with whole panels of channels."""
    return tiles.filters * 9 * _row(tiles.channels, tiles.lanes)


@kernel(inner=True)
def _blocks(tiles, rows):
    """Blocks of so many filters, and panels of channels, of a weight gradient."""
    width = panel_width(tiles.channels, tiles.lanes)
    return (tiles.filters + rows - 1) // rows, (tiles.channels + width - 1) // width


def worker_elements(tiles: Tiles, step: int) -> int:
    """Elements of a worker's buffer: both transformed blocks, products, and a tile's pixels."""
    lanes = tiles.lanes
    blocks = matrix_stride(step, tiles.channels, lanes) + matrix_stride(step, tiles.filters, lanes)
    products = GRADIENT_ROWS * panel_width(tiles.channels, lanes) + lanes
    total: int = points(tiles) * (blocks + products) + patch_elements(tiles)
    return total


@kernel
def _add_products(tiles, v, w, count, block, zeros, products, sums):
    """Add to `sums` (M, 9, C) the gradient of `count` tiles for one block of filters and channels.

    v and w are the transformed inputs and gradients; ``block = (first filter, filters, panel)`` of
    at most `GRADIENT_ROWS` filters; `products` and `sums` are ``(array, offset)``.
    """
    channels, lanes = tiles.channels, tiles.lanes
    width = panel_width(channels, lanes)
    i, rows, panel = block
    j = panel * width
    columns = min(width, channels - j)
    (work, work_at), (array, at) = products, sums
    stride = GRADIENT_ROWS * width + lanes
    none = no_table()
    a = Left(w.array, w.at + i, 1, w.row, none, none)
    b = Right(v.array, v.at + j, width, v.row, none)
    c, batch = Target(work, work_at, width, none), Batch(points(tiles), w.point, v.point, stride)
    gemm_batch(batch, Size(rows, columns, 1, count), a, b, Bias(zeros, 0), c, PLAIN)
    row = _row(channels, lanes)
    for r in range(rows):
        du, out = Transformed(work, work_at + r * width, width, stride), at + (i + r) * 9 * row + j
        if tiles.tile == 4:
            untransform_filter(4, du, array, out, row)
        else:
            untransform_filter(2, du, array, out, row)


@kernel(inner=True)
def _matrices(share, facts, work):
    """The transformed inputs and gradients of a block, at the beginning of a worker's buffer."""
    tiles, step = facts.tiles, facts.step
    channels, filters, lanes = tiles.channels, tiles.filters, tiles.lanes
    at = share * facts.worker_elements
    v = Transformed(work, at, row_length(channels, lanes), matrix_stride(step, channels, lanes))
    at += points(tiles) * v.point
    w = Transformed(work, at, row_length(filters, lanes), matrix_stride(step, filters, lanes))
    return v, w


@kernel(inner=True)
def _products_at(worker, facts):
    """Where a worker's products are, and the pixels of a tile."""
    tiles, step = facts.tiles, facts.step
    channels, filters, lanes = tiles.channels, tiles.filters, tiles.lanes
    blocks = matrix_stride(step, channels, lanes) + matrix_stride(step, filters, lanes)
    at = worker * facts.worker_elements + points(tiles) * blocks
    return at, at + points(tiles) * (GRADIENT_ROWS * panel_width(channels, lanes) + lanes)


@kernel(inner=True)
def _rows_at(block, rows, tiles):
    """First filter of a block of `rows` filters, and how many it has."""
    return block * rows, min(rows, tiles.filters - block * rows)


@kernel
def _gradient_chunk(chunk, worker, images, facts, zeros, work, parts):
    """Weight gradient of tiles ``[chunk * span, (chunk + 1) * span)``, into its part."""
    x, dy = images
    tiles = facts.tiles
    v, w = _matrices(worker, facts, work)
    at, patch = _products_at(worker, facts)
    blocks, panels = _blocks(tiles, GRADIENT_ROWS)
    sums = (parts, chunk * sum_elements(tiles))
    clear_run(parts, sums[1], sum_elements(tiles))
    last = min((chunk + 1) * facts.span, tiles.total)
    for first in range(chunk * facts.span, last, facts.step):
        count = min(facts.step, last - first)
        transform_inputs(tiles, x, first, count, zeros, work, patch, v)
        transform_gradients(tiles, dy, first, count, zeros, work, patch, w)
        for j in range(panels):
            for i in range(blocks):
                row, rows = _rows_at(i, GRADIENT_ROWS, tiles)
                _add_products(tiles, v, w, count, (row, rows, j), zeros, (work, at), sums)


@kernel(inner=True)
def _shared_tiles(chunk, start, facts):
    """First tile of the block that begins at tile `start` of a chunk, and how many it has."""
    first = chunk * facts.span + start
    last = min((chunk + 1) * facts.span, facts.tiles.total)
    return first, min(facts.step, last - first)


@kernel
def _shared_transforms(task, worker, images, begin, start, facts, zeros, work):
    """Transform a few tiles of a block of one of the chunks from `begin`, which workers share."""
    x, dy = images
    tiles = facts.tiles
    parts = (facts.step + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    share, skip = task // parts, task % parts * TRANSFORM_TILES
    first, count = _shared_tiles(begin + share, start, facts)
    some = min(TRANSFORM_TILES, count - skip)
    if some > 0:
        v, w = _matrices(share, facts, work)
        _, patch = _products_at(worker, facts)
        rows = Transformed(work, v.at + skip * v.row, v.row, v.point)
        transform_inputs(tiles, x, first + skip, some, zeros, work, patch, rows)
        rows = Transformed(work, w.at + skip * w.row, w.row, w.point)
        transform_gradients(tiles, dy, first + skip, some, zeros, work, patch, rows)


@kernel
def _shared_products(task, worker, begin, start, facts, zeros, work, parts):
    """Add the products of that block, for some filters and a panel of channels."""
    tiles = facts.tiles
    blocks, panels = _blocks(tiles, facts.shared_rows)
    share, block = task // (blocks * panels), task % (blocks * panels)
    row, rows = _rows_at(block % blocks, facts.shared_rows, tiles)
    part = (row, rows, block // blocks)
    sums = (parts, (begin + share) * sum_elements(tiles))
    if start == 0:
        _clear_sums(tiles, part, sums)
    v, w = _matrices(share, facts, work)
    _, count = _shared_tiles(begin + share, start, facts)
    at, _ = _products_at(worker, facts)
    if count > 0:
        _add_products(tiles, v, w, count, part, zeros, (work, at), sums)


@kernel
def _clear_sums(tiles, block, sums):
    """Clear the sums of some filters and a panel of channels."""
    (first, rows, panel), (array, at) = block, sums
    row, width = _row(tiles.channels, tiles.lanes), panel_width(tiles.channels, tiles.lanes)
    for r in range(9 * first, 9 * (first + rows)):
        clear_run(array, at + r * row + panel * width, width)


@kernel
def _sum_parts(m, worker, parts, chunks, tiles, dw):
    """Add the chunks of one filter in order, and transpose (9, C) to (C, 3, 3)."""
    channels, row = tiles.channels, _row(tiles.channels, tiles.lanes)
    at = m * 9 * row
    for chunk in range(1, chunks):
        add_run(parts, at, parts, at + chunk * sum_elements(tiles), 9 * row)
    for c in range(channels):
        for t in range(9):
            dw[(m * channels + c) * 9 + t] = parts[at + t * row + c]


@kernel
def winograd_backward_weight(x, dy, facts, workers, work, parts, dw):
    """Weight gradient (M, C, 3, 3) of flat x (N, H, W, C) and dy (N, OH, OW, M).

    Each chunk has `sum_elements` in `parts`: bits do not depend on the number of threads. `work`
    has `worker_elements` for each worker, and the zeros behind them. Workers share chunks, which
    changes no bit of the result, where each would get few of them.
    """
    facts = named(Facts, facts)
    prepare_gemm(dw)
    prepare_inputs(dw)
    prepare_gradients(dw)
    tiles = facts.tiles
    zeros = view(work, workers * facts.worker_elements, facts.zeros)
    clear_run(zeros, 0, zeros.size)
    chunks = max((tiles.total + facts.span - 1) // facts.span, 1)
    if facts.shared_rows and is_shared(chunks, workers):
        blocks, panels = _blocks(tiles, facts.shared_rows)
        runs = (facts.step + TRANSFORM_TILES - 1) // TRANSFORM_TILES
        each = share_size(chunks, workers)
        for begin in range(0, chunks, each):
            some = min(each, chunks - begin)
            for start in range(0, facts.span, facts.step):
                inputs = ((x, dy), begin, start, facts, zeros, work)
                parallel_for(_shared_transforms, some * runs, workers, inputs)
                products = (begin, start, facts, zeros, work, parts)
                parallel_for(_shared_products, some * blocks * panels, workers, products)
    else:
        parallel_for(_gradient_chunk, chunks, workers, ((x, dy), facts, zeros, work, parts))
    parallel_for(_sum_parts, tiles.filters, workers, (parts, chunks, tiles, dw))


@kernel
def _transform_task(task, worker, images, facts, zeros, work, matrices):
    """Transform a few tiles of x and dy to their rows of the matrices of all tiles."""
    (x, dy), (v, w) = images, matrices
    tiles, share = facts.tiles, facts.worker_elements
    transform_task(task, worker, x, tiles, zeros, work, share, v)
    first = task * TRANSFORM_TILES
    count = min(TRANSFORM_TILES, tiles.total - first)
    out = Transformed(w.array, w.at + first * w.row, w.row, w.point)
    transform_gradients(tiles, dy, first, count, zeros, work, worker * share, out)


@kernel
def _gradient_panel(task, worker, facts, zeros, matrices, work, sums):
    """Weight gradient of one block of filters and panel of channels."""
    v, w = matrices
    tiles = facts.tiles
    blocks, _ = _blocks(tiles, GRADIENT_ROWS)
    row, rows = _rows_at(task % blocks, GRADIENT_ROWS, tiles)
    part = (row, rows, task // blocks)
    _clear_sums(tiles, part, (sums, 0))
    products = (work, worker * facts.worker_elements)
    _add_products(tiles, v, w, tiles.total, part, zeros, products, (sums, 0))


@kernel
def winograd_backward_weight_by_panels(x, dy, facts, workers, transformed, work, sums, dw):
    """`winograd_backward_weight` for few tiles and many channels: tasks are blocks of the result.

    `transformed` has the matrices of all tiles of x and, behind them, of dy; `sums` are those of
    one chunk.
    """
    facts = named(Facts, facts)
    prepare_gemm(dw)
    prepare_inputs(dw)
    prepare_gradients(dw)
    tiles = facts.tiles
    channels, filters, lanes = tiles.channels, tiles.filters, tiles.lanes
    zeros = view(work, workers * facts.worker_elements, facts.zeros)
    clear_run(zeros, 0, zeros.size)
    stride = matrix_stride(tiles.total, channels, lanes)
    v = Transformed(transformed, 0, row_length(channels, lanes), stride)
    at, stride = points(tiles) * stride, matrix_stride(tiles.total, filters, lanes)
    w = Transformed(transformed, at, row_length(filters, lanes), stride)
    tasks = (tiles.total + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    parallel_for(_transform_task, tasks, workers, ((x, dy), facts, zeros, work, (v, w)))
    blocks, panels = _blocks(tiles, GRADIENT_ROWS)
    parallel_for(_gradient_panel, blocks * panels, workers, (facts, zeros, (v, w), work, sums))
    parallel_for(_sum_parts, tiles.filters, workers, (sums, 1, tiles, dw))
