"""What the kernels of large linear maps share: sizes, packed operands and the rows of a task."""

from __future__ import annotations

from typing import NamedTuple

from fastlayers.kernels.ir.named import Elements
from fastlayers.kernels.linear.tile import FEW, move_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["PAD", "Blocked", "Sizes", "blocked", "blocked_size", "task_rows"]

# Packed rows are this much longer than their block, so that the rows of a tile do not fall into
# one set of the L1: at a distance of 16 KiB, 12 rows evict each other.
PAD = 16
PACKED_ROWS = 32  # of a block, that a task packs: 32 to 128 KiB


class Sizes(NamedTuple):
    """Of x (batch, inputs), the weight (outputs, inputs) and y (batch, outputs)."""

    batch: int
    inputs: int
    outputs: int


class Blocked(NamedTuple):
    """A matrix in blocks of columns: elements from one to the next, and from row to row."""

    array: Elements
    block: int
    row: int


@kernel(inner=True)
def blocked_size(rows, k, block):
    """Elements of a matrix packed by blocks of columns; 0 where it is read as it is."""
    return (k + block - 1) // block * rows * (block + PAD) if k > block and rows > FEW else 0


@kernel
def _pack_rows(task, worker, x, rows, k, block, packed):
    pieces = (rows + PACKED_ROWS - 1) // PACKED_ROWS
    i, first = task // pieces, task % pieces * PACKED_ROWS
    for row in range(first, min(first + PACKED_ROWS, rows)):
        at = (i * rows + row) * (block + PAD)
        move_run(0, packed, at, x, row * k + i * block, min(block, k - i * block))


@kernel(inner=True)
def blocked(x, rows, k, block, workers, packed):
    """Pack a matrix to ``[block][row][block + PAD]`` if `packed` has room for it."""
    if packed.size == 0:
        return Blocked(x, block, k)
    tasks = (k + block - 1) // block * ((rows + PACKED_ROWS - 1) // PACKED_ROWS)
    parallel_for(_pack_rows, tasks, workers, (x, rows, k, block, packed))
    return Blocked(packed, rows * (block + PAD), block + PAD)


@kernel(inner=True)
def task_rows(count, across, unit, most, tasks):
    """Rows of a task: a multiple of `unit` that makes `tasks` tasks where there are enough rows."""
    units = (count * across + tasks * unit - 1) // (tasks * unit)
    return max(1, min(units, most // unit)) * unit
