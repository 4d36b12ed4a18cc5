"""Winograd convolution F(m x m, 3 x 3), m = 4 or 2, on channels-last arrays.

Its gradient by the input is a convolution too. What a `geometry` is, and how tiles and matrices
lie in memory, is told in `winograd_tiles`.
"""

from __future__ import annotations

from fastlayers.kernels.conv.winograd.filters import transform_filter
from fastlayers.kernels.conv.winograd.tiles import (
    TRANSFORM_TILES,
    matrix_stride,
    patch_size,
    prepare_inputs,
    prepare_outputs,
    row_length,
    transform_inputs,
    transform_outputs,
    transform_task,
)
from fastlayers.kernels.gemm.gemm import gemm_batch, packed_size, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import PLAIN, Batch, Bias, Left, Right, Size, Target
from fastlayers.kernels.ir.runs import clear_run, no_table
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "FILTER_ROWS",
    "filter_size",
    "forward_work",
    "matrix_stride",
    "panel_work",
    "winograd",
    "winograd_by_panels",
]

# Rows of a panel of the weight that are transformed at once: 9 x 8 x 32 float32 are 9 KiB in L1.
FILTER_ROWS = 8


@kernel
def filter_stride(k, columns, lanes):
    """Elements from one xi to the next in a transformed weight."""
    return packed_size(k, columns, lanes) + lanes


@kernel
def filter_size(tile, k, columns, lanes):
    """Elements of a transformed weight."""
    return (tile + 2) * (tile + 2) * filter_stride(k, columns, lanes)


@kernel
def _transform_rows(tile, weight, sizes, transposed, first, p, lanes, work, at, u, u_at, u_xi):
    """Transform `FILTER_ROWS` rows, from `p`, of the panel that begins at column `first`.

    ``sizes = (k, columns)`` of the GEMMs' B. The taps, innermost in the weight (M, C, 3, 3), go
    through a small buffer ``[k][tap][width]``.
    """
    k, columns = sizes
    width = panel_width(columns, lanes)
    rows, valid = min(FILTER_ROWS, k - p), min(width, columns - first)
    row = 9 * width
    for i in range(rows if transposed else valid):
        for j in range(valid if transposed else rows):
            if transposed:  # rotated by half a turn
                source = ((p + i) * columns + first + j) * 9 + 8
                target, turn = at + i * row + j, -1
            else:
                source = ((first + i) * k + p + j) * 9
                target, turn = at + j * row + i, 1
            for t in range(9):
                work[target + t * width] = weight[source + turn * t]
    for i in range(rows):
        if tile == 4:
            transform_filter(4, work, at + i * row, width, u, u_at + i * width, u_xi)
        else:
            transform_filter(2, work, at + i * row, width, u, u_at + i * width, u_xi)


@kernel
def _filter_task(task, worker, tile, weight, sizes, transposed, lanes, work, share, u):
    """Transform a few rows of one panel of the weight to their place in ``[xi][panel][k][width]``.

    For the weight (M, C, 3, 3) as the GEMMs' B of ``sizes = (k, columns)``: forward wants (C, M)
    for every xi, the input's gradient (M, C) of the rotated filters.
    """
    k, columns = sizes
    width = panel_width(columns, lanes)
    blocks = (k + FILTER_ROWS - 1) // FILTER_ROWS
    first, p = task // blocks * width, task % blocks * FILTER_ROWS
    at, stride = worker * share, filter_stride(k, columns, lanes)
    out = first * k + p * width
    _transform_rows(tile, weight, sizes, transposed, first, p, lanes, work, at, u, out, stride)


@kernel
def forward_work(tile, step, channels, filters, lanes):
    """Elements of a worker's buffer: transformed inputs, products, and a tile's pixels.

    Before, it holds the taps of `FILTER_ROWS` rows of the weight, which are less.
    """
    strides = matrix_stride(step, channels, lanes) + matrix_stride(step, filters, lanes)
    return (tile + 2) * (tile + 2) * strides + patch_size(tile, channels, filters)


@kernel
def _winograd_block(
    block,
    worker,
    tile,
    x,
    u,
    bias,
    floor,
    sizes,
    geometry,
    tiles,
    step,
    lanes,
    zeros,
    work,
    y,
    stream,
):
    """All of the convolution for one block of `step` tiles."""
    channels, filters = sizes
    points = (tile + 2) * (tile + 2)
    first = block * step
    count = min(step, tiles - first)
    v_row, p_row = row_length(channels, lanes), row_length(filters, lanes)
    v_xi, p_xi = matrix_stride(step, channels, lanes), matrix_stride(step, filters, lanes)
    v_at = worker * forward_work(tile, step, channels, filters, lanes)
    p_at = v_at + points * v_xi
    width, u_xi = panel_width(filters, lanes), filter_stride(channels, filters, lanes)
    patch = p_at + points * p_xi
    transform_inputs(
        tile, x, channels, geometry, first, count, zeros, work, patch, work, v_at, v_row, v_xi
    )
    none = no_table()
    a, b = Left(work, v_at, v_row, 1, none, none), Right(u, 0, width * channels, width, none)
    c, batch = Target(work, p_at, p_row, none), Batch(points, v_xi, u_xi, p_xi)
    gemm_batch(batch, Size(count, filters, 1, channels), a, b, Bias(zeros, 0), c, PLAIN)
    transform_outputs(
        tile,
        work,
        p_at,
        p_row,
        p_xi,
        bias,
        floor,
        y,
        filters,
        0,
        filters,
        geometry,
        first,
        count,
        patch,
        stream,
    )


