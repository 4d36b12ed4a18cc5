"""The bits of masks against Philox 4x32-10 in plain integers."""

import numba
import numpy as np
import pytest

from fastlayers.kernels import philox


def block(key, stream, number):
    """Give the four words of a block, as in section 3.3 of the paper."""
    low = (1 << 32) - 1
    c = [number & low, number >> 32, stream & low, stream >> 32]
    k = [key & low, key >> 32]
    for _ in range(10):
        p, q = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [q >> 32 ^ c[1] ^ k[0], q & low, p >> 32 ^ c[3] ^ k[1], p & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


@numba.njit
def _by_words(bits, first, count, key, stream, threshold):
    philox.draw_bits(32, bits, first, count, key, stream, threshold)


@numba.njit
def _by_bytes(bits, first, count, key, stream, threshold):
    philox.draw_bits(8, bits, first, count, key, stream, threshold)


def test_the_blocks_are_those_of_the_authors():
    assert block(0, 0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = (1 << 64) - 1
    assert block(ones, ones, ones) == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


@pytest.mark.parametrize("first", [0, 1, 70000])
@pytest.mark.parametrize(("draw", "width"), [(_by_words, 32), (_by_bytes, 8)])
def test_bits_are_those_of_numbers_that_reach_the_threshold(draw, width, first):
    key, stream, groups = 0x123456789ABCDEF0, 0xFEDCBA9876543210, 3
    blocks = 8 * groups * width // 8
    start = first * width
    words = [block(key, stream, start + i) for i in range(blocks)]
    # Of eight blocks come the words 0 and 1 of each, then the words 2 and 3.
    words = np.array(words, np.uint32).reshape(-1, 8, 2, 2).transpose(0, 2, 1, 3).ravel()
    numbers = words if width == 32 else words.view(np.uint8)
    for share in (0, 0.25, 0.7, 1):
        threshold = int(share * 2**width)
        bits = np.zeros(16 * (first + groups + 1), np.uint8)
        draw(bits, first, groups, np.uint64(key), np.uint64(stream), np.uint64(threshold))
        end = 16 * (first + groups)
        assert not bits[: 16 * first].any() and not bits[end:].any()
        kept = np.unpackbits(bits[16 * first : end], bitorder="little")
        np.testing.assert_array_equal(kept, numbers >= threshold)
