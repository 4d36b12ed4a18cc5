"""Means over windows of channels-last images, and their gradients; see `kernels.pool.windows`."""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, operand, prefetch
from fastlayers.kernels.pool.loops import (
    AHEAD,
    COLUMNS,
    LANES,
    beyond_caches,
    bounded,
    pixel_vectors,
    rolled,
)

__all__ = ["MeanTiles", "mean_tiles", "mean_window", "spread_mean", "sum_rows"]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


class MeanTiles(NamedTuple):
    """A row of windows of an input gradient that lie side by side."""

    height: int  # of a window
    width: int
    line: int  # from row to row
    pixels: int
    depth: int


# Elements from what `sum_rows` reads to the lines that are prefetched, all of them: the mean of 25
# MB takes 0.69 ms, with one line of four at 4096 elements 0.84.
NEAR = 1024


@intrinsic
def mean_window(typingctx, out, source, rows, columns, depth, divisor, more):
    """``y[c] = sum of x[r * row_step + s * depth + c] / divisor`` for ``r < rows[0], s < columns``.

    ``rows = (number, row_step)``, ``out = (y, offset)`` and ``source = (x, offset)``. What y holds
    is added to the sum where there is `more`, a boolean. Four columns are added at a time, each to
    sums of their own, since an addition has to wait four cycles for the one before.
    """

    def codegen(cgctx, builder, sig, values):
        (target,), (start,) = (
            operand(cgctx, builder, kind, value)
            for kind, value in ((out, values[0]), (source, values[1]))
        )
        number, row_step = cgutils.unpack_tuple(builder, values[2])
        columns, depth = values[3:5]
        floats = Vectors(builder, target.type.pointee, LANES)
        zero = ir.Constant(floats.vector, [-0.0] * LANES)  # which changes no sum, not even of -0
        bits = Vectors(builder, _i1, LANES)
        sums = [cgutils.alloca_once(builder, floats.vector) for _ in range(4)]
        divisor = floats.splat(values[5])
        whole = builder.and_(columns, _i64(-4))
        with rolled(builder, _i64(0), depth, LANES) as c:
            mask = floats.first_lanes(builder.sub(depth, c))
            first = builder.gep(start, [c])
            for slot in sums:
                builder.store(zero, slot)

            def add(at, k: int) -> None:
                value = floats.load_vector(at, mask=mask)
                builder.store(builder.fadd(builder.load(sums[k]), value), sums[k])

            with rolled(builder, _i64(0), number) as r:
                row = builder.gep(first, [builder.mul(r, row_step)])
                with rolled(builder, _i64(0), whole, 4) as s:
                    for k in range(4):
                        pixel = builder.add(s, _i64(k))
                        add(builder.gep(row, [builder.mul(pixel, depth)]), k)
                with rolled(builder, whole, columns) as s:
                    add(builder.gep(row, [builder.mul(s, depth)]), 0)
            a, b, c_, d = (builder.load(slot) for slot in sums)
            total = builder.fadd(builder.fadd(a, b), builder.fadd(c_, d))
            more = bits.splat(values[6])
            left = builder.select(values[6], builder.sub(depth, c), _i64(0))
            held = floats.load_vector(builder.gep(target, [c]), mask=floats.first_lanes(left))
            total = builder.select(more, builder.fadd(total, held), total)
            mean = builder.fdiv(total, divisor)
            floats.store_vector(mean, builder.gep(target, [c]), mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(out, source, rows, i8, i8, out.types[0].dtype, types.boolean), codegen


@intrinsic(prefer_literal=True)
def mean_tiles(typingctx, lanes, unrolled, out, source, size, line, depth, divisor):
    """Means of rows of square windows that lie side by side, and so do their rows in x and y.

    `unrolled` is a tuple as long as both sides, ``size = (rows, columns)`` of y, `line` is the
    distance between rows of x, ``out = (y, offset)`` and ``source = (x, offset)``. Vectors of up to
    `lanes` channels are written whole.
    """

    def codegen(cgctx, builder, sig, values):
        (target,), (corner,) = (
            operand(cgctx, builder, kind, value)
            for kind, value in ((out, values[2]), (source, values[3]))
        )
        size = cgutils.unpack_tuple(builder, values[4])
        line, depth, divisor = values[5:]
        floats, side = Vectors(builder, target.type.pointee, lanes.literal_value), unrolled.count
        divisor = floats.splat(divisor)
        step = builder.mul(_i64(side), depth)
        jump = builder.sub(builder.mul(_i64(side), line), builder.mul(size[1], step))
        lines = [builder.gep(corner, [builder.mul(_i64(r), line)]) for r in range(side)]

        def write(from_, to) -> None:
            total = None
            for start in lines:
                row = None
                for s in range(side):
                    at = builder.gep(start, [builder.add(from_, builder.mul(_i64(s), depth))])
                    prefetch(builder, builder.gep(at, [_i64(AHEAD)]))
                    value = floats.load_vector(at)
                    row = builder.fadd(row, value) if row else value
                total = builder.fadd(total, row) if total else row
            floats.store_vector(builder.fdiv(total, divisor), builder.gep(target, [to]))

        pixel_vectors(builder, floats.lanes, size, depth, (step, depth), (jump, _i64(0)), write)
        return cgctx.get_dummy_value()

    i8 = types.int64
    element = out.types[0].dtype
    return types.void(lanes, unrolled, out, source, size, i8, i8, element), codegen


@intrinsic
def sum_rows(typingctx, out, source, count, width):
    """``sums[j] = sum over i of x[i * width + j]`` for ``j < width``, a multiple of `COLUMNS`.

    As far as ``i * width + j < count``, for ``out = (sums, offset)`` and ``source = (x, offset)``.
    Sums of `COLUMNS` columns stay in registers.
    """

    def codegen(cgctx, builder, sig, values):
        (target,), (start,) = (
            operand(cgctx, builder, kind, value)
            for kind, value in ((out, values[0]), (source, values[1]))
        )
        count, width = values[2:]
        floats = Vectors(builder, target.type.pointee, LANES)
        zero = ir.Constant(floats.vector, None)
        sums = [cgutils.alloca_once(builder, floats.vector) for _ in range(COLUMNS // LANES)]
        whole = builder.mul(builder.sdiv(count, width), width)

        def add(at, v: int, mask=None) -> None:
            value = floats.load_vector(at, v, mask=mask)
            builder.store(builder.fadd(builder.load(sums[v]), value), sums[v])

        with rolled(builder, _i64(0), width, COLUMNS) as first:
            for slot in sums:
                builder.store(zero, slot)
            last = builder.add(first, whole)
            with rolled(builder, first, last, width) as row:
                at = builder.gep(start, [row])
                for v in range(len(sums)):
                    prefetch(builder, builder.gep(at, [_i64(NEAR + v * LANES)]))
                    add(at, v)
            left = builder.sub(count, last)
            with builder.if_then(builder.icmp_signed(">", left, _i64(0))):
                for v in range(len(sums)):
                    mask = floats.first_lanes(bounded(builder, left, v))
                    add(builder.gep(start, [last]), v, mask)
            for v, slot in enumerate(sums):
                floats.store_vector(builder.load(slot), builder.gep(target, [first]), v)
        return cgctx.get_dummy_value()

    return types.void(out, source, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def spread_mean(typingctx, lanes, unrolled, target, source, tiles, factor):
    """``dx[r * line + (j * width + s) * depth + c] = dy[j, c] * factor`` for ``j < pixels``.

    For all ``r < height`` and ``s < width`` of `tiles`, which are `MeanTiles`; ``target = (dx,
    offset)`` and ``source = (dy, offset)``. `unrolled` is a tuple as long as the window is wide, to
    unroll it, or empty. With 8 `lanes` a pixel of fewer channels is written as a whole vector,
    which spills over what follows the last one.
    """

    def codegen(cgctx, builder, sig, values):
        (dx,), (dy,) = (
            operand(cgctx, builder, kind, value)
            for kind, value in ((target, values[2]), (source, values[3]))
        )
        given = MeanTiles(*cgutils.unpack_tuple(builder, values[4]))
        floats = Vectors(builder, dx.type.pointee, lanes.literal_value)
        factor, zero, depth = floats.splat(values[5]), _i64(0), given.depth

        def spread(mask, store) -> None:
            with rolled(builder, zero, given.height) as r:
                row = builder.gep(dx, [builder.mul(r, given.line)])

                def write(from_, to) -> None:
                    value = floats.load_vector(builder.gep(dy, [from_]), mask=mask)
                    value, spot = builder.fmul(value, factor), builder.gep(row, [to])
                    if unrolled.count:
                        for s in range(unrolled.count):
                            store(value, builder.gep(spot, [builder.mul(_i64(s), depth)]))
                        return
                    with rolled(builder, zero, given.width) as s:
                        store(value, builder.gep(spot, [builder.mul(s, depth)]))

                strides = depth, builder.mul(given.width, depth)
                narrow, size = mask is not None, (_i64(1), given.pixels)
                pixel_vectors(
                    builder, floats.lanes, size, depth, strides, (zero, zero), write, narrow=narrow
                )

        if floats.lanes < LANES:
            spread(None, floats.store_vector)
            return cgctx.get_dummy_value()
        beyond = beyond_caches(cgctx, builder, target, values[2], depth)
        with builder.if_else(builder.icmp_signed("<", depth, _i64(LANES))) as (narrow, wide):
            with narrow:
                mask = floats.first_lanes(depth)
                spread(mask, partial(floats.store_vector, mask=mask))
            with wide, builder.if_else(beyond) as (a, b):
                with a:
                    spread(None, floats.stream_vector)
                with b:
                    spread(None, floats.store_vector)
        return cgctx.get_dummy_value()

    return types.void(lanes, unrolled, target, source, tiles, target.types[0].dtype), codegen
