"""Register tiles of grouped convolution: lanes run over channels, a tile over pixels of a row.

Pixels are packed one vector after the other, with zeros around them, so that a tap of the kernel is
an offset, and the inner loop has no masks, tests or shuffles. With 7 pixels and runs of 3 taps a
multiply-add costs 0.57 loads, by single taps 1.14: 142 and 188 cycles for a row of 28 pixels and
3 x 3 taps, of which the multiply-adds take 126.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import LINE, Vectors, operand, prefetch
from fastlayers.runtime import cpu

__all__ = ["RUN", "Ahead", "Channels", "Steps", "correlate_pixels", "pack_pixels", "weight_pixels"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)
# Taps of a run: each vector of input that is loaded meets as many weights.
RUN = 3


class Channels(NamedTuple):
    """A vector of channels of the first pixel of a row, of a flat array."""

    array: Any
    at: int
    pixel_step: int
    lanes: int  # those that exist


class Steps(NamedTuple):
    """Some of the steps of a tile: by `RUN` taps side by side, and then by single taps.

    Step k reads packed pixels from ``runs[k]`` or ``taps[k]`` on. Weights, or their sums, are a
    vector for each tap of all runs, and then those of single taps.
    """

    runs: Any
    first_run: int
    last_run: int
    taps: Any
    first_tap: int
    last_tap: int


class Ahead(NamedTuple):
    """What is prefetched for each pixel: so many elements of a flat array from `at` on."""

    array: Any
    at: int
    each: int


def _sizes() -> tuple[int, ...]:
    """Pixels of the tiles that share a row; 7 divides many usual widths, 4 the others."""
    return (14, 7, 4, 2, 1) if cpu.tile_rows() == 12 else (7, 4, 2, 1)


class _Pixels(Vectors):
    """Emits the tiles of a row of pixels, and the loop over steps in each."""

    def __init__(self, cgctx, builder, kind) -> None:
        super().__init__(builder, cgctx.get_data_type(kind), cpu.lanes(kind.bitwidth // 8))
        self.cgctx, self.words = cgctx, kind.bitwidth // 32

    def tiles(self, count, body) -> None:
        """Emit ``body(first, size)`` for tiles of `count` pixels, the largest first."""
        builder, first = self.builder, _i64(0)
        for size in _sizes():
            whole = builder.udiv(builder.sub(count, first), _i64(size))
            end = builder.add(first, builder.mul(whole, _i64(size)))
            with cgutils.for_range_slice(builder, first, end, _i64(size), _i64) as (at, _):
                body(at, size)
            first = end

    def steps(self, kind, value, x, step, weights, body) -> None:
        """Emit ``body(load, weights of the step, taps)`` for each step.

        ``load(q)`` is the vector of pixel q behind ``x + offset``, `step` elements a pixel.
        """
        builder = self.builder
        given = Steps(*cgutils.unpack_tuple(builder, value))

        runs, taps = (
            self.cgctx.make_array(kind.types[i])(self.cgctx, builder, given[i]) for i in (0, 3)
        )
        of_taps = builder.mul(runs.nitems, _i64(RUN))
        each = (
            (runs, given.first_run, given.last_run, RUN, _i64(0)),
            (taps, given.first_tap, given.last_tap, 1, of_taps),
        )
        for offsets, first, last, count, before in each:
            with cgutils.for_range_slice(builder, first, last, _i64(1), _i64) as (k, _):
                offset = builder.load(builder.gep(offsets.data, [k]))
                tap = builder.add(before, builder.mul(k, _i64(count)))
                at = builder.mul(tap, _i64(self.lanes))
                load = self.loader(builder.gep(x, [offset]), step)
                body(load, builder.gep(weights, [at]), count)

    def loader(self, x, step):
        """``load(q)``, the vector `q` times `step` elements behind x."""
        builder = self.builder
        by_three = builder.mul(step, _i64(3))
        bases = [x]

        def load(q: int):
            while len(bases) <= q // 3:
                bases.append(builder.gep(bases[-1], [by_three]))
            return self.load_vector(builder.gep(bases[q // 3], [builder.mul(step, _i64(q % 3))]))

        return load

    def prefetch(self, kind, value, first, size: int) -> None:
        """Emit the prefetches of `size` pixels; `kind` and `value` are of an `Ahead`."""
        builder = self.builder
        at, each = operand(self.cgctx, builder, kind, value)
        start, stop = (builder.mul(p, each) for p in (first, builder.add(first, _i64(size))))
        line = _i64(LINE // 4 // self.words)
        with cgutils.for_range_slice(builder, start, stop, line, _i64) as (offset, _):
            prefetch(builder, builder.gep(at, [offset]))

    def variable(self, value):
        """A vector that loops change, which optimisation keeps in a register."""
        place = cgutils.alloca_once(self.builder, self.vector)
        self.builder.store(value, place)
        return place

    def multiply_add(self, a, b, place) -> None:
        """Emit ``place += a * b``."""
        self.builder.store(self.fma(a, b, self.builder.load(place)), place)


@intrinsic
def pack_pixels(typingctx, shuffled, count, x, order, out):
    """Copy `count` pixels of x, which are `Channels`, to one vector after the other.

    Where `shuffled` is not empty the lanes read the 32-bit words ``order = (array, offset)`` of the
    pixel; ``out`` is ``(array, offset)``.
    """

    def codegen(cgctx, builder, sig, values):
        _, count, x_value, order_value, out_value = values
        pixels = _Pixels(cgctx, builder, x.types[0].dtype)
        source, step, lanes = operand(cgctx, builder, x, x_value)
        (words,) = operand(cgctx, builder, order, order_value)
        (target,) = operand(cgctx, builder, out, out_value)
        mask = pixels.first_lanes(lanes)
        load = _shuffled(pixels, words, mask) if len(shuffled) else None

        def copy(first, size: int) -> None:
            out_at = builder.gep(target, [builder.mul(first, _i64(pixels.lanes))])
            for p in range(size):
                pixel = builder.mul(step, builder.add(first, _i64(p)))
                at = builder.gep(source, [pixel])
                value = load(at) if load else pixels.load_vector(at, mask=mask)
                pixels.store_vector(value, out_at, p)

        pixels.tiles(count, copy)
        return cgctx.get_dummy_value()

    return types.void(shuffled, types.int64, x, order, out), codegen


def _shuffled(vectors: _Pixels, order, mask):
    """A function that loads a vector whose lanes are permuted to the `order` of its words."""
    builder, words, count = vectors.builder, vectors.words, vectors.lanes * vectors.words
    if count == 4:

        def load_each(at):
            """Nothing permutes by a vector of indices."""
            value = ir.Constant(vectors.vector, ir.Undefined)
            for i in range(vectors.lanes):
                word = builder.load(builder.gep(order, [_i64(i * words)]))
                lane = builder.zext(builder.lshr(word, _i32(words - 1)), _i64)
                part = builder.load(builder.gep(at, [lane]))
                value = builder.insert_element(value, part, _i32(i))
            return value

        return load_each
    indices = ir.VectorType(_i32, count)
    places = builder.load(builder.bitcast(order, indices.as_pointer()), align=4)
    floats = ir.VectorType(ir.FloatType(), count)
    name = "llvm.x86.avx512.permvar.sf.512" if count == 16 else "llvm.x86.avx2.permps"
    permute = vectors.declare(name, floats, [floats, indices])

    def load(at):
        value = builder.bitcast(vectors.load_vector(at, mask=mask), floats)
        return builder.bitcast(builder.call(permute, [value, places]), vectors.vector)

    return load


@intrinsic
def correlate_pixels(typingctx, count, x, steps, weights, bias, floor, y, ahead):
    """``y[p] = max(floor, bias + sum over steps k of weights[k] * x[offsets[k] + p])``.

    p is one of the first `count` pixels of a row, all are vectors of channels. x is ``(array,
    offset, elements from pixel to pixel)``, `weights` and `bias` are ``(array, offset)``, `steps`
    are `Steps`, y are `Channels` and `ahead` is an `Ahead`.
    """

    def codegen(cgctx, builder, sig, values):
        count, *operands, floor_value, y_value, ahead_value = values
        pixels = _Pixels(cgctx, builder, x.types[0].dtype)
        x_value, steps_value, weights_value, bias_value = operands
        source, x_step = operand(cgctx, builder, x, x_value)
        (factors,) = operand(cgctx, builder, weights, weights_value)
        (start,) = operand(cgctx, builder, bias, bias_value)
        target, pixel, lanes = operand(cgctx, builder, y, y_value)
        mask = pixels.first_lanes(lanes)
        first = pixels.load_vector(start, mask=mask)
        lowest = pixels.splat(floor_value)

        def tile(at, size: int) -> None:
            sums = [pixels.variable(first) for _ in range(size)]
            pixels.prefetch(ahead, ahead_value, at, size)

            def step(load, weight_at, taps: int) -> None:
                weight = [pixels.load_vector(weight_at, i) for i in range(taps)]
                for q in range(size + taps - 1):
                    value = load(q)
                    for i in range(taps):
                        if 0 <= q - i < size:
                            pixels.multiply_add(value, weight[i], sums[q - i])

            begin = builder.gep(source, [builder.mul(at, x_step)])
            pixels.steps(steps, steps_value, begin, x_step, factors, step)
            results, places = [], []
            for p, place in enumerate(sums):
                total = builder.load(place)
                low = builder.fcmp_ordered("<", total, lowest)
                results.append(builder.select(low, lowest, total))
                q = builder.mul(pixel, builder.add(at, _i64(p)))
                places.append(builder.gep(target, [q]))
            pixels.store_vectors(results, places, mask=mask)

        pixels.tiles(count, tile)
        return cgctx.get_dummy_value()

    return types.void(types.int64, x, steps, weights, bias, floor, y, ahead), codegen


@intrinsic
def weight_pixels(typingctx, count, x, steps, sums, dy, row, ahead):
    """``sums[k] += sum over pixels p of dy[p] * x[offsets[k] + p]``; see `correlate_pixels`.

    ``sums = (array, offset, total)``, and the sum of dy is added at ``offset + total``. What is
    `row` elements behind each pixel of dy is prefetched: without it 32 images of 32 x 112 x 112
    take 1.6 times as long.
    """

    def codegen(cgctx, builder, sig, values):
        count, x_value, steps_value, sums_value, dy_value, row, ahead_value = values
        pixels = _Pixels(cgctx, builder, x.types[0].dtype)
        source, x_step = operand(cgctx, builder, x, x_value)
        target, total = operand(cgctx, builder, sums, sums_value)
        gradient, pixel, lanes = operand(cgctx, builder, dy, dy_value)
        mask = pixels.first_lanes(lanes)
        all_of_dy = builder.gep(target, [total])
        bias = pixels.variable(pixels.load_vector(all_of_dy))

        def tile(at, size: int) -> None:
            pixels.prefetch(ahead, ahead_value, at, size)
            loaded = []
            for p in range(size):
                q = builder.mul(pixel, builder.add(at, _i64(p)))
                loaded.append(pixels.load_vector(builder.gep(gradient, [q]), mask=mask))
                prefetch(builder, builder.gep(gradient, [builder.add(q, row)]))

            def step(load, sum_at, taps: int) -> None:
                # Two chains a tap, as each multiply-add waits for the one before it.
                zero = ir.Constant(pixels.vector, None)
                chains = [[pixels.load_vector(sum_at, i), zero] for i in range(taps)]
                for q in range(size + taps - 1):
                    value = load(q)
                    for i in range(taps):
                        p = q - i
                        if 0 <= p < size:
                            chains[i][p % 2] = pixels.fma(value, loaded[p], chains[i][p % 2])
                for i, (even, odd) in enumerate(chains):
                    total = builder.fadd(even, odd) if size > 1 else even
                    pixels.store_vector(total, sum_at, i)

            begin = builder.gep(source, [builder.mul(at, x_step)])
            pixels.steps(steps, steps_value, begin, x_step, target, step)
            while len(loaded) > 1:  # pairs: a chain of additions waits for each
                pairs = zip(loaded[::2], loaded[1::2], strict=False)
                loaded = [builder.fadd(a, b) for a, b in pairs] + loaded[len(loaded) // 2 * 2 :]
            builder.store(builder.fadd(builder.load(bias), loaded[0]), bias)

        pixels.tiles(count, tile)
        pixels.store_vector(builder.load(bias), all_of_dy)
        return cgctx.get_dummy_value()

    return types.void(types.int64, x, steps, sums, dy, types.int64, ahead), codegen
