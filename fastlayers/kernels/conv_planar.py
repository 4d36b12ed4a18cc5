"""Convolution to few output channels, with a ReLU and a max pooling of 2x2 where asked.

Six channels fill 6 of 8 lanes, or of 16. Here lanes run over the pixels of channels-first images,
and the weight's elements are broadcast, as it lies in memory: a GEMM tile whose rows are output
channels and whose step along k is one pixel to the right. An image is copied to planes with its
padding, of a common pitch; an output is computed for each place of a row, the last of which,
where the kernel reaches into the next row, are dropped.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.layout import NO_TABLE, square_side
from fastlayers.kernels.micro import STORE, gemm_tile
from fastlayers.kernels.runs import clear_run, copy_run, transpose_block, view
from fastlayers.kernels.vectors import Vectors, element_pointer
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["ROWS", "VECTORS", "conv2d_planar"]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
# A tile's output channels and vectors of pixels: 24 sums in 32 registers, 12 in 16.
ROWS = 6
VECTORS = cpu.tile_rows() // 3
VECTOR_BYTES = cpu.vector_bytes()


@intrinsic
def _pool_pairs(
    typingctx: Any, channels: Any, count: Any, planes: Any, y: Any, cells: Any, at: Any, pixel: Any
) -> Any:
    """Maxima of 2x2 windows and their cells, for up to a vector of pixels and of channels.

    ``y[at + j * pixel + c] = max of plane[c, 0:2, 2j:2j+2]``, where ``planes = (array, offset,
    plane stride, row stride)`` can be read for two vectors of each row. The first of equal
    maxima is taken, and a NaN before everything.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        array, first, plane, pitch = cgutils.unpack_tuple(builder, values[2])
        source = element_pointer(cgctx, builder, planes.types[0], array, first)
        out = element_pointer(cgctx, builder, y, values[3], values[5])
        out_cells = element_pointer(cgctx, builder, cells, values[4], values[5])
        size = y.dtype.bitwidth // 8
        floats = Vectors(builder, source.type.pointee, cpu.lanes(size))
        numbers = Vectors(builder, ir.IntType(8 * size), floats.lanes)
        lanes = floats.lanes

        def halves(line: Any) -> list[Any]:
            """Even and odd elements of two vectors."""
            pair = [floats.load_vector(line, v) for v in (0, 1)]
            return [
                builder.shuffle_vector(
                    *pair, ir.Constant(ir.VectorType(_i32, lanes), list(range(odd, 2 * lanes, 2)))
                )
                for odd in (0, 1)
            ]

        maxima = cgutils.alloca_once(builder, floats.vector, lanes)
        holders = cgutils.alloca_once(builder, numbers.vector, lanes)
        with cgutils.for_range(builder, values[0]) as loop:
            line = builder.gep(source, [builder.mul(loop.index, plane)])
            best, *others = halves(line) + halves(builder.gep(line, [pitch]))
            holder = ir.Constant(numbers.vector, None)
            for cell, new in enumerate(others, 1):
                better = builder.and_(
                    builder.fcmp_unordered("ugt", new, best),
                    builder.fcmp_ordered("ord", best, best),
                )
                best = builder.select(better, new, best)
                number = ir.Constant(numbers.vector, [cell] * lanes)
                holder = builder.select(better, number, holder)
            builder.store(best, builder.gep(maxima, [loop.index]))
            builder.store(holder, builder.gep(holders, [loop.index]))
        columns = [
            vectors.transpose([builder.load(builder.gep(held, [_i64(c)])) for c in range(lanes)])
            for vectors, held in ((floats, maxima), (numbers, holders))
        ]
        mask = floats.first_lanes(values[0])
        bytes_ = Vectors(builder, out_cells.type.pointee, lanes)
        done = builder.append_basic_block("pairs.done")
        for j, (best, holder) in enumerate(zip(*columns, strict=True)):
            write = builder.append_basic_block("pairs.write")
            builder.cbranch(builder.icmp_signed("<", _i64(j), values[1]), write, done)
            builder.position_at_end(write)
            place = builder.mul(values[6], _i64(j))
            floats.store_vector(best, builder.gep(out, [place]), mask=mask)
            narrow = builder.trunc(holder, bytes_.vector)
            bytes_.store_vector(narrow, builder.gep(out_cells, [place]), mask=mask)
        builder.branch(done)
        builder.position_at_end(done)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, planes, y, cells, i8, i8), codegen


@kernel
def _load_planes(x, n, planar, size, frame, out, at):
    """Copy image n, of either memory layout, to channels-first memory with zeros around it."""
    height, width, channels = size
    top, left, rows, columns = frame
    if rows > height or columns > width:
        clear_run(out, at, channels * rows * columns)
    lines, length = (height, width) if columns > width else (1, height * width)
    for line in range(lines):
        source = (n * height * width + line * length) * channels
        target = at + (top + line) * columns + left
        if planar:
            for c in range(channels):
                cell = (n * channels + c) * height * width + line * length
                copy_run(out, target + c * rows * columns, x, cell, length)
            continue
        for c in range(channels):
            plane = view(out, target + c * rows * columns, length)
            for j in range(length):
                plane[j] = x[source + j * channels + c]


@kernel
def _planar_image(
    n, worker, x, planar, weight, bias, floor, sizes, frame, cut, tables, work, y, cells
):
    """One image, band by band of its output's rows."""
    size, (oh, ow, m), pooled, _ = sizes
    step, plane, image, per_worker, length = cut
    rows, a_runs, b_runs = tables
    pitch, side = frame[3], square_side(y)
    at = worker * per_worker
    band = at + image
    columns = view(b_runs, 0, 0)
    tile = VECTORS * (VECTOR_BYTES // y.itemsize)
    _load_planes(x, n, planar, size, frame, work, at)
    k = (0, b_runs.size, length[0])
    for i in range(0, oh, step):
        count = min(step, oh - i)
        width = (count * pitch + tile - 1) // tile * tile
        for channel in range(m):
            row = view(work, band + channel * plane, width)
            for j in range(width):
                row[j] = bias[channel]
        for first in range(0, m, ROWS):
            a = (weight, 0, 0, 1, rows, a_runs)
            for j in range(0, width, tile):
                b = (work, at + i * pitch + j, length[1], b_runs)
                c = (work, band + j, plane, columns)
                init = (work, band)
                gemm_tile(ROWS, VECTORS, 1, first, k, a, b, init, c, tile, floor, 1, STORE)
        for row in range(0, count, pooled):
            line = band + row * pitch
            out = (n * (oh // pooled) + (i + row) // pooled) * (ow // pooled) * m
            for channel in range(0, m, side):
                some = min(side, m - channel)
                for j in range(0, ow // pooled, side):
                    to, pixels = out + j * m + channel, min(side, ow // pooled - j)
                    start = line + channel * plane + j * pooled
                    if pooled == 2:
                        source = (work, start, plane, pitch)
                        _pool_pairs(some, pixels, source, y, cells, to, m)
                    else:
                        transpose_block(
                            some, pixels, (work, start, plane), (y, to, m, some, NO_TABLE)
                        )


@kernel
def conv2d_planar(
    x, planar, weight, bias, floor, sizes, frame, cut, tables, workers, work, y, cells
):
    """``y = max(floor, bias + x * weight)``, pooled with its `cells`; all arrays are flat.

    The weight is (M, C, R, S), y channels-last. The integers are those of a `ops.planar.Planes`.
    """
    arguments = (
        x, planar, weight, bias, floor, sizes, frame, cut, tables, work, y, cells
    )  # fmt: skip
    parallel_for(_planar_image, sizes[3], workers, arguments)
