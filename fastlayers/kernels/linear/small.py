"""Linear layers whose weight fits the caches: each GEMM reads its operands where they are.

The rows of a matrix of up to some MiB are panels of B as they stand: 111 of 117 GFLOP/s for the
gradients of 128x400 -> 120, where copies to panels and 12 rows at a time gave 95. What remains is
the cost of a call, so all gradients are one call and one parallel region. Only a last panel is
copied whose vectors would reach past the end of the array.

An element has the same bits in every tile, so tasks may be cut as the threads need it.
"""

from __future__ import annotations

from typing import NamedTuple

from fastlayers.kernels.gemm.gemm import gemm, panel_width, prepare_gemm
from fastlayers.kernels.gemm.operands import PLAIN, STORE, Bias, Epilogue, Left, Right, Size, Target
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import clear_run, copy_run, flat, no_table, transpose_block, view
from fastlayers.kernels.layout import square_side
from fastlayers.kernels.linear.blocks import Sizes
from fastlayers.kernels.linear.products import Product
from fastlayers.kernels.linear.tile import FEW, Factors, Rows, rank_update
from fastlayers.kernels.reduce import Cut, column_sums
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["Backward", "Steps", "linear_short", "linear_small_backward"]


class Steps(NamedTuple):
    """Rows and columns of a task's part of a matrix, the columns whole panels."""

    rows: int
    columns: int


class Backward(NamedTuple):
    """Facts of a backward pass: its flags, the tasks of both products, and the sums of dy's rows.

    The tasks' fields are `Steps`; those of the sums are as in `reduce.column_sums`. Flat, since a
    call from Python finds the type of one tuple sooner than that of tuples in it.
    """

    relu: int
    needs_input: int
    needs_weight: int
    input_rows: int
    input_columns: int
    weight_rows: int
    weight_columns: int
    sum_span: int
    sum_chunks: int
    sum_workers: int
    workers: int


class Part(NamedTuple):
    """A task's part of a matrix."""

    row: int
    column: int
    rows: int
    columns: int


@kernel
def _part(task, m, n, steps):
    across = (n + steps.columns - 1) // steps.columns
    i, j = task // across * steps.rows, task % across * steps.columns
    return Part(i, j, min(steps.rows, m - i), min(steps.columns, n - j))


@kernel
def _tasks(m, n, steps):
    return (m + steps.rows - 1) // steps.rows * ((n + steps.columns - 1) // steps.columns)


@kernel
def _linear_short_task(task, worker, operands, floor, sizes, steps, work, y):
    x, weight, bias = operands
    k, n = sizes.inputs, sizes.outputs
    part, lanes = _part(task, sizes.batch, n, steps), lanes_of(y)
    width, side = panel_width(part.columns, lanes), square_side(y)
    here = worker * steps.columns * k
    for panel in range(0, part.columns, width):
        for h in range(0, min(width, part.columns - panel), side):
            count, at = min(side, part.columns - panel - h), (part.column + panel + h) * k
            for p in range(0, k, side):
                target = (work, here + panel * k + p * width + h, width, width - h, no_table())
                transpose_block(count, min(side, k - p), (weight, at + p, k), target)
    none = no_table()
    left = Left(x, part.row * k, k, 1, none, none)
    right = Right(work, here, width * k, width, none)
    target, epilogue = Target(y, part.row * n + part.column, n, none), Epilogue(floor, 0, STORE)
    size = Size(part.rows, part.columns, 1, k)
    gemm(size, left, right, Bias(bias, part.column), target, epilogue)


@kernel
def linear_short(x, weight, bias, floor, steps, workers, work, y):
    """``y = max(floor, x @ weight.T + bias)`` by transposing the weight: for many rows, short sums.

    x (batch, in), weight (out, in), y (batch, out). A task has the part `steps`, which are
    `Steps`; `work` has ``workers * columns * in`` elements.
    """
    prepare_gemm(y)
    sizes, steps = Sizes(x.shape[0], x.shape[1], weight.shape[0]), named(Steps, steps)
    arguments = ((flat(x), flat(weight), bias), floor, sizes, steps, work, flat(y))
    tasks = _tasks(sizes.batch, sizes.outputs, steps)
    parallel_for(_linear_short_task, tasks, workers, arguments)


