"""Philox 4x32-10 in vectors: random bits for masks, from a key and a counter.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. A block of four 32-bit words
follows from the key, the number of the stream and that of the block alone. Eight blocks are drawn
at a time, each in a 64-bit lane: what a round multiplies are the low halves of the lanes, so the
high ones may hold anything, and a round is two multiplications, two shifts and two exclusive ors of
three operands.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.vectors import Vectors, element_pointer

__all__ = ["GROUP", "draw_bits"]

_i64 = ir.IntType(64)
# Elements whose bits are drawn together: those of eight blocks' bytes.
GROUP = 128

_BLOCKS = 8
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = (1 << 32) - 1


def _words(builder: Any, key: Any, stream: Any, first: Any) -> list[Any]:
    """Words 0 and 1, and 2 and 3, of eight blocks, as two vectors of eight pairs."""
    lanes = Vectors(builder, _i64, _BLOCKS)

    def constant(value: int) -> Any:
        return ir.Constant(lanes.vector, [value] * _BLOCKS)

    low, half = constant(_LOW), constant(32)

    def low_part(value: Any) -> Any:
        return builder.and_(value, low)

    count = ir.Constant(lanes.vector, list(range(_BLOCKS)))
    block, stream = builder.add(lanes.splat(first), count), lanes.splat(stream)
    c0, c1, c2, c3 = block, builder.lshr(block, half), stream, builder.lshr(stream, half)
    keys = [builder.and_(key, _i64(_LOW)), builder.lshr(key, _i64(32))]
    for _ in range(10):
        p0, p1 = (
            builder.mul(low_part(value), constant(factor))
            for value, factor in zip((c0, c2), _MULTIPLIERS, strict=True)
        )
        k0, k1 = map(lanes.splat, keys)
        c0, c2 = (
            builder.xor(builder.xor(builder.lshr(p, half), c), k)
            for p, c, k in ((p1, c1, k0), (p0, c3, k1))
        )
        c1, c3 = p1, p0
        keys = [
            builder.and_(builder.add(k, _i64(step)), _i64(_LOW))
            for k, step in zip(keys, _WEYL, strict=True)
        ]
    return [
        builder.or_(low_part(even), builder.shl(odd, half)) for even, odd in ((c0, c1), (c2, c3))
    ]


@intrinsic(prefer_literal=True)
def draw_bits(
    typingctx: Any,
    width: Any,
    bits: Any,
    first: Any,
    count: Any,
    key: Any,
    stream: Any,
    threshold: Any,
) -> Any:
    """Set the bits of elements whose random number is at least `threshold`, clear the others'.

    For `count` groups of `GROUP` elements from group `first` on; bits are a flat uint8 array of 16
    bytes a group. The numbers have `width` bits, a literal: with 8, a group takes one draw of eight
    blocks, with 32 it takes four. `threshold` is at most ``2 ** width``.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        draws, size = width.literal_value // 8, 512 // width.literal_value
        first, count, key, stream, threshold = values[2:]
        numbers = Vectors(builder, ir.IntType(width.literal_value), size)
        masks = Vectors(builder, ir.IntType(1), size)
        limit = numbers.splat(builder.trunc(threshold, numbers.element))
        most = _i64(1 << width.literal_value)  # no number is as large
        possible = masks.splat(builder.icmp_unsigned("<", threshold, most))
        word = ir.IntType(size)
        start = builder.mul(first, _i64(GROUP // 8))
        target = element_pointer(cgctx, builder, bits, values[1], start)
        target = builder.bitcast(target, word.as_pointer())
        with cgutils.for_range_slice(
            builder, _i64(0), builder.mul(count, _i64(draws)), _i64(1), _i64
        ) as (i, _):
            draw = builder.add(builder.mul(first, _i64(draws)), i)
            block = builder.mul(draw, _i64(_BLOCKS))
            for half, pairs in enumerate(_words(builder, key, stream, block)):
                values = builder.bitcast(pairs, numbers.vector)
                kept = builder.and_(builder.icmp_unsigned(">=", values, limit), possible)
                place = builder.gep(target, [builder.add(builder.shl(i, _i64(1)), _i64(half))])
                builder.store(builder.bitcast(kept, word), place, align=1)
        return cgctx.get_dummy_value()

    i8, u8 = types.int64, types.uint64
    return types.void(width, bits, i8, i8, u8, u8, u8), codegen
