"""Linear layers whose weight fits the caches: each GEMM reads its operands where they are.

The rows of a matrix of up to some MiB are panels of B as they stand: 111 of 117 GFLOP/s for the
gradients of 128x400 -> 120, where copies to panels and 12 rows at a time gave 95. What remains is
the cost of a call, so all gradients are one call and one parallel region. Only a last panel is
copied whose vectors would reach past the end of the array.

An element has the same bits in every tile, so tasks may be cut as the threads need it.
"""

from __future__ import annotations

import numpy as np

from fastlayers.kernels.gemm.gemm import gemm, gemm_runs, panel_width, prepare_gemm
from fastlayers.kernels.gemm.tile import STORE
from fastlayers.kernels.ir.runs import clear_run, copy_run, flat, no_table, transpose_block, view
from fastlayers.kernels.layout import square_side
from fastlayers.kernels.linear.tile import FEW, rank_update
from fastlayers.kernels.reduce import column_sums
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["linear_short", "linear_small_backward"]


@kernel
def _cut(task, m, n, steps):
    """First row and column, numbers of rows and columns of a task's part of an m x n matrix."""
    across = (n + steps[1] - 1) // steps[1]
    i, j = task // across * steps[0], task % across * steps[1]
    return i, j, min(steps[0], m - i), min(steps[1], n - j)


@kernel
def _tasks(m, n, steps):
    return (m + steps[0] - 1) // steps[0] * ((n + steps[1] - 1) // steps[1])


@kernel
def _linear_short_task(task, worker, x, weight, bias, floor, size, steps, lanes, work, y):
    batch, k, n = size
    i, j, rows, columns = _cut(task, batch, n, steps)
    here, side, width = worker * steps[1] * k, square_side(y), panel_width(columns, lanes)
    for panel in range(0, columns, width):
        for h in range(0, min(width, columns - panel), side):
            count, at = min(side, columns - panel - h), (j + panel + h) * k
            for p in range(0, k, side):
                target = (work, here + panel * k + p * width + h, width, width - h, no_table())
                transpose_block(count, min(side, k - p), (weight, at + p, k), target)
    a = (x, i * k, k, 1, no_table(), no_table())
    b = (work, here, width * k, width, no_table())
    c = (y, i * n + j, n, no_table())
    gemm_runs(rows, columns, (1, k), a, b, (bias, j), c, floor, 0, STORE, lanes)


@kernel
def linear_short(x, weight, bias, floor, steps, lanes, workers, work, y):
    """``y = max(floor, x @ weight.T + bias)`` by transposing the weight: for many rows, short sums.

    x (batch, in), weight (out, in), y (batch, out). A task has ``steps = (rows, columns)``, the
    columns whole panels; `work` has ``workers * columns * in`` elements.
    """
    prepare_gemm(y)
    size = (x.shape[0], x.shape[1], weight.shape[0])
    operands = flat(x), flat(weight), bias
    arguments = (*operands, floor, size, steps, lanes, work, flat(y))
    parallel_for(_linear_short_task, _tasks(size[0], size[2], steps), workers, arguments)


@kernel
def _product_task(task, worker, a, b, c, size, steps, zeros, lanes, workers, work):
    """A part of ``C = A @ B``: ``a = (array, row stride, k stride)``, B (k, n), C (m, n) flat."""
    m, n, k = size
    i, j, rows, columns = _cut(task, m, n, steps)
    array, row, column = a
    left, width = (array, i * row, row, column), 2 * lanes
    rest = columns % width
    if rest == panel_width(rest, lanes):
        rest = 0  # fills its vectors: nothing is read past it
    start, direct = (zeros, 0, 0), columns - rest
    if direct:
        gemm(rows, direct, k, left, (b, j, width, n), start, (c, i * n + j, n), lanes)
    if rest:
        at, panel = j + direct, panel_width(rest, lanes)
        here = worker * (work.size // workers)
        for p in range(k):
            copy_run(work, here + p * panel, b, p * n + at, rest)
            clear_run(work, here + p * panel + rest, panel - rest)
        gemm(rows, rest, k, left, (work, here, panel, panel), start, (c, i * n + at, n), lanes)


@kernel
def _rank_task(task, worker, dy, x, dw, size, steps):
    """A part of the weight's gradient by a few rows."""
    n, k, batch = size
    first, j, rows, columns = _cut(task, n, k, steps)
    for i in range(first, first + rows, FEW):
        factors, target = (dy, i, 1, n), (dw, i * k + j, k)
        valid = (min(FEW, first + rows - i), batch)
        rank_update(0, 0, columns, factors, (x, j, k), target, valid)


@kernel
def _backward_task(
    task, worker, dy, x, weight, size, steps, inputs, zeros, lanes, workers, work, dx, dw
):
    batch, k, n = size
    one = np.int64(1)  # a literal would be a second signature, 0.5 s to compile
    if task < inputs:
        a, c = (dy, n, one), (batch, k, n)
        _product_task(task, worker, a, weight, dx, c, steps[0], zeros, lanes, workers, work)
    elif 0 < batch <= FEW:
        _rank_task(task - inputs, worker, dy, x, dw, (n, k, batch), steps[1])
    else:
        a, c = (dy, one, n), (n, k, batch)
        _product_task(task - inputs, worker, a, x, dw, c, steps[1], zeros, lanes, workers, work)


@kernel
def linear_small_backward(
    dy, y, x, weight, needs, zeros, steps, sums, lanes, workers, work, dx, dw, db
):
    """``dx = dy @ weight``, ``dw = dy.T @ x`` and ``db`` the sum of rows of dy (batch, out).

    ``needs = (relu, dx, dw)``: with `relu` dy counts where y is above 0 only, and arrays that are
    not needed, db the empty one, can be any. ``steps`` are the rows and columns of a task for dx
    and dw, the columns whole panels, of which `zeros` holds as many; ``sums = (span, chunks,
    workers)`` as in `reduce.column_sums`. In `work` are the masked dy, the sums of chunks, and
    ``2 * lanes * max(batch, out)`` elements a worker.
    """
    prepare_gemm(dy)
    relu, input_needed, weight_needed = needs
    batch, k = x.shape
    n = weight.shape[0]
    gradient, scratch = flat(dy), work
    if relu or db.size:
        span, chunks, few = sums
        masked, parts = view(work, 0, relu * dy.size), view(work, relu * dy.size, chunks * n)
        column_sums(gradient, flat(y), (relu, n, span, chunks), few, parts, masked, db)
        scratch = view(work, relu * dy.size + chunks * n, work.size - relu * dy.size - chunks * n)
        if relu:
            gradient = masked
    inputs = input_needed * _tasks(batch, k, steps[0])
    tasks = inputs + weight_needed * _tasks(n, k, steps[1])
    operands, outputs = (gradient, flat(x), flat(weight)), (flat(dx), flat(dw))
    arguments = (*operands, (batch, k, n), steps, inputs, zeros, lanes, workers, scratch, *outputs)
    parallel_for(_backward_task, tasks, workers, arguments)
