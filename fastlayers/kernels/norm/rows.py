"""Vector loops of batch normalisation over contiguous rows of equal width.

A row is one or several pixels, so a column always belongs to the same channel. The loops take
`GROUP` rows at a time, so that sums and factors of a column are loaded once for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, element_pointer, prefetch
from fastlayers.runtime import cpu

__all__ = [
    "FROM_INPUT",
    "FROM_OUTPUT",
    "PLAIN",
    "SCALED",
    "Factors",
    "Mask",
    "Rows",
    "add_gradients",
    "add_shifted",
    "input_gradient",
    "merge_run",
    "normalise",
]

_i64 = ir.IntType(64)

# Where the mask of a ReLU comes from: there is none, the input once more, the output. With running
# statistics and no mask the gradient is a multiple of dy.
PLAIN, FROM_INPUT, FROM_OUTPUT, SCALED = 0, 1, 2, 3
# Rows of a group; a sum alone needs so few registers and so little arithmetic that 8 pay.
GROUP, SUM_GROUP = 4, 8

# Bytes between a vector that is read and the line that is prefetched. Statistics of 32x64x56x56
# took 1.8 ms without, 1.3 at 4096, 0.9 at 8192 and 16384.
AHEAD = 8192


class Rows(NamedTuple):
    """So many rows of equal width, from the element `start` of a flat array on."""

    start: int
    number: int
    width: int


class Factors(NamedTuple):
    """A flat table of rows of `period` elements: mean, scale, shift, slope and offset of a column.

    Behind these it may have rows of sums.
    """

    table: Any
    period: int


class Mask(NamedTuple):
    """The output of a ReLU, and the memory for dy after its mask."""

    output: Any
    masked: Any


Body = Callable[[Any, list[Any], Any], None]


class _RowLoops(Vectors):
    """Emits loops over rows, and what they do with a vector of columns."""

    def __init__(self, cgctx, builder, element: types.Type, rows) -> None:
        lanes = cpu.lanes(element.bitwidth // 8)
        super().__init__(builder, cgctx.get_data_type(element), lanes)
        self._context, self.rows = cgctx, Rows(*cgutils.unpack_tuple(builder, rows))

    def pointer(self, kind, array, at=None):
        """Pointer to the element `at` of a flat array, of the first by default."""
        at = _i64(0) if at is None else at
        return element_pointer(self._context, self.builder, kind, array, at)

    def first_of(self, *operands: tuple[Any, Any]) -> list[Any]:
        """Pointers to the first element of the rows in arrays, given as types and values."""
        return [self.pointer(kind, array, self.rows.start) for kind, array in operands]

    def columns(self, kind, factors, number: int) -> list[Any]:
        """Pointers to the first rows of `Factors`."""
        table, period = cgutils.unpack_tuple(self.builder, factors)
        starts = [self.builder.mul(period, _i64(row)) for row in range(number)]
        return [self.pointer(kind.types[0], table, start) for start in starts]

    def sweep(self, group: int, body: Body) -> None:
        """Call ``body(column, offsets of some rows, mask)`` for all vectors of all rows."""
        builder, (_, number, width) = self.builder, self.rows
        whole = builder.mul(builder.sdiv(number, _i64(group)), _i64(group))
        wide = builder.and_(width, _i64(-self.lanes))
        for first, last, step in ((_i64(0), whole, group), (whole, number, 1)):
            with cgutils.for_range_slice(builder, first, last, _i64(step), _i64) as (row, _):
                offsets = [builder.mul(builder.add(row, _i64(i)), width) for i in range(step)]
                lanes = _i64(self.lanes)
                with cgutils.for_range_slice(builder, _i64(0), wide, lanes, _i64) as (at, _):
                    body(at, offsets, None)
                with builder.if_then(builder.icmp_signed("<", wide, width)):
                    body(wide, offsets, self.first_lanes(builder.sub(width, wide)))

    def at(self, pointer, *offsets):
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def load(self, pointer, *offsets, mask):
        return self.load_vector(self.at(pointer, *offsets), mask=mask)

    def read(self, pointer, *offsets, mask):
        """Load what is read once, and prefetch what follows."""
        at = self.at(pointer, *offsets)
        prefetch(self.builder, self.builder.gep(at, [_i64(AHEAD // self._align)]))
        return self.load_vector(at, mask=mask)

    def store(self, value, pointer, *offsets, mask) -> None:
        self.store_vector(value, self.at(pointer, *offsets), mask=mask)

    def write(self, values: list[Any], pointers: list[Any], mask, stream) -> None:
        """Store vectors that are written once, by non-temporal stores where `stream`."""
        if mask is not None:
            for value, at in zip(values, pointers, strict=True):
                self.store_vector(value, at, mask=mask)
            return
        with self.builder.if_else(stream) as (streamed, stored):
            with streamed:
                for value, at in zip(values, pointers, strict=True):
                    self.stream_vector(value, at)
            with stored:
                for value, at in zip(values, pointers, strict=True):
                    self.store_vector(value, at)

    def positive(self, test, value):
        """`value` where `test` is positive or NaN, 0 elsewhere, as the gradient of ReLU is."""
        zero = ir.Constant(self.vector, None)
        return self.builder.select(self.builder.fcmp_ordered("<=", test, zero), zero, value)

    def unless_zero(self, factor, value, other):
        """`value`, or `other` for a factor of 0, by which an infinite input would be NaN.

        So it is with running statistics, through which no gradient passes.
        """
        zero = ir.Constant(self.vector, None)
        return self.builder.select(self.builder.fcmp_ordered("==", factor, zero), other, value)

    def total(self, terms: list[Any]):
        """Sum by pairs."""
        while len(terms) > 1:
            terms = [
                self.builder.fadd(*terms[i : i + 2]) if i + 1 < len(terms) else terms[i]
                for i in range(0, len(terms), 2)
            ]
        return terms[0]


@intrinsic
def add_shifted(typingctx, x, rows, pivots, sums):
    """Add the sums of ``x - pivot`` and of its square over `Rows`, with a pivot for each column.

    ``sums[:width]`` and ``sums[width : 2 * width]`` are added to.
    """

    def codegen(cgctx, builder, sig, args):
        emit = _RowLoops(cgctx, builder, x.dtype, args[1])
        (source,), pivot_row = emit.first_of((x, args[0])), emit.pointer(pivots, args[2])
        totals = emit.pointer(sums, args[3])
        squares = emit.pointer(sums, args[3], emit.rows.width)

        def body(at, offsets: list[Any], mask) -> None:
            pivot = emit.load(pivot_row, at, mask=mask)
            loaded = [emit.read(source, offset, at, mask=mask) for offset in offsets]
            deltas = [builder.fsub(value, pivot) for value in loaded]
            square = emit.load(squares, at, mask=mask)
            for delta in deltas:
                square = emit.fma(delta, delta, square)
            total = builder.fadd(emit.load(totals, at, mask=mask), emit.total(deltas))
            emit.store(total, totals, at, mask=mask)
            emit.store(square, squares, at, mask=mask)

        emit.sweep(SUM_GROUP, body)
        return cgctx.get_dummy_value()

    return types.void(x, rows, pivots, sums), codegen


@intrinsic
def merge_run(typingctx, table, left, right, gap, size, share, weight):
    """Merge means and sums of squared deviations from `right` on into those from `left` on.

    The sums lie `gap` elements behind the means. With ``delta`` the difference of the means,
    ``share * delta`` is added to the mean, and ``weight * delta^2`` and the other sum to the sum.
    A loop over the elements would not be made of vectors, as LLVM can't tell the four runs apart.
    """

    def codegen(cgctx, builder, sig, args):
        lanes = cpu.lanes(table.dtype.bitwidth // 8)
        emit = Vectors(builder, cgctx.get_data_type(table.dtype), lanes)
        first, second, gap, size = args[1:5]
        share, weight = emit.splat(args[5]), emit.splat(args[6])
        runs = [
            element_pointer(cgctx, builder, table, args[0], at)
            for at in (first, builder.add(first, gap), second, builder.add(second, gap))
        ]

        def body(at, mask) -> None:
            mean, total, other_mean, other_total = (
                emit.load_vector(builder.gep(run, [at]), mask=mask) for run in runs
            )
            delta = builder.fsub(other_mean, mean)
            other_total = emit.fma(builder.fmul(delta, delta), weight, other_total)
            mean, total = emit.fma(delta, share, mean), builder.fadd(total, other_total)
            emit.store_vector(mean, builder.gep(runs[0], [at]), mask=mask)
            emit.store_vector(total, builder.gep(runs[1], [at]), mask=mask)

        wide = builder.and_(size, _i64(-lanes))
        with cgutils.for_range_slice(builder, _i64(0), wide, _i64(lanes), _i64) as (at, _):
            body(at, None)
        with builder.if_then(builder.icmp_signed("<", wide, size)):
            body(wide, emit.first_lanes(builder.sub(size, wide)))
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(table, i8, i8, i8, i8, table.dtype, table.dtype), codegen


@intrinsic(prefer_literal=True)
def normalise(typingctx, add, x, residual, rows, factors, floor, y, stream):
    """``y = max(floor, (x - mean) * scale + shift + residual)`` over `Rows`; NaN stays.

    `add` is a literal, 1 with a residual and 0 without.
    """
    with_residual = bool(add.literal_value)

    def codegen(cgctx, builder, sig, args):
        emit = _RowLoops(cgctx, builder, x.dtype, args[3])
        source, other, out = emit.first_of((x, args[1]), (residual, args[2]), (y, args[6]))
        columns, low = emit.columns(factors, args[4], 3), emit.splat(args[5])

        def body(at, offsets: list[Any], mask) -> None:
            mean, scale, shift = (emit.load(column, at, mask=mask) for column in columns)
            results = []
            for offset in offsets:
                delta = builder.fsub(emit.read(source, offset, at, mask=mask), mean)
                value = emit.fma(delta, scale, shift)
                if with_residual:
                    value = builder.fadd(value, emit.read(other, offset, at, mask=mask))
                value = builder.select(builder.fcmp_ordered("<=", value, low), low, value)
                results.append(value)
            emit.write(results, [emit.at(out, offset, at) for offset in offsets], mask, args[7])

        emit.sweep(GROUP, body)
        return cgctx.get_dummy_value()

    return types.void(add, x, residual, rows, factors, x.dtype, y, types.boolean), codegen


@intrinsic(prefer_literal=True)
def add_gradients(typingctx, mode, dy, x, mask, rows, factors, sums_at, stream):
    """Add ``sum(g)`` and ``sum(g * (x - mean))`` over `Rows`, g being dy after the mask.

    They are added to two rows of the table of factors, from `sums_at` on. `mode` is a literal; with
    `FROM_OUTPUT` the mask is that of the output of `Mask`, and g is written to its other array.
    """
    where = mode.literal_value

    def codegen(cgctx, builder, sig, args):
        emit = _RowLoops(cgctx, builder, x.dtype, args[4])
        masks = zip(mask.types, cgutils.unpack_tuple(builder, args[3]), strict=True)
        gradient, source, output, out = emit.first_of((dy, args[1]), (x, args[2]), *masks)
        columns = emit.columns(factors, args[5], 3)
        table, period = cgutils.unpack_tuple(builder, args[5])
        sums, dots = (
            emit.pointer(factors.types[0], table, at)
            for at in (args[6], builder.add(args[6], period))
        )

        def body(at, offsets: list[Any], mask) -> None:
            mean = emit.load(columns[0], at, mask=mask)
            if where == FROM_INPUT:
                scale, shift = (emit.load(column, at, mask=mask) for column in columns[1:])
            dot, terms = emit.load(dots, at, mask=mask), []
            for offset in offsets:
                g = emit.read(gradient, offset, at, mask=mask)
                delta = builder.fsub(emit.read(source, offset, at, mask=mask), mean)
                if where == FROM_INPUT:
                    g = emit.positive(emit.fma(delta, scale, shift), g)
                elif where == FROM_OUTPUT:
                    g = emit.positive(emit.read(output, offset, at, mask=mask), g)
                dot = emit.fma(g, delta, dot)
                terms.append(g)
            if where == FROM_OUTPUT:
                emit.write(terms, [emit.at(out, offset, at) for offset in offsets], mask, args[7])
            total = builder.fadd(emit.load(sums, at, mask=mask), emit.total(terms))
            emit.store(total, sums, at, mask=mask)
            emit.store(dot, dots, at, mask=mask)

        emit.sweep(GROUP, body)
        return cgctx.get_dummy_value()

    return types.void(mode, dy, x, mask, rows, factors, types.int64, types.boolean), codegen


@intrinsic(prefer_literal=True)
def input_gradient(typingctx, mode, dy, x, rows, factors, dx, stream):
    """``dx = g * scale + (x - mean) * slope + offset`` over `Rows`, g being dy after the mask.

    `mode` is a literal; with `SCALED`, ``dx = dy * scale`` and the input is not read.
    """
    where = mode.literal_value

    def codegen(cgctx, builder, sig, args):
        emit = _RowLoops(cgctx, builder, x.dtype, args[3])
        gradient, source, out = emit.first_of((dy, args[1]), (x, args[2]), (dx, args[5]))
        columns = emit.columns(factors, args[4], 5)

        def body(at, offsets: list[Any], mask) -> None:
            mean, scale, shift, slope, constant = (
                emit.load(column, at, mask=mask) for column in columns
            )
            results = []
            for offset in offsets:
                g = emit.read(gradient, offset, at, mask=mask)
                if where == SCALED:
                    value = builder.fmul(g, scale)
                else:
                    delta = builder.fsub(emit.read(source, offset, at, mask=mask), mean)
                    rest = emit.fma(delta, slope, constant)
                    if where == FROM_INPUT:
                        g = emit.positive(emit.fma(delta, scale, shift), g)
                        rest = emit.unless_zero(slope, rest, constant)
                    value = emit.fma(g, scale, rest)
                results.append(value)
            emit.write(results, [emit.at(out, offset, at) for offset in offsets], mask, args[6])

        emit.sweep(GROUP, body)
        return cgctx.get_dummy_value()

    return types.void(mode, dy, x, rows, factors, dx, types.boolean), codegen
