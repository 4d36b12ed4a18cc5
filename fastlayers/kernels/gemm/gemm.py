"""Matrix multiplication from packed panels and register tiles.

Every convolution and linear pass is a call of `gemm`. The loops around the micro-kernel are
numbered as in BLIS (Van Zee and van de Geijn, 2015), outermost first.
"""

from __future__ import annotations

import numpy as np

from fastlayers.kernels.gemm.operands import (
    STORE,
    STREAM,
    Batch,
    Bias,
    Block,
    Epilogue,
    Left,
    Right,
    Size,
    Target,
)
from fastlayers.kernels.gemm.tile import gemm_panel
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.shared import shared_kernel
from fastlayers.runtime.cache import kernel

__all__ = [
    "gemm",
    "gemm_batch",
    "packed_size",
    "panel_width",
    "prepare_gemm",
]

# Rows of B in one block: 1024 x 32 float32 are 128 KiB of L2; a tile reads them at 5 bytes a cycle,
# and its sums go to memory and back only once in 1024 steps (2 % faster than 256, which L1 holds).
BLOCK_K = 1024


@kernel(inner=True)
def panel_width(columns, lanes):
    """Columns of one packed panel: two vectors, or one or half a one for a narrow matrix."""
    if columns > lanes:
        return 2 * lanes
    if 2 * columns > lanes:
        return lanes
    return lanes // 2


@kernel(inner=True)
def packed_size(k, columns, lanes):
    """Elements of a packed `k` x `columns` matrix."""
    width = panel_width(columns, lanes)
    return (columns + width - 1) // width * width * k


@shared_kernel(opt=1)
def gemm_batch(
    batch: Batch,
    size: Size,
    left: Left,
    right: Right,
    bias: Bias,
    target: Target,
    epilogue: Epilogue,
) -> None:
    """`gemm` for several products.

    A call of its own for each costs 200 cycles, and 12 x 16 x 16 are 192 multiply-adds.
    """
    lanes = lanes_of(target.array)
    width, n, length = panel_width(size.columns, lanes), size.columns, size.length
    runs = size.runs if length else 0
    per = max(1, BLOCK_K // max(length, 1))
    # Loop 5: products of a batch.
    for product in range(batch.products):
        a_at = left.offset + product * batch.left
        b_at = right.offset + product * batch.right
        c_at = target.offset + product * batch.target
        # Loop 4: blocks of k, so that a panel of B stays in L1. Later blocks add to C. A block is
        # several short runs or a piece of a long one.
        for run in range(0, max(runs, 1), per):
            for p in range(0, max(length, 1), BLOCK_K):
                ends = run + per >= runs and p + BLOCK_K >= length
                floor = epilogue.floor if ends else -np.inf
                add = epilogue.add if run + p == 0 else 1
                depth, end = min(BLOCK_K, length - p), min(run + per, runs)
                a_p = a_at + p * left.step
                a = Left(left.array, a_p, left.row, left.step, left.rows, left.runs)
                # Loop 3: panels of B. Loops 2 and 1 are those of `gemm_panel`.
                for j in range(0, n, width):
                    b_j = b_at + j // width * right.panel + p * right.step
                    b = Right(right.array, b_j, right.panel, right.step, right.runs)
                    row = Bias(bias.array, bias.offset + j)
                    c = Target(target.array, c_at + j, target.row, target.rows)
                    columns = min(width, n - j)
                    write = epilogue.write
                    if write == STREAM and not (ends and columns == width):
                        write = STORE
                    block, how = Block(0, columns, run, end, depth), Epilogue(floor, add, write)
                    if columns > lanes:
                        gemm_panel((2, 1), size.rows, block, a, b, row, c, how)
                    elif 2 * columns > lanes:
                        gemm_panel((1, 1), size.rows, block, a, b, row, c, how)
                    else:
                        gemm_panel((1, 2), size.rows, block, a, b, row, c, how)


prepare_gemm = gemm_batch.prepare


@kernel(inner=True)
def gemm(size, left, right, bias, target, epilogue):
    """A matrix product of `operands`, on the calling thread.

    A batch-reduce GEMM with tables of offsets: convolution without an im2col matrix.
    `prepare_gemm` must have run in the process.

    References
    ----------
    Georganas et al., High-Performance Deep Learning via a Single Building Block, 2019.
    """
    gemm_batch(Batch(1, 0, 0, 0), size, left, right, bias, target, epilogue)
