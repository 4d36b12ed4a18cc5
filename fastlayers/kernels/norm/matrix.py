"""How kernels of batch normalisation cut a flat matrix (rows, channels), and what they share.

`folds` rows, a power of two, are read as one long row of `period` elements, so that few channels
fill the vectors too. A chunk is `span` long rows. What is left behind the long rows, fewer than
`folds` rows, is read as one short row, which belongs to the last chunk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fastlayers.kernels.ir.runs import copy_run
from fastlayers.kernels.norm.rows import Rows
from fastlayers.runtime.cache import kernel

__all__ = [
    "Channels",
    "Facts",
    "chunk_rows",
    "clear",
    "repeat_channels",
    "reversed_chunk",
    "write_factors",
]


class Facts(NamedTuple):
    """How a matrix is cut, and which results are written by non-temporal stores."""

    rows: int
    channels: int
    folds: int
    period: int
    span: int
    chunks: int
    stream_output: bool
    stream_gradient: bool


class Channels(NamedTuple):
    """What each channel is normalised by; weight and bias may be empty."""

    mean: Any
    invstd: Any
    weight: Any
    bias: Any


@kernel(inner=True)
def reversed_chunk(chunk, chunks, workers):
    """The chunk that stands as far from the end of its worker's share as `chunk` from the start.

    A pass in the reverse order of the one before finds in the caches what that has read last.
    """
    for worker in range(workers):
        first, last = worker * chunks // workers, (worker + 1) * chunks // workers
        if chunk < last:
            return first + last - 1 - chunk
    return chunk


@kernel
def chunk_rows(short, chunk, facts):
    """The long rows of a chunk, or, where `short`, the short row behind them or none."""
    long_rows = facts.rows // facts.folds
    first, last = chunk * facts.span, min((chunk + 1) * facts.span, long_rows)
    if not short:
        return Rows(first * facts.period, last - first, facts.period)
    width = (facts.rows - long_rows * facts.folds) * facts.channels
    return Rows(long_rows * facts.period, int(last == long_rows), width)


@kernel(inner=True)
def clear(sums):
    """Set all elements to 0, by LLVM's memset: the masked stores of `clear_run` take longer."""
    for i in range(sums.size):
        sums[i] = 0


@kernel
def repeat_channels(table, facts, first, last):
    """Repeat the channels' elements throughout the period, in some rows of a table."""
    for row in range(first, last):
        start, width = row * facts.period, facts.channels
        while width < facts.period:
            copy_run(table, start + width, table, start, width)
            width *= 2


@kernel
def write_factors(channels, period, table):
    """Write mean, scale and shift of each channel to three rows of a table."""
    mean, invstd, weight, bias = channels.mean, channels.invstd, channels.weight, channels.bias
    for c in range(mean.size):
        table[c] = mean[c]
        table[period + c] = invstd[c] * weight[c] if weight.size else invstd[c]
        table[2 * period + c] = bias[c] if bias.size else bias.dtype.type(0)
