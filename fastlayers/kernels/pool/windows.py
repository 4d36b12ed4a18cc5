"""Maxima over windows of channels-last images, in vectors of channels.

Images are flat. Vectors of up to 16 channels cover a pixel. With fewer channels than lanes a
whole vector is written all the same: its last lanes spill over the next pixel, which is written
later. With more, the last vector ends at the last channel, and writes some channels twice. So
there are no masks, but at the end of what a thread writes.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, element_pointer, operand, prefetch
from fastlayers.kernels.pool.loops import AHEAD, LANES, pixel_vectors, rolled

__all__ = ["Cells", "Maxima", "Sweep", "max_window", "max_windows"]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)


class Maxima(NamedTuple):
    """Where maxima and the numbers of their cells are written: flat arrays, from an offset on."""

    y: Any
    cells: Any
    offset: int


class Cells(NamedTuple):
    """A table of the windows' cells.

    It holds the distances of a window's rows and then the numbers of their first cells from entry
    `rows` on, and the same of its columns from entry `columns` on.
    """

    table: Any
    rows: int
    columns: int
    height: int
    width: int


class Sweep(NamedTuple):
    """Rows of pixels, and from one to the next the distances of what is read."""

    rows: int
    columns: int
    step: int
    jump: int  # from the end of a row to the next one
    depth: int


def _written(cgctx, builder, kind, value) -> list[Any]:
    """Pointers to the first of the `Maxima` and to the number of its cell."""
    maxima = Maxima(*cgutils.unpack_tuple(builder, value))
    return [
        element_pointer(cgctx, builder, array_type, array, maxima.offset)
        for array_type, array in zip(kind.types[:2], maxima[:2], strict=True)
    ]


class _Best:
    """Emits the search for the largest cell: the first of equals, or the first NaN."""

    def __init__(self, builder, value: ir.Type, cell: ir.Type, lanes: int) -> None:
        self.builder = builder
        self.floats, self.numbers = Vectors(builder, value, lanes), Vectors(builder, cell, lanes)

    def best(self, new, number, old, holder) -> tuple[Any, Any]:
        """The better of two values, and its cell."""
        better = self.floats.better(new, old)
        select = self.builder.select
        return select(better, new, old), select(better, number, holder)

    def floored(self, best, holder, floor) -> tuple[Any, Any]:
        """The maximum and its cell; where it is not above the floor that, and no cell.

        Nothing is below a floor of NaN.
        """
        floor = self.floats.splat(floor)
        above = self.builder.fcmp_unordered("ugt", best, floor)
        none = ir.Constant(self.numbers.vector, [-1] * self.floats.lanes)
        return self.builder.select(above, best, floor), self.builder.select(above, holder, none)


class _Search:
    """Emits the search of one window after the other, of which `cells` tells the cells."""

    def __init__(self, emit: _Best, source, entries, cells: Cells, side: int) -> None:
        self._emit, self._source, self._entries, self._cells = emit, source, entries, cells
        builder, floats, numbers = emit.builder, emit.floats, emit.numbers
        self._builder, self._side = builder, side
        if side:
            row_numbers, column_numbers = (
                [self._entry(at, _i64(side + k)) for k in range(side)]
                for at in (cells.rows, cells.columns)
            )
            self._rows = [
                builder.gep(source, [self._entry(cells.rows, _i64(r))]) for r in range(side)
            ]
            self._columns = [self._entry(cells.columns, _i64(s)) for s in range(side)]
            self._numbers = [[self._number(p, q) for q in column_numbers] for p in row_numbers]
        else:
            self._slots = [cgutils.alloca_once(builder, v.vector) for v in (floats, numbers)]

    def best(self, at) -> tuple[Any, Any]:
        """The maxima of the window whose distances start at `at`, and their cells."""
        return self._row_by_row(at) if self._side else self._cell_by_cell(at)

    def _entry(self, first, k):
        at = self._builder.add(first, k)
        return self._builder.load(self._builder.gep(self._entries, [at]))

    def _number(self, row, column):
        numbers = self._emit.numbers
        return numbers.splat(self._builder.trunc(self._builder.add(row, column), numbers.element))

    def _row_by_row(self, at) -> tuple[Any, Any]:
        """Unrolled: the best of each row, and then of these: chains of 3 cells and not of 9."""
        builder, found = self._builder, None
        for r, line in enumerate(self._rows):
            row: Any = None
            for s, distance in enumerate(self._columns):
                cell = builder.gep(line, [builder.add(at, distance)])
                if min(r, s) >= self._side - 2:  # what steps of 2 see for the first time
                    prefetch(builder, builder.gep(cell, [_i64(AHEAD)]))
                new = self._emit.floats.load_vector(cell), self._numbers[r][s]
                row = self._emit.best(*new, *row) if row else new
            found = self._emit.best(*row, *found) if found else row
        return found[0], found[1]  # type: ignore[index]

    def _cell_by_cell(self, at) -> tuple[Any, Any]:
        builder, cells, floats = self._builder, self._cells, self._emit.floats
        corner = builder.add(self._entry(cells.rows, _i64(0)), self._entry(cells.columns, _i64(0)))
        corner = builder.gep(self._source, [builder.add(at, corner)])
        # The first cell is taken as it is, and is no greater than itself.
        builder.store(floats.load_vector(corner), self._slots[0])
        first = self._entry(cells.rows, cells.height), self._entry(cells.columns, cells.width)
        builder.store(self._number(*first), self._slots[1])
        with (
            rolled(builder, _i64(0), cells.height) as r,
            rolled(builder, _i64(0), cells.width) as s,
        ):
            cell = builder.add(self._entry(cells.rows, r), self._entry(cells.columns, s))
            cell = builder.gep(self._source, [builder.add(at, cell)])
            row_number = self._entry(cells.rows, builder.add(cells.height, r))
            column_number = self._entry(cells.columns, builder.add(cells.width, s))
            here = self._number(row_number, column_number)
            best, holder = (builder.load(slot) for slot in self._slots)
            best, holder = self._emit.best(floats.load_vector(cell), here, best, holder)
            builder.store(best, self._slots[0])
            builder.store(holder, self._slots[1])
        best, holder = (builder.load(slot) for slot in self._slots)
        return best, holder


@intrinsic(prefer_literal=True)
def max_windows(typingctx, lanes, unrolled, maxima, source, cells, sweep, floor):
    """Maxima over the windows of rows of output pixels, and the numbers of their cells.

    ``y[k * depth + c] = max over r, s of x[i * jump + k * step + R[r] + S[s] + c]`` for ``k = i *
    columns + j``, and the number ``P[r] + Q[s]`` of the first cell that holds it; where that is not
    above `floor`, the floor and the largest number. Nothing is below a floor of NaN. R and P are
    what `cells` has of rows, S and Q of columns. A window that is cut off by the image's edge
    repeats its first or last row or column with the same numbers. `maxima`, `cells` and `sweep` are
    of the classes above, ``source = (x, offset)``. `unrolled` is a tuple as long as both sides of
    the window, for which the loop over its cells is then compiled, or empty.
    """

    def codegen(cgctx, builder, sig, values):
        best_at, cells_at = _written(cgctx, builder, maxima, values[2])
        (source_at,) = operand(cgctx, builder, source, values[3])
        given = Cells(*cgutils.unpack_tuple(builder, values[4]))
        pixels, floor = Sweep(*cgutils.unpack_tuple(builder, values[5])), values[6]
        entries = cgctx.make_array(cells.types[0])(cgctx, builder, given.table).data
        emit = _Best(builder, best_at.type.pointee, cells_at.type.pointee, lanes.literal_value)
        search = _Search(emit, source_at, entries, given, unrolled.count)

        def write(from_, to) -> None:
            best, holder = emit.floored(*search.best(from_), floor)
            emit.floats.store_vector(best, builder.gep(best_at, [to]))
            emit.numbers.store_vector(holder, builder.gep(cells_at, [to]))

        size, strides = (pixels.rows, pixels.columns), (pixels.step, pixels.depth)
        jumps = pixels.jump, _i64(0)
        pixel_vectors(builder, emit.floats.lanes, size, pixels.depth, strides, jumps, write)
        return cgctx.get_dummy_value()

    return types.void(lanes, unrolled, maxima, source, cells, sweep, maxima.types[0].dtype), codegen


@intrinsic
def max_window(typingctx, maxima, source, rows, columns, depth, floor):
    """`max_windows` of one pixel whose window may be cut off.

    The window's cells are ``x[offset + r * row_step + s * column_step]``, numbered
    ``r * cells_per_row + s``, for ``source = (x, offset)``, ``rows = (first r, last r + 1,
    row_step)`` and ``columns = (first s, last s + 1, column_step, cells_per_row)``; `maxima` are
    ``(y, cells, offset)``. An empty window gives minus infinity and cell 0.
    """

    def codegen(cgctx, builder, sig, values):
        best_at, cells_at = _written(cgctx, builder, maxima, values[0])
        (source_at,) = operand(cgctx, builder, source, values[1])
        r_first, r_last, r_step = cgutils.unpack_tuple(builder, values[2])
        s_first, s_last, s_step, per_row = cgutils.unpack_tuple(builder, values[3])
        depth, floor = values[4:]
        emit = _Best(builder, best_at.type.pointee, cells_at.type.pointee, LANES)
        floats, numbers = emit.floats, emit.numbers
        best = cgutils.alloca_once(builder, floats.vector)
        holder = cgutils.alloca_once(builder, numbers.vector)
        fresh = cgutils.alloca_once(builder, _i1)
        lowest = floats.splat(ir.Constant(floats.element, float("-inf")))
        with rolled(builder, _i64(0), depth, LANES) as at:
            mask = floats.first_lanes(builder.sub(depth, at))
            builder.store(lowest, best)
            builder.store(ir.Constant(numbers.vector, None), holder)
            # The first cell is taken as it is: minus infinity is no greater than the start.
            builder.store(_i1(1), fresh)
            with (
                rolled(builder, r_first, r_last) as r,
                rolled(builder, s_first, s_last) as s,
            ):
                offset = builder.add(builder.mul(r, r_step), builder.mul(s, s_step))
                cell = builder.gep(source_at, [builder.add(offset, at)])
                new, old = floats.load_vector(cell, mask=mask), builder.load(best)
                better = emit.floats.better(new, old)
                better = builder.or_(better, floats.splat(builder.load(fresh)))
                number = builder.trunc(builder.add(builder.mul(r, per_row), s), numbers.element)
                builder.store(builder.select(better, new, old), best)
                builder.store(
                    builder.select(better, numbers.splat(number), builder.load(holder)), holder
                )
                builder.store(_i1(0), fresh)
            top, number = emit.floored(builder.load(best), builder.load(holder), floor)
            floats.store_vector(top, builder.gep(best_at, [at]), mask=mask)
            numbers.store_vector(number, builder.gep(cells_at, [at]), mask=mask)
        return cgctx.get_dummy_value()

    element = maxima.types[0].dtype
    return types.void(maxima, source, rows, columns, types.int64, element), codegen
