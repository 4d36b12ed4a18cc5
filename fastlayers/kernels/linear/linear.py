"""Linear layers: three products of matrices, of which one is large and moves once.

The weight, or its gradient, is far larger than the batch, so each pass is built around one stream
through it. Forward both operands are contiguous in k: registers hold k, nothing is transposed.
Backward the columns are contiguous: rank updates for a few rows, `gemm` for many.
Chunks depend on the shape alone. Arrays are flat, ``size`` is always (batch, in, out).
"""

from __future__ import annotations

import numpy as np

from fastlayers.kernels.gemm.gemm import gemm, prepare_gemm
from fastlayers.kernels.gemm.operands import STORE, Bias, Epilogue, Left, Right, Size, Target
from fastlayers.kernels.ir.runs import flat, no_table, prefetch_run
from fastlayers.kernels.linear.tile import DOT_ROWS, FEW, dot_tile, move_run, rank_update
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "FEW",
    "blocked_size",
    "linear",
    "linear_backward_input_few",
    "linear_backward_weight",
    "linear_backward_weight_few",
    "matmul",
]


# Elements of k in one block of a dot product, in vectors: 4 rows of 64 are 16 KiB, half an L1.
DOT_VECTORS = 64
# Batch rows of a task: 128 blocks of x are 512 KiB, half the L2 that the field has at least.
DOT_BATCH = 128
# Bytes of a weight that L2 has at hand: nothing is prefetched.
IN_CACHE = 512 << 10
# Packed rows are this much longer than their block, so that the rows of a tile do not fall into
# one set of the L1: at a distance of 16 KiB, 12 rows evict each other.
PAD = 16


