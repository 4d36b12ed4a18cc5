"""Vector loops over the windows that tile a channels-last image, for batch normalisation.

Windows are as far apart as they are long, so each cell belongs to one or, behind the last window,
to none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, element_pointer, prefetch
from fastlayers.kernels.norm.rows import AHEAD
from fastlayers.runtime import cpu

__all__ = ["Facts", "Pooled", "Start", "add_row", "pool_row", "spread_row"]

_i64 = ir.IntType(64)


class Facts(NamedTuple):
    """Images in windows of so many rows and columns, and how they are cut into chunks."""

    images: int
    height: int
    width: int
    channels: int
    window_rows: int
    window_columns: int
    span: int  # images of a chunk
    chunks: int
    stream_gradient: bool  # by non-temporal stores: then the channels fill aligned vectors


class Pooled(NamedTuple):
    """What pooling gives, maxima and the cells that hold them."""

    maxima: Any
    cells: Any


class Start(NamedTuple):
    """Where a row of windows starts: in the images, and in what pooling gives."""

    image: int
    pooled: int


class _Windows(Vectors):
    """Emits loops over the windows of a row and over their cells, for a vector of channels."""

    def __init__(self, cgctx: Any, builder: Any, element: types.Type, facts: Any) -> None:
        lanes = cpu.lanes(element.bitwidth // 8)
        super().__init__(builder, cgctx.get_data_type(element), lanes)
        self.facts = facts = Facts(*cgutils.unpack_tuple(builder, facts))
        self.width, self.channels = facts.width, facts.channels
        self.rows, self.columns = facts.window_rows, facts.window_columns
        self.zero = ir.Constant(self.vector, None)
        self.two_columns = False

    def by_channels(self, emit: Callable[[], None]) -> None:
        """Emit for windows of 2 x 2 of few channels, a row of which fits a vector, and for others.

        There the lanes from `channels` on are the second column's: a loop of 6 channels then has
        two loads and stores of 12 lanes instead of four of 6.
        """
        builder = self.builder
        fits = builder.icmp_signed("<=", builder.mul(self.channels, _i64(2)), _i64(self.lanes))
        with builder.if_else(builder.and_(fits, self._square())) as (few, many):
            with few:
                self.two_columns = True
                self.first_column = self.first_lanes(self.channels)
                both = self.first_lanes(builder.mul(self.channels, _i64(2)))
                self.second_column = builder.and_(both, builder.not_(self.first_column))
                self.both_columns = both
                emit()
            with many:
                self.two_columns = False
                emit()

    def _square(self) -> Any:
        builder, two = self.builder, _i64(2)
        return builder.and_(
            builder.icmp_signed("==", self.rows, two),
            builder.icmp_signed("==", self.columns, two),
        )

    def pooled(self, vectors: Vectors, pointer: Any, *offsets: Any, mask: Any) -> Any:
        """Load channels of a window, for each of its columns that a vector holds."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        if not self.two_columns:
            return vectors.load_vector(pointer, mask=mask)
        second = self.builder.gep(pointer, [self.builder.neg(self.channels)])
        return self.builder.select(
            self.first_column,
            vectors.load_vector(pointer, mask=self.first_column),
            vectors.load_vector(second, mask=self.second_column),
        )

    def holds(self, numbers: Vectors, cell: Any, cell_of: Any) -> Any:
        """Where the cell that holds the maximum is `cell`, or the one beside it."""
        number = numbers.splat(self.builder.trunc(cell, numbers.element))
        if self.two_columns:
            one = ir.Constant(numbers.vector, [1] * self.lanes)
            right = self.builder.add(number, one)
            number = self.builder.select(self.first_column, number, right)
        return self.builder.icmp_unsigned("==", cell_of, number)

    def channel_vectors(self) -> Any:
        return cgutils.for_range_slice(self.builder, _i64(0), self.channels, _i64(self.lanes), _i64)

    def mask(self, at: Any) -> Any:
        if self.two_columns:
            return self.both_columns
        return self.first_lanes(self.builder.sub(self.channels, at))

    def factors(self, pointer: Any, at: Any, count: int, mask: Any) -> list[Any]:
        """Vectors of `count` rows of factors."""
        rows = (self.builder.mul(self.channels, _i64(k)) for k in range(count))
        return [self.pooled(self, pointer, row, at, mask=mask) for row in rows]

    def load(self, pointer: Any, *offsets: Any, mask: Any) -> Any:
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return self.load_vector(pointer, mask=mask)

    def windows(self) -> Any:
        count = self.builder.sdiv(self.width, self.columns)
        return cgutils.for_range(self.builder, count)

    def each_cell(self, visit: Callable[[Any, Any], None]) -> None:
        """Call ``visit(cell, its distance from the window's first)``, unrolled for 2 x 2 cells."""
        builder = self.builder
        row = builder.mul(self.width, self.channels)
        if self.two_columns:
            visit(_i64(0), _i64(0))
            visit(_i64(2), row)
            return
        with builder.if_else(self._square()) as (unrolled, looped):
            with unrolled:
                for r, below in enumerate((_i64(0), row)):
                    visit(_i64(2 * r), below)
                    visit(_i64(2 * r + 1), builder.add(below, self.channels))
            with (
                looped,
                cgutils.for_range(builder, self.rows) as r,
                cgutils.for_range(builder, self.columns) as s,
            ):
                cell = builder.add(builder.mul(r.index, self.columns), s.index)
                right = builder.mul(s.index, self.channels)
                visit(cell, builder.add(builder.mul(r.index, row), right))

    def read(self, pointer: Any, *offsets: Any, mask: Any) -> Any:
        """Load what is read once, and prefetch what follows."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        prefetch(self.builder, self.builder.gep(pointer, [_i64(AHEAD // self._align)]))
        return self.load_vector(pointer, mask=mask)

    def add_to(self, pointer: Any, value: Any, mask: Any) -> None:
        """Add the lanes of a mask to memory."""
        total = self.builder.fadd(self.load_vector(pointer, mask=mask), value)
        self.store_vector(total, pointer, mask=mask)

    def gradient(self, dy: Any, y: Any, relu: Any) -> Any:
        """`dy` where the output is positive or NaN or where there was no ReLU."""
        builder = self.builder
        low = builder.select(relu, self.splat(ir.Constant(self.element, 0.0)), self.lowest())
        return builder.select(builder.fcmp_ordered("<=", y, low), self.zero, dy)

    def lowest(self) -> Any:
        return self.splat(ir.Constant(self.element, float("-inf")))


def _pooled_pointers(cgctx: Any, builder: Any, kind: Any, value: Any, start: Start) -> list[Any]:
    """Pointers to the row's first maximum and first cell in `Pooled`."""
    arrays = zip(kind.types, cgutils.unpack_tuple(builder, value), strict=True)
    return [element_pointer(cgctx, builder, kind, array, start.pooled) for kind, array in arrays]


