"""The transforms of Winograd's tiles of pixels, on vectors of channels.

Third of the folder's files, after `matrices` and `pixels`. A tile of outputs of F(m x m, 3 x 3) is
``Y = A^T [(G g G^T) * (B^T d B)] A`` for a filter g and n x n inputs d, n = m + 2 (Lavin and Gray,
2015). Here one tile, or a run of neighbours, goes from an image to the points of its transform and
back; `tiles` walks over the images, and `filters` has ``G g G^T``. Arrays are flat, positions and
strides count elements.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.conv.winograd.matrices import (
    Emitter,
    Matrix,
    make_emitter,
    matrices,
    rounded,
    transposed,
    vector_loop,
)
from fastlayers.kernels.conv.winograd.pixels import (
    Pixels,
    Square,
    copy_pixel,
    each_pixel,
    opaque,
    prefetch_below,
)
from fastlayers.kernels.ir.named import Element, Elements, fields
from fastlayers.kernels.ir.vectors import element_pointer, literals

__all__ = [
    "Output",
    "Transformed",
    "transform_input",
    "transform_output",
    "untransform_output",
]

_i64 = ir.IntType(64)


class Transformed(NamedTuple):
    """A matrix for each point of the transform: a row of channels for each tile, from `at`."""

    array: Elements
    at: int
    row: int  # from tile to tile
    point: int  # from point to point


class Output(NamedTuple):
    """Where a convolution's results go, and what is done to them on the way."""

    y: Elements
    bias: Elements
    floor: Element  # what is less is raised to it
    stream: int  # whether whole tiles are written by non-temporal stores


def _points(builder, base, point, n: int) -> Callable[[int, int], Any]:
    """Addresses of the n x n points of a tile, `point` elements from one to the next."""
    base, point = opaque(builder, base), opaque(builder, point)
    rows = [base]
    line = builder.mul(point, _i64(n))
    for _ in range(1, n):
        rows.append(builder.gep(rows[-1], [line]))

    def place(i: int, j: int):
        return builder.gep(rows[i], [builder.mul(point, _i64(j))]) if j else rows[i]

    return place


class _Inputs:
    """The pixels of a tile that is to be transformed: the image's, or a copy if some are outside.

    `places` are pointers to the image, to zeros and to the room for the copy.
    """

    def __init__(
        self, builder, emitter: Emitter, square: Square, cells: int, m: int, places
    ) -> None:
        source, outside, copy = places
        edge = (cells - m) // 2
        channels = square.channels
        pixels = Pixels(builder, square, cells, edge, source, copy, channels)
        pixels.zero_rows(outside)
        with builder.if_then(builder.not_(pixels.whole), likely=False):

            def visit(number, inside, offset) -> None:
                pixel = builder.select(inside, builder.gep(source, [offset]), outside)
                place = builder.gep(copy, [builder.mul(number, channels)])
                copy_pixel(builder, emitter, pixel, place, channels)

            each_pixel(builder, square, cells, visit)
        self._builder, self._emitter, self._pixels = builder, emitter, pixels
        self._cells, self._edge = cells, edge
        self._steps = [builder.mul(pixels.step, _i64(j)) for j in range(cells)]
        # The pixels that the tile below will be the first to read, one row of tiles ahead: from
        # memory, 64 channels of 56 x 56 pixels take 290 cycles a vector with it, 650 without.
        skip = (cells, edge)
        self._request = prefetch_below(builder, source, square, m, skip, write=False)

    def tile(self, shift) -> Callable[[Any], Callable[[int, int], Any]]:
        """Loads of vectors from the square that is `shift` columns further on.

        A function of the vector's place in a pixel, which gives one of the pixel's row and column.
        """
        builder, emitter, pixels = self._builder, self._emitter, self._pixels
        start = builder.mul(shift, pixels.step)
        # Columns outside are read from their neighbours', and cleared.
        offsets, masks, last = list(self._steps), {}, self._cells - 1
        for j, other in ((0, 1), (last, last - 1)) if self._edge else ():
            kept = builder.or_(pixels.inside(j, shift), builder.not_(pixels.whole))
            offsets[j] = builder.select(kept, offsets[j], offsets[other])
            masks[j] = emitter.mask(opaque(builder, builder.sext(kept, _i64)))

        def vectors(at) -> Callable[[int, int], Any]:
            at = builder.add(start, at)
            self._request(at)
            pixel = pixels.addresses(at)

            def load(i: int, j: int):
                value = emitter.load_vector(pixel(i, offsets[j]))
                return emitter.masked(value, masks[j]) if j in masks else value

            return load

        return vectors


def _gather(m: int, matrix: Matrix, x, square, zeros, v) -> tuple[Any, Any]:
    """Body of `transform_input` and `untransform_output`, which differ by their matrix."""

    def codegen(cgctx, builder, sig, values):
        pixels, out = fields(cgctx, builder, (square, v), (values[2], values[6]))
        source = element_pointer(cgctx, builder, x, values[1], _i64(0))
        outside = element_pointer(cgctx, builder, zeros, values[3], _i64(0))
        copy = element_pointer(cgctx, builder, sig.args[4], *values[4:6])
        target = builder.gep(out.array.data, [out.at])
        emitter = make_emitter(cgctx, builder, v.types[0])
        rows, cells = len(matrix), len(matrix[0])
        places = source, outside, copy
        inputs = _Inputs(builder, emitter, pixels, cells, m, places)
        with cgutils.for_range(builder, values[7]) as loop:
            vectors = inputs.tile(builder.mul(loop.index, _i64(m)))
            tile_at = builder.gep(target, [builder.mul(loop.index, out.row)])

            def emit(at) -> None:
                place = _points(builder, builder.gep(tile_at, [at]), out.point, rows)
                load = vectors(at)

                def store(i: int, j: int, value, scale: float) -> None:
                    emitter.store_vector(value, place(i, j))

                emitter.square(emitter.paired_rows, matrix, load, store)

            vector_loop(builder, emitter.lanes, pixels.channels, emit)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(types.literal(m), x, square, zeros, v.types[0], i8, v, i8), codegen