@kernel(inner=True)
def dot_block(k, lanes):
    """Elements of k in a block: equal blocks of at most `DOT_VECTORS`, in whole vectors."""
    blocks = max(1, (k + DOT_VECTORS * lanes - 1) // (DOT_VECTORS * lanes))
    return max(1, ((k + blocks - 1) // blocks + lanes - 1) // lanes) * lanes


@kernel(inner=True)
def blocked_size(rows, k, block):
    """Elements of a matrix packed by blocks of columns; 0 where it is read as it is."""
    return (k + block - 1) // block * rows * (block + PAD) if k > block and rows > FEW else 0


@kernel
def _pack_block(i, worker, x, rows, k, block, packed):
    for row in range(rows):
        at = (i * rows + row) * (block + PAD)
        move_run(0, packed, at, x, row * k + i * block, min(block, k - i * block))


@kernel
def _blocked(x, rows, k, block, workers, packed):
    """Pack a matrix to ``[block][row][block + PAD]`` if `packed` has room for it.

    Returns (array, distance of blocks, distance of rows).
    """
    if packed.size == 0:
        return x, block, k
    parallel_for(_pack_block, (k + block - 1) // block, workers, (x, rows, k, block, packed))
    return packed, rows * (block + PAD), block + PAD


@kernel
def _linear_task(task, worker, x, weight, bias, floor, size, steps, y):
    """Some rows of the weight by some of the batch, block after block of k."""
    batch, k, n = size
    x_array, x_block, x_row = x
    block, step, batch_step, ahead = steps
    across = (batch + batch_step - 1) // batch_step
    first, j0 = task // across * step, task % across * batch_step
    last, j1 = min(first + step, n), min(j0 + batch_step, batch)
    # Each tile fetches its part of the weight's next rows while it multiplies the present ones.
    # A single tile would only wait for them earlier.
    tiles = (j1 - j0 + FEW - 1) // FEW
    part = (block + tiles - 1) // tiles
    for p in range(max(1, (k + block - 1) // block)):  # once without k, for the bias
        at = p * block
        depth = min(block, k - at)
        for i in range(first, last, DOT_ROWS):
            following = (i + DOT_ROWS) * k + at
            if i + DOT_ROWS >= last:
                following = first * k + at + block
            for j in range(j0, j1, FEW):
                if ahead and tiles > 1:
                    column = following + (j - j0) // FEW * part
                    for row in range(DOT_ROWS):
                        prefetch_run(weight, column + row * k, part)
                a = (weight, i * k + at, k)
                b = (x_array, p * x_block + j * x_row, x_row)
                c = (y, j * n + i, n)
                init = (bias, i, 0) if p == 0 else c
                valid = (min(DOT_ROWS, last - i), min(FEW, j1 - j))
                low = floor if at + block >= k else -np.inf
                dot_tile(DOT_ROWS, FEW, depth, a, b, init, low, c, valid)


@kernel
def linear(x, weight, bias, floor, lanes, workers, packed, y):
    """``y = max(floor, x @ weight.T + bias)``: x (batch, in), weight (out, in), y (batch, out).

    `packed` holds ``blocked_size(batch, in, dot_block(in, lanes))`` elements.
    """
    batch, k = x.shape
    n = weight.shape[0]
    block = dot_block(k, lanes)
    operand = _blocked(flat(x), batch, k, block, workers, packed)
    across = max(1, (batch + DOT_BATCH - 1) // DOT_BATCH)
    batch_step = max(1, (batch + across * FEW - 1) // (across * FEW)) * FEW
    ahead = weight.size * weight.itemsize > IN_CACHE
    step = _share(n, across, DOT_ROWS, 48, 16 if ahead else 32)
    tasks = (n + step - 1) // step * across
    steps = (block, step, batch_step, ahead)
    arguments = (operand, flat(weight), bias, floor, (batch, k, n), steps, flat(y))
    parallel_for(_linear_task, tasks, workers, arguments)


@kernel
def _share(count, across, unit, most, tasks):
    """Rows of a task: a multiple of `unit` that makes `tasks` tasks where there are enough rows."""
    units = (count * across + tasks * unit - 1) // (tasks * unit)
    return max(1, min(units, most // unit)) * unit


# Block of `matmul`: 256 x 128 float32 of B are packed to 128 KiB in L2, and used by all rows.
DEPTH = 256
SPAN = 128
STEP = 384  # rows of a task, so that packing B is at most a 384th of the work
MATMUL_WORK = DEPTH * (SPAN + 2 * PAD)  # elements of a worker
GROUP = 12  # rows between two prefetches, a multiple of every tile


@kernel
def _matmul_task(task, worker, a, b, init, c, size, lanes, work):
    """Up to `STEP` rows of C in `SPAN` columns, block after block of k."""
    m, k, n = size
    a_array, a_block, a_row = a
    across = (n + SPAN - 1) // SPAN
    i0, j0 = task // across * STEP, task % across * SPAN
    rows, columns = min(STEP, m - i0), min(SPAN, n - j0)
    row, panel = SPAN + 2 * PAD, 2 * lanes
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
            left = Left(a_array, p * a_block + (i0 + i) * a_row, a_row, 1, none, none)
            right = Right(work, here, panel, row, none)
            target = Target(c, (i0 + i) * n + j0, n, none)
            product = Size(min(GROUP, rows - i), columns, 1, depth)
            epilogue = Epilogue(-np.inf, int(p > 0), STORE)
            gemm(product, left, right, Bias(init, j0), target, epilogue)


@kernel
def matmul(a, b, init, size, lanes, workers, packed, work, c):
    """``C = init + A @ B``: A (m, k), B (k, n), init (n,), C (m, n), ``size = (m, k, n)``.

    `packed` holds ``blocked_size(m, k, DEPTH)`` elements, `work`
    ``workers * MATMUL_WORK``.
    """
    prepare_gemm(c)
    m, k, n = size
    block = np.int64(DEPTH)  # a literal would be a second signature, 0.35 s to compile
    operand = _blocked(a, m, k, block, workers, packed)
    tasks = (m + STEP - 1) // STEP * ((n + SPAN - 1) // SPAN)
    parallel_for(_matmul_task, tasks, workers, (operand, b, init, c, size, lanes, work))


# Columns of a rank update: 4 rows of 1024 float32 are 16 KiB, half an L1.
COLUMNS = 1024


@kernel
def _backward_input_few_task(task, worker, dy, weight, size, dx):
    batch, k, n = size
    first = task * COLUMNS
    columns = min(COLUMNS, k - first)
    for i in range(batch):
        for j in range(columns):
            dx[i * k + first + j] = 0
    for p in range(0, n, FEW):
        rows = (weight, p * k + first, k)
        for i in range(0, batch, FEW):
            factors, target = (dy, i * n + p, n, 1), (dx, i * k + first, k)
            valid = (min(FEW, batch - i), min(FEW, n - p))
            rank_update(1, 0, columns, factors, rows, target, valid)


@kernel
def linear_backward_input_few(dy, weight, size, workers, dx):
    """``dx = dy @ weight`` for a small batch, which reads the weight as a stream."""
    tasks = (size[1] + COLUMNS - 1) // COLUMNS
    parallel_for(_backward_input_few_task, tasks, workers, (dy, weight, size, dx))


@kernel
def _backward_weight_few_task(task, worker, dy, x, size, step, stream, dw):
    batch, k, n = size
    end = min((task + 1) * step, n)
    for j in range(0, k, COLUMNS):
        for i in range(task * step, end, FEW):
            factors, terms, target = (dy, i, 1, n), (x, j, k), (dw, i * k + j, k)
            columns, valid = min(COLUMNS, k - j), (min(FEW, end - i), batch)
            if stream:
                rank_update(0, 1, columns, factors, terms, target, valid)
            else:
                rank_update(0, 0, columns, factors, terms, target, valid)


@kernel
def linear_backward_weight_few(dy, x, size, stream, workers, dw):
    """``dw = dy.T @ x`` for 1 to `FEW` rows; `stream` as in `linear_backward_weight`."""
    step = _share(size[2], 1, FEW, 48, 16)
    tasks = (size[2] + step - 1) // step
    parallel_for(_backward_weight_few_task, tasks, workers, (dy, x, size, step, stream, dw))


# Rows and columns of a task of the weight's gradient. What it needs stays in L2: A, B and C have
# 192, 256 and 192 KiB.
WEIGHT_ROWS, WEIGHT_SPAN = 192, 256
WEIGHT_WORK = DEPTH * (WEIGHT_ROWS + WEIGHT_SPAN + 2 * PAD) + WEIGHT_ROWS * WEIGHT_SPAN


@kernel
def _backward_weight_task(task, worker, dy, x, zeros, size, steps, stream, lanes, work, dw):
    batch, k, n = size
    step, span = steps
    across = (k + span - 1) // span
    i0, j0 = task // across * step, task % across * span
    rows, columns = min(step, n - i0), min(span, k - j0)
    row, panel = span + 2 * PAD, 2 * lanes
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
        product, epilogue = Size(rows, columns, 1, depth), Epilogue(-np.inf, int(p > 0), STORE)
        gemm(product, a, b, Bias(zeros, 0), result, epilogue)
    if stream:
        for i in range(rows):
            move_run(1, dw, (i0 + i) * k + j0, work, result.offset + i * span, columns)


@kernel
def linear_backward_weight(dy, x, zeros, size, stream, lanes, workers, work, dw):
    """``dw = dy.T @ x``: dy (batch, out), x (batch, in), dw (out, in).

    With `stream` the result bypasses the caches; its rows must be aligned to a vector. `zeros`
    holds `WEIGHT_SPAN` zeros, `work` ``workers * WEIGHT_WORK`` elements. The batch is not empty.
    """
    prepare_gemm(dw)
    _, k, n = size
    step = _share(n, (k + WEIGHT_SPAN - 1) // WEIGHT_SPAN, GROUP, WEIGHT_ROWS, 16)
    span = WEIGHT_SPAN
    tasks = (n + step - 1) // step * ((k + span - 1) // span)
    arguments = (dy, x, zeros, size, (step, span), stream, lanes, work, dw)
    parallel_for(_backward_weight_task, tasks, workers, arguments)
