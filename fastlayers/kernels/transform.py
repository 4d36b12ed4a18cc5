"""The transforms of Winograd's tiles of pixels, on vectors of channels.

A tile of outputs of F(m x m, 3 x 3) is ``Y = A^T [(G g G^T) * (B^T d B)] A`` for a filter g and
n x n inputs d, n = m + 2 (Lavin and Gray, 2015); the matrices are those of `toom_cook`. Arrays are
flat, positions and strides count elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.toom_cook import (
    Matrix,
    literal_tile,
    make_emitter,
    matrices,
    rounded,
    transposed,
    vector_loop,
)
from fastlayers.kernels.vectors import Vectors, element_pointer

__all__ = ["transform_input", "transform_output", "untransform_output"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)


def _prefetch_below(
    builder: Any, base: Any, corner: Any, image: Any, m: int, skip: tuple[int, int], write: bool
) -> Callable[[Any], None]:
    """Give a function that asks for a vector of each of m x m pixels to be brought to the caches.

    They begin `skip` rows and columns of pixels, of the square's, after `corner`, and may lie
    anywhere. Arguments otherwise as in `_cells`.
    """
    byte = ir.IntType(8).as_pointer()
    signature = ir.FunctionType(ir.VoidType(), [byte, _i32, _i32, _i32])
    fetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    offset, row, column = cgutils.unpack_tuple(builder, corner)
    _, width, channels, down, across = cgutils.unpack_tuple(builder, image)
    row = builder.add(row, builder.mul(down, _i64(skip[0])))
    column = builder.add(column, builder.mul(across, _i64(skip[1])))
    first = builder.mul(builder.add(builder.mul(row, width), column), channels)
    first = builder.gep(base, [builder.add(offset, first)])
    pixel = builder.mul(across, channels)
    line = builder.mul(builder.mul(down, width), channels)

    def prefetch(at: Any) -> None:
        for i in range(m):
            start = builder.gep(first, [builder.add(builder.mul(line, _i64(i)), at)])
            for j in range(m):
                spot = builder.gep(start, [builder.mul(pixel, _i64(j))])
                options = (_i32(int(write)), _i32(2), _i32(1))
                builder.call(fetch, [builder.bitcast(spot, byte), *options])

    return prefetch


def _cells(
    builder: Any, base: Any, corner: Any, image: Any, cells: int, outside: Any
) -> Callable[[int, int, Any], Any]:
    """Put the addresses of a square of pixels into a table; give access to it.

    ``corner = (offset of the image, row, column)`` of the first pixel and ``image = (rows,
    columns, channels, row step, column step)``; pixels outside of the image are at `outside`.
    A row of the table is made as one vector, of 4 or 8 addresses: in a tenth of the time that
    single ones would take.
    """
    offset, row, column = cgutils.unpack_tuple(builder, corner)
    height, width, channels, down, across = cgutils.unpack_tuple(builder, image)
    lanes = 1 << (cells - 1).bit_length()
    vectors = Vectors(builder, _i64, lanes)
    table = cgutils.alloca_once(builder, ir.ArrayType(vectors.vector, cells))
    index = ir.Constant(vectors.vector, list(range(lanes)))

    def progression(first: Any, step: Any) -> Any:
        return builder.add(vectors.splat(first), builder.mul(index, vectors.splat(step)))

    pixel = builder.mul(channels, _i64(4 if isinstance(base.type.pointee, ir.FloatType) else 8))
    columns = progression(column, across)
    spots = progression(builder.mul(column, pixel), builder.mul(across, pixel))
    pitch = builder.mul(width, pixel)
    start = builder.ptrtoint(builder.gep(base, [offset]), _i64)
    start = builder.add(start, builder.mul(row, pitch))
    pitch = builder.mul(down, pitch)
    beyond = vectors.splat(builder.ptrtoint(outside, _i64))
    for i in range(cells):
        limit = builder.select(builder.icmp_unsigned("<", row, height), width, _i64(0))
        inside = builder.icmp_unsigned("<", columns, vectors.splat(limit))
        line = builder.select(inside, builder.add(spots, vectors.splat(start)), beyond)
        builder.store(line, builder.gep(table, [_i32(0), _i32(i)]))
        row, start = builder.add(row, down), builder.add(start, pitch)
    entries = builder.bitcast(table, base.type.as_pointer())

    def pick(at: Any) -> Callable[[int, int], Any]:
        here = _opaque(builder, entries)

        def cell(i: int, j: int) -> Any:
            return builder.gep(builder.load(builder.gep(here, [_i64(i * lanes + j)])), [at])

        return cell

    return pick


def _opaque(builder: Any, value: Any) -> Any:
    """The same value, of which LLVM knows nothing.

    It would compute the addresses of all 36 points before the loop over vectors and put them on
    the stack.
    """
    kind = ir.FunctionType(value.type, [value.type])
    return builder.call(ir.InlineAsm(kind, "", "=r,0", side_effect=True), [value])


def _points(builder: Any, base: Any, xi: Any, n: int) -> Callable[[int, int], Any]:
    """Addresses of the n x n points of a tile, `xi` elements from one to the next."""
    base, xi = _opaque(builder, base), _opaque(builder, xi)
    rows = [base]
    line = builder.mul(xi, _i64(n))
    for _ in range(1, n):
        rows.append(builder.gep(rows[-1], [line]))

    def place(i: int, j: int) -> Any:
        return builder.gep(rows[i], [builder.mul(xi, _i64(j))]) if j else rows[i]

    return place


def _gather(
    m: int, matrix: Matrix, x: Any, corner: Any, image: Any, zeros: Any, v: Any
) -> tuple[Any, Any]:
    """Body of `transform_input` and `untransform_output`, which differ by their matrix."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = element_pointer(cgctx, builder, x, values[1], _i64(0))
        outside = element_pointer(cgctx, builder, zeros, values[4], _i64(0))
        target = element_pointer(cgctx, builder, v, values[5], values[6])
        emitter = make_emitter(cgctx, builder, v)
        rows, cells = len(matrix), len(matrix[0])
        cell = _cells(builder, source, values[2], values[3], cells, outside)
        # The pixels that the tile below will be the first to read, one row of tiles ahead: from
        # memory, 64 channels of 56 x 56 pixels take 290 cycles a vector with it, 650 without.
        skip = (cells, (cells - m) // 2)
        prefetch = _prefetch_below(builder, source, values[2], values[3], m, skip, write=False)

        def emit(at: Any) -> None:
            prefetch(at)
            place = _points(builder, builder.gep(target, [at]), values[7], rows)

            def store(i: int, j: int, value: Any, scale: float) -> None:
                emitter.store_vector(value, place(i, j))

            source = cell(at)
            emitter.square(
                emitter.paired_rows,
                matrix,
                lambda i, j: emitter.load_vector(source(i, j)),
                store,
            )

        channels = cgutils.unpack_tuple(builder, values[3])[2]
        vector_loop(builder, emitter.lanes, channels, emit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(types.literal(m), x, corner, image, zeros, v, i8, i8), codegen


@intrinsic(prefer_literal=True)
def transform_input(
    typingctx: Any,
    tile: Any,
    x: Any,
    corner: Any,
    image: Any,
    zeros: Any,
    v: Any,
    v_at: Any,
    v_xi: Any,
) -> Any:
    """``v[v_at + xi * v_xi + c] = (B^T d B)[xi]`` for an n x n square d of pixels of x.

    ``corner = (offset of the image, row, column)`` of the square's first pixel and ``image =
    (rows, columns, channels, row step, column step)``, of which the steps lie between pixels of
    the square. Outside of the image they are read from `zeros`, which has as many elements as
    there are channels: at least one vector.
    """
    m = literal_tile(tile)
    return m and _gather(m, matrices(m).data, x, corner, image, zeros, v)


@intrinsic(prefer_literal=True)
def untransform_output(
    typingctx: Any,
    tile: Any,
    dy: Any,
    corner: Any,
    image: Any,
    zeros: Any,
    w: Any,
    w_at: Any,
    w_xi: Any,
) -> Any:
    """``w[w_at + xi * w_xi + c] = (A d A^T)[xi]`` for m x m pixels: `transform_output`'s adjoint.

    Arguments as in `transform_input`.
    """
    m = literal_tile(tile)
    return m and _gather(m, transposed(matrices(m).output), dy, corner, image, zeros, w)


@intrinsic(prefer_literal=True)
def transform_output(
    typingctx: Any,
    tile: Any,
    p: Any,
    p_at: Any,
    p_xi: Any,
    added: Any,
    y: Any,
    corner: Any,
    image: Any,
    count: Any,
    dump: Any,
    dump_at: Any,
) -> Any:
    """``y[pixels of the tile] = max(bias + A^T p A, floor)``, NaN stays NaN.

    For c < count, at least one vector, `p` is read at ``p_at + xi * p_xi + c`` and bias at
    ``first + c``, ``added = (bias, first, floor)``. `corner` and `image` are those of
    `transform_input`, and pixels outside of the image are written to ``dump[dump_at + c]``.
    """
    m = literal_tile(tile)
    if m is None:
        return None
    matrix = matrices(m).output

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = element_pointer(cgctx, builder, p, values[1], values[2])
        bias, first, floor = cgutils.unpack_tuple(builder, values[4])
        biases = element_pointer(cgctx, builder, added.types[0], bias, first)
        target = element_pointer(cgctx, builder, y, values[5], _i64(0))
        outside = element_pointer(cgctx, builder, dump, values[9], values[10])
        emitter = make_emitter(cgctx, builder, y)
        cell = _cells(builder, target, values[6], values[7], m, outside)
        # 64 x 16 x 32 x 32 -> 16 channels take 1.67 ms with it, 2.06 without.
        prefetch = _prefetch_below(builder, target, values[6], values[7], m, (m, 0), write=True)
        lowest = emitter.splat(floor)
        n = m + 2

        def emit(at: Any) -> None:
            prefetch(at)
            start = emitter.load_vector(builder.gep(biases, [at]))
            place = _points(builder, builder.gep(source, [at]), values[3], n)
            pixel = cell(at)

            def load(i: int, j: int) -> Any:
                return emitter.load_vector(place(i, j))

            def store(i: int, j: int, value: Any, scale: float) -> None:
                scale = rounded(scale)
                total = emitter.multiply_add(scale, value, start)
                low = builder.fcmp_ordered(">", lowest, total)
                emitter.store_vector(builder.select(low, lowest, total), pixel(i, j))

            emitter.square(emitter.paired_columns, matrix, load, store)

        vector_loop(builder, emitter.lanes, values[8], emit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    signature = (p, i8, i8, added, y, corner, image, i8, dump, i8)
    return types.void(tile, *signature), codegen
