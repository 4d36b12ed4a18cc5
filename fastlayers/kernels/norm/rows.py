"""Vector loops of batch normalisation over contiguous rows of equal width.

A row is one or several pixels, so a column always belongs to the same channel. The loops take
`GROUP` rows at a time, so that sums and factors of a column are loaded once for all of them.
Factors are in a flat array of rows of `period` elements: mean, scale, shift, slope, offset.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

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
    "add_gradients",
    "add_shifted",
    "input_gradient",
    "normalise",
]

_i64 = ir.IntType(64)

# Where the mask of a ReLU comes from: there is none, the input once more, the output. With running
# statistics and no mask the gradient is a multiple of dy.
PLAIN, FROM_INPUT, FROM_OUTPUT, SCALED = 0, 1, 2, 3
# Rows of a group; a sum alone needs so few registers and so little arithmetic that 8 pay.
GROUP, SUM_GROUP = 4, 8

# Bytes between a vector that is read and the line that is asked for. Statistics of 32x64x56x56 took
# 1.8 ms without, 1.3 at 4096, 0.9 at 8192 and 16384.
AHEAD = 8192

Body = Callable[[Any, list[Any], Any], None]


class _Rows(Vectors):
    """Emits loops over rows, and what they do with a vector of columns."""

    def __init__(self, cgctx: Any, builder: Any, sig: Any, values: Any, element: types.Type):
        lanes = cpu.lanes(element.bitwidth // 8)
        super().__init__(builder, cgctx.get_data_type(element), lanes)
        self._context, self._kinds, self._values = cgctx, sig.args, values

    def array(self, index: int, at: Any = None) -> Any:
        """Pointer to element `at` of the array that is argument `index`."""
        at = _i64(0) if at is None else at
        kind, value = self._kinds[index], self._values[index]
        return element_pointer(self._context, self.builder, kind, value, at)

    def factors(self, index: int, period: Any, count: int) -> list[Any]:
        return [self.array(index, self.builder.mul(period, _i64(k))) for k in range(count)]

    def sweep(self, rows: Any, width: Any, group: int, body: Body) -> None:
        """Call ``body(column, offsets of some rows, mask)`` for all vectors of all rows."""
        builder = self.builder
        whole = builder.mul(builder.sdiv(rows, _i64(group)), _i64(group))
        wide = builder.and_(width, _i64(-self.lanes))
        for first, last, step in ((_i64(0), whole, group), (whole, rows, 1)):
            with cgutils.for_range_slice(builder, first, last, _i64(step), _i64) as (row, _):
                offsets = [builder.mul(builder.add(row, _i64(i)), width) for i in range(step)]
                lanes = _i64(self.lanes)
                with cgutils.for_range_slice(builder, _i64(0), wide, lanes, _i64) as (at, _):
                    body(at, offsets, None)
                with builder.if_then(builder.icmp_signed("<", wide, width)):
                    body(wide, offsets, self.first_lanes(builder.sub(width, wide)))

    def at(self, pointer: Any, *offsets: Any) -> Any:
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return pointer

    def places(self, pointer: Any, at: Any, offsets: list[Any]) -> list[Any]:
        return [self.at(pointer, offset, at) for offset in offsets]

    def load(self, pointer: Any, *offsets: Any, mask: Any) -> Any:
        return self.load_vector(self.at(pointer, *offsets), mask=mask)

    def read(self, pointer: Any, *offsets: Any, mask: Any) -> Any:
        """Load what is read once, and ask for what follows."""
        at = self.at(pointer, *offsets)
        prefetch(self.builder, self.builder.gep(at, [_i64(AHEAD // self._align)]))
        return self.load_vector(at, mask=mask)

    def store(self, value: Any, pointer: Any, *offsets: Any, mask: Any) -> None:
        self.store_vector(value, self.at(pointer, *offsets), mask=mask)

    def write(self, values: list[Any], pointers: list[Any], mask: Any, stream: Any) -> None:
        """Store vectors that are written once, past the caches where `stream` is not 0."""
        if mask is not None:
            for value, at in zip(values, pointers, strict=True):
                self.store_vector(value, at, mask=mask)
            return
        past = self.builder.icmp_signed("!=", stream, _i64(0))
        with self.builder.if_else(past) as (streamed, stored):
            with streamed:
                for value, at in zip(values, pointers, strict=True):
                    self.stream_vector(value, at)
            with stored:
                for value, at in zip(values, pointers, strict=True):
                    self.store_vector(value, at)

    def positive(self, test: Any, value: Any) -> Any:
        """`value` where `test` is positive or NaN, 0 elsewhere, as the gradient of ReLU is."""
        zero = ir.Constant(self.vector, None)
        return self.builder.select(self.builder.fcmp_ordered("<=", test, zero), zero, value)

    def unless_zero(self, factor: Any, value: Any, other: Any) -> Any:
        """`value`, or `other` for a factor of 0, by which an infinite input would be NaN.

        So it is with running statistics, through which no gradient passes.
        """
        zero = ir.Constant(self.vector, None)
        return self.builder.select(self.builder.fcmp_ordered("==", factor, zero), other, value)

    def total(self, terms: list[Any]) -> Any:
        """Sum by pairs."""
        while len(terms) > 1:
            terms = [
                self.builder.fadd(*terms[i : i + 2]) if i + 1 < len(terms) else terms[i]
                for i in range(0, len(terms), 2)
            ]
        return terms[0]


@intrinsic
def add_shifted(
    typingctx: Any, x: Any, at: Any, rows: Any, width: Any, pivots: Any, sums: Any
) -> Any:
    """Add the sums of ``x - pivot`` and of its square over rows, with a pivot for each column.

    ``sums[:width]`` and ``sums[width : 2 * width]`` are added to; the rows start at ``x[at]``.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        emit = _Rows(cgctx, builder, sig, values, x.dtype)
        source, sums, squares = emit.array(0, values[1]), emit.array(5), emit.array(5, values[3])
        pivots = emit.array(4)

        def body(at: Any, offsets: list[Any], mask: Any) -> None:
            pivot = emit.load(pivots, at, mask=mask)
            loaded = [emit.read(source, offset, at, mask=mask) for offset in offsets]
            deltas = [builder.fsub(value, pivot) for value in loaded]
            square = emit.load(squares, at, mask=mask)
            for delta in deltas:
                square = emit.fma(delta, delta, square)
            total = builder.fadd(emit.load(sums, at, mask=mask), emit.total(deltas))
            emit.store(total, sums, at, mask=mask)
            emit.store(square, squares, at, mask=mask)

        emit.sweep(values[2], values[3], SUM_GROUP, body)
        return cgctx.get_dummy_value()

    return types.void(x, types.int64, types.int64, types.int64, pivots, sums), codegen


