"""Maxima over windows of channels-last images, and their gradients, in vectors of channels.

Images are flat. Vectors of up to 16 channels cover a pixel. With fewer channels than lanes a
whole vector is written all the same: its last lanes spill over the next pixel, which is written
later. With more, the last vector ends at the last channel, and writes some channels twice. So
there are no masks, but at the end of what a thread writes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.vectors import Vectors, element_pointer, prefetch

__all__ = [
    "gather_pairs",
    "gather_window",
    "max_window",
    "max_windows",
    "mean_window",
    "spread_mean",
    "spread_windows",
    "sum_rows",
]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
LANES = 16
# Columns that are summed together, and elements between a row that is read and one asked for.
COLUMNS, AHEAD = 4 * LANES, 2048
# Bytes of a gradient that is written past the caches: more than L3 holds. At 25 MB one thread took
# 0.8 ms instead of 1.5 for 3 x 3 windows, but two gained nothing over one.
LARGE = 32 << 20


def _pointers(cgctx: Any, builder: Any, sig: Any, values: Any, *pairs: tuple[int, int]) -> Any:
    """Addresses of elements: pairs of the positions of a flat array and of an index."""
    return [element_pointer(cgctx, builder, sig.args[a], values[a], values[i]) for a, i in pairs]


def _optional(cgctx: Any, builder: Any, sig: Any, values: Any, array: int, at: int) -> Any:
    """Address of an element, or None for an array that is None."""
    if isinstance(sig.args[array], types.NoneType):
        return None
    return _pointers(cgctx, builder, sig, values, (array, at))[0]


@contextlib.contextmanager
def _rolled(builder: Any, start: Any, stop: Any, step: Any = 1) -> Iterator[Any]:
    """Loop that LLVM leaves as it is; gives the index.

    It would unroll by eight these loops over a few cells: twice the time to compile, and slower.
    """
    before = builder.block
    head, body, done = (builder.append_basic_block(f"rolled.{n}") for n in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(_i64)
    index.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<", index, stop), body, done)
    builder.position_at_end(body)
    yield index
    step = _i64(step) if isinstance(step, int) else step
    index.add_incoming(builder.add(index, step), builder.block)
    back = builder.branch(head)
    module = builder.module
    option = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    name = module.add_metadata([option, option])  # of the loop: it begins with itself
    name.operands = (name, option)
    back.set_metadata("llvm.loop", name)
    builder.position_at_end(done)


class _Best:
    """Emits the search for the largest cell: the first of equals, or the first NaN."""

    def __init__(self, builder: Any, value: ir.Type, cell: ir.Type, lanes: int) -> None:
        self.builder = builder
        self.floats, self.numbers = Vectors(builder, value, lanes), Vectors(builder, cell, lanes)

    def better(self, new: Any, old: Any) -> Any:
        """Where `new` is greater, or a NaN against a number: a NaN stays against all."""
        unordered = self.builder.fcmp_unordered("ugt", new, old)
        return self.builder.and_(unordered, self.builder.fcmp_ordered("ord", old, old))

    def floored(self, best: Any, holder: Any, floor: Any) -> tuple[Any, Any]:
        """The maximum and its cell; where it is not above the floor that, and no cell.

        Nothing is below a floor of NaN.
        """
        floor = self.floats.splat(floor)
        above = self.builder.fcmp_unordered("ugt", best, floor)
        none = ir.Constant(self.numbers.vector, [-1] * self.floats.lanes)
        return self.builder.select(above, best, floor), self.builder.select(above, holder, none)


def _past_caches(cgctx: Any, builder: Any, kind: Any, array: Any, depth: Any) -> Any:
    """Whether an array of whole aligned vectors is so large as to be written past the caches."""
    array = cgctx.make_array(kind)(cgctx, builder, array)
    width = kind.dtype.bitwidth // 8
    address = builder.mul(depth, _i64(width))
    address = builder.or_(address, builder.ptrtoint(array.data, _i64))
    aligned = builder.icmp_signed("==", builder.and_(address, _i64(LANES * width - 1)), _i64(0))
    large = builder.icmp_signed(">=", array.nitems, _i64(LARGE // width))
    return builder.and_(aligned, large)


def _vectors_of_pixel(builder: Any, lanes: int, depth: Any) -> Any:
    """Loop over a pixel's vectors, of which the last one ends at its last channel."""
    step = _i64(lanes)
    count = builder.sdiv(builder.add(depth, _i64(lanes - 1)), step)
    last = builder.sub(depth, step)
    last = builder.select(builder.icmp_signed("<", last, _i64(0)), _i64(0), last)
    return _rolled(builder, _i64(0), count), step, last


