"""Register tiles of grouped convolution: lanes run over channels, a tile over pixels of a row.

A tap of the kernel is a step of a loop: each vector of input that it loads meets `span` weights,
for as many neighbouring pixels, so that a multiply-add costs only a fraction of a load.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, operand
from fastlayers.runtime import cpu

__all__ = ["Channels", "Steps", "Tile", "correlate_tile", "tile_pixels", "weight_tile"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)


class Tile(NamedTuple):
    """What a tile's code is made for: tuples, whose lengths are read."""

    span: Any  # the number of weights that a vector of input meets
    shuffled: Any  # 1 where a step reads the input's channels in the order of a row of `order`


class Channels(NamedTuple):
    """A vector of channels of the first pixel of a row, of a flat array."""

    array: Any
    at: int
    pixel_step: int
    lanes: int  # those that exist


class Steps(NamedTuple):
    """The steps of a tile, one for each vector of weights or `span` of them.

    Step k adds ``table[2 * k]`` to the offset of the input, and reads row ``table[2 * k + 1]`` of
    `order`; pixel q of the input exists where bit q of ``table[masks + k]`` is set.
    """

    table: Any
    first: int
    last: int
    masks: int
    order: Any


def tile_pixels(span: int) -> int:
    """Pixels of a tile: 14, which divides the usual widths, or what 16 registers leave."""
    return 14 if cpu.tile_rows() == 12 else 12 - span


@intrinsic
def correlate_tile(typingctx, tile, pixels, x, steps, weights, bias, floor, y):
    """``y[p] = max(floor, bias + sum over steps k, l < span of weights[k, l] * x[k][p + l])``.

    p is one of the first `pixels` of a row, all are vectors of channels. `tile` is a `Tile`, x and
    y are `Channels` and `steps` are `Steps`; `weights` and `bias` are ``(array, offset)``.
    """

    def codegen(cgctx, builder, sig, values):
        _, pixels, *operands, bias_value, floor_value, y_value = values
        taps = _TapTile(cgctx, builder, sig.args[0], sig.args[2:5], operands)
        target, pixel, lanes = operand(cgctx, builder, y, y_value)
        mask = taps.first_lanes(lanes)
        (start,) = operand(cgctx, builder, bias, bias_value)
        first = taps.load_vector(start, mask=mask)
        sums = taps.loop([first] * taps.pixels, taps.correlate)
        lowest = taps.splat(floor_value)
        for p, total in enumerate(sums):
            with builder.if_then(builder.icmp_signed("<", _i64(p), pixels)):
                low = builder.fcmp_ordered("<", total, lowest)
                at = builder.gep(target, [builder.mul(pixel, _i64(p))])
                taps.store_vector(builder.select(low, lowest, total), at, mask=mask)
        return cgctx.get_dummy_value()

    return types.void(tile, types.int64, x, steps, weights, bias, floor, y), codegen