@intrinsic
def pool_row(
    typingctx: Any, x: Any, start: Any, facts: Any, factors: Any, floor: Any, pooled: Any
) -> Any:
    """Maxima over the windows of one row, with the cells that hold them."""

    def codegen(cgctx, builder, sig, args):
        emit = _Windows(cgctx, builder, x.dtype, args[2])
        start = Start(*cgutils.unpack_tuple(builder, args[1]))
        source = element_pointer(cgctx, builder, x, args[0], start.image)
        table = element_pointer(cgctx, builder, factors, args[3], _i64(0))
        out, holders = _pooled_pointers(cgctx, builder, pooled, args[5], start)
        numbers = Vectors(builder, holders.type.pointee, emit.lanes)
        best = cgutils.alloca_once(builder, emit.vector)
        holder = cgutils.alloca_once(builder, numbers.vector)
        low = emit.splat(args[4])
        with emit.channel_vectors() as (at, _):
            mask = emit.first_lanes(builder.sub(emit.channels, at))
            mean, scale, shift = emit.factors(table, at, 3, mask)
            with emit.windows() as window:
                first = builder.mul(builder.mul(window.index, emit.columns), emit.channels)
                origin = builder.gep(builder.gep(source, [first]), [at])
                delta = builder.fsub(emit.load(origin, mask=mask), mean)
                builder.store(emit.fma(delta, scale, shift), best)
                builder.store(ir.Constant(numbers.vector, None), holder)

                def visit(cell: Any, offset: Any) -> None:
                    delta = builder.fsub(emit.read(origin, offset, mask=mask), mean)
                    new, old = emit.fma(delta, scale, shift), builder.load(best)
                    better = emit.better(new, old)
                    number = numbers.splat(builder.trunc(cell, numbers.element))
                    builder.store(builder.select(better, new, old), best)
                    builder.store(builder.select(better, number, builder.load(holder)), holder)

                emit.each_cell(visit)
                value = builder.load(best)
                value = builder.select(builder.fcmp_ordered("<=", value, low), low, value)
                place = builder.add(builder.mul(window.index, emit.channels), at)
                emit.store_vector(value, builder.gep(out, [place]), mask=mask)
                numbers.store_vector(builder.load(holder), builder.gep(holders, [place]), mask=mask)
        return cgctx.get_dummy_value()

    return types.void(x, start, facts, factors, x.dtype, pooled), codegen


