"""Sums over the rows of a matrix, in chunks of a fixed size."""

from __future__ import annotations

from typing import NamedTuple

from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import copy_run
from fastlayers.kernels.linear.tile import STRIP, Strip, sum_strip
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["Cut", "add_rows", "column_sums", "sum_workers"]

VECTOR_BYTES = cpu.vector_bytes()
BLOCK = 256  # columns of a task
# Partial sums that threads share: 128 KiB, most of it in the caches of other cores, take 10 us.
SUMS = 1 << 15


class Cut(NamedTuple):
    """A matrix in chunks of rows."""

    relu: int  # 1 or 0: only elements of x count where those of y are above 0, or NaN
    columns: int
    chunk_rows: int
    chunks: int


@kernel
def _column_sums_task(task, worker, x, y, cut, parts, masked):
    """The sums of a chunk's rows of a block of columns."""
    relu, columns, chunk_rows = cut.relu, cut.columns, cut.chunk_rows
    blocks = (columns + BLOCK - 1) // BLOCK
    chunk, first = task // blocks, task % blocks * BLOCK
    last, lanes = min(first + BLOCK, columns), VECTOR_BYTES // x.itemsize
    rows = min(chunk_rows, x.size // columns - chunk * chunk_rows)
    j = first
    while j < last:
        at, out = chunk * chunk_rows * columns + j, chunk * columns + j
        count = min(lanes, last - j)
        if last - j >= STRIP * lanes:
            count = STRIP * lanes
            if relu:
                sum_strip((STRIP, 1), x, y, masked, Strip(at, rows, columns, count), parts, out)
            else:
                sum_strip((STRIP, 0), x, y, masked, Strip(at, rows, columns, count), parts, out)
        elif relu:
            sum_strip((1, 1), x, y, masked, Strip(at, rows, columns, count), parts, out)
        else:
            sum_strip((1, 0), x, y, masked, Strip(at, rows, columns, count), parts, out)
        j += count


@kernel(inner=True)
def sum_workers(count, workers):
    """How many of the threads should add, or move, so many partial sums."""
    return workers if count >= SUMS else 1


@kernel(inner=True)
def add_rows(sums, columns, rows, workers):
    """Add the rows of a flat matrix to its first, in their order."""
    if rows > 1:
        adders, blocks = sum_workers(rows * columns, workers), (columns + BLOCK - 1) // BLOCK
        arguments = (sums, sums, Cut(0, columns, rows, 1), sums, sums)
        parallel_for(_column_sums_task, blocks, adders, arguments)


@kernel
def column_sums(x, y, cut, workers, parts, masked, out):
    """``out[j] = sum_i x[i, j]``: chunks of rows by a `Cut`, added in the order of the chunks.

    x is flat, `parts` has ``chunks * columns`` elements. With `relu` `masked` gets the elements
    that count, and zeros in place of the others. The sums are left in `parts` if `out` is empty.
    """
    cut = named(Cut, cut)
    blocks = (cut.columns + BLOCK - 1) // BLOCK
    arguments = (x, y, cut, parts, masked)
    parallel_for(_column_sums_task, cut.chunks * blocks, workers, arguments)
    add_rows(parts, cut.columns, cut.chunks, workers)
    copy_run(out, 0, parts, 0, out.size)
