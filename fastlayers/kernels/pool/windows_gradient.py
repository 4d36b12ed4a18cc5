"""Gradients of maxima over windows, by the cells that held them; see `kernels.pool.windows`."""

from __future__ import annotations

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors
from fastlayers.kernels.pool.loops import (
    LANES,
    optional,
    past_caches,
    pixel_vectors,
    pointers,
    rolled,
    smaller,
    vectors_of_pixel,
)

__all__ = ["gather_pairs", "gather_window", "spread_windows"]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


class _Gradient:
    """Emits the output's gradient for one cell of the windows: 0 where another is the largest."""

    def __init__(self, builder: Any, value: ir.Type, cell: ir.Type, lanes: int) -> None:
        self.builder = builder
        self.floats, self.numbers = Vectors(builder, value, lanes), Vectors(builder, cell, lanes)
        self.zero = ir.Constant(self.floats.vector, None)

    def load(self, dy: Any, y: Any | None, floor: Any, mask: Any = None) -> Any:
        """The gradient, 0 where there is an output and it is no greater than the floor."""
        if y is None:
            return self.floats.load_vector(dy, mask=mask)
        low = self.builder.fcmp_ordered("<=", self.floats.load_vector(y, mask=mask), floor)
        return self.builder.select(low, self.zero, self.floats.load_vector(dy, mask=mask))

    def where(self, held: Any, number: Any, value: Any) -> Any:
        here = self.builder.icmp_unsigned("==", held, number)
        return self.builder.select(here, value, self.zero)


