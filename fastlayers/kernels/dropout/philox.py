"""Philox 4x32-7 in vectors: random bits for masks, from a key and a counter.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011, by which 7 rounds are the
fewest that pass BigCrush. A block of four 32-bit words follows from the key, the number of the
stream and that of the block alone. Eight blocks are drawn at a time, each in a 64-bit lane: what a
round multiplies are the low halves of the lanes, so the high ones may hold anything, and a round is
two multiplications, two shifts and two exclusive ors of three operands.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors, element_pointer

__all__ = ["GROUP", "draw_bits", "draw_digits"]

_i64 = ir.IntType(64)
# Elements whose bits are drawn together: those of eight blocks' bytes.
GROUP = 128
# Groups whose bits are drawn before ties among them are settled.
BATCH = 8

_BLOCKS, _ROUNDS = 8, 7
_MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
_WEYL = 0x9E3779B9, 0xBB67AE85
_LOW = (1 << 32) - 1


def _rounds(builder, lanes: Vectors, key, stream, block) -> list[Any]:
    """The four words of each block of a vector, in the low halves of 64-bit lanes."""

    def constant(value: int):
        return ir.Constant(lanes.vector, [value] * lanes.lanes)

    low, half, stream = constant(_LOW), constant(32), lanes.splat(stream)
    c0, c1, c2, c3 = block, builder.lshr(block, half), stream, builder.lshr(stream, half)
    keys = [builder.and_(key, _i64(_LOW)), builder.lshr(key, _i64(32))]
    for _ in range(_ROUNDS):
        p0, p1 = (
            builder.mul(builder.and_(value, low), constant(factor))
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
    return [c0, c1, c2, c3]


def _words(builder, key, stream, first) -> list[Any]:
    """Words 0 and 1, and 2 and 3, of eight blocks, as two vectors of eight pairs."""
    lanes = Vectors(builder, _i64, _BLOCKS)
    count = ir.Constant(lanes.vector, list(range(_BLOCKS)))
    words = _rounds(builder, lanes, key, stream, builder.add(lanes.splat(first), count))
    low, half = (ir.Constant(lanes.vector, [value] * _BLOCKS) for value in (_LOW, 32))
    return [
        builder.or_(builder.and_(even, low), builder.shl(odd, half))
        for even, odd in (words[:2], words[2:])
    ]


def _store_words(builder, target, at: int, words, count) -> None:
    """Store a vector of 64-bit words from word `at` on of a target that has only `count`."""
    lanes = Vectors(builder, _i64, _BLOCKS)
    enough = builder.icmp_signed("<=", _i64(at + _BLOCKS), count)
    with builder.if_else(enough) as (whole, cut):
        with whole:
            lanes.store_vector(words, builder.gep(target, [_i64(at)]))
        with cut:
            mask = lanes.first_lanes(builder.sub(count, _i64(at)))
            lanes.store_vector(words, builder.gep(target, [_i64(at)]), mask=mask)


@intrinsic
def draw_digits(typingctx, bits, first, count, key, stream, threshold, digits):
    """As `draw_bits` for a threshold whose binary digits are 0 but for the `digits` highest ones.

    These are at most 8, and `first` is a multiple of 8. A bit is drawn for each digit of an
    element: that many random binary digits are compared with the threshold's, in words of 64
    elements, from the last digit to the first: where the threshold's is 1 the result so far stays
    if the random one is 1 too, and where it is 0 a random 1 is greater. Digit d of the elements of
    eight groups comes from the eight blocks from ``8 * (4 * group + d)`` on.
    """

    def codegen(cgctx, builder, sig, values):
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
def draw_bits(typingctx, bits, first, count, key, stream, threshold):
    """Set the bits of elements whose 32 random bits are at least `threshold`, clear the others'.

    For `count` groups of `GROUP` elements from group `first` on; bits are a flat uint8 array of 16
    bytes a group, `threshold` is at most ``2 ** 32``. The highest bytes of a group are those of the
    eight blocks from ``32 * group`` on. Of one element in 256 it is the threshold's, and then the
    other 24 bits decide, the highest of word 0 of block ``2 ** 63 + element``. These elements are
    noted, and settled eight at a time after `BATCH` groups: a branch that waits for the group's
    blocks is mispredicted for a third of them.
    """

    def codegen(cgctx, builder, sig, values):
        first, count, key, stream, threshold = values[1:]
        start = builder.mul(first, _i64(GROUP // 8))
        target = element_pointer(cgctx, builder, bits, values[0], start)
        target = builder.bitcast(target, _i64.as_pointer())
        tied = cgutils.alloca_once(builder, ir.ArrayType(_i64, 2 * BATCH))
        tied = builder.bitcast(tied, _i64.as_pointer())
        with cgutils.for_range_slice(builder, _i64(0), count, _i64(BATCH), _i64) as (i, _):
            left = builder.sub(count, i)
            some = builder.icmp_signed("<", left, _i64(BATCH))
            some = builder.select(some, left, _i64(BATCH))
            group = builder.add(first, i)
            words = builder.gep(target, [builder.shl(i, _i64(1))])
            _compare_bytes(builder, words, tied, group, some, key, stream, threshold)
            _settle(builder, words, tied, group, some, key, stream, threshold)
        return cgctx.get_dummy_value()

    i8, u8 = types.int64, types.uint64
    return types.void(bits, i8, i8, u8, u8, u8), codegen


def _compare_bytes(builder, kept, tied, group, count, key, stream, threshold) -> None:
    """Store, of some groups, the bits of bytes above the threshold's, and of those equal to it."""
    numbers, word = Vectors(builder, ir.IntType(8), 64), _i64
    limit = builder.trunc(builder.lshr(threshold, _i64(24)), numbers.element)
    limit = numbers.splat(limit)

    def all_where(order: str, other, value):
        return builder.select(builder.icmp_unsigned(order, value, other), word(-1), word(0))

    # No number is as large as 2 ** 32, and where all that is left of it is 0 equal bytes reach it.
    possible = all_where("<", _i64(1 << 32), threshold)
    open_ = all_where("!=", _i64(0), builder.and_(threshold, _i64((1 << 24) - 1)))
    with cgutils.for_range(builder, count) as loop:
        at = builder.shl(loop.index, _i64(1))
        block = builder.shl(builder.add(group, loop.index), _i64(5))
        for half, pairs in enumerate(_words(builder, key, stream, block)):
            drawn = builder.bitcast(pairs, numbers.vector)
            reached, above = (
                builder.bitcast(builder.icmp_unsigned(order, drawn, limit), word)
                for order in (">=", ">")
            )
            settled = builder.or_(
                builder.and_(above, open_), builder.and_(reached, builder.not_(open_))
            )
            place = [builder.add(at, _i64(half))]
            builder.store(builder.and_(settled, possible), builder.gep(kept, place), align=1)
            equal = builder.and_(builder.xor(reached, above), builder.and_(open_, possible))
            builder.store(equal, builder.gep(tied, place))


