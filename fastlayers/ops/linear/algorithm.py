"""What every algorithm of linear maps offers; `fastlayers.ops.linear.routes` chooses among them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastlayers.ops import routes
from fastlayers.ops.routes import Grads, Pass

__all__ = ["Algorithm", "Grads", "LinearShape", "Pass"]


class LinearShape(NamedTuple):
    """Of x (rows, inputs), the weight (outputs, inputs) and y (rows, outputs)."""

    rows: int
    inputs: int
    outputs: int
    dtype: np.dtype

    @property
    def work(self) -> int:
        """Multiply-adds of a pass."""
        return self.rows * self.inputs * self.outputs

    @property
    def weight_bytes(self) -> int:
        """Of the weight, or its gradient."""
        return self.inputs * self.outputs * self.dtype.itemsize


class Algorithm(routes.Algorithm):
    """A way to compute the passes of a linear map of one shape, which `serves` has accepted.

    All arrays are C-contiguous, and nothing is checked here. `available` threads can be had.
    """

    shape: LinearShape

    def __init__(self, shape: LinearShape, available: int) -> None:
        super().__init__(shape)
        self.available = available

    def describe(self, which: Pass) -> str:
        """How it computes the pass, in words: its name, and the rows that it has."""
        return f"{self.name}, {self.shape.rows} rows a batch"

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, relu: bool
    ) -> np.ndarray:
        """Output (rows, outputs), or the greater of it and 0."""
        raise NotImplementedError

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (rows, inputs)."""
        raise NotImplementedError

    def backward_weight(
        self, x: np.ndarray, dy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight gradient, and bias gradient where it comes at no further pass over `dy`."""
        raise NotImplementedError

    def backward(
        self,
        dy: np.ndarray,
        y: np.ndarray | None,
        x: np.ndarray,
        weight: np.ndarray,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """The gradients that are needed, behind a ReLU if it gave y; only where `together`."""
        raise NotImplementedError
