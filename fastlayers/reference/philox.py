"""Random bits of dropout's masks: the definition that `fastlayers.kernels.dropout.philox` meets."""

import numpy as np
from numpy.typing import NDArray

__all__ = ["kept"]

Words = NDArray[np.uint64]

_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_WEYL = 0x9E3779B9, 0xBB67AE85
# Binary digits of a threshold up to which an element takes as many bits, not a byte.
_SHORT = 8


def kept(count: int, key: int, stream: int, threshold: int) -> NDArray[np.bool_]:
    """Give whether the random numbers of `count` elements are at least ``threshold / 2^32``.

    A threshold of at most 8 binary digits is compared with so many random bits: digit d of
    elements 1024 g to 1024 (g + 1) is in the blocks from ``256 g + 8 d`` on. Others are compared
    with the bytes of the blocks from ``32 g`` on, for elements 128 g to 128 (g + 1), and where the
    byte is equal with the highest 24 bits of block ``2^63 + element``. Of eight blocks come words 0
    and 1 of each, then words 2 and 3.
    """
    if threshold in (0, 1 << 32):
        return np.full(count, threshold == 0)
    digits = 32 - ((threshold & -threshold).bit_length() - 1)
    if digits <= _SHORT:
        spans = np.arange(-(-count // 1024))[:, None, None] * 256
        first = spans + np.arange(digits)[:, None] * 8
        bits = np.unpackbits(_bytes(key, stream, first), axis=-1, bitorder="little")
        places = np.uint16(1) << np.arange(digits, dtype=np.uint16)[::-1]
        numbers = (bits * places[:, None]).sum(1).reshape(-1)[:count]
        return np.asarray(numbers >= threshold >> (32 - digits))
    first = np.arange(-(-count // 128))[:, None] * 32
    highest = _bytes(key, stream, first).reshape(-1)[:count].astype(np.int64)
    found = highest > threshold >> 24
    tied = np.flatnonzero(highest == threshold >> 24)
    lower = _blocks(key, stream, tied.astype(np.uint64) | np.uint64(1 << 63))[..., 0] >> 8
    found[tied] = lower >= threshold & 0xFFFFFF
    return found


def _bytes(key: int, stream: int, first: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Give the 128 bytes of eight blocks from each of the numbers (..., 1) on."""
    words = _blocks(key, stream, (first + np.arange(8)).astype(np.uint64))
    pairs = words.reshape(*words.shape[:-1], 2, 2).swapaxes(-3, -2)
    return np.ascontiguousarray(pairs).view(np.uint8).reshape(*words.shape[:-2], 128)


def _blocks(key: int, stream: int, numbers: Words) -> NDArray[np.uint32]:
    """Give the four words of each block of Philox 4x32-7.

    Salmon et al., https://doi.org/10.1145/2063384.2063405, section 3.3.
    """
    c0, c1 = numbers & _LOW, numbers >> _HALF
    c2, c3 = (np.full_like(numbers, part) for part in (stream & 0xFFFFFFFF, stream >> 32))
    k0, k1 = key & 0xFFFFFFFF, key >> 32
    for _ in range(7):
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1 = (p1 >> _HALF) ^ c1 ^ np.uint64(k0), p1 & _LOW
        c2, c3 = (p0 >> _HALF) ^ c3 ^ np.uint64(k1), p0 & _LOW
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=-1).astype("<u4")
