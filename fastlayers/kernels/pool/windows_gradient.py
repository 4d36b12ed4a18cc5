"""Gradients of maxima over windows, by the cells that held them; see `kernels.pool.windows`."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, element_pointer, operand
from fastlayers.kernels.pool.loops import (
    LANES,
    beyond_caches,
    pixel_vectors,
    rolled,
    smaller,
    vectors_of_pixel,
)

__all__ = [
    "OutputGradient",
    "PairedRows",
    "TiledRows",
    "gather_pairs",
    "gather_window",
    "spread_windows",
]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
_true = _i1(1)
# A number that no cell of a small window has.
NEVER = 254


class OutputGradient(NamedTuple):
    """The gradient of maxima and the cells that held them, flat arrays, from an offset on.

    With the output `y` a gradient counts as 0 where that is no greater than the floor; it may be
    None. Without cells, which are None then, no window has a maximum: the gradient is that of sums.
    """

    dy: Any
    cells: Any
    y: Any
    offset: int


class TiledRows(NamedTuple):
    """Rows of windows that lie side by side, and which rows of their cells are written."""

    first_cell_row: int
    last_cell_row: int  # excluded
    width: int  # of a window
    rows: int
    pixels: int
    depth: int


class PairedRows(NamedTuple):
    """Distances of a row of 3 x 3 windows in steps of 2 with a padding of 1."""

    odd_line: int  # from the even to the odd row of dx; 0 if the image ends before it
    below: int  # to the next row of dy; 0 if there is none
    pixels: int
    even: bool  # whether the image has the last odd column
    depth: int
    followed: bool  # whether dy and cells have a vector more behind these rows


class _Gradient:
    """Emits the output's gradient for one cell of the windows: 0 where another is the largest."""

    def __init__(self, cgctx, builder, kind, value, lanes: int, floor) -> None:
        self.builder = builder
        given = OutputGradient(*cgutils.unpack_tuple(builder, value))

        def pointer(field: int):
            if isinstance(kind.types[field], types.NoneType):
                return None
            return element_pointer(cgctx, builder, kind.types[field], given[field], given.offset)

        self._dy, self._cells, self._y = map(pointer, range(3))
        self.floats = Vectors(builder, self._dy.type.pointee, lanes)
        self.zero, self._floor = ir.Constant(self.floats.vector, None), self.floats.splat(floor)
        self.selective = self._cells is not None
        if self.selective:
            self.numbers = Vectors(builder, self._cells.type.pointee, lanes)

    def load(self, at, mask=None):
        """The gradient, 0 where there is an output and it is no greater than the floor."""
        dy = self.floats.load_vector(self.builder.gep(self._dy, [at]), mask=mask)
        if self._y is None:
            return dy
        y = self.floats.load_vector(self.builder.gep(self._y, [at]), mask=mask)
        low = self.builder.fcmp_ordered("<=", y, self._floor)
        return self.builder.select(low, self.zero, dy)

    def load_cells(self, at, mask=None):
        """The numbers of the cells that held the maxima."""
        return self.numbers.load_vector(self.builder.gep(self._cells, [at]), mask=mask)

    def where(self, held, number, value):
        here = self.builder.icmp_unsigned("==", held, number)
        return self.builder.select(here, value, self.zero)


@intrinsic(prefer_literal=True)
def spread_windows(typingctx, lanes, unrolled, target, gradient, tiles, floor):
    """Write rows of the input gradient for windows that lie side by side.

    ``dx[r, j * width + s, c] = dy[j, c]`` where its cell is ``r * width + s``, else 0, for
    ``s < width`` and the rows r of cells that `tiles`, a `TiledRows`, names; so for its `rows` rows
    of windows, whose rows of dx and dy follow each other. ``target = (dx, offset)``, `gradient` is
    an `OutputGradient`. `unrolled` is a tuple as long as the width, to unroll it, or empty.
    """

    def codegen(cgctx, builder, sig, values):
        (dx,) = operand(cgctx, builder, target, values[2])
        given, side = TiledRows(*cgutils.unpack_tuple(builder, values[4])), unrolled.count
        emit = _Gradient(cgctx, builder, gradient, values[3], lanes.literal_value, values[5])
        floats, numbers, depth = emit.floats, emit.numbers, given.depth
        one = ir.Constant(numbers.vector, [1] * numbers.lanes)
        number = cgutils.alloca_once(builder, numbers.vector)
        step = builder.mul(given.width, depth)
        low, high = given.first_cell_row, given.last_cell_row

        def sweep(store) -> None:
            with rolled(builder, _i64(0), given.rows) as i, rolled(builder, low, high) as r:
                line = builder.add(builder.mul(i, builder.sub(high, low)), builder.sub(r, low))
                line = builder.mul(builder.mul(line, given.pixels), step)
                above = builder.mul(builder.mul(i, given.pixels), depth)
                first = builder.trunc(builder.mul(r, given.width), numbers.element)
                first = numbers.splat(first)

                def spread(from_, to) -> None:
                    at = builder.add(above, from_)
                    value, held = emit.load(at), emit.load_cells(at)
                    spot, cell = builder.gep(dx, [builder.add(line, to)]), first
                    if side:
                        for _ in range(side):
                            store(emit.where(held, cell, value), spot)
                            cell, spot = builder.add(cell, one), builder.gep(spot, [depth])
                        return
                    builder.store(first, number)
                    with rolled(builder, _i64(0), given.width) as s:
                        cell = builder.load(number)
                        to = builder.gep(spot, [builder.mul(s, depth)])
                        store(emit.where(held, cell, value), to)
                        builder.store(builder.add(cell, one), number)

                size, none = (_i64(1), given.pixels), (_i64(0), _i64(0))
                pixel_vectors(builder, floats.lanes, size, depth, (depth, step), none, spread)

        if side and floats.lanes == LANES:
            with builder.if_else(beyond_caches(cgctx, builder, target, values[2], depth)) as (a, b):
                with a:
                    sweep(floats.stream_vector)
                with b:
                    sweep(floats.store_vector)
        else:
            sweep(floats.store_vector)
        return cgctx.get_dummy_value()

    return types.void(lanes, unrolled, target, gradient, tiles, gradient.types[0].dtype), codegen


