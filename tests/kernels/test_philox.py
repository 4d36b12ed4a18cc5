"""The bits of masks against Philox 4x32-7 in plain integers."""

import numba
import numpy as np
import pytest

from fastlayers.kernels.dropout import philox


def block(key, stream, number):
    """Give the four words of a block, with 7 rounds, as in section 3.3 of the paper."""
    low = (1 << 32) - 1
    c = [number & low, number >> 32, stream & low, stream >> 32]
    k = [key & low, key >> 32]
    for _ in range(7):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [q >> 32 ^ c[1] ^ k[0], q & low, p >> 32 ^ c[3] ^ k[1], p & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


@numba.njit
def draw(bits, first, count, key, stream, threshold):
    philox.draw_bits(bits, first, count, key, stream, threshold)


def test_the_blocks_are_those_of_the_authors():
    assert block(0, 0, 0) == [0x5F6FB709, 0x0D893F64, 0x4F121F81, 0x4F730A48]
    ones = (1 << 64) - 1
    assert block(ones, ones, ones) == [0x5207DDC2, 0x45165E59, 0x4D8EE751, 0x8C52F662]


@numba.njit
def draw_short(bits, first, count, key, stream, threshold, digits):
    philox.draw_digits(bits, first, count, key, stream, threshold, digits)


@pytest.mark.parametrize("first", [0, 8, 70000])
@pytest.mark.parametrize("groups", [1, 4, 5, 8, 19])
@pytest.mark.parametrize("digits", [0, 1, 2, 5, 8])
def test_bits_by_digits_are_those_of_numbers_that_reach_the_threshold(digits, groups, first):
    key, stream = 0x123456789ABCDEF0, 0xFEDCBA9876543210
    limit = (1 << digits) * 5 // 8 | (digits > 0)
    words = [block(key, stream, 32 * first + i) for i in range(256 * -(-groups // 8))]
    # Of eight blocks come the words 0 and 1 of each, then 2 and 3, of which each bit is a digit of
    # another element.
    words = np.array(words, "<u4").reshape(-1, 32, 8, 2, 2)[:, :8].transpose(0, 1, 3, 2, 4)
    drawn = np.ascontiguousarray(words).view(np.uint8).reshape(-1, 8, 128)
    drawn = np.unpackbits(drawn, axis=2, bitorder="little").astype(int)
    numbers = sum((drawn[:, d] << (digits - 1 - d) for d in range(digits)), 0 * drawn[:, 0])
    bits = np.zeros(16 * (first + groups + 1), np.uint8)
    threshold = np.uint64(limit << 32 >> digits)
    draw_short(bits, first, groups, np.uint64(key), np.uint64(stream), threshold, digits)
    end = 16 * (first + groups)
    assert not bits[: 16 * first].any() and not bits[end:].any()
    kept = np.unpackbits(bits[16 * first : end], bitorder="little")
    np.testing.assert_array_equal(kept, (numbers >= limit).ravel()[: 128 * groups])


def test_nothing_reaches_the_largest_threshold():
    bits = np.full(16, 255, np.uint8)
    draw_short(bits, 0, 1, np.uint64(1), np.uint64(2), np.uint64(1 << 32), 0)
    assert not bits.any()


@pytest.mark.parametrize("first", [0, 1, 70000])
@pytest.mark.parametrize("share", [0, 0.25, 0.5, 0.7, 1 / 256, 2**-32, 1 - 2**-32, 1])
def test_bits_are_those_of_numbers_that_reach_the_threshold(share, first):
    key, stream, groups, threshold = 0x123456789ABCDEF0, 0xFEDCBA9876543210, 19, int(share * 2**32)
    words = [block(key, stream, 32 * (first + g) + i) for g in range(groups) for i in range(8)]
    # Of eight blocks come the words 0 and 1 of each, then the words 2 and 3.
    words = np.array(words, "<u4").reshape(-1, 8, 2, 2).transpose(0, 2, 1, 3)
    highest = np.ascontiguousarray(words).view(np.uint8).ravel().astype(np.int64)
    elements = range(128 * first, 128 * (first + groups))
    lower = [block(key, stream, (1 << 63) + element)[0] >> 8 for element in elements]
    numbers = highest << 24 | np.array(lower)
    bits = np.zeros(16 * (first + groups + 1), np.uint8)
    draw(bits, first, groups, np.uint64(key), np.uint64(stream), np.uint64(threshold))
    end = 16 * (first + groups)
    assert not bits[: 16 * first].any() and not bits[end:].any()
    kept = np.unpackbits(bits[16 * first : end], bitorder="little")
    np.testing.assert_array_equal(kept, numbers >= threshold)


def test_lower_bytes_decide_where_the_highest_is_equal():
    key, stream, groups = 1, 2, 400
    bits, counts = np.empty(16 * groups, np.uint8), []
    for threshold in (0x80000000, 0x80800000, 0x81000000):
        draw(bits, 0, groups, np.uint64(key), np.uint64(stream), np.uint64(threshold))
        counts.append(int(np.unpackbits(bits).sum()))
    assert counts[0] > counts[1] > counts[2]
    np.testing.assert_allclose(np.diff(counts), -groups / 4, atol=50)