@intrinsic(prefer_literal=True)
def normalise(
    typingctx: Any,
    add: Any,
    x: Any,
    residual: Any,
    at: Any,
    rows: Any,
    width: Any,
    factors: Any,
    period: Any,
    floor: Any,
    y: Any,
    stream: Any,
) -> Any:
    """``y = max(floor, (x - mean) * scale + shift + residual)``; NaN stays.

    `add` is a literal, 1 with a residual and 0 without.
    """
    with_residual = bool(add.literal_value)
    i8 = types.int64

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        emit = _Rows(cgctx, builder, sig, values, x.dtype)
        source, other, out = (emit.array(i, values[3]) for i in (1, 2, 9))
        columns = emit.factors(6, values[7], 3)
        low = emit.splat(values[8])

        def body(at: Any, offsets: list[Any], mask: Any) -> None:
            mean, scale, shift = (emit.load(column, at, mask=mask) for column in columns)
            results = []
            for offset in offsets:
                delta = builder.fsub(emit.read(source, offset, at, mask=mask), mean)
                value = emit.fma(delta, scale, shift)
                if with_residual:
                    value = builder.fadd(value, emit.read(other, offset, at, mask=mask))
                value = builder.select(builder.fcmp_ordered("<=", value, low), low, value)
                results.append(value)
            emit.write(results, emit.places(out, at, offsets), mask, values[10])

        emit.sweep(values[4], values[5], GROUP, body)
        return cgctx.get_dummy_value()

    return types.void(add, x, residual, i8, i8, i8, factors, i8, x.dtype, y, i8), codegen


@intrinsic(prefer_literal=True)
def add_gradients(
    typingctx: Any,
    mode: Any,
    dy: Any,
    x: Any,
    y: Any,
    at: Any,
    rows: Any,
    width: Any,
    factors: Any,
    period: Any,
    masked: Any,
    sums: Any,
    sums_at: Any,
    stream: Any,
) -> Any:
    """Add ``sum(g)`` and ``sum(g * (x - mean))`` to two rows of `sums`, g being dy after the mask.

    `mode` is a literal; with `FROM_OUTPUT` the mask is that of `y`, and g is written to `masked`.
    """
    where, i8 = mode.literal_value, types.int64

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        emit = _Rows(cgctx, builder, sig, values, x.dtype)
        gradient, source, output, out = (emit.array(i, values[4]) for i in (1, 2, 3, 9))
        columns = emit.factors(7, values[8], 3)
        sums, dots = (emit.array(10, k) for k in (values[11], builder.add(values[11], values[8])))

        def body(at: Any, offsets: list[Any], mask: Any) -> None:
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
                emit.write(terms, emit.places(out, at, offsets), mask, values[12])
            total = builder.fadd(emit.load(sums, at, mask=mask), emit.total(terms))
            emit.store(total, sums, at, mask=mask)
            emit.store(dot, dots, at, mask=mask)

        emit.sweep(values[5], values[6], GROUP, body)
        return cgctx.get_dummy_value()

    return types.void(mode, dy, x, y, i8, i8, i8, factors, i8, masked, sums, i8, i8), codegen


@intrinsic(prefer_literal=True)
def input_gradient(
    typingctx: Any,
    mode: Any,
    dy: Any,
    x: Any,
    at: Any,
    rows: Any,
    width: Any,
    factors: Any,
    period: Any,
    dx: Any,
    stream: Any,
) -> Any:
    """``dx = g * scale + (x - mean) * slope + offset``, g being dy after the mask.

    `mode` is a literal; with `SCALED`, ``dx = dy * scale`` and the input is not read.
    """
    where, i8 = mode.literal_value, types.int64

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        emit = _Rows(cgctx, builder, sig, values, x.dtype)
        gradient, source, out = (emit.array(i, values[3]) for i in (1, 2, 8))
        columns = emit.factors(6, values[7], 5)

        def body(at: Any, offsets: list[Any], mask: Any) -> None:
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
            emit.write(results, emit.places(out, at, offsets), mask, values[9])

        emit.sweep(values[4], values[5], GROUP, body)
        return cgctx.get_dummy_value()

    return types.void(mode, dy, x, i8, i8, i8, factors, i8, dx, i8), codegen
