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

__all__ = ["GROUP", "draw_bits", "draw_digits"]

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


def _store_words(builder: Any, target: Any, at: int, words: Any, count: Any) -> None:
    """Store a vector of 64-bit words as words `at` on of a target that has but `count`."""
    lanes = Vectors(builder, _i64, _BLOCKS)
    enough = builder.icmp_signed("<=", _i64(at + _BLOCKS), count)
    with builder.if_else(enough) as (whole, cut):
        with whole:
            lanes.store_vector(words, builder.gep(target, [_i64(at)]))
        with cut:
            mask = lanes.first_lanes(builder.sub(count, _i64(at)))
            lanes.store_vector(words, builder.gep(target, [_i64(at)]), mask=mask)


@intrinsic
def draw_digits(
    typingctx: Any,
    bits: Any,
    first: Any,
    count: Any,
    key: Any,
    stream: Any,
    threshold: Any,
    digits: Any,
) -> Any:
    """As `draw_bits` for a threshold whose `digits` highest binary digits are all that is not 0.

    They are at most 8, and `first` is a multiple of 8. A bit is drawn for each digit of an
    element: that many random binary digits are compared with the threshold's, in words of 64
    elements, from the last digit to the first: where the threshold's is 1 what was found stays if
    the random one is 1 too, and where it is 0 a random 1 is greater. Digit d of the elements of
    eight groups comes from the eight blocks from ``8 * (4 * group + d)`` on.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        first, count, key, stream, threshold, digits = values[1:]
        lanes = Vectors(builder, _i64, _BLOCKS)
        start = builder.mul(first, _i64(GROUP // 8))
        target = element_pointer(cgctx, builder, bits, values[0], start)
        target = builder.bitcast(target, _i64.as_pointer())
        # No number is as large as 2 ** 32, and all are at least 0.
        possible = builder.icmp_unsigned("<", threshold, _i64(1 << 32))
        possible = lanes.splat(builder.select(possible, _i64(-1), _i64(0)))
        kept = [cgutils.alloca_once(builder, lanes.vector) for _ in range(2)]
        with cgutils.for_range_slice(builder, _i64(0), count, _i64(8), _i64) as (i, _):
            draw = builder.shl(builder.add(first, i), _i64(5))
            for slot in kept:
                builder.store(possible, slot)
            with cgutils.for_range(builder, digits) as loop:
                d = builder.sub(builder.sub(digits, _i64(1)), loop.index)
                place = builder.lshr(threshold, builder.sub(_i64(31), d))
                # All bits are the threshold's digit.
                digit = lanes.splat(builder.neg(builder.and_(place, _i64(1))))
                block = builder.add(draw, builder.shl(d, _i64(3)))
                for slot, words in zip(kept, _words(builder, key, stream, block), strict=True):
                    held = builder.load(slot)
                    both, either = builder.and_(held, words), builder.or_(held, words)
                    other = builder.and_(either, builder.not_(digit))
                    builder.store(builder.or_(builder.and_(both, digit), other), slot)
            words_left = builder.shl(builder.sub(count, i), _i64(1))
            place = builder.gep(target, [builder.shl(i, _i64(1))])
            for half, slot in enumerate(kept):
                _store_words(builder, place, half * _BLOCKS, builder.load(slot), words_left)
        return cgctx.get_dummy_value()

    i8, u8 = types.int64, types.uint64
    return types.void(bits, i8, i8, u8, u8, u8, i8), codegen


@intrinsic
def draw_bits(
    typingctx: Any,
    bits: Any,
    first: Any,
    count: Any,
    key: Any,
    stream: Any,
    threshold: Any,
) -> Any:
    """Set the bits of elements whose 32 random bits are at least `threshold`, clear the others'.

    For `count` groups of `GROUP` elements from group `first` on; bits are a flat uint8 array of 16
    bytes a group, `threshold` is at most ``2 ** 32``. The numbers are compared byte by byte, from
    the highest on, and a byte is drawn only if it can decide: of one element in 256 the first does
    not, and none but the first can if the threshold's others are 0. Byte d of a group comes from
    the eight blocks from ``8 * (4 * group + d)`` on.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        first, count, key, stream, threshold = values[1:]
        numbers, word = Vectors(builder, ir.IntType(8), 64), _i64
        start = builder.mul(first, _i64(GROUP // 8))
        target = element_pointer(cgctx, builder, bits, values[0], start)
        target = builder.bitcast(target, word.as_pointer())
        # No number is as large as 2 ** 32.
        possible = builder.icmp_unsigned("<", threshold, _i64(1 << 32))
        possible = builder.select(possible, word(-1), word(0))
        kept, tied = ([cgutils.alloca_once(builder, word) for _ in range(2)] for _ in range(2))
        digit = cgutils.alloca_once(builder, _i64)
        with cgutils.for_range_slice(builder, _i64(0), count, _i64(1), _i64) as (i, _):
            draw = builder.shl(builder.add(first, i), _i64(2))
            builder.store(_i64(0), digit)
            for half in range(2):
                builder.store(word(0), kept[half])
                builder.store(possible, tied[half])
            again, done = (builder.append_basic_block(f"draw.{n}") for n in ("digit", "done"))
            builder.branch(again)
            builder.position_at_end(again)
            d = builder.load(digit)
            rest = builder.shl(threshold, builder.add(_i64(32), builder.shl(d, _i64(3))))
            limit = numbers.splat(builder.trunc(builder.lshr(rest, _i64(56)), numbers.element))
            block = builder.shl(builder.add(draw, d), _i64(3))
            for half, pairs in enumerate(_words(builder, key, stream, block)):
                drawn = builder.bitcast(pairs, numbers.vector)
                above, equal = (
                    builder.bitcast(builder.icmp_unsigned(order, drawn, limit), word)
                    for order in (">", "==")
                )
                open_ = builder.load(tied[half])
                above = builder.or_(builder.load(kept[half]), builder.and_(above, open_))
                builder.store(above, kept[half])
                builder.store(builder.and_(equal, open_), tied[half])
            builder.store(builder.add(d, _i64(1)), digit)
            open_ = builder.or_(*(builder.load(t) for t in tied))
            # What is still to be compared is 0 behind the last digit.
            lower = builder.and_(
                open_,
                builder.select(
                    builder.icmp_unsigned("!=", builder.shl(rest, _i64(8)), _i64(0)),
                    word(-1),
                    word(0),
                ),
            )
            builder.cbranch(builder.icmp_unsigned("!=", lower, word(0)), again, done)
            builder.position_at_end(done)
            for half in range(2):
                place = builder.gep(target, [builder.add(builder.shl(i, _i64(1)), _i64(half))])
                reached = builder.or_(builder.load(kept[half]), builder.load(tied[half]))
                builder.store(reached, place, align=1)
        return cgctx.get_dummy_value()

    i8, u8 = types.int64, types.uint64
    return types.void(bits, i8, i8, u8, u8, u8), codegen
