"""Linear maps by dot products, for weights that move through the caches once.

The weight is far larger than the batch, so the pass is built around one stream through it. Both
operands are contiguous in k: registers hold k, and nothing is transposed. Chunks depend on the
shape alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.runs import flat, prefetch_run
from fastlayers.kernels.linear.blocks import Sizes, blocked, task_rows
from fastlayers.kernels.linear.tile import DOT_BATCH, DOT_ROWS, FEW, FEW_ROWS, Rows, dot_tile
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["dot_block", "linear"]

# Elements of k in one block of a dot product, in vectors: 4 rows of 64 are 16 KiB, half an L1.
DOT_VECTORS = 64
# Batch rows of a task: 128 blocks of x are 512 KiB, half the L2 that the field has at least.
TASK_BATCH = 128
# Whether a few rows have tiles of their own.
FEW_DIFFER = (FEW_ROWS, FEW) != (DOT_ROWS, DOT_BATCH)
# Bytes of a weight that L2 has at hand: nothing is prefetched.
IN_CACHE = 512 << 10


class Cut(NamedTuple):
    """Elements of k in a block; outputs and rows of a task and of a tile; whether to prefetch."""

    block: int
    outputs: int
    rows: int
    ahead: bool  # of the weight
    tile_outputs: int
    tile_rows: int


@kernel(inner=True)
def dot_block(k, lanes):
    """Elements of k in a block: equal blocks of at most `DOT_VECTORS`, in whole vectors."""
    blocks = max(1, (k + DOT_VECTORS * lanes - 1) // (DOT_VECTORS * lanes))
    return max(1, ((k + blocks - 1) // blocks + lanes - 1) // lanes) * lanes


@kernel
def _prefetch_part(weight, at, k, part, rows):
    """Prefetch some columns of the weight's next rows."""
    for row in range(rows):
        prefetch_run(weight, at + row * k, part)


@kernel
def _linear_task(task, worker, x, parameters, floor, sizes, cut, y):
    """Some rows of the weight by some of the batch, block after block of k."""
    weight, bias = parameters
    k, n, block = sizes.inputs, sizes.outputs, cut.block
    across = (sizes.batch + cut.rows - 1) // cut.rows
    first, j0 = task // across * cut.outputs, task % across * cut.rows
    last, j1 = min(first + cut.outputs, n), min(j0 + cut.rows, sizes.batch)
    # Each tile fetches its part of the weight's next rows while it multiplies the present ones.
    # A single tile would only wait for them earlier.
    height, width = cut.tile_outputs, cut.tile_rows
    tiles = (j1 - j0 + width - 1) // width
    part = (block + tiles - 1) // tiles
    for p in range(max(1, (k + block - 1) // block)):  # once without k, for the bias
        at = p * block
        depth, low = min(block, k - at), floor if at + block >= k else -np.inf
        for i in range(first, last, height):
            following = (i + height) * k + at
            if i + height >= last:
                following = first * k + at + block
            for j in range(j0, j1, width):
                if cut.ahead and tiles > 1:
                    ahead = following + (j - j0) // width * part
                    _prefetch_part(weight, ahead, k, part, height)
                a, b = Rows(weight, i * k + at, k), Rows(x.array, p * x.block + j * x.row, x.row)
                c = Rows(y, j * n + i, n)
                start = Rows(bias, i, 0) if p == 0 else c
                valid = (min(height, last - i), min(width, j1 - j))
                if FEW_DIFFER and width == FEW:
                    dot_tile((FEW_ROWS, FEW), depth, a, b, start, low, c, valid)
                else:
                    dot_tile((DOT_ROWS, DOT_BATCH), depth, a, b, start, low, c, valid)


@kernel
def linear(x, weight, bias, floor, workers, packed, y):
    """``y = max(floor, x @ weight.T + bias)``: x (batch, in), weight (out, in), y (batch, out).

    `packed` holds ``blocked_size(batch, in, dot_block(in, lanes))`` elements.
    """
    sizes = Sizes(x.shape[0], x.shape[1], weight.shape[0])
    batch, k, n = sizes
    block = dot_block(k, lanes_of(y))
    left = blocked(flat(x), batch, k, block, workers, packed)
    height, width = (FEW_ROWS, FEW) if batch <= FEW else (DOT_ROWS, DOT_BATCH)
    across = max(1, (batch + TASK_BATCH - 1) // TASK_BATCH)
    rows = max(1, (batch + across * width - 1) // (across * width)) * width
    ahead = weight.size * weight.itemsize > IN_CACHE
    step = task_rows(n, across, height, 48, 32)
    tasks = (n + step - 1) // step * across
    cut = Cut(block, step, rows, ahead, height, width)
    arguments = (left, (flat(weight), bias), floor, sizes, cut, flat(y))
    parallel_for(_linear_task, tasks, workers, arguments)