@intrinsic
def weight_tile(typingctx, tile, pixels, x, steps, sums, dy):
    """``sums[k, l] += sum over pixels p of dy[p] * x[k][p + l]``; see `correlate_tile`.

    ``sums = (array, offset, total)``, and the sum of dy is added at ``offset + total``.
    """

    def codegen(cgctx, builder, sig, values):
        _, count, *operands, dy_value = values
        taps = _TapTile(cgctx, builder, sig.args[0], sig.args[2:5], operands)
        source, pixel, lanes = operand(cgctx, builder, dy, dy_value)
        pixels = []
        for p in range(taps.pixels):
            taps.exists.append(builder.icmp_signed("<", _i64(p), count))
            at = builder.gep(source, [builder.mul(pixel, _i64(p))])
            here = taps.first_lanes(builder.select(taps.exists[p], lanes, _i64(0)))
            pixels.append(taps.load_vector(at, mask=here))
        taps.loop(pixels, taps.differentiate)
        while len(pixels) > 1:  # pairs: a chain of additions waits for each
            pairs = [builder.fadd(a, b) for a, b in zip(pixels[::2], pixels[1::2], strict=False)]
            pixels = pairs + pixels[len(pixels) // 2 * 2 :]
        at = builder.gep(taps.weights, [taps.total])
        taps.store_vector(builder.fadd(taps.load_vector(at), pixels[0]), at)
        return cgctx.get_dummy_value()

    return types.void(tile, types.int64, x, steps, sums, dy), codegen


class _TapTile(Vectors):
    """Emits the loop over steps around the loads of one tile."""

    def __init__(self, cgctx, builder, tile, kinds, values) -> None:
        x, steps, weights = kinds  # the types of x, the steps and the weights or sums
        self.cgctx = cgctx
        itemsize = x.types[0].dtype.bitwidth // 8
        super().__init__(builder, cgctx.get_data_type(x.types[0].dtype), cpu.lanes(itemsize))
        self.words = itemsize // 4
        self.span, self.shuffled = len(tile.types[0]), len(tile.types[1]) > 0
        self.pixels = tile_pixels(self.span)
        self.exists: list[Any] = []
        self.x, self.x_pixel, lanes = operand(cgctx, builder, x, values[0])
        self.x_mask = self.first_lanes(lanes)
        self.weights, *rest = operand(cgctx, builder, weights, values[2])
        self.total = rest[0] if rest else None
        given = Steps(*cgutils.unpack_tuple(builder, values[1]))
        self.first, self.last = given.first, given.last
        self.steps = self._data(steps.types[0], given.table)
        self.masks = builder.gep(self.steps, [given.masks])
        self.order = self._data(steps.types[4], given.order)

    def _data(self, array_type, array):
        return self.cgctx.make_array(array_type)(self.cgctx, self.builder, array).data

    def loop(self, tile: list[Any], body) -> list[Any]:
        """Emit ``tile = body(step, tile)`` for all steps."""
        builder = self.builder
        before = builder.block
        loop, done = (builder.append_basic_block(name) for name in ("taps", "taps.done"))
        some = builder.icmp_signed("<", self.first, self.last)
        builder.cbranch(some, loop, done)
        builder.position_at_end(loop)
        step = builder.phi(_i64)
        phis = [builder.phi(self.vector) for _ in tile]
        updated = body(step, phis)
        following = builder.add(step, _i64(1))
        end = builder.block
        builder.cbranch(builder.icmp_signed("<", following, self.last), loop, done)
        for phi, first, after in zip(
            [step, *phis], [self.first, *tile], [following, *updated], strict=True
        ):
            phi.add_incoming(first, before)
            phi.add_incoming(after, end)
        builder.position_at_end(done)
        return [
            self._merge(first, before, after, end)
            for first, after in zip(tile, updated, strict=True)
        ]

    def correlate(self, step, sums: list[Any]) -> list[Any]:
        at = self._weights_of(step)
        weights = [self.load_vector(at, i) for i in range(self.span)]
        sums = list(sums)

        def use(value, p: int, i: int) -> None:
            sums[p] = self.fma(value, weights[i], sums[p])

        self._visit(step, use, sums)
        return sums

    def differentiate(self, step, pixels: list[Any]) -> list[Any]:
        at = self._weights_of(step)
        sums = [self.load_vector(at, i) for i in range(self.span)]

        def use(value, p: int, i: int) -> None:
            # Where the row has ended, 0 times a NaN would be one.
            before, old = self.builder.block, sums[i]
            with self.builder.if_then(self.exists[p]):
                new = self.fma(value, pixels[p], old)
                inside = self.builder.block
            sums[i] = self._merge(old, before, new, inside)

        self._visit(step, use, sums)
        for i, total in enumerate(sums):
            self.store_vector(total, at, i)
        return pixels

    def _merge(self, a, a_block, b, b_block):
        phi = self.builder.phi(self.vector)
        phi.add_incoming(a, a_block)
        phi.add_incoming(b, b_block)
        return phi

    def _weights_of(self, step):
        size = _i64(self.span * self.lanes)
        return self.builder.gep(self.weights, [self.builder.mul(step, size)])

    def _visit(self, step, use, state: list[Any]) -> None:
        """Load each pixel of input that exists once, and call `use` for all pairs with it.

        The branches cost next to nothing: a test of one bit, the same in every row.
        """
        builder = self.builder
        entry = builder.gep(self.steps, [builder.mul(step, _i64(2))])
        x = builder.gep(self.x, [builder.load(entry)])
        bits = builder.load(builder.gep(self.masks, [step]))
        row = builder.load(builder.gep(entry, [_i64(1)]))
        order = self._order(row) if self.shuffled else None
        for q in range(self.pixels + self.span - 1):
            exists = builder.and_(bits, _i64(1 << q))
            before, old = builder.block, list(state)
            with builder.if_then(builder.icmp_unsigned("!=", exists, _i64(0))):
                at = builder.gep(x, [builder.mul(self.x_pixel, _i64(q))])
                value = self._shuffle(at, order)
                for i in range(self.span):
                    if 0 <= q - i < self.pixels:
                        use(value, q - i, i)
                inside = builder.block
            for k, (new, kept) in enumerate(zip(state, old, strict=True)):
                if new is not kept:
                    state[k] = self._merge(kept, before, new, inside)

    def _order(self, row):
        """Indices of 32-bit words: a vector, or a pointer to them where nothing permutes by one."""
        words = self.lanes * self.words
        at = self.builder.gep(self.order, [self.builder.mul(row, _i64(words))])
        if words == 4:
            return at
        vector = ir.VectorType(_i32, words)
        return self.builder.load(self.builder.bitcast(at, vector.as_pointer()), align=4)

    def _shuffle(self, at, order):
        builder, words = self.builder, self.lanes * self.words
        if order is None:
            return self.load_vector(at, mask=self.x_mask)
        if words == 4:
            value = ir.Constant(self.vector, ir.Undefined)
            for i in range(self.lanes):
                word = builder.load(builder.gep(order, [_i64(i * self.words)]))
                lane = builder.lshr(word, _i32(self.words - 1))
                part = builder.load(builder.gep(at, [builder.zext(lane, _i64)]))
                value = builder.insert_element(value, part, _i32(i))
            return value
        floats = ir.VectorType(ir.FloatType(), words)
        name = "llvm.x86.avx512.permvar.sf.512" if words == 16 else "llvm.x86.avx2.permps"
        permute = self.declare(name, floats, [floats, order.type])
        value = builder.bitcast(self.load_vector(at, mask=self.x_mask), floats)
        return builder.bitcast(builder.call(permute, [value, order]), self.vector)
