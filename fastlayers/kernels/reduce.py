"""Sums over the rows of a matrix, in chunks of a fixed size."""

from __future__ import annotations

from fastlayers.kernels.ir.runs import add_run, copy_run
from fastlayers.kernels.linear.tile import STRIP, Strip, sum_strip
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["column_sums"]

VECTOR_BYTES = cpu.vector_bytes()
BLOCK = 256  # columns of a task


@kernel
def _column_sums_task(task, worker, x, y, relu, columns, span, parts, masked):
    """The sums of `span` rows of a block of columns."""
    blocks = (columns + BLOCK - 1) // BLOCK
    chunk, first = task // blocks, task % blocks * BLOCK
    last, lanes = min(first + BLOCK, columns), VECTOR_BYTES // x.itemsize
    rows = min(span, x.size // columns - chunk * span)
    j = first
    while j < last:
        at, out = chunk * span * columns + j, chunk * columns + j
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


@kernel
def column_sums(x, y, relu, columns, span, chunks, workers, parts, masked, out):
    """``out[j] = sum_i x[i, j]``: chunks of `span` rows, added in the order of the chunks.

    x is flat, `parts` has ``chunks * columns`` elements. With `relu`, 1 and not 0, only elements
    count where those of y are above 0 (or NaN); `masked` gets them, and zeros in place of the
    others. The sums are left in `parts` if `out` is empty.
    """
    blocks = (columns + BLOCK - 1) // BLOCK
    arguments = (x, y, relu, columns, span, parts, masked)
    parallel_for(_column_sums_task, chunks * blocks, workers, arguments)
    for chunk in range(1, chunks):
        add_run(parts, 0, parts, chunk * columns, columns)
    copy_run(out, 0, parts, 0, out.size)
