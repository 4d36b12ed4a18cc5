"""Partial sums of the chunks of a weight gradient, which are added in order."""

from __future__ import annotations

from fastlayers.kernels.ir.runs import add_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["sum_parts", "sum_workers"]

# Elements of a task, and those that one thread moves before others have been woken, 5 us.
BLOCK = 1024
SERIAL_ELEMENTS = 32768


@kernel(inner=True)
def sum_workers(elements, workers):
    """Workers worth using to add or move so many elements."""
    return workers if elements >= SERIAL_ELEMENTS else 1


@kernel
def _sum_block(block, worker, parts, chunks, size):
    """Add a block of elements of all chunks to those of the first."""
    first = block * BLOCK
    for chunk in range(1, chunks):
        add_run(parts, first, parts, chunk * size + first, min(BLOCK, size - first))


@kernel(inner=True)
def sum_parts(parts, chunks, size, workers):
    """Add the `size` sums of all chunks to those of the first, in order."""
    blocks = (size + BLOCK - 1) // BLOCK
    parallel_for(_sum_block, blocks, sum_workers(chunks * size, workers), (parts, chunks, size))
