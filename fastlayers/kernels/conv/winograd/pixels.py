"""Squares of an image's pixels: where they are, and what lies outside of the image.

Second of the folder's files, after `matrices`: `transform` reads a tile's inputs and writes its
outputs by them. Arrays are flat, positions and strides count elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from fastlayers.kernels.conv.winograd.matrices import Emitter, vector_loop
from fastlayers.kernels.ir.vectors import LINE, prefetch

__all__ = ["Pixels", "Square", "copy_pixel", "each_pixel", "opaque", "prefetch_below"]

_i64 = ir.IntType(64)


class Square(NamedTuple):
    """A square of pixels: its first one's place, its image, and the steps between its pixels.

    Pixels outside of the image are zero where they are read, and not written.
    """

    image: int  # offset of the image's first element
    row: int
    column: int
    height: int
    width: int
    channels: int
    down: int
    across: int


def prefetch_below(
    builder, base, square: Square, m: int, skip: tuple[int, int], write: bool
) -> Callable[[Any], None]:
    """Give a function that prefetches a vector of each of m x m pixels.

    They begin `skip` rows and columns of pixels, of the square's, after its first, and may lie
    anywhere.
    """
    row = builder.add(square.row, builder.mul(square.down, _i64(skip[0])))
    column = builder.add(square.column, builder.mul(square.across, _i64(skip[1])))
    first = builder.add(builder.mul(row, square.width), column)
    first = builder.add(square.image, builder.mul(first, square.channels))
    first = builder.gep(base, [first])
    pixel = builder.mul(square.across, square.channels)
    line = builder.mul(builder.mul(square.down, square.width), square.channels)

    def request(at) -> None:
        """Once for the vectors of a line: there are two with AVX2, four with NEON."""
        elements = LINE // (4 if isinstance(base.type.pointee, ir.FloatType) else 8)
        begins = builder.icmp_signed("==", builder.and_(at, _i64(elements - 1)), _i64(0))
        with builder.if_then(begins):
            for i in range(m):
                start = builder.gep(first, [builder.add(builder.mul(line, _i64(i)), at)])
                for j in range(m):
                    spot = builder.gep(start, [builder.mul(pixel, _i64(j))])
                    prefetch(builder, spot, write)

    return request


def each_pixel(builder, square: Square, cells: int, visit: Callable[[Any, Any, Any], None]) -> None:
    """Emit a loop over a square of pixels.

    `visit` gets a pixel's number, whether it is inside of the image, and its offset there.
    """
    with cgutils.for_range(builder, _i64(cells * cells)) as loop:
        i, j = (f(loop.index, _i64(cells)) for f in (builder.udiv, builder.urem))
        y = builder.add(square.row, builder.mul(i, square.down))
        x = builder.add(square.column, builder.mul(j, square.across))
        inside = builder.and_(
            builder.icmp_unsigned("<", y, square.height),
            builder.icmp_unsigned("<", x, square.width),
        )
        at = builder.add(builder.mul(y, square.width), x)
        at = builder.mul(at, square.channels)
        visit(loop.index, inside, builder.add(square.image, at))


def copy_pixel(builder, emitter: Emitter, source, target, count) -> None:
    def emit(at) -> None:
        value = emitter.load_vector(builder.gep(source, [at]))
        emitter.store_vector(value, builder.gep(target, [at]))

    vector_loop(builder, emitter.lanes, count, emit)


class Pixels:
    """Addresses of a square's pixels in the image, or in a copy of the square.

    It is a copy, of `count` elements a pixel, where the columns of the square, but for `edge` of
    them on either side, are not all inside of the image; with `all_rows` where the last row is not
    inside, too.
    """

    def __init__(
        self,
        builder,
        square: Square,
        cells: int,
        edge: int,
        base,
        copy,
        count,
        all_rows: bool = False,
    ) -> None:
        self.builder, self.width = builder, square.width
        self.columns = [
            builder.add(square.column, builder.mul(square.across, _i64(j))) for j in range(cells)
        ]
        inner = self.inside(edge), self.inside(cells - 1 - edge)
        self.whole = builder.and_(*inner)
        heights = [builder.add(square.row, builder.mul(square.down, _i64(i))) for i in range(cells)]
        self.within = [builder.icmp_unsigned("<", y, square.height) for y in heights]
        if all_rows:
            self.whole = builder.and_(self.whole, self.within[-1])
        step = builder.mul(square.across, square.channels)
        self.step = builder.select(self.whole, step, count)
        at = builder.add(builder.mul(square.row, square.width), square.column)
        at = builder.mul(at, square.channels)
        first = builder.gep(base, [builder.add(square.image, at)])
        line = builder.mul(builder.mul(square.down, square.width), square.channels)
        self.rows = []
        for i in range(cells):
            copied = builder.gep(copy, [builder.mul(count, _i64(i * cells))])
            self.rows.append(builder.select(self.whole, first, copied))
            first = builder.gep(first, [line])

    def inside(self, j: int, shift=None):
        """Whether a column is inside of the image, or the one so many pixels further on."""
        column = self.builder.add(self.columns[j], shift) if shift else self.columns[j]
        return self.builder.icmp_unsigned("<", column, self.width)

    def zero_rows(self, zeros) -> None:
        """Let rows outside of the image be at `zeros`."""
        for i, within in enumerate(self.within):
            kept = self.builder.or_(within, self.builder.not_(self.whole))
            self.rows[i] = self.builder.select(kept, self.rows[i], zeros)

    def addresses(self, at) -> Callable[[int, Any], Any]:
        """Addresses of element `at` of the pixel in a row, so many elements from its first."""
        rows = [opaque(self.builder, self.builder.gep(row, [at])) for row in self.rows]
        return lambda i, offset: self.builder.gep(rows[i], [offset])


def opaque(builder, value):
    """The same value, of which LLVM knows nothing.

    It would compute the addresses of all 36 points before the loop over vectors and put them on
    the stack.
    """
    kind = ir.FunctionType(value.type, [value.type])
    return builder.call(ir.InlineAsm(kind, "", "=r,0", side_effect=True), [value])
