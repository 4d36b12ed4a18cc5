"""Gradient of Winograd convolution by the weight.

Arguments are those of `winograd_tiles` and `winograd`.
"""

from __future__ import annotations

from fastlayers.kernels.conv.winograd.filters import untransform_filter
from fastlayers.kernels.conv.winograd.tiles import (
    TRANSFORM_TILES,
    matrix_stride,
    patch_size,
    prepare_gradients,
    prepare_inputs,
    row_length,
    transform_gradients,
    transform_inputs,
    transform_task,
)
from fastlayers.kernels.gemm.gemm import gemm_batch, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import PLAIN, Batch, Bias, Left, Right, Size, Target
from fastlayers.kernels.ir.runs import add_run, clear_run, no_table
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "gradient_row",
    "gradient_work",
    "winograd_backward_weight",
    "winograd_backward_weight_by_panels",
]

# Filters of one block of the weight's gradient, a multiple of every register tile's rows: its 36
# products with a panel are 36 x 48 x 32 float32, 216 KiB.
GRADIENT_ROWS = 48


@kernel
def gradient_row(channels, lanes):
    """Channels of a row of partial sums: whole panels."""
    width = panel_width(channels, lanes)
    return (channels + width - 1) // width * width


@kernel(inner=True)
def gradient_blocks(sizes, lanes):
    """Blocks of filters and panels of channels of a weight gradient."""
    channels, filters = sizes
    width = panel_width(channels, lanes)
    return (filters + GRADIENT_ROWS - 1) // GRADIENT_ROWS, (channels + width - 1) // width


@kernel
def gradient_work(tile, step, channels, filters, lanes):
    """Elements of a worker's buffer: both transformed blocks, products, and a tile's pixels."""
    strides = matrix_stride(step, channels, lanes) + matrix_stride(step, filters, lanes)
    products = GRADIENT_ROWS * panel_width(channels, lanes) + lanes
    return (tile + 2) * (tile + 2) * (strides + products) + patch_size(tile, channels, filters)


@kernel
def _add_products(tile, v, w, count, block, sizes, lanes, zeros, work, work_at, sums, sums_at):
    """Add to `sums` (M, 9, C) the gradient of `count` tiles for one block of filters and channels.

    ``v = (array, offset, row, xi)`` and w alike are the transformed inputs and gradients;
    ``block = (filters, channels)`` counts blocks of `GRADIENT_ROWS` and panels.
    """
    channels, filters = sizes
    v_array, v_at, v_row, v_xi = v
    w_array, w_at, w_row, w_xi = w
    points, width = (tile + 2) * (tile + 2), panel_width(channels, lanes)
    i, j = block[0] * GRADIENT_ROWS, block[1] * width
    rows, columns = min(GRADIENT_ROWS, filters - i), min(width, channels - j)
    stride = GRADIENT_ROWS * width + lanes
    none = no_table()
    a = Left(w_array, w_at + i, 1, w_row, none, none)
    b = Right(v_array, v_at + j, width, v_row, none)
    c, batch = Target(work, work_at, width, none), Batch(points, w_xi, v_xi, stride)
    gemm_batch(batch, Size(rows, columns, 1, count), a, b, Bias(zeros, 0), c, PLAIN)
    row = gradient_row(channels, lanes)
    for r in range(rows):
        du, out = work_at + r * width, sums_at + (i + r) * 9 * row + j
        if tile == 4:
            untransform_filter(4, work, du, stride, sums, out, row, width)
        else:
            untransform_filter(2, work, du, stride, sums, out, row, width)


@kernel
def _gradient_chunk(
    chunk, worker, tile, x, dy, sizes, geometry, tiles, step, span, lanes, zeros, work, parts
):
    """Weight gradient of tiles ``[chunk * span, (chunk + 1) * span)``, into its part."""
    channels, filters = sizes
    points = (tile + 2) * (tile + 2)
    v_row, w_row = row_length(channels, lanes), row_length(filters, lanes)
    v_xi, w_xi = matrix_stride(step, channels, lanes), matrix_stride(step, filters, lanes)
    share = gradient_work(tile, step, channels, filters, lanes)
    v_at = worker * share
    w_at = v_at + points * v_xi
    products = w_at + points * w_xi
    patch = (worker + 1) * share - patch_size(tile, channels, filters)
    blocks, panels = gradient_blocks(sizes, lanes)
    size = filters * 9 * gradient_row(channels, lanes)
    at = chunk * size
    clear_run(parts, at, size)
    last = min((chunk + 1) * span, tiles)
    for first in range(chunk * span, last, step):
        count = min(step, last - first)
        transform_inputs(
            tile, x, channels, geometry, first, count, zeros, work, patch, work, v_at, v_row, v_xi
        )
        transform_gradients(
            tile, dy, filters, geometry, first, count, zeros, work, patch, work, w_at, w_row, w_xi
        )
        v, w = (work, v_at, v_row, v_xi), (work, w_at, w_row, w_xi)
        for j in range(panels):
            for i in range(blocks):
                _add_products(
                    tile, v, w, count, (i, j), sizes, lanes, zeros, work, products, parts, at
                )