@intrinsic
def add_row(
    typingctx: Any,
    dy: Any,
    pooled: Any,
    x: Any,
    start: Any,
    facts: Any,
    factors: Any,
    relu: Any,
    sums: Any,
) -> Any:
    """Add ``sum(g)`` and ``sum(g * (x - mean))`` over the windows of one row to two rows."""

    def codegen(cgctx, builder, sig, args):
        emit = _Windows(cgctx, builder, x.dtype, args[4])
        start = Start(*cgutils.unpack_tuple(builder, args[3]))
        gradients = element_pointer(cgctx, builder, dy, args[0], start.pooled)
        outputs, holders = _pooled_pointers(cgctx, builder, pooled, args[1], start)
        source = element_pointer(cgctx, builder, x, args[2], start.image)
        table = element_pointer(cgctx, builder, factors, args[5], _i64(0))
        target = element_pointer(cgctx, builder, sums, args[7], _i64(0))
        numbers = Vectors(builder, holders.type.pointee, emit.lanes)
        held, total, dot = (cgutils.alloca_once(builder, emit.vector) for _ in range(3))
        of_cell = cgutils.alloca_once(builder, emit.vector)

        def add_window(window: Any, at: Any, mean: Any, mask: Any) -> None:
            first = builder.mul(builder.mul(window.index, emit.columns), emit.channels)
            origin = builder.gep(builder.gep(source, [first]), [at])
            place = builder.add(builder.mul(window.index, emit.channels), at)
            g = emit.gradient(
                emit.pooled(emit, gradients, place, mask=mask),
                emit.pooled(emit, outputs, place, mask=mask),
                args[6],
            )
            cell_of = emit.pooled(numbers, holders, place, mask=mask)
            builder.store(mean, held)
            builder.store(emit.zero, of_cell)

            def visit(cell: Any, offset: Any) -> None:
                here = emit.holds(numbers, cell, cell_of)
                value = emit.read(origin, offset, mask=mask)
                builder.store(builder.select(here, value, builder.load(held)), held)
                if emit.two_columns:  # the other column's lanes have another window's cell, or none
                    builder.store(builder.select(here, g, builder.load(of_cell)), of_cell)

            emit.each_cell(visit)
            delta = builder.fsub(builder.load(held), mean)
            builder.store(builder.fadd(builder.load(total), g), total)
            factor = builder.load(of_cell) if emit.two_columns else g
            builder.store(emit.fma(factor, delta, builder.load(dot)), dot)

        def add_all() -> None:
            with emit.channel_vectors() as (at, _):
                mask = emit.mask(at)
                (mean,) = emit.factors(table, at, 1, mask)
                builder.store(emit.zero, total)
                builder.store(emit.zero, dot)
                with emit.windows() as window:
                    add_window(window, at, mean, mask)
                column = emit.first_column if emit.two_columns else mask
                row = builder.gep(target, [at])
                emit.add_to(row, builder.load(total), column)
                row = builder.gep(row, [emit.channels])
                emit.add_to(row, builder.load(dot), column)
                if emit.two_columns:
                    row = builder.gep(row, [builder.neg(emit.channels)])
                    emit.add_to(row, builder.load(dot), emit.second_column)

        emit.by_channels(add_all)
        return cgctx.get_dummy_value()

    return types.void(dy, pooled, x, start, facts, factors, types.boolean, sums), codegen


@intrinsic
def spread_row(
    typingctx: Any,
    dy: Any,
    pooled: Any,
    x: Any,
    start: Any,
    facts: Any,
    factors: Any,
    relu: Any,
    dx: Any,
) -> Any:
    """Write the input gradient in all cells of the windows of one row."""

    def codegen(cgctx, builder, sig, args):
        emit = _Windows(cgctx, builder, x.dtype, args[4])
        start = Start(*cgutils.unpack_tuple(builder, args[3]))
        gradients = element_pointer(cgctx, builder, dy, args[0], start.pooled)
        outputs, holders = _pooled_pointers(cgctx, builder, pooled, args[1], start)
        source = element_pointer(cgctx, builder, x, args[2], start.image)
        table = element_pointer(cgctx, builder, factors, args[5], _i64(0))
        out = element_pointer(cgctx, builder, dx, args[7], start.image)
        numbers = Vectors(builder, holders.type.pointee, emit.lanes)

        def spread_window(window: Any, at: Any, factors: list[Any], mask: Any) -> None:
            mean, scale, _, slope, constant = factors
            first = builder.mul(builder.mul(window.index, emit.columns), emit.channels)
            first = builder.add(first, at)
            place = builder.add(builder.mul(window.index, emit.channels), at)
            g = emit.gradient(
                emit.pooled(emit, gradients, place, mask=mask),
                emit.pooled(emit, outputs, place, mask=mask),
                args[6],
            )
            g = builder.fmul(g, scale)
            cell_of = emit.pooled(numbers, holders, place, mask=mask)

            def visit(cell: Any, offset: Any) -> None:
                here = emit.holds(numbers, cell, cell_of)
                offset = builder.add(first, offset)
                delta = builder.fsub(emit.read(source, offset, mask=mask), mean)
                value = emit.fma(delta, slope, constant)
                value = builder.fadd(builder.select(here, g, emit.zero), value)
                target = builder.gep(out, [offset])
                if emit.two_columns:
                    emit.store_vector(value, target, mask=mask)
                    return
                with builder.if_else(emit.facts.stream_gradient) as (streamed, stored):
                    with streamed:
                        emit.stream_vector(value, target)
                    with stored:
                        emit.store_vector(value, target, mask=mask)

            emit.each_cell(visit)

        def spread_all() -> None:
            with emit.channel_vectors() as (at, _):
                mask = emit.mask(at)
                factors = emit.factors(table, at, 5, mask)
                with emit.windows() as window:
                    spread_window(window, at, factors, mask)

        emit.by_channels(spread_all)
        return cgctx.get_dummy_value()

    return types.void(dy, pooled, x, start, facts, factors, types.boolean, dx), codegen
