"""Vectors of `rows`: transforms, products and pooling whose lanes are images.

Last of the folder's files.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.conv.winograd.matrices import Emitter, make_emitter, matrices, transposed
from fastlayers.kernels.ir.vectors import Vectors, element_pointer, operand
from fastlayers.kernels.linear.tile import sum_lanes
from fastlayers.runtime import cpu

__all__ = [
    "FACTORS",
    "ORIGIN",
    "PAIRS",
    "POINTS",
    "ROWS",
    "STEP",
    "TAPS",
    "VECTORS",
    "VECTOR_BYTES",
    "dot_tile",
    "pool_rows",
    "product_tile",
    "slots",
    "transform_gradients",
    "transform_inputs",
    "transform_outputs",
    "write_cells",
]

_i64 = ir.IntType(64)
VECTOR_BYTES = cpu.vector_bytes()
STEP, TAPS, POINTS = 4, 5, 8
# A tile's filters and vectors: 24 sums in 32 registers, 12 in 16.
ROWS = 6
VECTORS = cpu.tile_rows() // 3
_MATRICES = matrices(STEP, TAPS)
# A pair's point and the factor of its filter, which are those of rows 1, 3 and 5.
PAIRS = tuple(_MATRICES.filter[row][1] / _MATRICES.filter[row][0] for row in (1, 3, 5))
FACTORS = tuple(_MATRICES.filter[row][0] for row in (1, 3, 5))
ORIGIN = _MATRICES.filter[0][0]
_ONE = 2 * PAIRS.index(1.0) + 1  # the point 1, whose values are sums


def slots(lanes: int) -> int:
    """Elements that the sums of a tile of dot products take: whole vectors."""
    return -(-ROWS * VECTORS // lanes) * lanes


def _each_tile(
    cgctx,
    builder,
    sig,
    values,
    steps: tuple[int, int],
    emit: Callable[[Emitter, Callable[[int], Any], Callable[[int, Any], None]], None],
):
    """Loop over tiles, of which `emit` loads values and stores others; `steps` from tile to tile.

    The values follow ``(count, source, out)``; a step of 0 is one vector.
    """
    emitter = make_emitter(cgctx, builder, sig.args[2].types[0])
    (source, stride), (out, out_stride) = (
        operand(cgctx, builder, sig.args[i], values[i]) for i in (1, 2)
    )

    def tile(pointer, stride, index, step: int):
        size = builder.mul(stride, _i64(step)) if step else _i64(emitter.lanes)
        return builder.gep(pointer, [builder.mul(index, size)])

    with cgutils.for_range(builder, values[0]) as loop:
        start = tile(source, stride, loop.index, steps[0])
        target = tile(out, out_stride, loop.index, steps[1])

        def load(k: int):
            return emitter.load_vector(builder.gep(start, [builder.mul(stride, _i64(k))]))

        def store(k: int, value) -> None:
            emitter.store_vector(value, builder.gep(target, [builder.mul(out_stride, _i64(k))]))

        emit(emitter, load, store)
    return cgctx.get_dummy_value()


def _to_points(matrix: list[list[float]], source, out, *total):
    def codegen(cgctx, builder, sig, values):
        vectors = make_emitter(cgctx, builder, source.types[0])
        held = cgutils.alloca_once(builder, vectors.vector)
        if total:
            (place,) = operand(cgctx, builder, total[0], values[3])
            builder.store(vectors.load_vector(place), held)

        def emit(emitter: Emitter, load, store) -> None:
            inputs = [load(k) for k in range(len(matrix[0]))]
            groups = list(range(POINTS // 2))
            for point, (value, _) in emitter.paired_rows(matrix, inputs.__getitem__, groups):
                store(point, value)
                if total and point == _ONE:
                    builder.store(builder.fadd(builder.load(held), value), held)

        _each_tile(cgctx, builder, sig, values, (STEP, 0), emit)
        if total:
            vectors.store_vector(builder.load(held), place)
        return cgctx.get_dummy_value()

    return types.void(types.int64, source, out, *total), codegen


@intrinsic
def transform_inputs(typingctx, tiles, source, out):
    """``out[p, tile] = (B^T source[4 tile : 4 tile + 8])[p]``.

    ``source = (array, offset, elements from pixel to pixel)``, and `out` from point to point.
    """
    return _to_points(_MATRICES.data, source, out)


@intrinsic
def transform_gradients(typingctx, tiles, source, out, total):
    """``out[p, tile] = (A source[4 tile : 4 tile + 4])[p]``, as `transform_inputs`.

    The sum of the source, which is that of the point 1, is added to the vector at ``total = (array,
    offset)``.
    """
    return _to_points(transposed(_MATRICES.output), source, out, total)


@intrinsic
def transform_outputs(typingctx, tiles, source, out, bias, floor):
    """``out[4 tile + i] = max(floor, bias + (A^T source[:, tile])[i])``."""

    def codegen(cgctx, builder, sig, values):
        def emit(emitter: Emitter, load, store) -> None:
            points = [load(p) for p in range(POINTS)]
            shift, low = emitter.splat(values[3]), emitter.splat(values[4])
            columns = emitter.paired_columns(_MATRICES.output, points.__getitem__, [0, 1])
            for i, (value, scale) in columns:
                y = emitter.multiply_add(scale, value, shift)
                store(i, builder.select(builder.fcmp_ordered("<", y, low), low, y))

        return _each_tile(cgctx, builder, sig, values, (0, STEP), emit)

    dtype = out.types[0].dtype
    return types.void(types.int64, source, out, dtype, dtype), codegen


@intrinsic
def pool_rows(typingctx, windows, rows, out, cells):
    """Maxima of the 2x2 windows of two rows of one channel, and their cells.

    ``rows = (array, offset, elements from row to row)``, `out` and `cells` have elements from pixel
    to pixel. A NaN is a maximum, and the first of equal ones; cells are integers of the elements'
    size.
    """

    def codegen(cgctx, builder, sig, values):
        emitter = make_emitter(cgctx, builder, rows.types[0])
        numbers = Vectors(builder, ir.IntType(rows.types[0].dtype.bitwidth), emitter.lanes)
        (upper, stride), (best_at, pixel), (cell_at, _) = (
            operand(cgctx, builder, kind, value)
            for kind, value in zip((rows, out, cells), values[1:], strict=True)
        )
        lower = builder.gep(upper, [stride])
        with cgutils.for_range(builder, values[0]) as window:
            first = builder.mul(window.index, _i64(2 * emitter.lanes))
            best, *others = [
                emitter.load_vector(builder.gep(row, [first]), v)
                for row in (upper, lower)
                for v in (0, 1)
            ]
            holder = ir.Constant(numbers.vector, None)
            for cell, new in enumerate(others, 1):
                better = emitter.better(new, best)
                best = builder.select(better, new, best)
                number = ir.Constant(numbers.vector, [cell] * emitter.lanes)
                holder = builder.select(better, number, holder)
            place = builder.mul(window.index, pixel)
            emitter.store_vector(best, builder.gep(best_at, [place]))
            holder = builder.bitcast(holder, emitter.vector)
            emitter.store_vector(holder, builder.gep(cell_at, [place]))
        return cgctx.get_dummy_value()

    return types.void(types.int64, rows, out, cells), codegen


@intrinsic
def write_cells(typingctx, rows, images, source, cells, at, image):
    """``cells[at + n * image + e] = source[e, n]``, integers in vectors, for e < rows, n < images.

    ``source = (array, offset)`` has a vector of vectors that can be read.
    """

    def codegen(cgctx, builder, sig, values):
        bits = source.types[0].dtype.bitwidth
        numbers = Vectors(builder, ir.IntType(bits), cpu.lanes(bits // 8))
        (start,) = operand(cgctx, builder, source, values[2])
        out = element_pointer(cgctx, builder, cells, values[3], values[4])
        bytes_ = Vectors(builder, out.type.pointee, numbers.lanes)
        start = builder.bitcast(start, numbers.element.as_pointer())
        mask = numbers.first_lanes(values[0])
        lines = [numbers.load_vector(start, e) for e in range(numbers.lanes)]
        for n, line in enumerate(numbers.transpose(lines)):
            with builder.if_then(builder.icmp_signed("<", _i64(n), values[1])):
                place = builder.gep(out, [builder.mul(values[5], _i64(n))])
                bytes_.store_vector(builder.trunc(line, bytes_.vector), place, mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, source, cells, i8, i8), codegen


def _sum_loop(
    builder, emitter: Emitter, last, step: int, body: Callable[[Any, list[Any]], list[Any]]
) -> list[Any]:
    """Emit ``sums = body(at, sums)`` for ``at in range(0, last, step)``, the sums a whole tile."""
    before = builder.block
    names = ("sums.test", "sums.body", "sums.done")
    test, inside, done = (builder.append_basic_block(name) for name in names)
    builder.branch(test)
    builder.position_at_end(test)
    at = builder.phi(_i64)
    sums = [builder.phi(emitter.vector) for _ in range(ROWS * VECTORS)]
    builder.cbranch(builder.icmp_signed("<", at, last), inside, done)
    builder.position_at_end(inside)
    updated = body(at, sums)
    following = builder.add(at, _i64(step))
    zero = ir.Constant(emitter.vector, None)
    for phi, new in zip([at, *sums], [following, *updated], strict=True):
        phi.add_incoming(_i64(0) if phi is at else zero, before)
        phi.add_incoming(new, builder.block)
    builder.branch(test)
    builder.position_at_end(done)
    return sums


@intrinsic
def product_tile(typingctx, a, b, tables, c):
    """``c[i, j] = sum over k of a[table_a[k] + i] * b[table_b[k] + j]``, j one of some vectors.

    ``tables = (table_a, table_b, first, count)``, ``a`` and ``b`` are ``(array, offset)``, and ``c
    = (array, offset, row stride)``.
    """

    def codegen(cgctx, builder, sig, values):
        emitter = make_emitter(cgctx, builder, c.types[0])
        (a_at,), (b_at,) = (operand(cgctx, builder, sig.args[i], values[i]) for i in (0, 1))
        table_a, table_b, first, count = cgutils.unpack_tuple(builder, values[2])
        table_a = element_pointer(cgctx, builder, tables.types[0], table_a, first)
        table_b = element_pointer(cgctx, builder, tables.types[1], table_b, first)

        def body(k, sums: list[Any]) -> list[Any]:
            row = builder.gep(b_at, [builder.load(builder.gep(table_b, [k]))])
            factors = builder.gep(a_at, [builder.load(builder.gep(table_a, [k]))])
            columns = [emitter.load_vector(row, v) for v in range(VECTORS)]
            updated = []
            for i in range(ROWS):
                factor = emitter.splat(builder.load(builder.gep(factors, [_i64(i)])))
                for v, column in enumerate(columns):
                    updated.append(emitter.fma(factor, column, sums[i * VECTORS + v]))
            return updated

        sums = _sum_loop(builder, emitter, count, 1, body)
        target, stride = operand(cgctx, builder, sig.args[3], values[3])
        for i in range(ROWS):
            for v in range(VECTORS):
                emitter.store_vector(sums[i * VECTORS + v], target, v)
            target = builder.gep(target, [stride])
        return cgctx.get_dummy_value()

    return types.void(a, b, tables, c), codegen


@intrinsic
def dot_tile(typingctx, count, a, b, table, c):
    """``c[i * VECTORS + j] += sum over k < count of a[i, k] * b[table[j] + k]``.

    `count` is a multiple of a vector, ``a = (array, offset, row stride)``, the others are ``(array,
    offset)``. `slots` elements of c are written.
    """

    def codegen(cgctx, builder, sig, values):
        emitter = make_emitter(cgctx, builder, c.types[0])
        a_at, stride = operand(cgctx, builder, sig.args[1], values[1])
        (b_at,), (entries,), (target,) = (
            operand(cgctx, builder, sig.args[i], values[i]) for i in (2, 3, 4)
        )
        rows = [a_at]
        for _ in range(1, ROWS):
            rows.append(builder.gep(rows[-1], [stride]))
        offsets = [builder.load(builder.gep(entries, [_i64(j)])) for j in range(VECTORS)]
        starts = [builder.gep(b_at, [offset]) for offset in offsets]

        def body(k, sums: list[Any]) -> list[Any]:
            columns = [emitter.load_vector(builder.gep(start, [k])) for start in starts]
            updated = []
            for i, row in enumerate(rows):
                value = emitter.load_vector(builder.gep(row, [k]))
                for j, column in enumerate(columns):
                    updated.append(emitter.fma(value, column, sums[i * VECTORS + j]))
            return updated

        sums = _sum_loop(builder, emitter, values[0], emitter.lanes, body)
        zero = ir.Constant(emitter.vector, None)
        sums = sums + [zero] * (slots(emitter.lanes) - len(sums))
        for v, total in enumerate(sum_lanes(builder, sums, emitter.lanes)):
            old = emitter.load_vector(target, v)
            emitter.store_vector(builder.fadd(old, total), target, v)
        return cgctx.get_dummy_value()

    return types.void(types.int64, a, b, table, c), codegen
