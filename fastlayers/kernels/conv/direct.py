"""Two-dimensional convolution as a batch-reduce GEMM that reads the images themselves.

No im2col matrix exists: a tile of the GEMM reads each pixel's receptive field as a few contiguous
runs of the image, found through tables of offsets that `ops/conv/gather.py` makes once. Images
are C-contiguous (N, H, W, C). The input is read in place, or where it must be padded in slabs: a
few images, or a band of rows of one, copied with their zeros into memory that stays in L2.
"""

from __future__ import annotations

import numpy as np

from fastlayers.kernels.conv.unfold import col2im
from fastlayers.kernels.gemm.gemm import gemm, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import (
    FETCH,
    PLAIN,
    Bias,
    Block,
    Epilogue,
    Left,
    Right,
    Size,
    Target,
)
from fastlayers.kernels.gemm.tile import gemm_tile
from fastlayers.kernels.ir.runs import (
    add_run,
    clear_run,
    copy_run,
    flat,
    no_table,
    transpose_block,
    view,
)
from fastlayers.kernels.layout import inside, square_side, swap_axes_image
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "conv2d",
    "conv2d_backward_input_columns",
    "conv2d_backward_weight",
    "pack_weight",
]


@kernel
def _slab(index, grid):
    """First image, number of images, first row and number of rows of a slab."""
    images, per, bands, band, rows = grid
    n, i = index // bands * per, index % bands * band
    return n, min(per, images - n), i, min(band, rows - i)


@kernel
def _copy_slab(source, size, slab, window, out, at):
    """Copy a slab's rows and columns of the images, with zeros outside of them.

    ``size = (H, W, C)`` of the images, ``slab = (first image, images, first row, rows)`` and
    ``window = (first column, columns)`` may lie outside.
    """
    height, width, channels = size
    n, images, top, rows = slab
    left, columns = window
    low, high = inside(left, 1, columns, width)
    for image in range(n, n + images):
        for y in range(top, top + rows):
            if y < 0 or y >= height:
                clear_run(out, at, columns * channels)
            else:
                cell = ((image * height + y) * width + left) * channels
                clear_run(out, at, low * channels)
                run = (high - low) * channels
                copy_run(out, at + low * channels, source, cell + low * channels, run)
                clear_run(out, at + high * channels, (columns - high) * channels)
            at += columns * channels
    return at


@kernel
def _open_slab(index, worker, x, size, grid, window, work):
    """The memory that a slab's offsets refer to, and its first element."""
    row_step, top, halo, left, columns, elements = window
    n, images, i, count = _slab(index, grid)
    height, width, channels = size
    if elements == 0:  # nothing is padded: in place
        return x, ((n * height + i * row_step + top) * width + left) * channels
    at = worker * elements
    rows = (n, images, i * row_step + top, (count - 1) * row_step + halo)
    _copy_slab(x, size, rows, (left, columns), work, at)
    return work, at


@kernel
def _conv2d_task(
    task, worker, x, packed, bias, floor, sizes, layout, phases, tables, lanes, work, y
):
    """One slab of input pixels, times the columns of one block of output channels."""
    size, (out_height, out_width, out_channels) = sizes
    grid, window, groups, blocks, row_step, write = layout
    rows, targets, runs = tables
    slab, block = divmod(task, blocks)
    source, base = _open_slab(slab, worker, x, size, grid, window, work)
    n, images, i, count = _slab(slab, grid)
    depth, per_group = size[2] // groups, out_channels // groups
    width = panel_width(per_group, lanes)
    panels = (per_group + width - 1) // width
    panel = packed.size // (groups * panels)  # of all phases
    first, last = panels * block // blocks, panels * (block + 1) // blocks
    j, columns = first * width, min(last * width, per_group) - first * width
    target = (n * out_height + i * row_step) * out_width * out_channels
    for p in range(phases.shape[0]):
        row_at, height, across, run_at, run_count, length, packed_at = phases[p]
        m = images * max(0, min(count, height - i)) * across
        b_runs = view(runs, run_at + run_count, run_count)
        for g in range(groups):
            a_rows, a_runs = view(rows, row_at, m), view(runs, run_at, run_count)
            a = Left(source, base + g * depth, 0, 1, a_rows, a_runs)
            b = Right(packed, packed_at + (g * panels + first) * panel, panel, width, b_runs)
            row = Bias(bias, g * per_group + j)
            c = Target(y, target + g * per_group + j, 0, view(targets, row_at, m))
            product, epilogue = Size(m, columns, run_count, length), Epilogue(floor, 0, write)
            gemm(product, a, b, row, c, epilogue)