@intrinsic
def gather_window(typingctx, target, gradient, table, rows, columns, depth, floor):
    """Write the gradient of one input pixel: the sum over the windows that hold it.

    ``dx[c] = sum of dy[row + column + c]`` where the cell is ``r + s``, over the pairs
    ``(row, r) = table[k], table[k + 1]`` for k from ``rows[0]`` to ``rows[1]`` in steps of 2, and
    ``(column, s)`` alike. ``target = (dx, offset)``, `gradient` is an `OutputGradient`.
    """

    def codegen(cgctx, builder, sig, values):
        (dx,) = operand(cgctx, builder, target, values[0])
        entries = cgctx.make_array(table)(cgctx, builder, values[2]).data
        (row, rows_end), (column, columns_end) = (
            cgutils.unpack_tuple(builder, value) for value in values[3:5]
        )
        depth, floor = values[5:]
        emit = _Gradient(cgctx, builder, gradient, values[1], LANES, floor)
        floats = emit.floats
        total = cgutils.alloca_once(builder, floats.vector)

        def entry(k) -> list[Any]:
            return [
                builder.load(builder.gep(entries, [builder.add(k, _i64(which))]))
                for which in (0, 1)
            ]

        with rolled(builder, _i64(0), depth, LANES) as c:
            mask = floats.first_lanes(builder.sub(depth, c))
            builder.store(emit.zero, total)
            with rolled(builder, row, rows_end, 2) as k:
                line, r = entry(k)
                line = builder.add(line, c)
                with rolled(builder, column, columns_end, 2) as m:
                    pixel, s = entry(m)
                    at = builder.add(line, pixel)
                    value = emit.load(at, mask)
                    if emit.selective:
                        numbers = emit.numbers
                        cell = numbers.splat(builder.trunc(builder.add(r, s), numbers.element))
                        value = emit.where(emit.load_cells(at, mask), cell, value)
                    builder.store(builder.fadd(builder.load(total), value), total)
            floats.store_vector(builder.load(total), builder.gep(dx, [c]), mask=mask)
        return cgctx.get_dummy_value()

    element = gradient.types[0].dtype
    return types.void(target, gradient, table, rows, columns, types.int64, element), codegen


