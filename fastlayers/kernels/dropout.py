"""Dropout masks from a counter-based generator, and their application.

Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) gives the
i-th block of four words from a key and i alone, so a mask is the same for any number of threads.
"""

from __future__ import annotations

import numpy as np

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["apply_mask", "draw_mask", "philox", "scale_channels"]

SPAN = 16384

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


@kernel
def philox(key, stream, block):
    """Four 32-bit words of Philox 4x32-10 for a 64-bit key and counter (block, stream)."""
    k0, k1 = key & _LOW, key >> _HALF
    c0, c1 = block & _LOW, block >> _HALF
    c2, c3 = stream & _LOW, stream >> _HALF
    for _ in range(10):
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (p1 >> _HALF) ^ c1 ^ k0, p1 & _LOW, (p0 >> _HALF) ^ c3 ^ k1, p0 & _LOW
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@kernel
def _draw_mask_chunk(chunk, worker, key, stream, threshold, mask):
    for i in range(chunk * SPAN, min((chunk + 1) * SPAN, mask.size), 4):
        words = philox(key, stream, np.uint64(i // 4))
        for j in range(min(4, mask.size - i)):
            mask[i + j] = 1 if words[j] >= threshold else 0


@kernel
def draw_mask(key, stream, threshold, workers, mask):
    """``mask[i] = 1`` where the i-th 32-bit random word is at least `threshold`, else 0.

    `key`, `stream` and `threshold` are uint64; `mask` is flat and of type uint8.
    """
    chunks = (mask.size + SPAN - 1) // SPAN
    parallel_for(_draw_mask_chunk, chunks, workers, (key, stream, threshold, mask))


@kernel
def _apply_mask_chunk(chunk, worker, x, mask, scale, y):
    here = slice(chunk * SPAN, (chunk + 1) * SPAN)
    x, mask, y = x[here], mask[here], y[here]  # indices from 0 vectorise, see activation.py
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = x[i] * scale if mask[i] else zero  # a dropped NaN is dropped


@kernel
def apply_mask(x, mask, scale, workers, y):
    """``y = scale * x`` where the mask is not 0, else 0; all flat, `scale` of the dtype of `x`."""
    parallel_for(_apply_mask_chunk, (x.size + SPAN - 1) // SPAN, workers, (x, mask, scale, y))


@kernel
def _scale_channels_sample(n, worker, x, scale, y):
    zero = x.dtype.type(0)
    for i in range(x.shape[1]):
        for c in range(x.shape[2]):
            y[n, i, c] = x[n, i, c] * scale[n, c] if scale[n, c] != zero else zero


@kernel
def scale_channels(x, scale, workers, y):
    """``y[n, i, c] = scale[n, c] * x[n, i, c]``, and 0 where the scale is 0, also for NaN."""
    parallel_for(_scale_channels_sample, x.shape[0], workers, (x, scale, y))
