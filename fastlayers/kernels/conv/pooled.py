"""Gradients of a convolution behind a max pooling, which are zero in all but one cell of a window.

Each output of the pooling stands for one pixel of the convolution, so both gradients need the
products of the pooled outputs only: for windows of 2x2 a quarter of those of the convolution.
Images are copied one by one to channels-last memory with their padding, which stays in L1 or L2.
There the cells of a window see a common field, of which the receptive field of each is a part:

    dw[m, r, s, c] = sum over p of g[p, m] * field(p)[offset(cell[p, m]) + (r, s, c)]
    field(p) += sum over m of g[p, m] * (weight m, moved to its place for cell[p, m])
"""

from __future__ import annotations

import math
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.gemm.gemm import gemm, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import (
    STORE,
    Bias,
    Epilogue,
    Left,
    Right,
    Size,
    Target,
)
from fastlayers.kernels.ir.runs import add_run, clear_run, copy_run, view
from fastlayers.kernels.ir.vectors import Vectors, operand
from fastlayers.kernels.layout import inside
from fastlayers.kernels.pool.windows import max_window
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["conv2d_max_pool2d", "conv2d_max_pool2d_backward"]

_i64 = ir.IntType(64)
NO_FLOOR = math.nan  # the convolution has applied the ReLU
VECTOR_BYTES = cpu.vector_bytes()


class _Routes:
    """Reads the gradients of pooled outputs: their values behind the ReLU, and their cells."""

    def __init__(self, cgctx: Any, builder: Any, kinds: Any, gradient: Any) -> None:
        parts = cgutils.unpack_tuple(builder, gradient)
        self.builder = builder
        self._data = [
            builder.gep(cgctx.make_array(kind)(cgctx, builder, part).data, [parts[3]])
            for kind, part in zip(kinds.types[:3], parts, strict=False)
        ]
        self.step, self.relu, self.cells = parts[4:]

    def __getitem__(self, index: Any) -> tuple[Any, Any]:
        builder, at = self.builder, [self.builder.mul(index, self.step)]
        value, output, cell = (builder.load(builder.gep(data, at)) for data in self._data)
        zero = ir.Constant(value.type, 0)
        passes = builder.fcmp_unordered(">", output, zero)  # as `relu_backward`, a NaN's too
        passes = builder.or_(passes, builder.icmp_signed("==", self.relu, _i64(0)))
        cell = builder.zext(cell, _i64)
        known = builder.icmp_unsigned("<", cell, self.cells)
        return builder.select(passes, value, zero), builder.select(known, cell, _i64(0))


