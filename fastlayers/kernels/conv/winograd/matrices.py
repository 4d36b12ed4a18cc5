"""One-dimensional transforms of Winograd convolution: their matrices, and their operations.

First of the folder's files, of which all others apply it: `transform` and `filters` to squares by
`Emitter.square`, `rows_tiles` to rows.
The matrices follow from interpolation points (Toom-Cook): 0, pairs +-p and infinity. A pair's rows
(or, transposed, columns) differ by the sign of every second entry, so it is computed as even + odd
and even - odd: a transform of six values takes 12 operations instead of 36.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from fastlayers.kernels.ir.vectors import Vectors
from fastlayers.runtime import cpu

__all__ = [
    "Emitter",
    "Matrices",
    "Matrix",
    "make_emitter",
    "matrices",
    "rounded",
    "transposed",
    "vector_loop",
]

_i64 = ir.IntType(64)

# The pairs of points, by a tile's outputs and taps. RMS error in units of direct convolution's:
# F(4x4) with sqrt(1/2) and sqrt(2) 1.7-2.3, with 3/4 and 3/2 1.8-2.3, with the customary 1 and 2
# 3.6-4.6; F(2x2) 0.6-0.7. All but two coefficients of the input's transform are exact in float32.
# F(4, 5), of rows alone, 2.4-2.8.
_POINTS = {
    (2, 3): (1.0,),
    (4, 3): (math.sqrt(0.5), math.sqrt(2.0)),
    (4, 5): (0.5, 1.0, 2.0),
}

Matrix = list[list[float]]
# An element of a transform: the vector, and the factor that is still to be multiplied.
Scaled = tuple[Any, float]


@dataclass(frozen=True)
class Matrices:
    """The transforms of F(m, taps): rows or columns are the points 0, +p, -p, ..., infinity."""

    data: Matrix  # B^T, n x n
    filter: Matrix  # G, n x taps
    output: Matrix  # A^T, m x n


@functools.cache
def matrices(m: int, taps: int = 3) -> Matrices:
    pairs = _POINTS[m, taps]
    squares = [p * p for p in pairs]
    signed = [sign * p for p in pairs for sign in (1.0, -1.0)]

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
        row = [0.0] * (m + taps - 1)
        for k, value in enumerate(others):
            row[k + 1] += p * value
            row[k + 2] += value
        data.append(row)
        norms.append(sum(value * p**k for k, value in enumerate(row)))
    data.append([0.0, *whole])
    points = [0.0, *signed]
    filters = [[p**k / norm for k in range(taps)] for p, norm in zip(points, norms, strict=True)]
    output = [[p**k for p in points] + [float(k == m - 1)] for k in range(m)]
    return Matrices(data, [*filters, [0.0] * (taps - 1) + [1.0]], output)


def transposed(matrix: Matrix) -> Matrix:
    return [list(column) for column in zip(*matrix, strict=True)]


class Emitter(Vectors):
    """Emits one-dimensional transforms as groups of outputs that share operations."""

    def constant(self, value: float):
        """Give a vector of one value."""
        return self.splat(ir.Constant(self.element, value))

    def mask(self, bits):
        """Give a vector of the low bits of a 64-bit integer that is 0 or -1."""
        element = ir.IntType(32 if isinstance(self.element, ir.FloatType) else 64)
        return self.splat(self.builder.trunc(bits, element) if element.width == 32 else bits)

    def masked(self, value, mask):
        """Give the vector, or zeros for a `mask` of zeros."""
        bits = self.builder.and_(self.builder.bitcast(value, mask.type), mask)
        return self.builder.bitcast(bits, self.vector)

    def multiply_add(self, factor: float, value, total):
        """Emit ``factor * value + total``."""
        if abs(factor) == 1:
            add = self.builder.fadd if factor > 0 else self.builder.fsub
            return add(total, value)
        return self.fma(self.constant(factor), value, total)

    def combine(self, factors: list[float], values: list[Any]):
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
            odd = self._row(odds, load)
            yield 2 * group - 1, (self.builder.fadd(even, odd), 1.0)
            yield 2 * group, (self.builder.fsub(even, odd), 1.0)

    def _row(self, factors: list[float], load: Callable[[int], Any]):
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
        if cpu.tile_rows() == 6:
            self._square_in_memory(transform, matrix, groups, load, store)
            return
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

    def _square_in_memory(self, transform, matrix: Matrix, groups, load, store) -> None:
        """The same where 16 registers hold no two rows: what is between the sides is in memory."""
        builder, inner = self.builder, len(matrix[0])
        room = cgutils.alloca_once(builder, self.vector, len(matrix) * inner)
        kind = ir.FunctionType(room.type, [room.type])
        room = builder.call(ir.InlineAsm(kind, "", "=r,0", side_effect=True), [room])
        scales = {}
        for j in range(inner):
            column = functools.cache(functools.partial(lambda j, i: load(i, j), j))
            for i, (value, scale) in transform(matrix, column, groups):
                builder.store(value, builder.gep(room, [_i64(i * inner + j)]))
                scales[i] = scale
        for i in range(len(matrix)):
            values = [builder.load(builder.gep(room, [_i64(i * inner + j)])) for j in range(inner)]
            for j, (value, scale) in transform(matrix, values.__getitem__, groups):
                store(i, j, value, scales[i] * scale)


def rounded(scale: float) -> float:
    """`scale`, or the integer that it is but for the rounding of a product of roots."""
    return float(round(scale)) if abs(scale - round(scale)) < 1e-9 else scale


def make_emitter(cgctx, builder, array_type) -> Emitter:
    element = cgctx.get_data_type(array_type.dtype)
    return Emitter(builder, element, cpu.lanes(array_type.dtype.bitwidth // 8))


def vector_loop(builder, lanes: int, count, emit: Callable[[Any], None]) -> None:
    """Loop over a run of at least one vector; the last one begins ``count - lanes``.

    What two vectors share is computed twice, to the same bits: this needs no masks, which are
    slow below AVX-512.
    """
    with cgutils.for_range_slice(builder, _i64(0), count, _i64(lanes), _i64) as (at, _):
        last = builder.sub(count, _i64(lanes))
        emit(builder.select(builder.icmp_signed("<", at, last), at, last))