@kernel
def conv2d(x, packed, bias, floor, sizes, layout, phases, tables, tasks, lanes, workers, work, y):
    """Convolution, or the gradient by its input: ``y = max(floor, bias + x * weight)``.

    Arrays are flat; the integers are those of a `ops.conv.gather.Gather`, and `packed` is from
    `pack_weight`.
    """
    prepare_gemm(y)
    arguments = (x, packed, bias, floor, sizes, layout, phases, tables, lanes, work, y)
    parallel_for(_conv2d_task, tasks, workers, arguments)


@kernel
def _pack_task(task, worker, weight, shape, table, lanes, packed):
    """Pack one panel of the weight of one group."""
    groups, count, step, columns, column_stride = shape
    width = panel_width(columns, lanes)
    panels = (columns + width - 1) // width
    group, panel = divmod(task, panels)
    at = task * (packed.size // (groups * panels))
    start = group * (weight.size // groups) + panel * width * column_stride
    valid = min(width, columns - panel * width)
    if column_stride == 1:  # kernels of 1 x 1: nothing to transpose
        for p in range(count):
            copy_run(packed, at + p * width, weight, start + p * step, valid)
            clear_run(packed, at + p * width + valid, width - valid)
        return
    for p in range(count):
        for first in range(0, table.size, lanes):
            cells = min(lanes, table.size - first)
            for j in range(0, width, lanes):
                source = (weight, start + p * step + first + j * column_stride, column_stride)
                rows = view(table, first, cells)
                out = (packed, at + p * width + j, width, width - j, rows)
                transpose_block(min(lanes, valid - j), cells, source, out)


@kernel
def pack_weight(weight, shape, table, lanes, workers, packed):
    """Pack a flat (M, C/G, R, S) weight into the panels that `conv2d` multiplies by.

    For each group and panel of columns one GEMM operand (phase, tap, depth) x width, which is
    ``packed[group, panel, p + table[i], j] = weight[group, p * step + j * column_stride + i]``
    for ``shape = (groups, count of p, step, columns, column_stride)``. Negative entries of the
    table are taps of no phase.
    """
    width = panel_width(shape[3], lanes)
    tasks = shape[0] * ((shape[3] + width - 1) // width) if packed.size else 0
    parallel_for(_pack_task, tasks, workers, (weight, shape, table, lanes, packed))


@kernel
def _columns_image(n, worker, dy, packed, zeros, geometry, groups, step, lanes, work, dx):
    """Input gradient of one image: those of the receptive fields by GEMM, added up by col2im."""
    kh, kw = geometry[0]
    oh, ow = geometry[4]
    _, height, width, channels = dx.shape
    m, depth = dy.size // (dx.shape[0] * oh * ow), channels // groups
    per_group, k = m // groups, kh * kw * depth
    panel, at = panel_width(k, lanes), worker * step * k
    size = (k + panel - 1) // panel * panel * per_group
    clear_run(
        flat(dx),
        n * height * width * channels,
        height * width * channels,
    )
    for first in range(n * oh * ow, (n + 1) * oh * ow, step):
        count = min(step, (n + 1) * oh * ow - first)
        for g in range(groups):
            none = no_table()
            a = Left(dy, first * m + g * per_group, m, 1, none, none)
            b = Right(packed, g * size, panel * per_group, panel, none)
            c = Target(work, at, k, none)
            gemm(Size(count, k, 1, per_group), a, b, Bias(zeros, 0), c, PLAIN)
            col2im(work, at, k, geometry, (g * depth, depth), first, count, dx)


@kernel
def conv2d_backward_input_columns(
    dy, packed, zeros, geometry, groups, step, lanes, workers, work, dx
):
    """Input gradient dx (N, H, W, C) for few channels, where `conv2d` would waste lanes.

    A vector then runs over the R*S*C/G cells of receptive fields: `packed` is the weight as
    (M/G, R*S*C/G) for each group, `zeros` has R*S*C/G elements and `work` `step` rows of them a
    worker. A `geometry` is that of `kernels.conv.unfold`.
    """
    prepare_gemm(dx)
    arguments = (dy, packed, zeros, geometry, groups, step, lanes, work, dx)
    parallel_for(_columns_image, dx.shape[0], workers, arguments)


@kernel
def _weight_task(task, worker, x, dy, zeros, sizes, layout, cut, runs, lanes, work, parts):
    """Weight gradient of one chunk of slabs and one block of output channels.

    Six channels, of which the GEMM makes tiles of 4, 1 and 1, have a tile of their own.
    """
    size, (out_height, out_width, m) = sizes
    grid, window, groups, column_step, run_rows = layout
    slabs, chunks, block_rows = cut
    taps, images_at, run_count, length = run_rows
    per_group = m // groups
    blocks = (per_group + block_rows - 1) // block_rows
    chunk, block = divmod(task, blocks)
    j = block * block_rows
    rows = min(block_rows, per_group - j)
    k = taps * (size[2] // groups)
    width = panel_width(length, lanes)
    start = slabs * chunk // chunks
    for slab in range(start, slabs * (chunk + 1) // chunks):
        add = int(slab > start)
        source, base = _open_slab(slab, worker, x, size, grid, window, work)
        n, images, i, count = _slab(slab, grid)
        pixels = view(runs, images_at, images * count)
        outputs = view(runs, images_at + grid[1] * grid[3], images * count)
        from_row = (n * out_height + i) * out_width * m
        for g in range(groups):
            a = Left(dy, from_row + g * per_group + j, 1, m, no_table(), outputs)
            for run in range(run_count):
                at = base + g * (size[2] // groups) + runs[run]
                out = (chunk * m + g * per_group + j) * k + run * length
                b = Right(source, at, width, column_step * size[2], pixels)
                c = Target(parts, out, k, no_table())
                epilogue = Epilogue(-np.inf, add, FETCH)
                if rows == 6 and width == lanes:
                    block = Block(0, length, 0, images * count, out_width)
                    gemm_tile((6, 1, 1), block, a, b, Bias(zeros, 0), c, epilogue)
                    continue
                product = Size(rows, length, images * count, out_width)
                gemm(product, a, b, Bias(zeros, 0), c, epilogue)


@kernel
def _few_channels_task(task, worker, x, dy, zeros, sizes, layout, cut, runs, lanes, work, parts):
    """Transposed weight gradient of one chunk of slabs, for inputs of few channels.

    The rows are the cells of a receptive field and vectors run over the output channels, as a
    run of 9 inputs would fill 9 of 16 lanes.
    """
    size, (out_height, out_width, m) = sizes
    grid, window, _, column_step, run_rows = layout
    slabs, chunks, rows = cut
    pixels_at = run_rows[1]
    start = slabs * task // chunks
    for slab in range(start, slabs * (task + 1) // chunks):
        add = int(slab > start)
        source, base = _open_slab(slab, worker, x, size, grid, window, work)
        n, images, i, count = _slab(slab, grid)
        pixels = view(runs, pixels_at, images * count)
        outputs = view(runs, pixels_at + grid[1] * grid[3], images * count)
        a = Left(source, base, 0, column_step * size[2], view(runs, 0, rows), pixels)
        b = Right(dy, (n * out_height + i) * out_width * m, panel_width(m, lanes), m, outputs)
        c, epilogue = Target(parts, task * rows * m, m, no_table()), Epilogue(-np.inf, add, FETCH)
        product = Size(rows, m, images * count, out_width)
        gemm(product, a, b, Bias(zeros, 0), c, epilogue)


@kernel
def _sum_chunks(row, worker, parts, chunks, rows, length):
    """Add one row of all chunks to that of the first, in order."""
    for chunk in range(1, chunks):
        add_run(parts, row * length, parts, (chunk * rows + row) * length, length)


@kernel
def _spread_cells(m, worker, parts, shape, dw):
    """Gather one output channel of sums (R, S, C, M) as (C, R, S)."""
    depth, taps, channels = shape
    for t in range(taps):
        for c in range(depth):
            dw[(m * depth + c) * taps + t] = parts[(t * depth + c) * channels + m]


@kernel
def conv2d_backward_weight(
    few, x, dy, zeros, sizes, layout, cut, runs, tasks, lanes, workers, work, parts, dw
):
    """Weight gradient (M, C/G, R, S) of the images x and the output's gradient dy, all flat.

    ``cut = (slabs, chunks, rows)``: each chunk of slabs has its sums in `parts`, so the order of
    additions, and with it every bit of the result, is the same for any number of threads.
    `few` chooses the path for few input channels; the other integers are those of a
    `ops.conv.gather.WeightGather`.
    """
    prepare_gemm(dw)
    arguments = (x, dy, zeros, sizes, layout, cut, runs, lanes, work, parts)
    m, taps = sizes[1][2], layout[4][0]
    depth = sizes[0][2] // layout[2]
    rows, length = (cut[2], m) if few else (m, taps * depth)
    if few:
        parallel_for(_few_channels_task, tasks, workers, arguments)
    else:
        parallel_for(_weight_task, tasks, workers, arguments)
    parallel_for(_sum_chunks, rows, workers, (parts, cut[1], rows, length))
    if few:
        parallel_for(_spread_cells, m, workers, (parts, (depth, taps, m), dw))
    else:  # (R, S, C) to (C, R, S)
        parallel_for(swap_axes_image, m, workers, (parts, (taps, depth), square_side(dw), dw))