@intrinsic(prefer_literal=True)
def spread_windows(
    typingctx: Any,
    lanes: Any,
    unrolled: Any,
    dx: Any,
    dx_at: Any,
    dy: Any,
    cells: Any,
    y: Any,
    y_at: Any,
    cell_rows: Any,
    width: Any,
    rows: Any,
    pixels: Any,
    depth: Any,
    floor: Any,
) -> Any:
    """Write rows of the input's gradient for windows that lie side by side.

    ``dx[r, j * width + s, c] = dy[j, c]`` where its cell is ``r * width + s``, else 0, for
    ``s < width`` and ``cell_rows[0] <= r < cell_rows[1]``; so for `rows` rows of windows, whose
    rows of dx and dy follow each other. dy, cells and the output y start at `y_at`; where y is no
    greater than `floor` dy counts as 0, which is not asked where y is None. `unrolled` is a tuple
    as long as the width, to unroll it, or empty.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, origin, holder = pointers(cgctx, builder, sig, values, (2, 3), (4, 7), (5, 7))
        output = optional(cgctx, builder, sig, values, 6, 7)
        low, high = cgutils.unpack_tuple(builder, values[8])
        width, rows, pixels, depth, floor = values[9:]
        known = unrolled.count
        emit = _Gradient(builder, target.type.pointee, holder.type.pointee, lanes.literal_value)
        floats, numbers = emit.floats, emit.numbers
        floor = floats.splat(floor)
        one = ir.Constant(numbers.vector, [1] * numbers.lanes)
        number = cgutils.alloca_once(builder, numbers.vector)

        step = builder.mul(width, depth)

        def sweep(store: Any) -> None:
            with rolled(builder, _i64(0), rows) as i, rolled(builder, low, high) as r:
                line = builder.add(builder.mul(i, builder.sub(high, low)), builder.sub(r, low))
                line = builder.mul(builder.mul(line, pixels), step)
                above = builder.mul(builder.mul(i, pixels), depth)
                first = numbers.splat(builder.trunc(builder.mul(r, width), numbers.element))

                def spread(from_: Any, to: Any) -> None:
                    at = builder.add(above, from_)
                    tested = output and builder.gep(output, [at])
                    value = emit.load(builder.gep(origin, [at]), tested, floor)
                    held = numbers.load_vector(builder.gep(holder, [at]))
                    spot, cell = builder.gep(target, [builder.add(line, to)]), first
                    if known:
                        for _ in range(known):
                            store(emit.where(held, cell, value), spot)
                            cell, spot = builder.add(cell, one), builder.gep(spot, [depth])
                        return
                    builder.store(first, number)
                    with rolled(builder, _i64(0), width) as s:
                        cell = builder.load(number)
                        to = builder.gep(spot, [builder.mul(s, depth)])
                        store(emit.where(held, cell, value), to)
                        builder.store(builder.add(cell, one), number)

                size, none = (_i64(1), pixels), (_i64(0), _i64(0))
                pixel_vectors(builder, floats.lanes, size, depth, (depth, step), none, spread)

        if known and floats.lanes == LANES:
            past = past_caches(cgctx, builder, dx, values[2], depth)
            with builder.if_else(past) as (streamed, stored):
                with streamed:
                    sweep(floats.stream_vector)
                with stored:
                    sweep(floats.store_vector)
        else:
            sweep(floats.store_vector)
        return cgctx.get_dummy_value()

    i8 = types.int64
    signature = types.void(
        lanes, unrolled, dx, i8, dy, cells, y, i8, cell_rows, i8, i8, i8, i8, dy.dtype
    )
    return signature, codegen


@intrinsic
def gather_window(
    typingctx: Any,
    dx: Any,
    dx_at: Any,
    dy: Any,
    cells: Any,
    y: Any,
    y_at: Any,
    table: Any,
    rows: Any,
    columns: Any,
    depth: Any,
    floor: Any,
) -> Any:
    """Write the gradient of one input pixel: the sum over the windows that hold it.

    ``dx[c] = sum of dy[row + column + c]`` where the cell is ``r + s``, over the pairs
    ``(row, r) = table[k], table[k + 1]`` for k from ``rows[0]`` to ``rows[1]`` in steps of 2, and
    ``(column, s)`` alike. dy, cells and the output y start at `y_at`; where y is no greater than
    `floor` dy counts as 0. Without y, which is then None, that is not asked; without cells all is
    added.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, origin = pointers(cgctx, builder, sig, values, (0, 1), (2, 5))
        entries = cgctx.make_array(table)(cgctx, builder, values[6]).data
        (row, rows_end), (column, columns_end) = (
            cgutils.unpack_tuple(builder, value) for value in values[7:9]
        )
        chosen = not isinstance(cells, types.NoneType)
        if chosen:
            (holder,) = pointers(cgctx, builder, sig, values, (3, 5))
            output = optional(cgctx, builder, sig, values, 4, 5)
        cell_type = holder.type.pointee if chosen else ir.IntType(8)
        emit = _Gradient(builder, target.type.pointee, cell_type, LANES)
        floats, numbers = emit.floats, emit.numbers
        floor = floats.splat(values[10])
        total = cgutils.alloca_once(builder, floats.vector)

        def entry(k: Any) -> list[Any]:
            return [builder.load(builder.gep(entries, [builder.add(k, _i64(i))])) for i in (0, 1)]

        depth = values[9]
        with rolled(builder, _i64(0), depth, LANES) as c:
            mask = floats.first_lanes(builder.sub(depth, c))
            builder.store(emit.zero, total)
            with rolled(builder, row, rows_end, 2) as k:
                line, r = entry(k)
                line = builder.add(line, c)
                with rolled(builder, column, columns_end, 2) as m:
                    pixel, s = entry(m)
                    at = builder.add(line, pixel)
                    if chosen:
                        tested = output and builder.gep(output, [at])
                        value = emit.load(builder.gep(origin, [at]), tested, floor, mask)
                        held = numbers.load_vector(builder.gep(holder, [at]), mask=mask)
                        cell = numbers.splat(builder.trunc(builder.add(r, s), numbers.element))
                        value = emit.where(held, cell, value)
                    else:
                        value = floats.load_vector(builder.gep(origin, [at]), mask=mask)
                    builder.store(builder.fadd(builder.load(total), value), total)
            floats.store_vector(builder.load(total), builder.gep(target, [c]), mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(dx, i8, dy, cells, y, i8, table, rows, columns, i8, dy.dtype), codegen


# A number that no cell of a small window has.
NEVER = 254


@intrinsic
def gather_pairs(
    typingctx: Any,
    dx: Any,
    dx_at: Any,
    line: Any,
    dy: Any,
    cells: Any,
    y: Any,
    y_at: Any,
    below: Any,
    pixels: Any,
    even: Any,
    depth: Any,
    floor: Any,
) -> Any:
    """Write two rows of the input's gradient of 3 x 3 windows in steps of 2 with a padding of 1.

    Of four pixels, of an even and an odd row and column, the first is seen by one window, the next
    two by two and the last by four: those of output pixel j, the next one, and the same in the next
    row. dy, cells and y start at `y_at` with the upper row, `below` is the distance to the next one
    and 0 if there is none. `line` is that from the even to the odd row of dx, or 0 if the image
    ends before it, and `even` is False where it ends before the last odd column. A row or column
    that is missing is written over by the one before. For y and floor see `gather_window`.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, origin, holder = pointers(cgctx, builder, sig, values, (0, 1), (3, 6), (4, 6))
        output = optional(cgctx, builder, sig, values, 5, 6)
        line, (below, pixels, even, depth) = values[2], values[7:11]
        emit = _Gradient(builder, target.type.pointee, holder.type.pointee, LANES)
        floats, numbers, floor = emit.floats, emit.numbers, emit.floats.splat(values[11])
        last = builder.sub(pixels, _i64(1))
        some_below = builder.icmp_signed("!=", below, _i64(0))

        def number(value: int, *conditions: Any) -> Any:
            number = numbers.element(value)
            for condition in conditions:
                number = builder.select(condition, number, numbers.element(NEVER))
            return numbers.splat(number)

        def block(
            j: Any, right: Any, step: Any, known: list[Any], c: Any, mask: Any, store: Any
        ) -> None:
            corner = builder.add(builder.mul(j, depth), c)
            seen = []
            for offset in (_i64(0), right, below, builder.add(below, right)):
                at = builder.add(corner, offset)
                tested = output and builder.gep(output, [at])
                value = emit.load(builder.gep(origin, [at]), tested, floor, mask)
                seen.append((value, numbers.load_vector(builder.gep(holder, [at]), mask=mask)))
            at = builder.add(builder.mul(j, builder.add(depth, depth)), c)
            for place, held_by in (
                (builder.add(line, step), (8, 6, 2, 0)),
                (line, (7, None, 1, None)),
                (step, (5, 3, None, None)),
                (_i64(0), (4, None, None, None)),
            ):
                total = None
                for (value, held), cell in zip(seen, held_by, strict=True):
                    if cell is not None:
                        term = emit.where(held, known[cell], value)
                        total = builder.fadd(total, term) if total else term
                store(total, builder.gep(target, [builder.add(at, place)]))

        def row(few: bool, store: Any) -> None:
            with rolled(builder, _i64(0), _i64(2)) as part:  # all but the last pixel, then that
                inner = builder.icmp_signed("==", part, _i64(0))
                right = builder.select(inner, depth, _i64(0))
                step = builder.select(builder.or_(inner, even), depth, _i64(0))
                known = [
                    number(
                        k,
                        *[some_below] * (k in (0, 1, 2)),
                        *[inner] * (k in (0, 3, 6)),
                    )
                    for k in range(9)
                ]
                start = builder.select(inner, _i64(0), last)
                stop = builder.select(inner, last, pixels)
                with rolled(builder, start, stop) as j:
                    if few:
                        mask = floats.first_lanes(depth)
                        block(j, right, step, known, _i64(0), mask, partial(store, mask=mask))
                    else:
                        loop, width, end = vectors_of_pixel(builder, LANES, depth)
                        with loop as v:
                            c = smaller(builder, builder.mul(v, width), end)
                            block(j, right, step, known, c, None, store)

        with builder.if_else(builder.icmp_signed("<", depth, _i64(LANES))) as (few, many):
            with few:
                row(True, floats.store_vector)
            with (
                many,
                builder.if_else(past_caches(cgctx, builder, dx, values[0], depth)) as (a, b),
            ):
                with a:
                    row(False, floats.stream_vector)
                with b:
                    row(False, floats.store_vector)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(dx, i8, i8, dy, cells, y, i8, i8, i8, types.boolean, i8, dy.dtype), codegen
