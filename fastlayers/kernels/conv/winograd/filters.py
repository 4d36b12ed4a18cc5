"""The transforms of Winograd's filters, on vectors of channels.

Fifth of the folder's files: ``G g G^T`` for `forward`, and its adjoint for `weight`; see
`transform`.
"""

from __future__ import annotations

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastlayers.kernels.conv.winograd.matrices import (
    make_emitter,
    matrices,
    rounded,
    transposed,
    vector_loop,
)
from fastlayers.kernels.ir.named import fields
from fastlayers.kernels.ir.vectors import element_pointer, literals

__all__ = ["transform_filter", "untransform_filter"]

_i64 = ir.IntType(64)


@intrinsic(prefer_literal=True)
def transform_filter(typingctx, tile, taps, taps_at, u):
    """``u[xi, i] = (G g G^T)[xi]`` for a row of the `Transformed` u, a multiple of a vector.

    g is at ``taps_at + tap * row + i``.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    matrix = matrices(m).filter

    def codegen(cgctx, builder, sig, values):
        (out,) = fields(cgctx, builder, [u], values[3:])
        source = element_pointer(cgctx, builder, taps, values[1], values[2])
        target = builder.gep(out.array.data, [out.at])
        emitter = make_emitter(cgctx, builder, taps)

        def emit(at):
            def load(i, j):
                start = builder.mul(out.row, _i64(i * 3 + j))
                return emitter.load_vector(builder.gep(source, [builder.add(start, at)]))

            def store(i, j, value, scale):
                start = builder.mul(out.point, _i64(i * (m + 2) + j))
                emitter.store_vector(value, builder.gep(target, [builder.add(start, at)]))

            emitter.square(emitter.paired_rows, matrix, load, store)

        vector_loop(builder, emitter.lanes, out.row, emit)
        return cgctx.get_dummy_value()

    return types.void(tile, taps, types.int64, u), codegen


@intrinsic(prefer_literal=True)
def untransform_filter(typingctx, tile, du, dw, dw_at, tap):
    """``dw[dw_at + t * tap + i] += (G^T du G)[t]`` for a row of the `Transformed` du.

    The adjoint of `transform_filter`.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    matrix = transposed(matrices(m).filter)

    def codegen(cgctx, builder, sig, values):
        (gradient,) = fields(cgctx, builder, [du], values[1:2])
        source = builder.gep(gradient.array.data, [gradient.at])
        target = element_pointer(cgctx, builder, dw, values[2], values[3])
        emitter = make_emitter(cgctx, builder, dw)

        def emit(at):
            def load(i, j):
                start = builder.mul(gradient.point, _i64(i * (m + 2) + j))
                return emitter.load_vector(builder.gep(source, [builder.add(start, at)]))

            def store(i, j, value, scale):
                start = builder.mul(values[4], _i64(i * 3 + j))
                spot = builder.gep(target, [builder.add(start, at)])
                total = emitter.multiply_add(rounded(scale), value, emitter.load_vector(spot))
                emitter.store_vector(total, spot)

            emitter.square(emitter.paired_columns, matrix, load, store)

        vector_loop(builder, emitter.lanes, gradient.row, emit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(tile, du, dw, i8, i8), codegen