@kernel
def winograd(
    tile,
    x,
    weight,
    transposed,
    bias,
    floor,
    sizes,
    geometry,
    tiles,
    step,
    lanes,
    workers,
    zeros,
    u,
    work,
    y,
    stream,
):
    """3x3 convolution of flat x (N, H, W, C) with weight (M, C, 3, 3), into flat y.

    ``sizes = (C, M)`` of x and y: for the input's gradient, with filters `transposed` and rotated,
    they change places in the weight. Bias (M,); values below `floor` are raised to it. `tiles` of
    all images are cut into blocks of `step`. There is room for ``(max(W, OW) + tile + 2) *
    max(C, M)`` elements in `zeros`, at which bias may lie too, `filter_size` in u and ``workers *
    forward_work`` in `work`. With `stream` y is written past the caches; then its pixels are whole
    aligned vectors.
    """
    prepare_gemm(y)
    prepare_inputs(y)
    prepare_outputs(y)
    clear_run(zeros, 0, zeros.size)
    channels, filters = sizes
    share = forward_work(tile, step, channels, filters, lanes)
    width = panel_width(filters, lanes)
    panels = (filters + width - 1) // width
    rows = (channels + FILTER_ROWS - 1) // FILTER_ROWS
    filter_arguments = (tile, weight, sizes, transposed, lanes, work, share, u)
    parallel_for(_filter_task, panels * rows, workers, filter_arguments)
    blocks = (tiles + step - 1) // step
    image = (tile, x, u, bias, floor, sizes, geometry)
    arguments = (*image, tiles, step, lanes, zeros, work, y, stream)
    parallel_for(_winograd_block, blocks, workers, arguments)


@kernel
def panel_work(tile, tiles, channels, lanes):
    """Elements of a worker's buffer by panels: taps, a panel of the weight, products, a tile."""
    width = 2 * lanes
    strides = channels * width + lanes + tiles * width + lanes
    rest = 9 * FILTER_ROWS * width + patch_size(tile, channels, width)
    return rest + (tile + 2) * (tile + 2) * strides


@kernel
def _winograd_panel(
    panel,
    worker,
    tile,
    weight,
    transposed,
    bias,
    floor,
    sizes,
    geometry,
    tiles,
    lanes,
    zeros,
    v,
    work,
    y,
):
    """Convolution with one panel of filters, whose transform need not leave the cache."""
    channels, filters = sizes
    points, width = (tile + 2) * (tile + 2), panel_width(filters, lanes)
    first = panel * width
    columns = min(width, filters - first)
    taps = worker * panel_work(tile, tiles, channels, lanes)
    u_at, u_xi = taps + 9 * FILTER_ROWS * width, channels * width + lanes
    p_at, p_xi = u_at + points * u_xi, tiles * width + lanes
    for p in range(0, channels, FILTER_ROWS):
        _transform_rows(
            tile,
            weight,
            sizes,
            transposed,
            first,
            p,
            lanes,
            work,
            taps,
            work,
            u_at + p * width,
            u_xi,
        )
    v_row, v_xi = row_length(channels, lanes), matrix_stride(tiles, channels, lanes)
    none = no_table()
    a, b = Left(v, 0, v_row, 1, none, none), Right(work, u_at, width * channels, width, none)
    c, batch = Target(work, p_at, width, none), Batch(points, v_xi, u_xi, p_xi)
    gemm_batch(batch, Size(tiles, columns, 1, channels), a, b, Bias(zeros, 0), c, PLAIN)
    transform_outputs(
        tile,
        work,
        p_at,
        width,
        p_xi,
        bias,
        floor,
        y,
        filters,
        first,
        columns,
        geometry,
        0,
        tiles,
        p_at + points * p_xi,
        0,
    )


@kernel
def winograd_by_panels(
    tile,
    x,
    weight,
    transposed,
    bias,
    floor,
    sizes,
    geometry,
    tiles,
    lanes,
    workers,
    zeros,
    v,
    work,
    y,
):
    """`winograd` for few tiles and many filters: tasks are panels of filters.

    A transformed weight is four times as large, and for 512 x 512 took 5.5 of 19.3 ms to write to
    memory.
    M is a multiple of `lanes`; v holds ``(tile + 2)^2 * matrix_stride(tiles, C)`` elements,
    `work` ``workers * panel_work``.
    """
    prepare_gemm(y)
    prepare_inputs(y)
    prepare_outputs(y)
    clear_run(zeros, 0, zeros.size)
    count = (tiles + TRANSFORM_TILES - 1) // TRANSFORM_TILES
    share = panel_work(tile, tiles, sizes[0], lanes)
    arguments = (tile, x, x[:0], sizes, geometry, tiles, lanes, zeros, work, share, v, v)
    parallel_for(transform_task, count, workers, arguments)
    width = panel_width(sizes[1], lanes)
    panels = (sizes[1] + width - 1) // width
    arguments = (
        tile,
        weight,
        transposed,
        bias,
        floor,
        sizes,
        geometry,
        tiles,
        lanes,
        zeros,
        v,
        work,
        y,
    )
    parallel_for(_winograd_panel, panels, workers, arguments)
