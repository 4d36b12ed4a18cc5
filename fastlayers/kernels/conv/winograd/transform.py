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

from fastlayers.kernels.conv.winograd.matrices import (
    Matrix,
    make_emitter,
    matrices,
    rounded,
    transposed,
    vector_loop,
)
from fastlayers.kernels.ir.vectors import element_pointer, literals, prefetch

__all__ = ["transform_input", "transform_output", "untransform_output"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)


def _prefetch_below(
    builder: Any, base: Any, corner: Any, image: Any, m: int, skip: tuple[int, int], write: bool
) -> Callable[[Any], None]:
    """Give a function that prefetches a vector of each of m x m pixels.

    They begin `skip` rows and columns of pixels, of the square's, after `corner`, and may lie
    anywhere. Arguments otherwise as in `_cells`.
    """
    offset, row, column = cgutils.unpack_tuple(builder, corner)
    _, width, channels, down, across = cgutils.unpack_tuple(builder, image)
    row = builder.add(row, builder.mul(down, _i64(skip[0])))
    column = builder.add(column, builder.mul(across, _i64(skip[1])))
    first = builder.mul(builder.add(builder.mul(row, width), column), channels)
    first = builder.gep(base, [builder.add(offset, first)])
    pixel = builder.mul(across, channels)
    line = builder.mul(builder.mul(down, width), channels)

    def request(at: Any) -> None:
        for i in range(m):
            start = builder.gep(first, [builder.add(builder.mul(line, _i64(i)), at)])
            for j in range(m):
                spot = builder.gep(start, [builder.mul(pixel, _i64(j))])
                prefetch(builder, spot, write)

    return request


def _each_pixel(
    builder: Any, corner: Any, image: Any, cells: int, visit: Callable[[Any, Any, Any], None]
) -> None:
    """Emit a loop over a square of pixels.

    `visit` gets a pixel's number, whether it is inside of the image, and its offset there.
    """
    offset, row, column = cgutils.unpack_tuple(builder, corner)
    height, width, channels, down, across = cgutils.unpack_tuple(builder, image)
    with cgutils.for_range(builder, _i64(cells * cells)) as loop:
        i, j = (f(loop.index, _i64(cells)) for f in (builder.udiv, builder.urem))
        y = builder.add(row, builder.mul(i, down))
        x = builder.add(column, builder.mul(j, across))
        inside = builder.and_(
            builder.icmp_unsigned("<", y, height), builder.icmp_unsigned("<", x, width)
        )
        at = builder.mul(builder.add(builder.mul(y, width), x), channels)
        visit(loop.index, inside, builder.add(offset, at))