def _settle(builder, kept, tied, group, count, key, stream, threshold) -> None:
    """Set the bits of tied elements of some groups whose lower 24 bits reach the threshold's."""
    lanes, zero, one = Vectors(builder, _i64, _BLOCKS), _i64(0), _i64(1)
    signature = ir.FunctionType(_i64, [_i64, ir.IntType(1)])
    lowest = cgutils.get_or_insert_function(builder.module, signature, "llvm.cttz.i64")
    found = cgutils.alloca_once(builder, ir.ArrayType(_i64, 2 * BATCH + _BLOCKS))
    found = builder.bitcast(found, _i64.as_pointer())
    number, more = (cgutils.alloca_once(builder, _i64) for _ in range(2))
    again, done = (builder.append_basic_block(f"settle.{n}") for n in ("again", "done"))
    builder.branch(again)
    builder.position_at_end(again)
    builder.store(zero, number)
    builder.store(zero, more)
    # One tie of each word, without a branch on whether there is one.
    with cgutils.for_range(builder, builder.shl(count, one)) as loop:
        place = builder.gep(tied, [loop.index])
        word, n = builder.load(place), builder.load(number)
        bit = builder.call(lowest, [word, ir.IntType(1)(0)])
        element = builder.add(builder.shl(loop.index, _i64(6)), bit)
        builder.store(element, builder.gep(found, [n]))
        some = builder.zext(builder.icmp_unsigned("!=", word, zero), _i64)
        builder.store(builder.add(n, some), number)
        rest = builder.and_(word, builder.sub(word, some))
        builder.store(rest, place)
        builder.store(builder.or_(builder.load(more), rest), more)
    n = builder.load(number)
    first = builder.or_(builder.shl(group, _i64(7)), _i64(-1 << 63))
    lower = lanes.splat(builder.and_(threshold, _i64((1 << 24) - 1)))
    with cgutils.for_range_slice(builder, zero, n, _i64(_BLOCKS), _i64) as (at, _):
        mask = lanes.first_lanes(builder.sub(n, at))
        elements = lanes.load_vector(builder.gep(found, [at]))
        elements = builder.select(mask.bits, elements, ir.Constant(lanes.vector, None))
        block = builder.add(lanes.splat(first), elements)
        drawn = _rounds(builder, lanes, key, stream, block)[0]
        drawn = builder.and_(drawn, ir.Constant(lanes.vector, [_LOW] * _BLOCKS))
        drawn = builder.lshr(drawn, ir.Constant(lanes.vector, [8] * _BLOCKS))
        reached = builder.and_(builder.icmp_unsigned(">=", drawn, lower), mask.bits)
        reached = builder.zext(reached, lanes.vector)
        for lane in range(_BLOCKS):
            element = builder.extract_element(elements, _i64(lane))
            bit = builder.extract_element(reached, _i64(lane))
            bit = builder.shl(bit, builder.and_(element, _i64(63)))
            place = builder.gep(kept, [builder.lshr(element, _i64(6))])
            builder.store(builder.or_(builder.load(place, align=1), bit), place, align=1)
    builder.cbranch(builder.icmp_unsigned("!=", builder.load(more), zero), again, done)
    builder.position_at_end(done)