@intrinsic
def _sum_fields(
    typingctx: Any, tile: Any, count: Any, gradient: Any, fields: Any, x: Any, sums: Any
) -> Any:
    """``sums[r, v] += sum over p of g[p] * x[fields[p] + offsets[cell[p]] + r * pitch + v]``.

    The lengths of the tuples in `tile` are the rows r and the vectors v of each, which stay in
    registers. Returns the sum of g. Operands are tuples: ``gradient = (dy, y, cells, offset,
    step, relu, number of cells)``, ``fields = (table, number of pixels)``, which the cells' offsets
    follow in the table, ``x = (array, offset, pitch)`` and ``sums = (array, offset)``.
    """
    rows, across = (len(lengths) for lengths in tile.types)

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        routes = _Routes(cgctx, builder, gradient, values[2])
        table, pixels = operand(cgctx, builder, fields, values[3])
        origin, pitch = operand(cgctx, builder, x, values[4])
        (target,) = operand(cgctx, builder, sums, values[5])
        element = sums.types[0].dtype
        vectors = Vectors(builder, target.type.pointee, cpu.lanes(element.bitwidth // 8))
        offsets = builder.gep(table, [pixels])
        held = [
            cgutils.alloca_once_value(builder, vectors.load_vector(target, k))
            for k in range(rows * across)
        ]
        total = cgutils.alloca_once_value(builder, ir.Constant(vectors.element, 0))
        with cgutils.for_range(builder, values[1]) as loop:
            value, cell = routes[loop.index]
            builder.store(builder.fadd(builder.load(total), value), total)
            at = builder.add(
                builder.load(builder.gep(table, [loop.index])),
                builder.load(builder.gep(offsets, [cell])),
            )
            line, factor = builder.gep(origin, [at]), vectors.splat(value)
            for k, place in enumerate(held):
                if k and k % across == 0:
                    line = builder.gep(line, [pitch])
                term = vectors.load_vector(line, k % across)
                builder.store(vectors.fma(factor, term, builder.load(place)), place)
        for k, place in enumerate(held):
            vectors.store_vector(builder.load(place), target, k)
        return builder.load(total)

    return sums.types[0].dtype(tile, types.int64, gradient, fields, x, sums), codegen


@intrinsic
def _mix_rows(typingctx: Any, tile: Any, count: Any, gradient: Any, rows: Any, out: Any) -> Any:
    """``out[v] = sum over m < count of g[m] * rows[m, cell[m], v]``.

    The length of `tile` is the number of vectors v, which stay in registers. `gradient` is that
    of `_sum_fields`, ``rows = (array, offset, row stride)``, ``out = (array, offset)``.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        routes = _Routes(cgctx, builder, gradient, values[2])
        origin, stride = operand(cgctx, builder, rows, values[3])
        (target,) = operand(cgctx, builder, out, values[4])
        element = out.types[0].dtype
        vectors = Vectors(builder, target.type.pointee, cpu.lanes(element.bitwidth // 8))
        zero = ir.Constant(vectors.vector, None)
        held = [cgutils.alloca_once_value(builder, zero) for _ in range(len(tile))]
        for place in held:  # alloca_once_value stores once a function, not once a call in a loop
            builder.store(zero, place)
        with cgutils.for_range(builder, values[1]) as loop:
            value, cell = routes[loop.index]
            row = builder.add(builder.mul(loop.index, routes.cells), cell)
            line, factor = builder.gep(origin, [builder.mul(row, stride)]), vectors.splat(value)
            for v, place in enumerate(held):
                term = vectors.load_vector(line, v)
                builder.store(vectors.fma(factor, term, builder.load(place)), place)
        for v, place in enumerate(held):
            vectors.store_vector(builder.load(place), target, v)
        return cgctx.get_dummy_value()

    return types.void(tile, types.int64, gradient, rows, out), codegen


@kernel
def _load_image(x, n, planar, size, frame, out, at):
    """Copy image n, of either memory layout, to channels-last memory with zeros around it.

    ``frame = (top, left, rows, columns)``: where its first pixel comes in how large an image.
    """
    height, width, channels = size
    top, left, rows, columns = frame
    pitch = columns * channels
    if rows > height or columns > width:
        clear_run(out, at, rows * pitch)
    lines, length = (height, width) if columns > width else (1, height * width)
    for line in range(lines):
        target = at + (top + line) * pitch + left * channels
        if not planar:
            source = (n * height * width + line * length) * channels
            copy_run(out, target, x, source, length * channels)
            continue
        for c in range(channels):
            plane = view(x, ((n * channels + c) * height + line) * width, length)
            for j in range(length):
                out[target + j * channels + c] = plane[j]


@kernel
def _pack_panel(panel, worker, weight, shape, packed):
    """Panel of the weight (M, C, R*S) as columns of a matrix of rows (tap, channel)."""
    m, depth, taps, width = shape
    at = panel * width * depth * taps
    for tap in range(taps):
        for c in range(depth):
            for j in range(width):
                k = min(panel * width + j, m - 1)  # what is beyond is not stored
                packed[at + (tap * depth + c) * width + j] = weight[(k * depth + c) * taps + tap]


@kernel
def _pooled_image(
    n, worker, x, planar, bias, floor, sizes, frame, tables, geometry, work, y, cells
):
    """One image: its convolution goes to memory that stays in L2, and is pooled from there."""
    size, (oh, ow, m), (ph, pw), (image_size, length, lanes) = sizes
    pixels, a_runs, b_runs = tables
    (kh, kw), (sh, sw), (pad_h, pad_w), (dh, dw) = geometry
    width = panel_width(m, lanes)
    panel = b_runs.size * length * width
    at = (m + width - 1) // width * panel + worker * (image_size + oh * ow * m)
    image = at + image_size
    _load_image(x, n, planar, size, frame, work, at)
    product = Size(oh * ow, m, a_runs.size, length)
    a, b = Left(work, at, 0, 1, pixels, a_runs), Right(work, 0, panel, width, b_runs)
    c, epilogue = Target(work, image, m, view(pixels, 0, 0)), Epilogue(floor, 0, STORE)
    gemm(product, a, b, Bias(bias, 0), c, epilogue)
    for i in range(ph):
        top = i * sh - pad_h
        r0, r1 = inside(top, dh, kh, oh)
        for j in range(pw):
            left = j * sw - pad_w
            s0, s1 = inside(left, dw, kw, ow)
            first, out = image + (top * ow + left) * m, ((n * ph + i) * pw + j) * m
            rows, columns = (r0, r1, dh * ow * m), (s0, s1, dw * m, kw)
            max_window((y, cells, out), (work, first), rows, columns, m, NO_FLOOR)


@kernel
def conv2d_max_pool2d(
    x,
    planar,
    weight,
    bias,
    floor,
    sizes,
    frame,
    tables,
    geometry,
    images,
    workers,
    work,
    y,
    cells,
):
    """``y = max_pool2d(max(floor, bias + x * weight))`` and the cells of the maxima; flat arrays.

    ``geometry = (kernel, stride, padding, dilation)`` of the window; the other integers are those
    of an `ops.conv.pooled.Pooled`.
    """
    prepare_gemm(y)
    (_, _, depth), (_, _, m), _, (_, _, lanes) = sizes
    width = panel_width(m, lanes)
    shape = (m, depth, weight.size // (m * depth), width)
    panels = (m + width - 1) // width
    parallel_for(_pack_panel, panels, min(workers, panels), (weight, shape, work))
    arguments = (
        x, planar, bias, floor, sizes, frame, tables, geometry, work, y, cells
    )  # fmt: skip
    parallel_for(_pooled_image, images, workers, arguments)


@kernel
def _place_weight(weight, taps, window, mix, work, places):
    """The weight as (M, cell, common field), each where its window's cell sees it."""
    kh, kw, length, depth = taps
    across, offsets, cells_at, cells = window
    row, m = mix
    placed_at, turned_at, _ = places
    for k in range(m):
        for c in range(depth):
            for tap in range(kh * kw):
                work[turned_at + tap * depth + c] = weight[(k * depth + c) * kh * kw + tap]
        for cell in range(cells):
            at = placed_at + (k * cells + cell) * row
            clear_run(work, at, row)
            for r in range(kh):
                place = at + offsets[cells_at + cell] + r * across
                copy_run(work, place, work, turned_at + r * length, length)


@kernel
def _chunk_task(
    chunk,
    worker,
    tile,
    gradient,
    x,
    planar,
    sizes,
    taps,
    fields,
    cut,
    needs,
    places,
    work,
    dx,
):
    """Gradients of one chunk of images; those by weight and bias are the chunk's partial sums."""
    dy, y, cells, relu = gradient
    images, size, frame, m = sizes
    table, pixels, cell_count, field = fields
    chunks, steps, mixes, image_size, part_size = cut
    field_rows, field_row = field
    height, width, channels = size
    pitch = frame[3] * channels
    held, across, vectors = tile
    lanes = VECTOR_BYTES // x.itemsize
    step_size, step_rows = len(held) * len(across) * lanes, len(held)
    mix = len(vectors) * lanes
    at = places[2] + worker * (2 * image_size + mixes * mix)
    block, image = at + 2 * image_size, at + image_size
    totals = chunk * part_size + m * steps * step_size
    clear_run(work, chunk * part_size, part_size)
    for n in range(images * chunk // chunks, images * (chunk + 1) // chunks):
        first = n * pixels * m
        if needs[1]:
            _load_image(x, n, planar, size, frame, work, at)
            for k in range(m):
                route = (dy, y, cells, first + k, m, relu, cell_count)
                for step in range(steps):
                    source = (work, at + step * step_rows * pitch, pitch)
                    sums = (work, chunk * part_size + (k * steps + step) * step_size)
                    held_sum = _sum_fields(
                        (held, across), pixels, route, (table, 0, pixels), source, sums
                    )
                    if step == 0:
                        work[totals + k] += held_sum
        if needs[0]:
            clear_run(work, image, image_size)
            for p in range(pixels):
                route = (dy, y, cells, first + p * m, 1, relu, cell_count)
                for step in range(mixes):
                    rows = (work, places[0] + step * mix, mixes * mix)
                    _mix_rows(vectors, m, route, rows, (work, block + step * mix))
                for r in range(field_rows):
                    place = image + table[p] + r * pitch
                    add_run(work, place, work, block + r * field_row, field_row)
            for row in range(height):
                source = image + (row + frame[0]) * pitch + frame[1] * channels
                copy_run(dx, (n * height + row) * width * channels, work, source, width * channels)


@kernel
def conv2d_max_pool2d_backward(
    tile,
    gradient,
    x,
    planar,
    weight,
    sizes,
    taps,
    fields,
    cut,
    needs,
    workers,
    places,
    work,
    dx,
    dw,
    db,
):
    """Gradients of ``max_pool2d(relu(conv2d(x)))`` by x, weight and bias; all arrays are flat.

    ``gradient = (dy, y, cells, relu)``, channels-last (N, PH, PW, M). The integers are those of a
    `ops.conv.pooled.Routes`, whose `places` in `work` are those of the placed weight, of a copy of
    the weight and of the workers' memory, behind the partial sums. `needs` says which gradients
    to compute: by x, and by weight and bias.
    """
    m = sizes[3]
    kh, kw, _, depth = taps
    table, pixels, cell_count, field = fields
    chunks, steps, mixes, _, part_size = cut
    lanes = VECTOR_BYTES // x.itemsize
    if needs[0]:
        window = (field[1], table, pixels + cell_count, cell_count)
        _place_weight(weight, taps, window, (mixes * len(tile[2]) * lanes, m), work, places)
    arguments = (
        tile, gradient, x, planar, sizes, taps, fields, cut, needs, places, work, dx
    )  # fmt: skip
    parallel_for(_chunk_task, chunks, workers, arguments)
    if not needs[1]:
        return
    for chunk in range(1, chunks):
        add_run(work, 0, work, chunk * part_size, part_size)
    step = len(tile[0]) * len(tile[1]) * lanes
    row = len(tile[1]) * lanes
    for k in range(m):
        for r in range(kh):
            for s in range(kw):
                for c in range(depth):
                    value = work[k * steps * step + r * row + s * depth + c]
                    dw[((k * depth + c) * kh + r) * kw + s] = value
        db[k] = work[m * steps * step + k]
