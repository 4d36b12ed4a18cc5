"""Maxima over windows of channels-last images, in vectors of channels.

Images are flat. Vectors of up to 16 channels cover a pixel. With fewer channels than lanes a
whole vector is written all the same: its last lanes spill over the next pixel, which is written
later. With more, the last vector ends at the last channel, and writes some channels twice. So
there are no masks, but at the end of what a thread writes.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, prefetch
from fastlayers.kernels.pool.loops import (
    AHEAD,
    LANES,
    pixel_vectors,
    pointers,
    rolled,
)

__all__ = ["max_window", "max_windows"]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


class _Best:
    """Emits the search for the largest cell: the first of equals, or the first NaN."""

    def __init__(self, builder: Any, value: ir.Type, cell: ir.Type, lanes: int) -> None:
        self.builder = builder
        self.floats, self.numbers = Vectors(builder, value, lanes), Vectors(builder, cell, lanes)

    def best(self, new: Any, number: Any, old: Any, holder: Any) -> tuple[Any, Any]:
        """The better of two values, and its cell."""
        better = self.floats.better(new, old)
        select = self.builder.select
        return select(better, new, old), select(better, number, holder)

    def floored(self, best: Any, holder: Any, floor: Any) -> tuple[Any, Any]:
        """The maximum and its cell; where it is not above the floor that, and no cell.

        Nothing is below a floor of NaN.
        """
        floor = self.floats.splat(floor)
        above = self.builder.fcmp_unordered("ugt", best, floor)
        none = ir.Constant(self.numbers.vector, [-1] * self.floats.lanes)
        return self.builder.select(above, best, floor), self.builder.select(above, holder, none)


@intrinsic(prefer_literal=True)
def max_windows(
    typingctx: Any,
    lanes: Any,
    square: Any,
    y: Any,
    cells: Any,
    y_at: Any,
    x: Any,
    x_at: Any,
    table: Any,
    rows: Any,
    columns: Any,
    window: Any,
    size: Any,
    step: Any,
    jump: Any,
    depth: Any,
    floor: Any,
) -> Any:
    """Maxima over the windows of rows of output pixels, and the numbers of their cells.

    ``y[k * depth + c] = max over r, s of x[i * jump + k * step + R[r] + S[s] + c]`` for ``k = i *
    columns + j``, ``size = (rows, columns)``, and ``P[r] + Q[s]`` of the first cell that holds it;
    where that is not above `floor`, the floor and the largest number. Nothing is below a floor of
    NaN. R and after it P are in the table from `rows` on, S and Q from
    `columns` on, and `window` are their lengths. A window that is cut off by the image's edge
    repeats its first or last row or column with the same numbers. `square` is a tuple as long as
    both sides of the window, to unroll it, or empty.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        best_at, cells_at, source = pointers(cgctx, builder, sig, values, (2, 4), (3, 4), (5, 6))
        entries = cgctx.make_array(table)(cgctx, builder, values[7]).data
        rows, columns = values[8:10]
        kh, kw = cgutils.unpack_tuple(builder, values[10])
        size = cgutils.unpack_tuple(builder, values[11])
        step, jump, depth, floor = values[12:]
        emit = _Best(builder, best_at.type.pointee, cells_at.type.pointee, lanes.literal_value)
        floats, numbers = emit.floats, emit.numbers
        side = square.count

        def entry(at: Any, k: Any) -> Any:
            return builder.load(builder.gep(entries, [builder.add(at, k)]))

        def number(at: Any, along: Any) -> Any:
            return numbers.splat(builder.trunc(builder.add(at, along), numbers.element))

        if side:
            lines = [builder.gep(source, [entry(rows, _i64(r))]) for r in range(side)]
            places = [entry(columns, _i64(s)) for s in range(side)]
            down, along = (
                [entry(at, _i64(side + k)) for k in range(side)] for at in (rows, columns)
            )
            known = [[number(p, q) for q in along] for p in down]
        else:
            slots = [cgutils.alloca_once(builder, v.vector) for v in (floats, numbers)]

        def unrolled(from_: Any) -> tuple[Any, Any]:
            """The best of each row, and then of these: chains of 3 cells and not of 9."""
            found: Any = None
            for r, line in enumerate(lines):
                row: Any = None
                for s, place in enumerate(places):
                    at = builder.gep(line, [builder.add(from_, place)])
                    if min(r, s) >= side - 2:  # what steps of 2 see for the first time
                        prefetch(builder, builder.gep(at, [_i64(AHEAD)]))
                    new = floats.load_vector(at), known[r][s]
                    row = emit.best(*new, *row) if row else new
                found = emit.best(*row, *found) if found else row
            return found[0], found[1]

        def rolled_up(from_: Any) -> tuple[Any, Any]:
            corner = builder.add(entry(rows, _i64(0)), entry(columns, _i64(0)))
            corner = builder.gep(source, [builder.add(from_, corner)])
            # The first cell is taken as it is, and is no greater than itself.
            builder.store(floats.load_vector(corner), slots[0])
            builder.store(number(entry(rows, kh), entry(columns, kw)), slots[1])
            with rolled(builder, _i64(0), kh) as r, rolled(builder, _i64(0), kw) as s:
                at = builder.add(entry(rows, r), entry(columns, s))
                at = builder.gep(source, [builder.add(from_, at)])
                here = number(entry(rows, builder.add(kh, r)), entry(columns, builder.add(kw, s)))
                best, holder = (builder.load(slot) for slot in slots)
                best, holder = emit.best(floats.load_vector(at), here, best, holder)
                builder.store(best, slots[0])
                builder.store(holder, slots[1])
            return builder.load(slots[0]), builder.load(slots[1])

        def write(from_: Any, to: Any) -> None:
            best, holder = emit.floored(*(unrolled if side else rolled_up)(from_), floor)
            floats.store_vector(best, builder.gep(best_at, [to]))
            numbers.store_vector(holder, builder.gep(cells_at, [to]))

        zero = _i64(0)
        pixel_vectors(builder, floats.lanes, size, depth, (step, depth), (jump, zero), write)
        return cgctx.get_dummy_value()

    i8 = types.int64
    signature = types.void(
        lanes, square, y, cells, i8, x, i8, table, i8, i8, window, size, i8, i8, i8, y.dtype
    )
    return signature, codegen