@kernel
def _sum_parts(m, worker, parts, chunks, sizes, lanes, dw):
    """Add the chunks of one filter in order, and turn (9, C) into (C, 3, 3)."""
    channels, filters = sizes
    row = gradient_row(channels, lanes)
    at, size = m * 9 * row, filters * 9 * row
    for chunk in range(1, chunks):
        add_run(parts, at, parts, at + chunk * size, 9 * row)
    for c in range(channels):
        for t in range(9):
            dw[(m * channels + c) * 9 + t] = parts[at + t * row + c]


@kernel
def winograd_backward_weight(
    tile, x, dy, sizes, geometry, tiles, step, span, lanes, workers, zeros, work, parts, dw
):
    """Weight gradient (M, C, 3, 3) of flat x (N, H, W, C) and dy (N, OH, OW, M).

    Each chunk of `span` tiles, processed in blocks of `step`, has ``M * 9 * gradient_row(C)``
    elements in `parts`: bits do not depend on the number of threads. `work` holds
    ``workers * gradient_work`` elements, `zeros` as many as for `winograd`.
    """
    prepare_gemm(dw)
    prepare_inputs(dw)
    prepare_gradients(dw)
    clear_run(zeros, 0, zeros.size)
    chunks = max((tiles + span - 1) // span, 1)
    arguments = (tile, x, dy, sizes, geometry, tiles, step, span, lanes, zeros, work, parts)
    parallel_for(_gradient_chunk, chunks, workers, arguments)
    parallel_for(_sum_parts, sizes[1], workers, (parts, chunks, sizes, lanes, dw))


@kernel
def _gradient_panel(task, worker, tile, sizes, tiles, lanes, zeros, v, w, work, sums):
    """Weight gradient of one block of filters and panel of channels."""
    channels, filters = sizes
    blocks, _ = gradient_blocks(sizes, lanes)
    i, j = task % blocks, task // blocks
    row, width = gradient_row(channels, lanes), panel_width(channels, lanes)
    for r in range(9 * i * GRADIENT_ROWS, 9 * min((i + 1) * GRADIENT_ROWS, filters)):
        clear_run(sums, r * row + j * width, width)
    v_all = (v, 0, row_length(channels, lanes), matrix_stride(tiles, channels, lanes))
    w_all = (w, 0, row_length(filters, lanes), matrix_stride(tiles, filters, lanes))
    at = worker * gradient_work(tile, 0, channels, filters, lanes)
    _add_products(tile, v_all, w_all, tiles, (i, j), sizes, lanes, zeros, work, at, sums, 0)


@kernel
def winograd_backward_weight_by_panels(
    tile, x, dy, sizes, geometry, tiles, lanes, workers, zeros, v, w, work, sums, dw
):
    """`winograd_backward_weight` for few tiles and many channels: tasks are blocks of the result.

    v holds ``(tile + 2)^2 * matrix_stride(tiles, C)`` elements, w alike for M; `work`
    ``workers * gradient_work`` for a step of 0, `sums` ``M * 9 * gradient_row(C)``.
    """
    prepare_gemm(dw)
    prepare_inputs(dw)
    prepare_gradients(dw)
    clear_run(zeros, 0, zeros.size)
    count = (tiles + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    share = gradient_work(tile, 0, sizes[0], sizes[1], lanes)
    arguments = (tile, x, dy, sizes, geometry, tiles, lanes, zeros, work, share, v, w)
    parallel_for(transform_task, count, workers, arguments)
    blocks, panels = gradient_blocks(sizes, lanes)
    arguments = (tile, sizes, tiles, lanes, zeros, v, w, work, sums)
    parallel_for(_gradient_panel, blocks * panels, workers, arguments)
    parallel_for(_sum_parts, sizes[1], workers, (sums, 1, sizes, lanes, dw))