class _Square:
    """Addresses of a square of an image's pixels.

    ``corner = (offset of the image, row, column)`` of the first pixel and ``image = (rows,
    columns, channels, row step, column step)``. Where the columns of the square, but for `edge`
    of them on either side, are not all inside of the image, the square is a copy at `patch`,
    `count` elements a pixel; with `all_rows` where the last row is not inside, too.
    """

    def __init__(
        self,
        builder: Any,
        base: Any,
        corner: Any,
        image: Any,
        cells: int,
        edge: int,
        patch: Any,
        count: Any,
        all_rows: bool = False,
    ) -> None:
        self.builder = builder
        offset, row, column = cgutils.unpack_tuple(builder, corner)
        height, width, channels, down, across = cgutils.unpack_tuple(builder, image)
        self.columns = [builder.add(column, builder.mul(across, _i64(j))) for j in range(cells)]
        self.width = width
        inner = self.inside(edge), self.inside(cells - 1 - edge)
        self.whole = builder.and_(*inner)
        heights = [builder.add(row, builder.mul(down, _i64(i))) for i in range(cells)]
        self.within = [builder.icmp_unsigned("<", y, height) for y in heights]
        if all_rows:
            self.whole = builder.and_(self.whole, self.within[-1])
        self.step = builder.select(self.whole, builder.mul(across, channels), count)
        at = builder.mul(builder.add(builder.mul(row, width), column), channels)
        first = builder.gep(base, [builder.add(offset, at)])
        line = builder.mul(builder.mul(down, width), channels)
        self.rows = []
        for i in range(cells):
            copy = builder.gep(patch, [builder.mul(count, _i64(i * cells))])
            self.rows.append(builder.select(self.whole, first, copy))
            first = builder.gep(first, [line])

    def inside(self, j: int, shift: Any = None) -> Any:
        """Whether a column is inside of the image, or the one so many pixels further on."""
        column = self.builder.add(self.columns[j], shift) if shift else self.columns[j]
        return self.builder.icmp_unsigned("<", column, self.width)

    def zero_rows(self, zeros: Any) -> None:
        """Let rows outside of the image be at `zeros`."""
        for i, within in enumerate(self.within):
            kept = self.builder.or_(within, self.builder.not_(self.whole))
            self.rows[i] = self.builder.select(kept, self.rows[i], zeros)

    def pixels(self, at: Any) -> Callable[[int, Any], Any]:
        """Addresses of element `at` of the pixel in a row, so many elements from its first."""
        rows = [_opaque(self.builder, self.builder.gep(row, [at])) for row in self.rows]
        return lambda i, offset: self.builder.gep(rows[i], [offset])


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
    m: int, matrix: Matrix, x: Any, corner: Any, image: Any, zeros: Any, patch: Any, v: Any
) -> tuple[Any, Any]:
    """Body of `transform_input` and `untransform_output`, which differ by their matrix."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = element_pointer(cgctx, builder, x, values[1], _i64(0))
        outside = element_pointer(cgctx, builder, zeros, values[4], _i64(0))
        copy = element_pointer(cgctx, builder, patch, *values[5:7])
        target = element_pointer(cgctx, builder, v, *values[7:9])
        emitter = make_emitter(cgctx, builder, v)
        rows, cells = len(matrix), len(matrix[0])
        edge = (cells - m) // 2
        channels = cgutils.unpack_tuple(builder, values[3])[2]
        square = _Square(builder, source, values[2], values[3], cells, edge, copy, channels)
        square.zero_rows(outside)
        with builder.if_then(builder.not_(square.whole), likely=False):

            def visit(number: Any, inside: Any, offset: Any) -> None:
                pixel = builder.select(inside, builder.gep(source, [offset]), outside)
                place = builder.gep(copy, [builder.mul(number, channels)])
                _copy_pixel(builder, emitter, pixel, place, channels)

            _each_pixel(builder, values[2], values[3], cells, visit)
        steps = [builder.mul(square.step, _i64(j)) for j in range(cells)]
        # The pixels that the tile below will be the first to read, one row of tiles ahead: from
        # memory, 64 channels of 56 x 56 pixels take 290 cycles a vector with it, 650 without.
        skip = (cells, edge)
        request = _prefetch_below(builder, source, values[2], values[3], m, skip, write=False)

        def transform(tile: Any) -> None:
            shift = builder.mul(tile, _i64(m))
            start = builder.mul(shift, square.step)
            # Columns outside are read from their neighbours', and cleared.
            offsets, masks = list(steps), {}
            for j, other in ((0, 1), (cells - 1, cells - 2)) if edge else ():
                kept = builder.or_(square.inside(j, shift), builder.not_(square.whole))
                offsets[j] = builder.select(kept, offsets[j], offsets[other])
                masks[j] = emitter.mask(_opaque(builder, builder.sext(kept, _i64)))
            tile_at = builder.gep(target, [builder.mul(tile, values[10])])

            def emit(at: Any) -> None:
                place = _points(builder, builder.gep(tile_at, [at]), values[9], rows)
                at = builder.add(start, at)
                request(at)
                pixel = square.pixels(at)

                def load(i: int, j: int) -> Any:
                    value = emitter.load_vector(pixel(i, offsets[j]))
                    return emitter.masked(value, masks[j]) if j in masks else value

                def store(i: int, j: int, value: Any, scale: float) -> None:
                    emitter.store_vector(value, place(i, j))

                emitter.square(emitter.paired_rows, matrix, load, store)

            vector_loop(builder, emitter.lanes, channels, emit)

        with cgutils.for_range(builder, values[11]) as loop:
            transform(loop.index)
        return cgctx.get_dummy_value()

    i8 = types.int64
    operands = (x, corner, image, zeros, patch, i8, v, i8, i8, i8, i8)
    return types.void(types.literal(m), *operands), codegen


def _copy_pixel(builder: Any, emitter: Any, source: Any, target: Any, count: Any) -> None:
    def emit(at: Any) -> None:
        value = emitter.load_vector(builder.gep(source, [at]))
        emitter.store_vector(value, builder.gep(target, [at]))

    vector_loop(builder, emitter.lanes, count, emit)


@intrinsic(prefer_literal=True)
def transform_input(
    typingctx: Any,
    tile: Any,
    x: Any,
    corner: Any,
    image: Any,
    zeros: Any,
    patch: Any,
    patch_at: Any,
    v: Any,
    v_at: Any,
    v_xi: Any,
    v_row: Any,
    run: Any,
) -> Any:
    """``v[v_at + xi * v_xi + c] = (B^T d B)[xi]`` for an n x n square d of pixels of x.

    ``corner = (offset of the image, row, column)`` of the square's first pixel and ``image =
    (rows, columns, channels, row step, column step)``, of which the steps lie between pixels of
    the square. Outside of the image they are zero. `zeros` holds zeros for a row of the image
    and a tile more; channels are at least a vector; at `patch_at` there is room for a copy of the
    square. This is done for `run` tiles, m pixels and `v_row` elements apart; more than one where
    their columns, but for one on either side, are all inside.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    return _gather(m, matrices(m).data, x, corner, image, zeros, patch, v)