@intrinsic
def max_window(
    typingctx: Any,
    y: Any,
    cells: Any,
    y_at: Any,
    x: Any,
    x_at: Any,
    rows: Any,
    columns: Any,
    depth: Any,
    floor: Any,
) -> Any:
    """`max_windows` of one pixel whose window may be cut off.

    The window's cells are ``x[x_at + r * row_step + s * column_step]``, numbered
    ``r * cells_per_row + s``, for ``rows = (first r, last r + 1, row_step)`` and ``columns =
    (first s, last s + 1, column_step, cells_per_row)``. An empty window gives minus infinity and
    cell 0.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        best_at, cells_at, source = pointers(cgctx, builder, sig, values, (0, 2), (1, 2), (3, 4))
        r_first, r_last, r_step = cgutils.unpack_tuple(builder, values[5])
        s_first, s_last, s_step, per_row = cgutils.unpack_tuple(builder, values[6])
        emit = _Best(builder, best_at.type.pointee, cells_at.type.pointee, LANES)
        floats, numbers = emit.floats, emit.numbers
        best = cgutils.alloca_once(builder, floats.vector)
        holder = cgutils.alloca_once(builder, numbers.vector)
        fresh = cgutils.alloca_once(builder, _i1)
        lowest = floats.splat(ir.Constant(floats.element, float("-inf")))
        with rolled(builder, _i64(0), values[7], LANES) as at:
            mask = floats.first_lanes(builder.sub(values[7], at))
            builder.store(lowest, best)
            builder.store(ir.Constant(numbers.vector, None), holder)
            # The first cell is taken as it is: minus infinity is no greater than the start.
            builder.store(_i1(1), fresh)
            with (
                rolled(builder, r_first, r_last) as r,
                rolled(builder, s_first, s_last) as s,
            ):
                offset = builder.add(builder.mul(r, r_step), builder.mul(s, s_step))
                cell = builder.gep(source, [builder.add(offset, at)])
                new, old = floats.load_vector(cell, mask=mask), builder.load(best)
                better = emit.floats.better(new, old)
                better = builder.or_(better, floats.splat(builder.load(fresh)))
                number = builder.trunc(builder.add(builder.mul(r, per_row), s), numbers.element)
                builder.store(builder.select(better, new, old), best)
                builder.store(
                    builder.select(better, numbers.splat(number), builder.load(holder)), holder
                )
                builder.store(_i1(0), fresh)
            top, number = emit.floored(builder.load(best), builder.load(holder), values[8])
            floats.store_vector(top, builder.gep(best_at, [at]), mask=mask)
            numbers.store_vector(number, builder.gep(cells_at, [at]), mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(y, cells, i8, x, i8, rows, columns, i8, y.dtype), codegen
