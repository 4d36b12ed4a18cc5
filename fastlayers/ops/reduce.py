"""Sums over the rows of a matrix."""

from __future__ import annotations

import functools

import numpy as np

from fastlayers import kernels
from fastlayers.runtime import memory, threads

__all__ = ["column_sums", "masked_column_sums", "sum_chunks"]

CHUNKS = 16


@functools.lru_cache(1024)
def sum_chunks(rows: int, columns: int, available: int) -> tuple[int, int, int]:
    """Rows of a chunk and number of chunks of `column_sums`, and its threads out of `available`."""
    span = max(256, -(-rows // CHUNKS))
    workers = 1 if threads.workers_for(rows * columns) == 1 else available
    return span, max(1, -(-rows // span)), workers


def column_sums(x: np.ndarray) -> np.ndarray:
    """Sum of a contiguous matrix over its rows, in at most 16 chunks of a size fixed by it."""
    return masked_column_sums(x, None)[1]


def masked_column_sums(x: np.ndarray, y: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """`x` where y is above 0 or NaN, zeros elsewhere, and its sums; `x` itself without a `y`."""
    (rows, columns), dtype = x.shape, x.dtype
    span, chunks, workers = sum_chunks(rows, columns, threads.get_num_threads())
    out, flat = memory.empty(columns, dtype), x.reshape(-1)
    parts = out if chunks == 1 else memory.empty(chunks * columns, dtype)
    masked = x if y is None else memory.empty(x.shape, dtype)
    outputs = flat if y is None else y.reshape(-1)
    layout = int(y is not None), columns, span, chunks, workers
    kernels.reduce.column_sums(flat, outputs, *layout, parts, masked.reshape(-1), out)
    return masked, out