class _Pairs:
    """Emits `gather_pairs`."""

    def __init__(self, builder, emit: _Gradient, dx, given: PairedRows) -> None:
        self._builder, self._emit, self._dx, self._given = builder, emit, dx, given

    def first_pixels(self):
        """Two rows of dx but for their ends, where a vector holds a pixel and parts of others.

        Each vector is written before those behind it, and all stay in their rows. Gives the number
        of pixels of dy. With 6 channels, 128 images of 28 x 28 take 0.17 ms, all by masks 0.53.
        """
        builder, given, depth = self._builder, self._given, self._given.depth
        lanes = _i64(self._emit.floats.lanes)
        line = builder.mul(builder.mul(_i64(2), given.pixels), depth)
        line = builder.sub(line, builder.select(given.even, _i64(0), depth))
        stored = builder.add(builder.sdiv(builder.sub(line, lanes), depth), _i64(1))
        stored = builder.sdiv(stored, _i64(2))
        stored = smaller(builder, stored, builder.sub(given.pixels, _i64(1)))
        loaded = builder.sdiv(builder.sub(builder.mul(given.pixels, depth), lanes), depth)
        whole = builder.select(given.followed, stored, loaded)
        cells = self._numbers(_true)
        with rolled(builder, _i64(0), whole) as j:
            position = j, _i64(0), depth, depth
            self._block(position, cells, None, self._emit.floats.store_vector, True)
        return builder.select(builder.icmp_signed(">", whole, _i64(0)), whole, _i64(0))

    def row(self, narrow: bool, store, first, followed: bool = False) -> None:
        """Two rows of dx from pixel `first` on; `narrow` where a pixel is a part of a vector."""
        builder, given = self._builder, self._given
        last = builder.sub(given.pixels, _i64(1))
        with rolled(builder, _i64(0), _i64(2)) as part:  # all but the last pixel, then that
            inner = builder.icmp_signed("==", part, _i64(0))
            right = builder.select(inner, given.depth, _i64(0))
            step = builder.select(builder.or_(inner, given.even), given.depth, _i64(0))
            cells = self._numbers(inner)
            start = builder.select(inner, first, last)
            stop = builder.select(inner, last, given.pixels)
            with rolled(builder, start, stop) as j:
                if narrow:
                    mask = self._emit.floats.first_lanes(given.depth)
                    position, loaded = (j, _i64(0), right, step), None if followed else mask
                    self._block(position, cells, loaded, partial(store, mask=mask))
                else:
                    loop, width, end = vectors_of_pixel(builder, LANES, given.depth)
                    with loop as v:
                        c = smaller(builder, builder.mul(v, width), end)
                        self._block((j, c, right, step), cells, None, store)

    def _numbers(self, inner) -> list[Any]:
        """Numbers of the cells; `inner` says whether there is an output pixel on the right."""
        below = self._builder.icmp_signed("!=", self._given.below, _i64(0))
        return [
            self._number(k, *[below] * (k in (0, 1, 2)), *[inner] * (k in (0, 3, 6)))
            for k in range(9)
        ]

    def _number(self, value: int, *conditions):
        """The number of a cell, or of none unless all conditions hold."""
        numbers = self._emit.numbers
        number = numbers.element(value)
        for condition in conditions:
            number = self._builder.select(condition, number, numbers.element(NEVER))
        return numbers.splat(number)

    def _block(self, position, cells: list[Any], mask, store, ascending: bool = False) -> None:
        """Four pixels of dx, from the channel c on, by output pixel j and those after it.

        Those of a row or column that may be missing are written first, or with `ascending` in the
        order of their row.
        """
        builder, emit, given = self._builder, self._emit, self._given
        j, c, right, step = position
        corner = builder.add(builder.mul(j, given.depth), c)
        seen = []
        for offset in (_i64(0), right, given.below, builder.add(given.below, right)):
            at = builder.add(corner, offset)
            seen.append((emit.load(at, mask), emit.load_cells(at, mask)))
        at = builder.add(builder.mul(j, builder.add(given.depth, given.depth)), c)
        places = (
            (builder.add(given.odd_line, step), (8, 6, 2, 0)),
            (given.odd_line, (7, None, 1, None)),
            (step, (5, 3, None, None)),
            (_i64(0), (4, None, None, None)),
        )
        for k in (1, 0, 3, 2) if ascending else range(4):
            place, held_by = places[k]
            total = None
            for (value, held), cell in zip(seen, held_by, strict=True):
                if cell is not None:
                    term = emit.where(held, cells[cell], value)
                    total = builder.fadd(total, term) if total else term
            store(total, builder.gep(self._dx, [builder.add(at, place)]))


@intrinsic
def gather_pairs(typingctx, target, gradient, pairs, floor):
    """Write two rows of the input gradient of 3 x 3 windows in steps of 2 with a padding of 1.

    Of four pixels, of an even and an odd row and column, the first is seen by one window, the next
    two by two and the last by four: those of output pixel j, the next one, and the same in the next
    row. A row or column that is missing is written over by the one before. ``target = (dx,
    offset)``, `gradient` is an `OutputGradient` of the upper row, and `pairs` a `PairedRows`.
    """

    def codegen(cgctx, builder, sig, values):
        (dx,) = operand(cgctx, builder, target, values[0])
        given = PairedRows(*cgutils.unpack_tuple(builder, values[2]))
        emit = _Gradient(cgctx, builder, gradient, values[1], LANES, values[3])
        pairs_of, floats = _Pairs(builder, emit, dx, given), emit.floats
        beyond = beyond_caches(cgctx, builder, target, values[0], given.depth)
        half = _Gradient(cgctx, builder, gradient, values[1], LANES // 2, values[3])
        halves = _Pairs(builder, half, dx, given)
        below = [builder.icmp_signed("<", given.depth, _i64(n)) for n in (LANES // 2 + 1, LANES)]
        with builder.if_else(below[1]) as (narrow, wide):
            with narrow, builder.if_else(below[0]) as (a, b):
                with a:
                    first, store = halves.first_pixels(), half.floats.store_vector
                    with builder.if_else(given.followed) as (inner, last):
                        with inner:
                            halves.row(True, store, first, followed=True)
                        with last:
                            halves.row(True, store, first)
                with b:
                    pairs_of.row(True, floats.store_vector, _i64(0))
            with wide, builder.if_else(beyond) as (a, b):
                with a:
                    pairs_of.row(False, floats.stream_vector, _i64(0))
                with b:
                    pairs_of.row(False, floats.store_vector, _i64(0))
        return cgctx.get_dummy_value()

    return types.void(target, gradient, pairs, gradient.types[0].dtype), codegen
