"""Gradients of linear maps for a few rows: rank updates around one stream through the weight."""

from __future__ import annotations

from fastlayers.kernels.ir.named import named
from fastlayers.kernels.linear.blocks import Sizes, task_rows
from fastlayers.kernels.linear.tile import FEW, Factors, Rows, rank_update
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["linear_backward_input_few", "linear_backward_weight_few"]

# Columns of a rank update: 4 rows of 1024 float32 are 16 KiB, half an L1.
COLUMNS = 1024


@kernel
def _backward_input_task(task, worker, dy, weight, sizes, dx):
    batch, k, n = sizes
    first = task * COLUMNS
    columns = min(COLUMNS, k - first)
    for i in range(batch):
        for j in range(columns):
            dx[i * k + first + j] = 0
    for p in range(0, n, FEW):
        rows = Rows(weight, p * k + first, k)
        for i in range(0, batch, FEW):
            factors, target = Factors(dy, i * n + p, n, 1), Rows(dx, i * k + first, k)
            valid = (min(FEW, batch - i), min(FEW, n - p))
            rank_update(1, 0, columns, factors, rows, target, valid)


@kernel
def linear_backward_input_few(dy, weight, sizes, workers, dx):
    """``dx = dy @ weight`` for a small batch, which reads the weight as a stream.

    Arrays are flat, `sizes` are `blocks.Sizes`.
    """
    sizes = named(Sizes, sizes)
    tasks = (sizes.inputs + COLUMNS - 1) // COLUMNS
    parallel_for(_backward_input_task, tasks, workers, (dy, weight, sizes, dx))


@kernel
def _backward_weight_task(task, worker, dy, x, sizes, step, stream, dw):
    batch, k, n = sizes
    end = min((task + 1) * step, n)
    for j in range(0, k, COLUMNS):
        for i in range(task * step, end, FEW):
            factors, terms = Factors(dy, i, 1, n), Rows(x, j, k)
            target = Rows(dw, i * k + j, k)
            columns, valid = min(COLUMNS, k - j), (min(FEW, end - i), batch)
            if stream:
                rank_update(0, 1, columns, factors, terms, target, valid)
            else:
                rank_update(0, 0, columns, factors, terms, target, valid)


@kernel
def linear_backward_weight_few(dy, x, sizes, stream, workers, dw):
    """``dw = dy.T @ x`` for 1 to `FEW` rows; `stream` as in `products.linear_backward_weight`."""
    sizes = named(Sizes, sizes)
    step = task_rows(sizes.outputs, 1, FEW, 48, 16)
    tasks = (sizes.outputs + step - 1) // step
    parallel_for(_backward_weight_task, tasks, workers, (dy, x, sizes, step, stream, dw))
