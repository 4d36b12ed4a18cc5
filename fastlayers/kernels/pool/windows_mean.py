"""Means over windows of channels-last images, and their gradients; see `kernels.pool.windows`."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, prefetch
from fastlayers.kernels.pool.loops import (
    AHEAD,
    COLUMNS,
    LANES,
    bounded,
    past_caches,
    pixel_vectors,
    pointers,
    rolled,
)

__all__ = ["mean_tiles", "mean_window", "spread_mean", "sum_rows"]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


@intrinsic
def mean_window(
    typingctx: Any,
    y: Any,
    y_at: Any,
    x: Any,
    x_at: Any,
    rows: Any,
    columns: Any,
    depth: Any,
    divisor: Any,
    more: Any,
) -> Any:
    """``y[c] = sum of x[r * row_step + s * depth + c] / divisor`` for ``r < rows[0], s < columns``.

    ``rows = (number, row_step)``; x starts at `x_at` and y at `y_at`. What y holds is added to the
    sum where there is `more`, a boolean. Four columns are added at a
    time, each to sums of their own, since an addition has to wait four cycles for the one before.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, source = pointers(cgctx, builder, sig, values, (0, 1), (2, 3))
        number, row_step = cgutils.unpack_tuple(builder, values[4])
        columns, depth = values[5:7]
        floats = Vectors(builder, target.type.pointee, LANES)
        zero = ir.Constant(floats.vector, [-0.0] * LANES)  # which changes no sum, not even of -0
        bits = Vectors(builder, _i1, LANES)
        sums = [cgutils.alloca_once(builder, floats.vector) for _ in range(4)]
        divisor = floats.splat(values[7])
        whole = builder.and_(columns, _i64(-4))
        with rolled(builder, _i64(0), depth, LANES) as c:
            mask = floats.first_lanes(builder.sub(depth, c))
            first = builder.gep(source, [c])
            for slot in sums:
                builder.store(zero, slot)

            def add(at: Any, k: int) -> None:
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
            more = bits.splat(values[8])
            held = floats.load_vector(builder.gep(target, [c]), mask=builder.and_(mask, more))
            total = builder.select(more, builder.fadd(total, held), total)
            mean = builder.fdiv(total, divisor)
            floats.store_vector(mean, builder.gep(target, [c]), mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(y, i8, x, i8, rows, i8, i8, y.dtype, types.boolean), codegen


@intrinsic(prefer_literal=True)
def mean_tiles(
    typingctx: Any,
    lanes: Any,
    square: Any,
    y: Any,
    y_at: Any,
    x: Any,
    x_at: Any,
    size: Any,
    line: Any,
    depth: Any,
    divisor: Any,
) -> Any:
    """Means of rows of square windows that lie side by side, and so do their rows in x and y.

    `square` is a tuple as long as both sides, ``size = (rows, columns)`` of y, `line` is the
    distance between rows of x; x starts at `x_at` and y at `y_at`. Vectors of up to `lanes`
    channels are written whole.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, source = pointers(cgctx, builder, sig, values, (2, 3), (4, 5))
        size = cgutils.unpack_tuple(builder, values[6])
        line, depth, divisor = values[7:]
        floats, side = Vectors(builder, target.type.pointee, lanes.literal_value), square.count
        divisor = floats.splat(divisor)
        step = builder.mul(_i64(side), depth)
        jump = builder.sub(builder.mul(_i64(side), line), builder.mul(size[1], step))
        lines = [builder.gep(source, [builder.mul(_i64(r), line)]) for r in range(side)]

        def write(from_: Any, to: Any) -> None:
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
    return types.void(lanes, square, y, i8, x, i8, size, i8, i8, y.dtype), codegen


@intrinsic
def sum_rows(
    typingctx: Any, sums: Any, sums_at: Any, x: Any, x_at: Any, count: Any, width: Any
) -> Any:
    """``sums[j] = sum over i of x[i * width + j]`` for ``j < width``, a multiple of `COLUMNS`.

    As far as ``i * width + j < count``. Sums of `COLUMNS` columns stay in registers.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, source = pointers(cgctx, builder, sig, values, (0, 1), (2, 3))
        count, width = values[4:]
        floats = Vectors(builder, target.type.pointee, LANES)
        zero = ir.Constant(floats.vector, None)
        sums = [cgutils.alloca_once(builder, floats.vector) for _ in range(COLUMNS // LANES)]
        whole = builder.mul(builder.sdiv(count, width), width)

        def add(at: Any, v: int, mask: Any = None) -> None:
            value = floats.load_vector(at, v, mask=mask)
            builder.store(builder.fadd(builder.load(sums[v]), value), sums[v])

        with rolled(builder, _i64(0), width, COLUMNS) as first:
            for slot in sums:
                builder.store(zero, slot)
            last = builder.add(first, whole)
            with rolled(builder, first, last, width) as row:
                at = builder.gep(source, [row])
                prefetch(builder, builder.gep(at, [_i64(AHEAD)]))
                for v in range(len(sums)):
                    add(at, v)
            left = builder.sub(count, last)
            with builder.if_then(builder.icmp_signed(">", left, _i64(0))):
                for v in range(len(sums)):
                    mask = floats.first_lanes(bounded(builder, left, v))
                    add(builder.gep(source, [last]), v, mask)
            for v, slot in enumerate(sums):
                floats.store_vector(builder.load(slot), builder.gep(target, [first]), v)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(sums, i8, x, i8, i8, i8), codegen


@intrinsic(prefer_literal=True)
def spread_mean(
    typingctx: Any,
    lanes: Any,
    known: Any,
    dx: Any,
    dx_at: Any,
    dy: Any,
    dy_at: Any,
    window: Any,
    line: Any,
    pixels: Any,
    depth: Any,
    share: Any,
) -> Any:
    """``dx[r * line + (j * window[1] + s) * depth + c] = dy[j, c] * share`` for ``j < pixels``.

    For all ``r < window[0]`` and ``s < window[1]``. `known` is a tuple as long as the window is
    wide, to unroll it, or empty. With 8 `lanes` a pixel of fewer channels is written as a whole
    vector, which spills over what follows the last one.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, source = pointers(cgctx, builder, sig, values, (2, 3), (4, 5))
        height, width = cgutils.unpack_tuple(builder, values[6])
        line, pixels, depth = values[7:10]
        floats = Vectors(builder, target.type.pointee, lanes.literal_value)
        share, zero = floats.splat(values[10]), _i64(0)

        def spread(mask: Any, store: Any) -> None:
            with rolled(builder, zero, height) as r:
                row = builder.gep(target, [builder.mul(r, line)])

                def write(from_: Any, to: Any) -> None:
                    value = floats.load_vector(builder.gep(source, [from_]), mask=mask)
                    value, spot = builder.fmul(value, share), builder.gep(row, [to])
                    if known.count:
                        for s in range(known.count):
                            store(value, builder.gep(spot, [builder.mul(_i64(s), depth)]))
                        return
                    with rolled(builder, zero, width) as s:
                        store(value, builder.gep(spot, [builder.mul(s, depth)]))

                strides = depth, builder.mul(width, depth)
                few, size = mask is not None, (_i64(1), pixels)
                pixel_vectors(
                    builder, floats.lanes, size, depth, strides, (zero, zero), write, narrow=few
                )

        if floats.lanes < LANES:
            spread(None, floats.store_vector)
            return cgctx.get_dummy_value()
        narrow = builder.icmp_signed("<", depth, _i64(LANES))
        with builder.if_else(narrow) as (few, many):
            with few:
                mask = floats.first_lanes(depth)
                spread(mask, partial(floats.store_vector, mask=mask))
            with (
                many,
                builder.if_else(past_caches(cgctx, builder, dx, values[2], depth)) as (a, b),
            ):
                with a:
                    spread(None, floats.stream_vector)
                with b:
                    spread(None, floats.store_vector)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(lanes, known, dx, i8, dy, i8, window, i8, i8, i8, dy.dtype), codegen
