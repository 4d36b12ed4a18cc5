"""The transforms of Winograd's filters, on vectors of channels; see `transform`."""

from __future__ import annotations

from typing import Any

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
from fastlayers.kernels.ir.vectors import element_pointer, literals

__all__ = ["transform_filter", "untransform_filter"]

_i64 = ir.IntType(64)


@intrinsic(prefer_literal=True)
def transform_filter(
    typingctx: Any, tile: Any, taps: Any, taps_at: Any, row: Any, u: Any, u_at: Any, u_xi: Any
) -> Any:
    """``u[u_at + xi * u_xi + i] = (G g G^T)[xi]`` for i < row, g at ``taps_at + tap * row + i``.

    `row` is a multiple of a vector.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    matrix = matrices(m).filter

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = element_pointer(cgctx, builder, taps, values[1], values[2])
        target = element_pointer(cgctx, builder, u, values[4], values[5])
        emitter = make_emitter(cgctx, builder, u)

        def emit(at: Any) -> None:
            def load(i: int, j: int) -> Any:
                start = builder.mul(values[3], _i64(i * 3 + j))
                return emitter.load_vector(builder.gep(source, [builder.add(start, at)]))

            def store(i: int, j: int, value: Any, scale: float) -> None:
                start = builder.mul(values[6], _i64(i * (m + 2) + j))
                emitter.store_vector(value, builder.gep(target, [builder.add(start, at)]))

            emitter.square(emitter.paired_rows, matrix, load, store)

        vector_loop(builder, emitter.lanes, values[3], emit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(tile, taps, i8, i8, u, i8, i8), codegen


@intrinsic(prefer_literal=True)
def untransform_filter(
    typingctx: Any,
    tile: Any,
    du: Any,
    du_at: Any,
    du_xi: Any,
    dw: Any,
    dw_at: Any,
    tap: Any,
    count: Any,
) -> Any:
    """``dw[dw_at + t * tap + i] += (G^T du G)[t]`` for i < count, a multiple of a vector.

    `du` is read at ``du_at + xi * du_xi + i``: the adjoint of `transform_filter`.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    matrix = transposed(matrices(m).filter)

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = element_pointer(cgctx, builder, du, values[1], values[2])
        target = element_pointer(cgctx, builder, dw, values[4], values[5])
        emitter = make_emitter(cgctx, builder, dw)

        def emit(at: Any) -> None:
            def load(i: int, j: int) -> Any:
                start = builder.mul(values[3], _i64(i * (m + 2) + j))
                return emitter.load_vector(builder.gep(source, [builder.add(start, at)]))

            def store(i: int, j: int, value: Any, scale: float) -> None:
                start = builder.mul(values[6], _i64(i * 3 + j))
                spot = builder.gep(target, [builder.add(start, at)])
                total = emitter.multiply_add(rounded(scale), value, emitter.load_vector(spot))
                emitter.store_vector(total, spot)

            emitter.square(emitter.paired_columns, matrix, load, store)

        vector_loop(builder, emitter.lanes, values[7], emit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(tile, du, i8, i8, dw, i8, i8, i8), codegen
