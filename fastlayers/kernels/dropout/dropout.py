"""Dropout of elements and of channels, with masks from a counter-based generator."""

from __future__ import annotations

import numpy as np

from fastlayers.kernels.dropout.philox import GROUP, draw_bits, draw_digits
from fastlayers.kernels.ir.runs import copy_run, flat, keep_run, scale_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["GROUP", "SPAN", "apply_mask", "channel_dropout", "dropout", "scale_channels"]

SPAN = 16384
# Elements that are drawn and then dropped, while their bits are in L1.
BLOCK = 1024
# Digits of a threshold that are drawn one by one; bytes cost as much as 8, and more where they tie.
SHORT = 8


@kernel
def _digits(threshold):
    """Number of the threshold's 32 binary digits up to the last 1."""
    digits = 32
    while digits > 0 and (threshold >> np.uint64(32 - digits)) & np.uint64(1) == 0:
        digits -= 1
    return digits


@kernel
def _draw(bits, first, count, key, stream, threshold):
    """See `philox`: by digits where the threshold has at most `SHORT`, otherwise by bytes."""
    digits = _digits(threshold)
    if digits <= SHORT:
        draw_digits(bits, first, count, key, stream, threshold, digits)
    else:
        draw_bits(bits, first, count, key, stream, threshold)


@kernel
def _dropout_chunk(chunk, worker, x, key, stream, threshold, scale, bits, y):
    first = chunk * SPAN
    count = min(SPAN, x.size - first)
    for block in range((count + BLOCK - 1) // BLOCK):
        at = first + block * BLOCK
        size = min(BLOCK, x.size - at)
        _draw(bits, at // GROUP, (size + GROUP - 1) // GROUP, key, stream, threshold)
        keep_run(y, x, bits, at, size, scale)


@kernel
def dropout(x, key, stream, threshold, scale, workers, bits, y):
    """``y = scale * x`` where a random number is at least the threshold, else 0; and those bits.

    Parameters
    ----------
    x : array
        Flat.
    key, stream : int
        uint64.
    threshold : int
        uint64, at most ``2 ** 32``, of which its share is the probability of a 0.
    scale : float
    workers : int
    bits : array
        uint8, flat, of 16 bytes for every `GROUP` elements or part of them.
    y : array
        Of x's shape and type.
    """
    arguments = (x, key, stream, threshold, x.dtype.type(scale), bits, y)
    parallel_for(_dropout_chunk, (x.size + SPAN - 1) // SPAN, workers, arguments)


@kernel
def _apply_mask_chunk(chunk, worker, x, bits, scale, y):
    keep_run(y, x, bits, chunk * SPAN, min(SPAN, x.size - chunk * SPAN), scale)


@kernel
def apply_mask(x, bits, scale, workers, y):
    """``y = scale * x`` where the bit is set, else 0, also for NaN; all flat."""
    arguments = (x, bits, x.dtype.type(scale), y)
    parallel_for(_apply_mask_chunk, (x.size + SPAN - 1) // SPAN, workers, arguments)


@kernel
def _scale_channels_chunk(chunk, worker, x, shape, scale, repeats, pieces, pattern, y):
    _, positions, channels = shape
    n, piece = chunk // pieces, chunk % pieces
    span = (positions + pieces - 1) // pieces
    first = min(positions, piece * span)
    last = min(positions, first + span)
    # The factors of some pixels, so that whole vectors are scaled.
    period, start = repeats * channels, worker * repeats * channels
    for k in range(repeats):
        copy_run(pattern, start + k * channels, scale, n * channels, channels)
    at = (n * positions + first) * channels
    scale_run(y, x, at, (last - first) * channels, pattern, start, period)


@kernel
def scale_channels(x, scale, repeats, pieces, workers, pattern, y):
    """``y[n, i, c] = scale[n, c] * x[n, i, c]``, and 0 where the scale is 0, also for NaN.

    A task takes one of so many pieces of a sample, with `repeats` copies of its factors in
    `pattern`, a workspace of ``workers * repeats * C`` elements.
    """
    arguments = (
        flat(x),
        x.shape,
        flat(scale),
        repeats,
        pieces,
        pattern,
        flat(y),
    )
    parallel_for(_scale_channels_chunk, x.shape[0] * pieces, workers, arguments)


@kernel
def channel_dropout(
    x, key, stream, threshold, kept, repeats, pieces, workers, bits, pattern, scale, y
):
    """As `scale_channels` by factors that are drawn first: `kept`, or 0; see `dropout`.

    bits are 16 bytes for every `GROUP` factors or part of them, uint8.
    """
    factors = flat(scale)
    for i in range(factors.size):
        factors[i] = 1
    _draw(bits, 0, (factors.size + GROUP - 1) // GROUP, key, stream, threshold)
    keep_run(factors, factors, bits, 0, factors.size, scale.dtype.type(kept))
    scale_channels(x, scale, repeats, pieces, workers, pattern, y)
