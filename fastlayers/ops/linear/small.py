"""Linear maps whose operands fit the caches: plans and allocations of `kernels.linear.small`."""

from __future__ import annotations

from typing import cast

import numpy as np

from fastlayers.kernels import linear as kernels
from fastlayers.ops.cuts import chunks
from fastlayers.ops.linear.algorithm import Algorithm, Grads, LinearShape, Pass
from fastlayers.ops.reduce import sum_chunks
from fastlayers.runtime import cpu, memory, threads
from fastlayers.runtime.facts import plain

__all__ = ["SHORT_DOT", "Short", "Small"]

# Elements of a dot product up to which its sum of lanes costs more than transposing the weight:
# at most so many, and half the rows.
SHORT_DOT = 96
# Bytes up to which GEMM reads the weight in place: 1.1 to 1.3 times as fast as copies at 2 MiB, 0.9
# at 4; for few rows, which wait for the weight, 0.7 there.
SMALL, SMALL_FEW = 2 << 20, 512 << 10
FEW_ROWS = 8
# Rows so many bytes apart share one or two of L1's sets. With tiles of 6 rows copies are faster
# then, but for few: the gradients of 1024 -> 256 and 128 rows reach 89 of 98 GFLOP/s instead of 60,
# of 32 rows 67 instead of 58, of 16 rows 51 instead of 68.
ALIASED, ALIASED_ROWS = 2048, 16
# Rows, or outputs, of which a panel is at most 8 MiB.
SMALL_DEPTH = 1 << 16
# Multiply-adds of a task: 3 us, so that two threads end together and a task's start is nothing.
TASK = 160_000
TASKS = 32  # of one of two products, at most


def _steps(m: int, n: int, k: int, workers: int, width: int) -> kernels.small.Steps:
    """Rows and columns of a task of an m x n product: whole tiles and panels of `width`.

    One thread has the whole, as each task reads its part of both operands again. Rank updates by
    a few rows have whole rows, the same for a thread in each call: 32 to 24 us for the weight
    gradient of 4x1024 -> 256, and 50 in blocks of columns.
    """
    tasks = chunks(m * n * k, TASK, TASKS) if workers > 1 else 1
    if k <= kernels.tile.FEW:
        return kernels.small.Steps(-(-m // (4 * tasks)) * 4 or 4, 1024)
    panels = -(-n // width)
    span = min(max(1, panels // tasks), 1024 // width)
    down = max(-(-tasks // max(1, -(-panels // span))), -(-m // 384))
    return kernels.small.Steps(-(-m // (12 * down)) * 12 or 12, span * width)


class Short(Algorithm):
    """Output by GEMM from the transposed weight."""

    name = "GEMM from the transposed weight"

    def __init__(self, shape: LinearShape, available: int) -> None:
        super().__init__(shape, available)
        rows, k, n, dtype = shape
        workers = 1 if threads.workers_for(shape.work / 4) == 1 else available
        steps = _steps(rows, n, k, workers, 2 * cpu.lanes(dtype.itemsize))
        self._steps, self._workers = plain(steps), workers
        self._elements, self._zeros = workers * steps.columns * k, np.zeros(n, dtype)

    @classmethod
    def serves(cls, shape: LinearShape, which: Pass) -> bool:
        """Forward, for many rows and short sums."""
        return which is Pass.FORWARD and 0 < shape.inputs <= min(SHORT_DOT, shape.rows // 2)

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, relu: bool
    ) -> np.ndarray:
        """Output (rows, outputs)."""
        rows, _, n, dtype = self.shape
        work, y = memory.empty(self._elements, dtype), memory.empty((rows, n), dtype)
        b, floor = self._zeros if bias is None else bias, 0.0 if relu else -np.inf
        kernels.small.linear_short(x, weight, b, floor, self._steps, self._workers, work, y)
        return y


class Small(Algorithm):
    """All gradients in one call."""

    name = "GEMM in place, all gradients at once"
    together = True

    def __init__(self, shape: LinearShape, available: int) -> None:
        super().__init__(shape, available)
        self._plans: dict[tuple[bool, ...], tuple[tuple[int, ...], int]] = {}

    @classmethod
    def serves(cls, shape: LinearShape, which: Pass) -> bool:
        """Both gradients, where the weight stays in the caches."""
        most = min(SMALL, SMALL_FEW) if shape.rows <= FEW_ROWS else SMALL
        fits = shape.weight_bytes <= most and max(shape.rows, shape.outputs) <= SMALL_DEPTH
        aliased = shape.inputs * shape.dtype.itemsize % ALIASED == 0
        aliased = aliased and shape.rows > ALIASED_ROWS and cpu.tile_rows() < 12
        return which is not Pass.FORWARD and fits and not aliased

    def _plan(self, relu: bool, dx: bool, dw: bool) -> tuple[tuple[int, ...], int]:
        """Facts of the kernel, and elements of its workspace."""
        rows, k, n, dtype = self.shape
        products, width = dx + dw, 2 * cpu.lanes(dtype.itemsize)
        one = threads.workers_for(products * self.shape.work / 6) == 1
        workers = 1 if one else self.available
        steps = [_steps(*size, workers, width) for size in ((rows, k, n), (n, k, rows))]
        sums = sum_chunks(rows, n, dtype.itemsize, self.available)
        flags = int(relu), int(dx), int(dw)
        facts = kernels.small.Backward(*flags, *steps[0], *steps[1], *sums, workers)
        zeros = min(k, max(facts.input_columns, facts.weight_columns))
        scratch = workers * width * max(rows, n)
        return plain(facts), relu * rows * n + facts.sum_chunks * n + zeros + scratch

    def backward(
        self,
        dy: np.ndarray,
        y: np.ndarray | None,
        x: np.ndarray,
        weight: np.ndarray,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """The gradients that are needed."""
        (rows, k, n, dtype), (dx_needed, dw_needed, db_needed) = self.shape, needs
        wanted = y is not None, dx_needed, dw_needed
        plan = self._plans.get(wanted)
        if plan is None:
            plan = self._plans[wanted] = self._plan(*map(bool, wanted))
        facts, elements = plan
        dx = memory.empty((rows, k), dtype) if dx_needed else x
        dw = memory.empty((n, k), dtype) if dw_needed else weight
        db = memory.empty(n if db_needed else 0, dtype)
        work = memory.empty(elements, dtype)
        gradient = dy, dy if y is None else y
        kernels.small.linear_small_backward(gradient, x, weight, facts, work, dx, dw, db)
        return dx if dx_needed else None, dw if dw_needed else None, db if db_needed else None

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (rows, inputs)."""
        x = memory.empty((len(dy), weight.shape[1]), dy.dtype)
        dx = self.backward(dy, None, x, weight, (True, False, False))[0]
        return cast(np.ndarray, dx)

    def backward_weight(
        self, x: np.ndarray, dy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight gradient and bias gradient."""
        weight = memory.empty((dy.shape[1], x.shape[1]), x.dtype)
        _, dw, db = self.backward(dy, None, x, weight, (False, True, True))
        return cast(np.ndarray, dw), db
