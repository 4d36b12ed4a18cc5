"""Linear maps whose weight moves through the caches: plans of the kernels built around it."""

from __future__ import annotations

import numpy as np

from fastlayers.kernels import linear as kernels
from fastlayers.ops.linear.algorithm import Algorithm, LinearShape, Pass
from fastlayers.runtime import cpu, memory, threads

__all__ = ["Blocks", "Dots", "Ranks"]

# Rows up to which the input gradient is rank updates of the streaming weight.
FEW_ROWS = 8
# Bytes from which the weight gradient bypasses the caches, which could not hold it.
STREAMED = 32 << 20


class Dots(Algorithm):
    """Output by dot products, in one stream through the weight."""

    name = "dot products"

    def __init__(self, shape: LinearShape, available: int) -> None:
        super().__init__(shape, available)
        rows, k, n, dtype = shape
        self._workers = 1 if threads.workers_for(shape.work / 4) == 1 else available
        block = kernels.dots.dot_block(k, cpu.lanes(dtype.itemsize))
        self._elements = kernels.blocks.blocked_size(rows, k, block)
        self._zeros, self._nothing = np.zeros(n, dtype), np.empty(0, dtype)

    @classmethod
    def serves(cls, shape: LinearShape, which: Pass) -> bool:
        """Forward, for all shapes."""
        return which is Pass.FORWARD

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, relu: bool
    ) -> np.ndarray:
        """Output (rows, outputs)."""
        rows, _, n, dtype = self.shape
        packed = memory.empty(self._elements, dtype) if self._elements else self._nothing
        y = memory.empty((rows, n), dtype)
        b, floor = self._zeros if bias is None else bias, 0.0 if relu else -np.inf
        kernels.dots.linear(x, weight, b, floor, self._workers, packed, y)
        return y


def _workers(shape: LinearShape) -> int:
    return threads.workers_for(shape.work / 8)


def _streams(dw: np.ndarray) -> bool:
    """Whether the weight gradient bypasses the caches, which takes aligned rows."""
    return dw.nbytes >= STREAMED and dw.strides[0] % memory.ALIGNMENT == 0


class Ranks(Algorithm):
    """Gradients by rank updates, in one stream through the weight or its gradient."""

    name = "rank updates"

    @classmethod
    def serves(cls, shape: LinearShape, which: Pass) -> bool:
        """Both gradients, for few rows."""
        if which is Pass.BACKWARD_INPUT:
            return shape.rows <= FEW_ROWS
        return which is Pass.BACKWARD_WEIGHT and 0 < shape.rows <= kernels.tile.FEW

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (rows, inputs)."""
        sizes, workers = tuple(self.shape[:3]), _workers(self.shape)
        dx = memory.empty(self.shape[:2], dy.dtype)
        flat = dy.reshape(-1), weight.reshape(-1)
        kernels.ranks.linear_backward_input_few(*flat, sizes, workers, dx.reshape(-1))
        return dx

    def backward_weight(
        self, x: np.ndarray, dy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight gradient."""
        sizes, workers = tuple(self.shape[:3]), _workers(self.shape)
        dw = memory.empty((self.shape.outputs, self.shape.inputs), x.dtype)
        flat, out = (dy.reshape(-1), x.reshape(-1)), dw.reshape(-1)
        kernels.ranks.linear_backward_weight_few(*flat, sizes, _streams(dw), workers, out)
        return dw, None


class Blocks(Algorithm):
    """Gradients by GEMM from blocks that are packed for it."""

    name = "GEMM from packed blocks"

    @classmethod
    def serves(cls, shape: LinearShape, which: Pass) -> bool:
        """Both gradients, for all shapes."""
        return which is not Pass.FORWARD

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (rows, inputs)."""
        rows, k, n, dtype = self.shape
        home, workers = kernels.products, _workers(self.shape)
        dx, zeros = memory.empty((rows, k), dtype), memory.zeros(k, dtype)
        packed = memory.empty(kernels.blocks.blocked_size(rows, n, home.DEPTH), dtype)
        work = memory.empty(workers * home.MATMUL_WORK, dtype)
        flat, out = (dy.reshape(-1), weight.reshape(-1), zeros), dx.reshape(-1)
        home.matmul(*flat, (rows, n, k), workers, packed, work, out)
        return dx

    def backward_weight(
        self, x: np.ndarray, dy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight gradient."""
        rows, k, n, dtype = self.shape
        if rows == 0:
            return memory.zeros((n, k), dtype), None
        home, workers = kernels.products, _workers(self.shape)
        dw, zeros = memory.empty((n, k), dtype), memory.zeros(home.WEIGHT_SPAN, dtype)
        work = memory.empty(workers * home.WEIGHT_WORK, dtype)
        flat, out = (dy.reshape(-1), x.reshape(-1), zeros), dw.reshape(-1)
        home.linear_backward_weight(*flat, (rows, k, n), _streams(dw), workers, work, out)
        return dw, None
