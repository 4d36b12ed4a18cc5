"""Matrix products by GEMM from packed blocks: gradients of linear maps for many rows.

The columns of both operands are contiguous. Arrays are flat, and chunks depend on the shape alone.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastlayers.kernels.gemm.gemm import gemm, prepare_gemm
from fastlayers.kernels.gemm.operands import STORE, Bias, Epilogue, Left, Right, Size, Target
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import no_table, prefetch_run
from fastlayers.kernels.linear.blocks import PAD, Sizes, blocked, task_rows
from fastlayers.kernels.linear.tile import move_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["Product", "linear_backward_weight", "matmul"]

# Block of `matmul`: 256 x 128 float32 of B are packed to 128 KiB in L2, and used by all rows.
DEPTH = 256
SPAN = 128
STEP = 384  # rows of a task, so that packing B is at most a 384th of the work
MATMUL_WORK = DEPTH * (SPAN + 2 * PAD)  # elements of a worker
GROUP = 12  # rows between two prefetches, a multiple of every tile


class Product(NamedTuple):
    """Sizes of A (rows, depth), B (depth, columns) and C (rows, columns)."""

    rows: int
    depth: int
    columns: int


@kernel
def _matmul_task(task, worker, a, b, init, c, product, work):
    """Up to `STEP` rows of C in `SPAN` columns, block after block of k."""
    m, k, n = product
    across = (n + SPAN - 1) // SPAN
    i0, j0 = task // across * STEP, task % across * SPAN
    rows, columns = min(STEP, m - i0), min(SPAN, n - j0)
    row, panel = SPAN + 2 * PAD, 2 * lanes_of(work)
    here = worker * MATMUL_WORK
    none = no_table()
    part = DEPTH * GROUP // max(rows, GROUP) + 1
    for p in range(max(1, (k + DEPTH - 1) // DEPTH)):
        at = p * DEPTH
        depth = min(DEPTH, k - at)
        for q in range(depth):
            move_run(0, work, here + q * row, b, (at + q) * n + j0, columns)
        for i in range(0, rows, GROUP):
            for q in range(part):
                prefetch_run(b, (at + DEPTH + i // GROUP * part + q) * n + j0, columns)
            left = Left(a.array, p * a.block + (i0 + i) * a.row, a.row, 1, none, none)
            right = Right(work, here, panel, row, none)
            target = Target(c, (i0 + i) * n + j0, n, none)
            size = Size(min(GROUP, rows - i), columns, 1, depth)
            epilogue = Epilogue(-np.inf, int(p > 0), STORE)
            gemm(size, left, right, Bias(init, j0), target, epilogue)


@kernel
def matmul(a, b, init, product, workers, packed, work, c):
    """``C = init + A @ B``: A (m, k), B (k, n), init (n,), C (m, n), ``product = (m, k, n)``.

    `packed` holds ``blocked_size(m, k, DEPTH)`` elements, `work`
    ``workers * MATMUL_WORK``.
    """
    prepare_gemm(c)
    product = named(Product, product)
    m, k, n = product
    block = np.int64(DEPTH)  # a literal would be a second signature, 0.35 s to compile
    left = blocked(a, m, k, block, workers, packed)
    tasks = (m + STEP - 1) // STEP * ((n + SPAN - 1) // SPAN)
    parallel_for(_matmul_task, tasks, workers, (left, b, init, c, product, work))


# Rows and columns of a task of the weight gradient. What it needs stays in L2: A, B and C have
# 192, 256 and 192 KiB.
WEIGHT_ROWS, WEIGHT_SPAN = 192, 256
WEIGHT_WORK = DEPTH * (WEIGHT_ROWS + WEIGHT_SPAN + 2 * PAD) + WEIGHT_ROWS * WEIGHT_SPAN


@kernel
def _backward_weight_task(task, worker, operands, sizes, step, stream, work, dw):
    dy, x, zeros = operands
    batch, k, n = sizes
    span = WEIGHT_SPAN
    across = (k + span - 1) // span
    i0, j0 = task // across * step, task % across * span
    rows, columns = min(step, n - i0), min(span, k - j0)
    row, panel = span + 2 * PAD, 2 * lanes_of(work)
    a_at = worker * WEIGHT_WORK
    b_at = a_at + DEPTH * step
    none = no_table()
    result = Target(dw, i0 * k + j0, k, none)
    if stream:
        result = Target(work, b_at + DEPTH * row, span, none)
    for p in range(0, batch, DEPTH):
        depth = min(DEPTH, batch - p)
        for q in range(depth):
            move_run(0, work, a_at + q * step, dy, (p + q) * n + i0, rows)
            move_run(0, work, b_at + q * row, x, (p + q) * k + j0, columns)
        a, b = Left(work, a_at, 1, step, none, none), Right(work, b_at, panel, row, none)
        size, epilogue = Size(rows, columns, 1, depth), Epilogue(-np.inf, int(p > 0), STORE)
        gemm(size, a, b, Bias(zeros, 0), result, epilogue)
    if stream:
        for i in range(rows):
            move_run(1, dw, (i0 + i) * k + j0, work, result.offset + i * span, columns)


@kernel
def linear_backward_weight(dy, x, zeros, sizes, stream, workers, work, dw):
    """``dw = dy.T @ x``: dy (batch, out), x (batch, in), dw (out, in), `sizes` `blocks.Sizes`.

    With `stream` the result bypasses the caches; its rows must be aligned to a vector. `zeros`
    holds `WEIGHT_SPAN` zeros, `work` ``workers * WEIGHT_WORK`` elements. The batch is not empty.
    """
    prepare_gemm(dw)
    sizes = named(Sizes, sizes)
    across = (sizes.inputs + WEIGHT_SPAN - 1) // WEIGHT_SPAN
    step = task_rows(sizes.outputs, across, GROUP, WEIGHT_ROWS, 16)
    tasks = (sizes.outputs + step - 1) // step * across
    arguments = ((dy, x, zeros), sizes, step, stream, work, dw)
    parallel_for(_backward_weight_task, tasks, workers, arguments)
