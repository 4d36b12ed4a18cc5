"""Dropout of elements and of channels, with masks from a counter-based generator."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastlayers.kernels.dropout.philox import GROUP, draw_bits, draw_digits
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import copy_run, flat, keep_run, scale_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "GROUP",
    "TASK_ELEMENTS",
    "Draw",
    "Pieces",
    "apply_mask",
    "channel_dropout",
    "dropout",
    "scale_channels",
]

# Elements of a task.
TASK_ELEMENTS = 16384
# Elements that are drawn and then dropped, while their bits are in L1.
BLOCK = 1024
# Digits of a threshold that are drawn one by one; bytes cost as much as 8, and more where they tie.
SHORT = 8


class Draw(NamedTuple):
    """How elements are drawn that are 0: those whose random number is below the threshold."""

    key: int  # uint64, as the next two
    stream: int
    threshold: int  # 2 ** 32 times the probability of a 0
    scale: float  # of what is kept


class Pieces(NamedTuple):
    """How samples of channels are cut."""

    repeats: int  # copies of a sample's factors, so that whole vectors are scaled
    pieces: int  # tasks of a sample


@kernel
def _digits(threshold):
    """Number of the threshold's 32 binary digits up to the last 1."""
    digits = 32
    while digits > 0 and (threshold >> np.uint64(32 - digits)) & np.uint64(1) == 0:
        digits -= 1
    return digits


@kernel
def _draw(bits, first, groups, draw):
    """See `philox`: by digits where the threshold has at most `SHORT`, otherwise by bytes."""
    digits = _digits(draw.threshold)
    if digits <= SHORT:
        draw_digits(bits, first, groups, draw.key, draw.stream, draw.threshold, digits)
    else:
        draw_bits(bits, first, groups, draw.key, draw.stream, draw.threshold)


@kernel
def _dropout_chunk(chunk, worker, x, draw, scale, bits, y):
    first = chunk * TASK_ELEMENTS
    count = min(TASK_ELEMENTS, x.size - first)
    for block in range((count + BLOCK - 1) // BLOCK):
        at = first + block * BLOCK
        size = min(BLOCK, x.size - at)
        _draw(bits, at // GROUP, (size + GROUP - 1) // GROUP, draw)
        keep_run(y, x, bits, at, size, scale)


@kernel
def dropout(x, key, stream, threshold, scale, workers, bits, y):
    """``y = scale * x`` where a random number is at least the threshold, else 0; and those bits.

    Parameters
    ----------
    x : array
        Flat.
    key, stream, threshold, scale
        As in a `Draw`.
    workers : int
    bits : array
        uint8, flat, of 16 bytes for every `GROUP` elements or part of them.
    y : array
        Of x's shape and type.
    """
    arguments = (x, Draw(key, stream, threshold, scale), x.dtype.type(scale), bits, y)
    chunks = (x.size + TASK_ELEMENTS - 1) // TASK_ELEMENTS
    parallel_for(_dropout_chunk, chunks, workers, arguments)


@kernel
def _apply_mask_chunk(chunk, worker, x, bits, scale, y):
    first = chunk * TASK_ELEMENTS
    keep_run(y, x, bits, first, min(TASK_ELEMENTS, x.size - first), scale)


@kernel
def apply_mask(x, bits, scale, workers, y):
    """``y = scale * x`` where the bit is set, else 0, also for NaN; all flat."""
    arguments = (x, bits, x.dtype.type(scale), y)
    chunks = (x.size + TASK_ELEMENTS - 1) // TASK_ELEMENTS
    parallel_for(_apply_mask_chunk, chunks, workers, arguments)


@kernel
def _scale_channels_chunk(chunk, worker, x, shape, scale, cut, pattern, y):
    _, positions, channels = shape
    n, piece = chunk // cut.pieces, chunk % cut.pieces
    span = (positions + cut.pieces - 1) // cut.pieces
    first = min(positions, piece * span)
    last = min(positions, first + span)
    period, start = cut.repeats * channels, worker * cut.repeats * channels
    for k in range(cut.repeats):
        copy_run(pattern, start + k * channels, scale, n * channels, channels)
    at = (n * positions + first) * channels
    scale_run(y, x, at, (last - first) * channels, pattern, start, period)


@kernel
def scale_channels(x, scale, cut, workers, pattern, y):
    """``y[n, i, c] = scale[n, c] * x[n, i, c]``, and 0 where the scale is 0, also for NaN.

    A task takes one of the `Pieces` of a sample, with copies of its factors in `pattern`, a
    workspace of ``workers * repeats * C`` elements.
    """
    cut = named(Pieces, cut)
    arguments = (flat(x), x.shape, flat(scale), cut, pattern, flat(y))
    parallel_for(_scale_channels_chunk, x.shape[0] * cut.pieces, workers, arguments)


@kernel
def channel_dropout(x, draw, cut, workers, bits, pattern, scale, y):
    """As `scale_channels` by factors that are drawn first: the scale of a `Draw`, or 0.

    bits are 16 bytes for every `GROUP` factors or part of them, uint8.
    """
    draw, factors = named(Draw, draw), flat(scale)
    for i in range(factors.size):
        factors[i] = 1
    _draw(bits, 0, (factors.size + GROUP - 1) // GROUP, draw)
    keep_run(factors, factors, bits, 0, factors.size, scale.dtype.type(draw.scale))
    scale_channels(x, scale, cut, workers, pattern, y)