@intrinsic(prefer_literal=True)
def untransform_output(
    typingctx: Any,
    tile: Any,
    dy: Any,
    corner: Any,
    image: Any,
    zeros: Any,
    patch: Any,
    patch_at: Any,
    w: Any,
    w_at: Any,
    w_xi: Any,
    w_row: Any,
    run: Any,
) -> Any:
    """``w[w_at + xi * w_xi + c] = (A d A^T)[xi]`` for m x m pixels: `transform_output`'s adjoint.

    Arguments as in `transform_input`.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    return _gather(m, transposed(matrices(m).output), dy, corner, image, zeros, patch, w)


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
    patch: Any,
    patch_at: Any,
    p_row: Any,
    run: Any,
    stream: Any,
) -> Any:
    """``y[pixels of the tile] = max(bias + A^T p A, floor)``, NaN stays NaN.

    For c < count, at least one vector, `p` is read at ``p_at + xi * p_xi + c`` and bias at
    ``first + c``, ``added = (bias, first, floor)``. `corner` and `image` are those of
    `transform_input`. Where pixels are outside of the image, the tile goes through the memory at
    `patch_at`, `count` elements a pixel. This is done for `run` tiles, `p_row` elements apart; more
    than one where they are all inside. With `stream` whole tiles are written past the caches: then
    `count` vectors fill aligned addresses.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    matrix = matrices(m).output

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = element_pointer(cgctx, builder, p, values[1], values[2])
        bias, first, floor = cgutils.unpack_tuple(builder, values[4])
        biases = element_pointer(cgctx, builder, added.types[0], bias, first)
        target = element_pointer(cgctx, builder, y, values[5], _i64(0))
        copy = element_pointer(cgctx, builder, patch, *values[9:11])
        emitter = make_emitter(cgctx, builder, y)
        count = values[8]
        square = _Square(builder, target, values[6], values[7], m, 0, copy, count, all_rows=True)
        offsets = [builder.mul(square.step, _i64(j)) for j in range(m)]
        # 64 x 16 x 32 x 32 -> 16 channels take 1.67 ms with it, 2.06 without.
        request = _prefetch_below(builder, target, values[6], values[7], m, (m, 0), write=True)
        lowest = emitter.splat(floor)
        past = builder.and_(builder.icmp_signed("!=", values[13], _i64(0)), square.whole)

        def transform(tile: Any) -> None:
            tile_at = builder.gep(source, [builder.mul(tile, values[11])])
            shift = builder.mul(builder.mul(tile, _i64(m)), square.step)

            def emit(at: Any) -> None:
                start = emitter.load_vector(builder.gep(biases, [at]))
                place = _points(builder, builder.gep(tile_at, [at]), values[3], m + 2)
                at = builder.add(shift, at)
                with builder.if_then(builder.not_(past)):
                    request(at)
                pixel = square.pixels(at)
                line: dict[int, Any] = {}

                def load(i: int, j: int) -> Any:
                    return emitter.load_vector(place(i, j))

                def store(i: int, j: int, value: Any, scale: float) -> None:
                    scale = rounded(scale)
                    total = emitter.multiply_add(scale, value, start)
                    low = builder.fcmp_ordered(">", lowest, total)
                    line[j] = builder.select(low, lowest, total)
                    if len(line) == m:
                        write(i)

                def write(i: int) -> None:
                    spots = [(value, pixel(i, offsets[j])) for j, value in line.items()]
                    line.clear()
                    with builder.if_else(past) as (streamed, stored):
                        with streamed:
                            for spot in spots:
                                emitter.stream_vector(*spot)
                        with stored:
                            for spot in spots:
                                emitter.store_vector(*spot)

                emitter.square(emitter.paired_columns, matrix, load, store)

            vector_loop(builder, emitter.lanes, count, emit)

        with cgutils.for_range(builder, values[12]) as loop:
            transform(loop.index)
        with builder.if_then(builder.not_(square.whole), likely=False):

            def visit(number: Any, inside: Any, offset: Any) -> None:
                with builder.if_then(inside):
                    pixel = builder.gep(copy, [builder.mul(number, count)])
                    _copy_pixel(builder, emitter, pixel, builder.gep(target, [offset]), count)

            _each_pixel(builder, values[6], values[7], m, visit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    signature = (p, i8, i8, added, y, corner, image, i8, patch, i8, i8, i8, i8)
    return types.void(tile, *signature), codegen
