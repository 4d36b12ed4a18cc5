"""Sums over the rows of a matrix, in chunks of a fixed size."""

from __future__ import annotations

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["column_sums"]


@kernel
def _column_sums_chunk(chunk, worker, x, span, parts):
    """Sum rows ``[chunk * span, (chunk + 1) * span)`` into row `chunk` of `parts`."""
    sums = parts[chunk]
    sums[:] = 0
    for i in range(chunk * span, min((chunk + 1) * span, x.shape[0])):
        for j in range(x.shape[1]):
            sums[j] += x[i, j]


@kernel
def column_sums(x, span, workers, parts, out):
    """``out[j] = sum_i x[i, j]``: chunks of `span` rows, added in the order of the chunks."""
    parallel_for(_column_sums_chunk, parts.shape[0], workers, (x, span, parts))
    out[:] = 0
    for chunk in range(parts.shape[0]):
        for j in range(out.size):
            out[j] += parts[chunk, j]