def _bounded(builder: Any, count: Any, v: int) -> Any:
    """Elements of vector v among `count`, as many as a mask has at most."""
    return _smaller(builder, builder.sub(count, _i64(v * LANES)), _i64(LANES))


def _smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)


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
    pixels: Any,
    step: Any,
    depth: Any,
    floor: Any,
) -> Any:
    """Maxima over the windows of a run of output pixels, and the numbers of their cells.

    ``y[j * depth + c] = max over r, s of x[j * step + R[r] + S[s] + c]``, and ``P[r] + Q[s]`` of
    the first that holds it; where that is not above `floor`, the floor and the largest number.
    Nothing is below a floor of NaN. R and after it P are in the table from `rows` on, S and Q from
    `columns` on, and `window` are their lengths. A window that is cut off by the image's edge
    repeats its first or last row or column with the same numbers. `square` is a tuple as long as
    both sides of the window, to unroll it, or empty.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        best_at, cells_at, source = _pointers(cgctx, builder, sig, values, (2, 4), (3, 4), (5, 6))
        entries = cgctx.make_array(table)(cgctx, builder, values[7]).data
        rows, columns = values[8:10]
        kh, kw = cgutils.unpack_tuple(builder, values[10])
        pixels, step, depth, floor = values[11:]
        emit = _Best(builder, best_at.type.pointee, cells_at.type.pointee, lanes.literal_value)
        floats, numbers = emit.floats, emit.numbers
        side = square.count

        def entry(at: Any, k: Any) -> Any:
            return builder.load(builder.gep(entries, [builder.add(at, k)]))

        def number(at: Any, along: Any) -> Any:
            return numbers.splat(builder.trunc(builder.add(at, along), numbers.element))

        def next_cell(at: Any, number: Any, best: Any, holder: Any) -> Any:
            new = floats.load_vector(at)
            better = emit.better(new, best)
            return builder.select(better, new, best), builder.select(better, number, holder)

        if side:
            lines = [builder.gep(source, [entry(rows, _i64(r))]) for r in range(side)]
            places = [entry(columns, _i64(s)) for s in range(side)]
            down, along = (
                [entry(at, _i64(side + k)) for k in range(side)] for at in (rows, columns)
            )
            known = [[number(p, q) for q in along] for p in down]
        else:
            slots = [cgutils.alloca_once(builder, v.vector) for v in (floats, numbers)]

        with _rolled(builder, _i64(0), pixels) as j:
            pixel, out = builder.mul(j, step), builder.mul(j, depth)
            loop, width, last = _vectors_of_pixel(builder, floats.lanes, depth)
            with loop as v:
                c = _smaller(builder, builder.mul(v, width), last)
                from_, to = builder.add(pixel, c), builder.add(out, c)
                if side:
                    spots = [builder.add(from_, place) for place in places]
                    best, holder = floats.load_vector(builder.gep(lines[0], spots[:1])), known[0][0]
                    for r, line in enumerate(lines):
                        for s in range(0 if r else 1, side):
                            at = builder.gep(line, [spots[s]])
                            best, holder = next_cell(at, known[r][s], best, holder)
                else:
                    corner = builder.add(entry(rows, _i64(0)), entry(columns, _i64(0)))
                    corner = builder.gep(source, [builder.add(from_, corner)])
                    # The first cell is taken as it is, and is no greater than itself.
                    builder.store(floats.load_vector(corner), slots[0])
                    first = number(entry(rows, kh), entry(columns, kw))
                    builder.store(first, slots[1])
                    with (
                        _rolled(builder, _i64(0), kh) as r,
                        _rolled(builder, _i64(0), kw) as s,
                    ):
                        at = builder.add(entry(rows, r), entry(columns, s))
                        at = builder.gep(source, [builder.add(from_, at)])
                        here = number(
                            entry(rows, builder.add(kh, r)), entry(columns, builder.add(kw, s))
                        )
                        state = next_cell(at, here, *(builder.load(slot) for slot in slots))
                        for value, slot in zip(state, slots, strict=True):
                            builder.store(value, slot)
                    best, holder = (builder.load(slot) for slot in slots)
                best, holder = emit.floored(best, holder, floor)
                floats.store_vector(best, builder.gep(best_at, [to]))
                numbers.store_vector(holder, builder.gep(cells_at, [to]))
        return cgctx.get_dummy_value()

    i8 = types.int64
    signature = types.void(
        lanes, square, y, cells, i8, x, i8, table, i8, i8, window, i8, i8, i8, y.dtype
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
        best_at, cells_at, source = _pointers(cgctx, builder, sig, values, (0, 2), (1, 2), (3, 4))
        r_first, r_last, r_step = cgutils.unpack_tuple(builder, values[5])
        s_first, s_last, s_step, per_row = cgutils.unpack_tuple(builder, values[6])
        emit = _Best(builder, best_at.type.pointee, cells_at.type.pointee, LANES)
        floats, numbers = emit.floats, emit.numbers
        best = cgutils.alloca_once(builder, floats.vector)
        holder = cgutils.alloca_once(builder, numbers.vector)
        fresh = cgutils.alloca_once(builder, _i1)
        lowest = floats.splat(ir.Constant(floats.element, float("-inf")))
        with _rolled(builder, _i64(0), values[7], LANES) as at:
            mask = floats.first_lanes(builder.sub(values[7], at))
            builder.store(lowest, best)
            builder.store(ir.Constant(numbers.vector, None), holder)
            # The first cell is taken as it is: minus infinity is no greater than the start.
            builder.store(_i1(1), fresh)
            with (
                _rolled(builder, r_first, r_last) as r,
                _rolled(builder, s_first, s_last) as s,
            ):
                offset = builder.add(builder.mul(r, r_step), builder.mul(s, s_step))
                cell = builder.gep(source, [builder.add(offset, at)])
                new, old = floats.load_vector(cell, mask=mask), builder.load(best)
                better = builder.or_(emit.better(new, old), floats.splat(builder.load(fresh)))
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
        target, origin, holder = _pointers(cgctx, builder, sig, values, (2, 3), (4, 7), (5, 7))
        output = _optional(cgctx, builder, sig, values, 6, 7)
        low, high = cgutils.unpack_tuple(builder, values[8])
        width, rows, pixels, depth, floor = values[9:]
        known = unrolled.count
        emit = _Gradient(builder, target.type.pointee, holder.type.pointee, lanes.literal_value)
        floats, numbers = emit.floats, emit.numbers
        floor = floats.splat(floor)
        one = ir.Constant(numbers.vector, [1] * numbers.lanes)
        number = cgutils.alloca_once(builder, numbers.vector)

        def sweep(store: Any) -> None:
            with (
                _rolled(builder, _i64(0), rows) as i,
                _rolled(builder, low, high) as r,
                _rolled(builder, _i64(0), pixels) as j,
            ):
                line = builder.add(builder.mul(i, builder.sub(high, low)), builder.sub(r, low))
                pixel = builder.mul(builder.add(builder.mul(line, pixels), j), width)
                pixel = builder.gep(target, [builder.mul(pixel, depth)])
                out = builder.mul(builder.add(builder.mul(i, pixels), j), depth)
                first = builder.trunc(builder.mul(r, width), numbers.element)
                first = numbers.splat(first)
                loop, step, last = _vectors_of_pixel(builder, floats.lanes, depth)
                with loop as v:
                    c = _smaller(builder, builder.mul(v, step), last)
                    at, to = builder.add(out, c), builder.gep(pixel, [c])
                    tested = output and builder.gep(output, [at])
                    value = emit.load(builder.gep(origin, [at]), tested, floor)
                    held = numbers.load_vector(builder.gep(holder, [at]))
                    if known:
                        cell = first
                        for s in range(known):
                            spot = builder.gep(to, [builder.mul(_i64(s), depth)])
                            store(emit.where(held, cell, value), spot)
                            cell = builder.add(cell, one)
                    else:
                        builder.store(first, number)
                        with _rolled(builder, _i64(0), width) as s:
                            cell = builder.load(number)
                            spot = builder.gep(to, [builder.mul(s, depth)])
                            store(emit.where(held, cell, value), spot)
                            builder.store(builder.add(cell, one), number)

        if known and floats.lanes == LANES:
            past = _past_caches(cgctx, builder, dx, values[2], depth)
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
        target, origin = _pointers(cgctx, builder, sig, values, (0, 1), (2, 5))
        entries = cgctx.make_array(table)(cgctx, builder, values[6]).data
        (row, rows_end), (column, columns_end) = (
            cgutils.unpack_tuple(builder, value) for value in values[7:9]
        )
        chosen = not isinstance(cells, types.NoneType)
        if chosen:
            (holder,) = _pointers(cgctx, builder, sig, values, (3, 5))
            output = _optional(cgctx, builder, sig, values, 4, 5)
        cell_type = holder.type.pointee if chosen else ir.IntType(8)
        emit = _Gradient(builder, target.type.pointee, cell_type, LANES)
        floats, numbers = emit.floats, emit.numbers
        floor = floats.splat(values[10])
        total = cgutils.alloca_once(builder, floats.vector)

        def entry(k: Any) -> list[Any]:
            return [builder.load(builder.gep(entries, [builder.add(k, _i64(i))])) for i in (0, 1)]

        depth = values[9]
        with _rolled(builder, _i64(0), depth, LANES) as c:
            mask = floats.first_lanes(builder.sub(depth, c))
            builder.store(emit.zero, total)
            with _rolled(builder, row, rows_end, 2) as k:
                line, r = entry(k)
                line = builder.add(line, c)
                with _rolled(builder, column, columns_end, 2) as m:
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
        target, origin, holder = _pointers(cgctx, builder, sig, values, (0, 1), (3, 6), (4, 6))
        output = _optional(cgctx, builder, sig, values, 5, 6)
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
            with _rolled(builder, _i64(0), _i64(2)) as part:  # all but the last pixel, then that
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
                with _rolled(builder, start, stop) as j:
                    if few:
                        mask = floats.first_lanes(depth)
                        block(j, right, step, known, _i64(0), mask, partial(store, mask=mask))
                    else:
                        loop, width, end = _vectors_of_pixel(builder, LANES, depth)
                        with loop as v:
                            c = _smaller(builder, builder.mul(v, width), end)
                            block(j, right, step, known, c, None, store)

        with builder.if_else(builder.icmp_signed("<", depth, _i64(LANES))) as (few, many):
            with few:
                row(True, floats.store_vector)
            with (
                many,
                builder.if_else(_past_caches(cgctx, builder, dx, values[0], depth)) as (a, b),
            ):
                with a:
                    row(False, floats.stream_vector)
                with b:
                    row(False, floats.store_vector)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(dx, i8, i8, dy, cells, y, i8, i8, i8, types.boolean, i8, dy.dtype), codegen


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
        target, source = _pointers(cgctx, builder, sig, values, (0, 1), (2, 3))
        number, row_step = cgutils.unpack_tuple(builder, values[4])
        columns, depth = values[5:7]
        floats = Vectors(builder, target.type.pointee, LANES)
        zero = ir.Constant(floats.vector, None)
        bits = Vectors(builder, _i1, LANES)
        sums = [cgutils.alloca_once(builder, floats.vector) for _ in range(4)]
        divisor = floats.splat(values[7])
        whole = builder.and_(columns, _i64(-4))
        with _rolled(builder, _i64(0), depth, LANES) as c:
            mask = floats.first_lanes(builder.sub(depth, c))
            first = builder.gep(source, [c])
            for slot in sums:
                builder.store(zero, slot)

            def add(at: Any, k: int) -> None:
                value = floats.load_vector(at, mask=mask)
                builder.store(builder.fadd(builder.load(sums[k]), value), sums[k])

            with _rolled(builder, _i64(0), number) as r:
                row = builder.gep(first, [builder.mul(r, row_step)])
                with _rolled(builder, _i64(0), whole, 4) as s:
                    for k in range(4):
                        pixel = builder.add(s, _i64(k))
                        add(builder.gep(row, [builder.mul(pixel, depth)]), k)
                with _rolled(builder, whole, columns) as s:
                    add(builder.gep(row, [builder.mul(s, depth)]), 0)
            a, b, c_, d = (builder.load(slot) for slot in sums)
            total = builder.fadd(builder.fadd(a, b), builder.fadd(c_, d))
            held = builder.and_(mask, bits.splat(values[8]))
            total = builder.fadd(total, floats.load_vector(builder.gep(target, [c]), mask=held))
            mean = builder.fdiv(total, divisor)
            floats.store_vector(mean, builder.gep(target, [c]), mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(y, i8, x, i8, rows, i8, i8, y.dtype, types.boolean), codegen


@intrinsic
def sum_rows(
    typingctx: Any, sums: Any, sums_at: Any, x: Any, x_at: Any, count: Any, width: Any
) -> Any:
    """``sums[j] = sum over i of x[i * width + j]`` for ``j < width``, a multiple of `COLUMNS`.

    As far as ``i * width + j < count``. Sums of `COLUMNS` columns stay in registers.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, source = _pointers(cgctx, builder, sig, values, (0, 1), (2, 3))
        count, width = values[4:]
        floats = Vectors(builder, target.type.pointee, LANES)
        zero = ir.Constant(floats.vector, None)
        sums = [cgutils.alloca_once(builder, floats.vector) for _ in range(COLUMNS // LANES)]
        whole = builder.mul(builder.sdiv(count, width), width)

        def add(at: Any, v: int, mask: Any = None) -> None:
            value = floats.load_vector(at, v, mask=mask)
            builder.store(builder.fadd(builder.load(sums[v]), value), sums[v])

        with _rolled(builder, _i64(0), width, COLUMNS) as first:
            for slot in sums:
                builder.store(zero, slot)
            last = builder.add(first, whole)
            with _rolled(builder, first, last, width) as row:
                at = builder.gep(source, [row])
                prefetch(builder, builder.gep(at, [_i64(AHEAD)]))
                for v in range(len(sums)):
                    add(at, v)
            left = builder.sub(count, last)
            with builder.if_then(builder.icmp_signed(">", left, _i64(0))):
                for v in range(len(sums)):
                    mask = floats.first_lanes(_bounded(builder, left, v))
                    add(builder.gep(source, [last]), v, mask)
            for v, slot in enumerate(sums):
                floats.store_vector(builder.load(slot), builder.gep(target, [first]), v)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(sums, i8, x, i8, i8, i8), codegen


@intrinsic
def spread_mean(
    typingctx: Any,
    dx: Any,
    dx_at: Any,
    dy: Any,
    dy_at: Any,
    window: Any,
    line: Any,
    pixels: Any,
    depth: Any,
    divisor: Any,
) -> Any:
    """``dx[r * line + (j * window[1] + s) * depth + c] = dy[j, c] / divisor`` for ``j < pixels``.

    For all ``r < window[0]`` and ``s < window[1]``.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target, source = _pointers(cgctx, builder, sig, values, (0, 1), (2, 3))
        height, width = cgutils.unpack_tuple(builder, values[4])
        line, pixels, depth, divisor = values[5:]
        floats = Vectors(builder, target.type.pointee, LANES)
        divisor = floats.splat(divisor)

        def spread(masked: bool, store: Any) -> None:
            with _rolled(builder, _i64(0), pixels) as j:
                from_ = builder.gep(source, [builder.mul(j, depth)])
                to = builder.gep(target, [builder.mul(j, builder.mul(width, depth))])
                loop, step, last = _vectors_of_pixel(builder, LANES, depth)
                with loop as v:
                    c = _smaller(builder, builder.mul(v, step), last)
                    mask = floats.first_lanes(depth) if masked else None
                    value = floats.load_vector(builder.gep(from_, [c]), mask=mask)
                    value = builder.fdiv(value, divisor)
                    with (
                        _rolled(builder, _i64(0), height) as r,
                        _rolled(builder, _i64(0), width) as s,
                    ):
                        spot = builder.add(builder.mul(r, line), builder.mul(s, depth))
                        spot = builder.gep(to, [builder.add(spot, c)])
                        if masked:
                            store(value, spot, mask=mask)
                        else:
                            store(value, spot)

        narrow = builder.icmp_signed("<", depth, _i64(LANES))
        with builder.if_else(narrow) as (few, many):
            with few:
                spread(True, floats.store_vector)
            with (
                many,
                builder.if_else(_past_caches(cgctx, builder, dx, values[0], depth)) as (a, b),
            ):
                with a:
                    spread(False, floats.stream_vector)
                with b:
                    spread(False, floats.store_vector)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(dx, i8, dy, i8, window, i8, i8, i8, dy.dtype), codegen