@kernel
def _product(part, a, b, c, product, zeros, work):
    """A part of ``C = A @ B``: A is `Factors`, B and C are flat, and `work` is of this worker."""
    _, k, n = product
    i, j, rows, columns = part
    none = no_table()
    left = Left(a.array, i * a.row, a.row, a.step, none, none)
    width = 2 * lanes_of(work)
    rest = columns % width
    if rest == panel_width(rest, width // 2):
        rest = 0  # fills its vectors: nothing is read past it
    start, direct = Bias(zeros, 0), columns - rest
    if direct:
        right, target = Right(b, j, width, n, none), Target(c, i * n + j, n, none)
        gemm(Size(rows, direct, 1, k), left, right, start, target, PLAIN)
    if rest:
        at, panel = j + direct, panel_width(rest, width // 2)
        for p in range(k):
            copy_run(work, p * panel, b, p * n + at, rest)
            clear_run(work, p * panel + rest, panel - rest)
        right, target = Right(work, 0, panel, panel, none), Target(c, i * n + at, n, none)
        gemm(Size(rows, rest, 1, k), left, right, start, target, PLAIN)


@kernel
def _rank_updates(part, dy, x, dw, sizes):
    """A part of the weight gradient by a few rows."""
    batch, k, n = sizes
    end = part.row + part.rows
    for i in range(part.row, end, FEW):
        factors, target = Factors(dy, i, 1, n), Rows(dw, i * k + part.column, k)
        valid = (min(FEW, end - i), batch)
        rank_update(0, 0, part.columns, factors, Rows(x, part.column, k), target, valid)


@kernel
def _backward_task(task, worker, operands, sizes, facts, work, outputs):
    """A part of the input gradient, or of the weight gradient after all of those."""
    (dy, x, weight), (zeros, scratch), (dx, dw) = operands, work, outputs
    batch, k, n = sizes
    share = scratch.size // facts.workers
    own = view(scratch, worker * share, share)
    steps = Steps(facts.input_rows, facts.input_columns)
    inputs = facts.needs_input * _tasks(batch, k, steps)
    if task < inputs:
        part, product = _part(task, batch, k, steps), Product(batch, n, k)
        _product(part, Factors(dy, 0, n, 1), weight, dx, product, zeros, own)
        return
    part = _part(task - inputs, n, k, Steps(facts.weight_rows, facts.weight_columns))
    if 0 < batch <= FEW:
        _rank_updates(part, dy, x, dw, sizes)
    else:
        product = Product(n, batch, k)
        _product(part, Factors(dy, 0, 1, n), x, dw, product, zeros, own)


@kernel
def linear_small_backward(gradient, x, weight, facts, work, dx, dw, db):
    """``dx = dy @ weight``, ``dw = dy.T @ x`` and ``db`` the sum of rows of dy (batch, out).

    ``gradient = (dy, y)``: with a ReLU dy counts where y is above 0 only. `facts` are `Backward`;
    arrays that are not needed, db the empty one, can be any. In `work` are the masked dy, the sums
    of chunks, zeros for the columns of a task, and ``2 * lanes * max(batch, out)`` elements a
    worker.
    """
    dy, y = gradient
    prepare_gemm(dy)
    facts = named(Backward, facts)
    sizes = Sizes(x.shape[0], x.shape[1], weight.shape[0])
    batch, k, n = sizes
    source, sums_at = flat(dy), facts.relu * dy.size
    if facts.relu or db.size:
        span, chunks = facts.sum_span, facts.sum_chunks
        masked, parts = view(work, 0, sums_at), view(work, sums_at, chunks * n)
        cut = Cut(facts.relu, n, span, chunks)
        column_sums(source, flat(y), cut, facts.sum_workers, parts, masked, db)
        if facts.relu:
            source = masked
    zeros_at = sums_at + facts.sum_chunks * n
    columns = min(k, max(facts.input_columns, facts.weight_columns))
    zeros = view(work, zeros_at, columns)
    for j in range(columns):  # LLVM's memset, as masked stores of `clear_run` cost more
        zeros[j] = 0
    scratch_at = zeros_at + columns
    scratch = view(work, scratch_at, work.size - scratch_at)
    inputs = facts.needs_input * _tasks(batch, k, Steps(facts.input_rows, facts.input_columns))
    weights = _tasks(n, k, Steps(facts.weight_rows, facts.weight_columns))
    operands = (source, flat(x), flat(weight))
    arguments = (operands, sizes, facts, (zeros, scratch), (flat(dx), flat(dw)))
    parallel_for(_backward_task, inputs + facts.needs_weight * weights, facts.workers, arguments)
