"""The tile transforms of Winograd convolution, on vectors of channels.

A tile of outputs of F(m x m, 3 x 3) is ``Y = A^T [(G g G^T) * (B^T d B)] A`` for a filter g and
n x n inputs d, n = m + 2 (Lavin and Gray, 2015). The matrices follow from interpolation points
(Toom-Cook): 0, pairs +-p and infinity. A pair's rows (or, transposed, columns) differ by the sign
of every second entry, so it is computed as even + odd and even - odd: a transform of six values
takes 12 operations instead of 36. Arrays are flat, positions and strides count elements.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.micro import _element_pointer, _Vectors
from fastlayers.runtime import cpu

__all__ = [
    "transform_filter",
    "transform_input",
    "transform_output",
    "untransform_filter",
    "untransform_output",
]

_i32, _i64 = ir.IntType(32), ir.IntType(64)

# The pairs of points, by the tile's size. RMS error in units of direct convolution's: F(4) with
# sqrt(1/2) and sqrt(2) 1.7-2.3, with 3/4 and 3/2 1.8-2.3, with the customary 1 and 2 3.6-4.6;
# F(2) 0.6-0.7. All but two coefficients of the input's transform are exact in float32.
_POINTS = {2: (1.0,), 4: (math.sqrt(0.5), math.sqrt(2.0))}

Matrix = list[list[float]]
# An element of a transform: the vector, and the factor that is still to be multiplied.
Scaled = tuple[Any, float]


@dataclass(frozen=True)
class _Matrices:
    """The transforms of F(m, 3): rows or columns are the points 0, +p, -p, ..., infinity."""

    data: Matrix  # B^T, n x n
    filter: Matrix  # G, n x 3
    output: Matrix  # A^T, m x n


@functools.cache
def _matrices(m: int) -> _Matrices:
    squares = [p * p for p in _POINTS[m]]
    signed = [sign * p for p in _POINTS[m] for sign in (1.0, -1.0)]

    def product(roots: list[float]) -> list[float]:
        """Coefficients of the product of (x^2 - root), from the lowest, zeros between."""
        poly = [1.0]
        for root in roots:
            longer = [0.0, 0.0, *poly]
            for k, value in enumerate(poly):
                longer[k] = round(longer[k] - root * value, 12)  # sqrt(2) ** 2 is not 2
            poly = longer
        return poly

    whole = product(squares)
    data = [[*whole, 0.0]]
    norms = [whole[0]]
    for p in signed:
        others = product([square for square in squares if abs(square - p * p) > 1e-9])
        # x (x + p) times the other pairs
        row = [0.0] * (m + 2)
        for k, value in enumerate(others):
            row[k + 1] += p * value
            row[k + 2] += value
        data.append(row)
        norms.append(sum(value * p**k for k, value in enumerate(row)))
    data.append([0.0, *whole])
    points = [0.0, *signed]
    filters = [[p**k / norm for k in range(3)] for p, norm in zip(points, norms, strict=True)]
    output = [[p**k for p in points] + [float(k == m - 1)] for k in range(m)]
    return _Matrices(data, [*filters, [0.0, 0.0, 1.0]], output)


def _transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


class _Emitter(_Vectors):
    """Emits one-dimensional transforms as groups of outputs that share operations."""

    def constant(self, value: float) -> Any:
        return self.splat(ir.Constant(self.element, value))

    def multiply_add(self, factor: float, value: Any, total: Any) -> Any:
        if abs(factor) == 1:
            add = self.builder.fadd if factor > 0 else self.builder.fsub
            return add(total, value)
        fma = self.declare("llvm.fma.{}", self.vector, [self.vector] * 3)
        return self.builder.call(fma, [self.constant(factor), value, total])

    def combine(self, factors: list[float], values: list[Any]) -> Any:
        """Sum of factors times values, beginning with a factor of 1 where there is one."""
        terms = [(f, v) for f, v in zip(factors, values, strict=True) if f]
        terms.sort(key=lambda term: term[0] != 1)
        factor, total = terms[0]
        if factor != 1:
            total = self.builder.fmul(self.constant(factor), total)
        for factor, value in terms[1:]:
            total = self.multiply_add(factor, value, total)
        return total

    def paired_rows(
        self, matrix: Matrix, load: Callable[[int], Any], groups: list[int]
    ) -> Iterator[tuple[int, Scaled]]:
        """Rows of ``matrix @ values`` where rows 2 g - 1 and 2 g are those of a pair of points.

        Group 0 are the first and the last row. `load` gives a value, only where it is needed.
        """
        n = len(matrix)
        for group in groups:
            if group == 0:
                for row in (0, n - 1):
                    yield row, (self._row(matrix[row], load), 1.0)
                continue
            plus, minus = matrix[2 * group - 1 : 2 * group + 1]
            even = self._row([a if a == b else 0.0 for a, b in zip(plus, minus, strict=True)], load)
            odds = [a if a == -b else 0.0 for a, b in zip(plus, minus, strict=True)]
            scale = next(a for a in reversed(odds) if a)
            odd = self._row([a / scale for a in odds], load)
            yield 2 * group - 1, (self.multiply_add(scale, odd, even), 1.0)
            yield 2 * group, (self.multiply_add(-scale, odd, even), 1.0)

    def _row(self, factors: list[float], load: Callable[[int], Any]) -> Any:
        used = [k for k, factor in enumerate(factors) if factor]
        return self.combine([factors[k] for k in used], [load(k) for k in used])

    def paired_columns(
        self, matrix: Matrix, load: Callable[[int], Any], groups: list[int]
    ) -> Iterator[tuple[int, Scaled]]:
        """Rows of ``matrix @ values`` where columns 2 g - 1 and 2 g are those of a pair.

        Group 0 are the even rows, made of the pairs' sums, group 1 the odd ones. Rows are divided
        by their first pair's factor, which is left to the last operation.
        """
        n = len(matrix[0])
        for group in groups:
            add = self.builder.fadd if group == 0 else self.builder.fsub
            halves = [add(load(k), load(k + 1)) for k in range(1, n - 1, 2)]
            for row in range(group, len(matrix), 2):
                scale = matrix[row][1]
                ends = [k for k in (0, n - 1) if matrix[row][k]]
                factors = [matrix[row][k] / scale for k in (*range(1, n - 1, 2), *ends)]
                factors = [f if abs(f - round(f)) > 1e-9 else float(round(f)) for f in factors]
                yield row, (self.combine(factors, [*halves, *map(load, ends)]), scale)

    def square(
        self,
        transform: Callable[..., Iterator[tuple[int, Scaled]]],
        matrix: Matrix,
        load: Callable[[int, int], Any],
        store: Callable[[int, int, Any, float], None],
    ) -> None:
        """Emit ``matrix @ values @ matrix^T``, one group of rows after the other.

        Two rows of up to six vectors stay in registers between the two sides. All six rows at
        once would not, and each spill costs a store, of which a core does one in two cycles;
        reading the values again for every group costs one load a cycle.
        """
        paired = transform == self.paired_rows
        inner = len(matrix[0])
        groups = list(range(len(matrix) // 2)) if paired else [0, 1]
        for group in groups:
            rows: dict[int, list[Scaled]] = {}
            for j in range(inner):
                column = functools.cache(functools.partial(lambda j, i: load(i, j), j))
                for i, scaled in transform(matrix, column, [group]):
                    rows.setdefault(i, []).append(scaled)
            for i, parts in rows.items():
                row_scale = parts[0][1]
                values = [value for value, _ in parts]
                for j, (value, scale) in transform(matrix, values.__getitem__, groups):
                    store(i, j, value, row_scale * scale)


def _literal_tile(tile: Any) -> int | None:
    return tile.literal_value if isinstance(tile, types.IntegerLiteral) else None


def _emitter(cgctx: Any, builder: Any, array_type: Any) -> _Emitter:
    element = cgctx.get_data_type(array_type.dtype)
    return _Emitter(builder, element, cpu.lanes(array_type.dtype.bitwidth // 8))


def _vector_loop(builder: Any, lanes: int, count: Any, emit: Callable[[Any], None]) -> None:
    """Loop over a run of at least one vector; the last one begins ``count - lanes``.

    What two vectors share is computed twice, to the same bits: this needs no masks, which are
    slow below AVX-512.
    """
    with cgutils.for_range_slice(builder, _i64(0), count, _i64(lanes), _i64) as (at, _):
        last = builder.sub(count, _i64(lanes))
        emit(builder.select(builder.icmp_signed("<", at, last), at, last))


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
    vectors = _Vectors(builder, _i64, lanes)
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

    def cell(i: int, j: int, at: Any) -> Any:
        return builder.gep(builder.load(builder.gep(entries, [_i64(i * lanes + j)])), [at])

    return cell


def _gather(
    m: int, matrix: Matrix, x: Any, corner: Any, image: Any, zeros: Any, v: Any
) -> tuple[Any, Any]:
    """Body of `transform_input` and `untransform_output`, which differ by their matrix."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = _element_pointer(cgctx, builder, x, values[1], _i64(0))
        outside = _element_pointer(cgctx, builder, zeros, values[4], _i64(0))
        target = _element_pointer(cgctx, builder, v, values[5], values[6])
        emitter = _emitter(cgctx, builder, v)
        rows, cells = len(matrix), len(matrix[0])
        cell = _cells(builder, source, values[2], values[3], cells, outside)
        # The pixels that the tile below will be the first to read, one row of tiles ahead: from
        # memory, 64 channels of 56 x 56 pixels take 290 cycles a vector with it, 650 without.
        skip = (cells, (cells - m) // 2)
        prefetch = _prefetch_below(builder, source, values[2], values[3], m, skip, write=False)

        def emit(at: Any) -> None:
            prefetch(at)

            def store(i: int, j: int, value: Any, scale: float) -> None:
                start = builder.mul(values[7], _i64(i * rows + j))
                out = builder.gep(target, [builder.add(start, at)])
                emitter.store_vector(value, out)

            emitter.square(
                emitter.paired_rows,
                matrix,
                lambda i, j: emitter.load_vector(cell(i, j, at)),
                store,
            )

        channels = cgutils.unpack_tuple(builder, values[3])[2]
        _vector_loop(builder, emitter.lanes, channels, emit)
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
    m = _literal_tile(tile)
    return m and _gather(m, _matrices(m).data, x, corner, image, zeros, v)


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
    m = _literal_tile(tile)
    return m and _gather(m, _transposed(_matrices(m).output), dy, corner, image, zeros, w)


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
    m = _literal_tile(tile)
    if m is None:
        return None
    matrix = _matrices(m).output

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = _element_pointer(cgctx, builder, p, values[1], values[2])
        bias, first, floor = cgutils.unpack_tuple(builder, values[4])
        biases = _element_pointer(cgctx, builder, added.types[0], bias, first)
        target = _element_pointer(cgctx, builder, y, values[5], _i64(0))
        outside = _element_pointer(cgctx, builder, dump, values[9], values[10])
        emitter = _emitter(cgctx, builder, y)
        cell = _cells(builder, target, values[6], values[7], m, outside)
        # 64 x 16 x 32 x 32 -> 16 channels take 1.67 ms with it, 2.06 without.
        prefetch = _prefetch_below(builder, target, values[6], values[7], m, (m, 0), write=True)
        lowest = emitter.splat(floor)
        n = m + 2

        def emit(at: Any) -> None:
            prefetch(at)
            start = emitter.load_vector(builder.gep(biases, [at]))

            def load(i: int, j: int) -> Any:
                offset = builder.mul(values[3], _i64(i * n + j))
                return emitter.load_vector(builder.gep(source, [builder.add(offset, at)]))

            def store(i: int, j: int, value: Any, scale: float) -> None:
                scale = _rounded(scale)
                total = emitter.multiply_add(scale, value, start)
                low = builder.fcmp_ordered(">", lowest, total)
                emitter.store_vector(builder.select(low, lowest, total), cell(i, j, at))

            emitter.square(emitter.paired_columns, matrix, load, store)

        _vector_loop(builder, emitter.lanes, values[8], emit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    signature = (p, i8, i8, added, y, corner, image, i8, dump, i8)
    return types.void(tile, *signature), codegen


def _rounded(scale: float) -> float:
    """`scale`, or the integer that it is but for the rounding of a product of roots."""
    return float(round(scale)) if abs(scale - round(scale)) < 1e-9 else scale


@intrinsic(prefer_literal=True)
def transform_filter(
    typingctx: Any, tile: Any, taps: Any, taps_at: Any, row: Any, u: Any, u_at: Any, u_xi: Any
) -> Any:
    """``u[u_at + xi * u_xi + i] = (G g G^T)[xi]`` for i < row, g at ``taps_at + tap * row + i``.

    `row` is a multiple of a vector.
    """
    m = _literal_tile(tile)
    if m is None:
        return None
    matrix = _matrices(m).filter

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = _element_pointer(cgctx, builder, taps, values[1], values[2])
        target = _element_pointer(cgctx, builder, u, values[4], values[5])
        emitter = _emitter(cgctx, builder, u)

        def emit(at: Any) -> None:
            def load(i: int, j: int) -> Any:
                start = builder.mul(values[3], _i64(i * 3 + j))
                return emitter.load_vector(builder.gep(source, [builder.add(start, at)]))

            def store(i: int, j: int, value: Any, scale: float) -> None:
                start = builder.mul(values[6], _i64(i * (m + 2) + j))
                emitter.store_vector(value, builder.gep(target, [builder.add(start, at)]))

            emitter.square(emitter.paired_rows, matrix, load, store)

        _vector_loop(builder, emitter.lanes, values[3], emit)
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
    m = _literal_tile(tile)
    if m is None:
        return None
    matrix = _transposed(_matrices(m).filter)

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = _element_pointer(cgctx, builder, du, values[1], values[2])
        target = _element_pointer(cgctx, builder, dw, values[4], values[5])
        emitter = _emitter(cgctx, builder, dw)

        def emit(at: Any) -> None:
            def load(i: int, j: int) -> Any:
                start = builder.mul(values[3], _i64(i * (m + 2) + j))
                return emitter.load_vector(builder.gep(source, [builder.add(start, at)]))

            def store(i: int, j: int, value: Any, scale: float) -> None:
                start = builder.mul(values[6], _i64(i * 3 + j))
                spot = builder.gep(target, [builder.add(start, at)])
                total = emitter.multiply_add(_rounded(scale), value, emitter.load_vector(spot))
                emitter.store_vector(total, spot)

            emitter.square(emitter.paired_columns, matrix, load, store)

        _vector_loop(builder, emitter.lanes, values[7], emit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(tile, du, i8, i8, dw, i8, i8, i8), codegen
