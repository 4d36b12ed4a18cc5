"""Stand-in for `fastlayers.kernels.dropout.dropout`."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fastlayers.reference.philox import kept
from fastlayers.reference.types import Array

__all__ = ["TASK_ELEMENTS", "apply_mask", "channel_dropout", "dropout", "scale_channels"]

# Elements of a task, of which there is one.
TASK_ELEMENTS = 1 << 62

Bits = NDArray[np.uint8]


def dropout(
    x: Array,
    key: np.uint64,
    stream: np.uint64,
    threshold: np.uint64,
    scale: float,
    workers: int,
    bits: Bits,
    y: Array,
) -> None:
    """``y = scale * x`` where a random number is at least the threshold, else 0; and those bits."""
    drawn = kept(8 * bits.size, int(key), int(stream), int(threshold))
    bits[...] = np.packbits(drawn, bitorder="little")
    apply_mask(x, bits, scale, workers, y)


def apply_mask(x: Array, bits: Bits, scale: float, workers: int, y: Array) -> None:
    """``y = scale * x`` where the bit is set, else 0, also for NaN; all flat."""
    mask = np.unpackbits(bits, count=x.size, bitorder="little")
    with np.errstate(all="ignore"):
        y[...] = np.where(mask, x * x.dtype.type(scale), x.dtype.type(0))


def scale_channels(
    x: Array, scale: Array, cut: tuple[int, int], workers: int, pattern: Array, y: Array
) -> None:
    """``y[n, i, c] = scale[n, c] * x[n, i, c]``, and 0 where the scale is 0, also for NaN."""
    factors = scale.reshape(len(x), 1, x.shape[2])
    with np.errstate(all="ignore"):
        y[...] = np.where(factors, x * factors, x.dtype.type(0))


def channel_dropout(
    x: Array,
    draw: tuple[np.uint64, np.uint64, np.uint64, float],
    cut: tuple[int, int],
    workers: int,
    bits: Bits,
    pattern: Array,
    scale: Array,
    y: Array,
) -> None:
    """As `scale_channels` by factors that are drawn first."""
    factors = scale.reshape(-1)
    dropout(np.ones_like(factors), *draw, workers, bits, factors)
    scale_channels(x, scale, cut, workers, pattern, y)
