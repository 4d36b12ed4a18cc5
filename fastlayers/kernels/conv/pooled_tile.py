"""Sums over the pooled outputs of a convolution, each of which has a gradient in one cell alone.

Vectors of the sums stay in registers, while pooled outputs, or their channels, are gone through.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, operand
from fastlayers.runtime import cpu

__all__ = ["PooledGradients", "Sums", "add_fields", "mix_rows"]

_i64 = ir.IntType(64)


class PooledGradients(NamedTuple):
    """Gradients of pooled outputs, and the cells of their windows that they belong to."""

    dy: Any
    y: Any  # outputs, above 0 where the ReLU passes the gradient
    cells: Any
    at: int  # the first, in all three arrays
    step: int  # to the next
    relu: bool
    cell_count: int  # of a window; other cells are taken for the first


class Sums(NamedTuple):
    """What sums stay in registers: tuples, whose lengths are read."""

    rows: Any  # of the kernel, for the weight gradient
    vectors: Any  # of such a row
    field_vectors: Any  # of the field that the cells of a window see, for the input gradient


class _Reader:
    """Reads pooled gradients: their values behind the ReLU, and their cells."""

    def __init__(self, cgctx, builder, kind, value) -> None:
        given = PooledGradients(*cgutils.unpack_tuple(builder, value))
        self.builder = builder
        self._data = [
            builder.gep(cgctx.make_array(array_type)(cgctx, builder, array).data, [given.at])
            for array_type, array in zip(kind.types[:3], given[:3], strict=True)
        ]
        self.step, self.relu, self.cell_count = given.step, given.relu, given.cell_count

    def __getitem__(self, index) -> tuple[Any, Any]:
        builder, at = self.builder, [self.builder.mul(index, self.step)]
        value, output, cell = (builder.load(builder.gep(data, at)) for data in self._data)
        zero = ir.Constant(value.type, 0)
        passes = builder.fcmp_unordered(">", output, zero)  # as `relu_backward`, a NaN's too
        passes = builder.or_(passes, builder.not_(self.relu))
        cell = builder.zext(cell, _i64)
        known = builder.icmp_unsigned("<", cell, self.cell_count)
        return builder.select(passes, value, zero), builder.select(known, cell, _i64(0))


@intrinsic
def add_fields(typingctx, held, count, gradients, fields, x, sums):
    """``sums[r, v] += sum over p of g[p] * x[fields[p] + offsets[cell[p]] + r * pitch + v]``.

    ``held.rows`` and ``held.vectors`` of a `Sums` tell the number of rows r and of the vectors v of
    each; g are `PooledGradients`. ``fields = (table, number of pixels)``, which the cells' offsets
    follow in the table, ``x = (array, offset, pitch)`` and ``sums = (array, offset)``. Returns the
    sum of g.
    """
    rows, across = (len(lengths) for lengths in held.types[:2])

    def codegen(cgctx, builder, sig, values):
        routed = _Reader(cgctx, builder, gradients, values[2])
        table, pixels = operand(cgctx, builder, fields, values[3])
        origin, pitch = operand(cgctx, builder, x, values[4])
        (target,) = operand(cgctx, builder, sums, values[5])
        vectors = _vectors_of(builder, sums, target)
        offsets = builder.gep(table, [pixels])
        places = [
            cgutils.alloca_once_value(builder, vectors.load_vector(target, k))
            for k in range(rows * across)
        ]
        total = cgutils.alloca_once_value(builder, ir.Constant(vectors.element, 0))
        with cgutils.for_range(builder, values[1]) as loop:
            value, cell = routed[loop.index]
            builder.store(builder.fadd(builder.load(total), value), total)
            at = builder.add(
                builder.load(builder.gep(table, [loop.index])),
                builder.load(builder.gep(offsets, [cell])),
            )
            line, factor = builder.gep(origin, [at]), vectors.splat(value)
            for k, place in enumerate(places):
                if k and k % across == 0:
                    line = builder.gep(line, [pitch])
                term = vectors.load_vector(line, k % across)
                builder.store(vectors.fma(factor, term, builder.load(place)), place)
        for k, place in enumerate(places):
            vectors.store_vector(builder.load(place), target, k)
        return builder.load(total)

    return sums.types[0].dtype(held, types.int64, gradients, fields, x, sums), codegen


@intrinsic
def mix_rows(typingctx, held, count, gradients, rows, out):
    """``out[v] = sum over m < count of g[m] * rows[m, cell[m], v]``.

    ``held.field_vectors`` of a `Sums` tells the number of vectors v; g are `PooledGradients`,
    ``rows = (array, offset, row stride)``, ``out = (array, offset)``.
    """

    def codegen(cgctx, builder, sig, values):
        routed = _Reader(cgctx, builder, gradients, values[2])
        origin, stride = operand(cgctx, builder, rows, values[3])
        (target,) = operand(cgctx, builder, out, values[4])
        vectors = _vectors_of(builder, out, target)
        zero = ir.Constant(vectors.vector, None)
        places = [cgutils.alloca_once_value(builder, zero) for _ in held.types[2]]
        for place in places:  # alloca_once_value stores once a function, not once a call in a loop
            builder.store(zero, place)
        with cgutils.for_range(builder, values[1]) as loop:
            value, cell = routed[loop.index]
            row = builder.add(builder.mul(loop.index, routed.cell_count), cell)
            line, factor = builder.gep(origin, [builder.mul(row, stride)]), vectors.splat(value)
            for v, place in enumerate(places):
                term = vectors.load_vector(line, v)
                builder.store(vectors.fma(factor, term, builder.load(place)), place)
        for v, place in enumerate(places):
            vectors.store_vector(builder.load(place), target, v)
        return cgctx.get_dummy_value()

    return types.void(held, types.int64, gradients, rows, out), codegen


def _vectors_of(builder, kind, pointer) -> Vectors:
    """Operations on vectors of an operand's elements."""
    return Vectors(builder, pointer.type.pointee, cpu.lanes(kind.types[0].dtype.bitwidth // 8))