@intrinsic(prefer_literal=True)
def transform_input(typingctx, tile, x, square, zeros, patch, patch_at, v, run):
    """``v[xi, c] = (B^T d B)[xi]`` for the n x n square d of pixels of x, v a `Transformed`.

    `zeros` holds zeros for a row of the image and a tile more; channels are at least a vector; at
    `patch_at` there is room for a copy of the square. This is done for `run` tiles, m pixels and
    a row of v apart; more than one where their columns, but for one on either side, are all inside.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    return _gather(m, matrices(m).data, x, square, zeros, v)


@intrinsic(prefer_literal=True)
def untransform_output(typingctx, tile, dy, square, zeros, patch, patch_at, w, run):
    """``w[xi, c] = (A d A^T)[xi]`` for m x m pixels: the adjoint of `transform_output`.

    Arguments as in `transform_input`.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    return _gather(m, transposed(matrices(m).output), dy, square, zeros, w)


class _Outputs:
    """Stores of a tile's outputs: to the image, or first to a copy where some are outside."""

    def __init__(self, builder, emitter: Emitter, pixels: Pixels, m: int) -> None:
        self._builder, self._emitter, self._pixels, self._m = builder, emitter, pixels, m
        self._offsets = [builder.mul(pixels.step, _i64(j)) for j in range(m)]

    def row(self, i: int, values: dict[int, Any], pixel, stream) -> None:
        """Store the vectors of a row, by column."""
        spots = [(value, pixel(i, self._offsets[j])) for j, value in values.items()]
        with self._builder.if_else(stream) as (streamed, stored):
            with streamed:
                for spot in spots:
                    self._emitter.stream_vector(*spot)
            with stored:
                for spot in spots:
                    self._emitter.store_vector(*spot)

    def copy_back(self, square: Square, target, copy, count) -> None:
        """Copy to the image what is inside of it, where the tile was stored to the copy."""
        builder = self._builder
        with builder.if_then(builder.not_(self._pixels.whole), likely=False):

            def visit(number, inside, offset) -> None:
                with builder.if_then(inside):
                    pixel = builder.gep(copy, [builder.mul(number, count)])
                    out = builder.gep(target, [offset])
                    copy_pixel(builder, self._emitter, pixel, out, count)

            each_pixel(builder, square, self._m, visit)


@intrinsic(prefer_literal=True)
def transform_output(typingctx, tile, p, out, part, square, patch_at, run):
    """``y[pixels of the tile] = max(bias + A^T p A, floor)``, NaN stays NaN; `out` is an `Output`.

    ``part = (first, count)`` are the filters, at least a vector, that the `Transformed` p holds
    and that begin at the square's `image`. Where pixels are outside of the image, the tile goes
    through the memory at `patch_at` of p's array, `count` elements a pixel. This is done for `run`
    tiles, a row of p apart; more than one where they are all inside. With `stream` the `count`
    fills aligned vectors.
    """
    known = literals(tile)
    if known is None:
        return None
    (m,) = known
    matrix = matrices(m).output

    def codegen(cgctx, builder, sig, values):
        named = (values[1], values[2], values[4])
        products, result, image = fields(cgctx, builder, (p, out, square), named)
        first, count = cgutils.unpack_tuple(builder, values[3])
        source = builder.gep(products.array.data, [products.at])
        copy = builder.gep(products.array.data, [values[5]])
        target, biases = result.y.data, builder.gep(result.bias.data, [first])
        emitter = make_emitter(cgctx, builder, out.types[0])
        pixels = Pixels(builder, image, m, 0, target, copy, count, all_rows=True)
        outputs = _Outputs(builder, emitter, pixels, m)
        # 64 x 16 x 32 x 32 -> 16 channels take 1.67 ms with it, 2.06 without.
        request = prefetch_below(builder, target, image, m, (m, 0), write=True)
        lowest = emitter.splat(result.floor)
        stream = builder.icmp_signed("!=", result.stream, _i64(0))
        stream = builder.and_(stream, pixels.whole)
        with cgutils.for_range(builder, values[6]) as loop:
            tile_at = builder.gep(source, [builder.mul(loop.index, products.row)])
            shift = builder.mul(builder.mul(loop.index, _i64(m)), pixels.step)

            def emit(at):
                start = emitter.load_vector(builder.gep(biases, [at]))
                place = _points(builder, builder.gep(tile_at, [at]), products.point, m + 2)
                at = builder.add(shift, at)
                with builder.if_then(builder.not_(stream)):
                    request(at)
                pixel = pixels.addresses(at)
                line = {}

                def load(i, j):
                    return emitter.load_vector(place(i, j))

                def store(i, j, value, scale):
                    total = emitter.multiply_add(rounded(scale), value, start)
                    low = builder.fcmp_ordered(">", lowest, total)
                    line[j] = builder.select(low, lowest, total)
                    if len(line) == m:
                        outputs.row(i, line, pixel, stream)
                        line.clear()

                emitter.square(emitter.paired_columns, matrix, load, store)

            vector_loop(builder, emitter.lanes, count, emit)
        outputs.copy_back(image, target, copy, count)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(tile, p, out, types.UniTuple(i8, 2), square, i8, i8), codegen
