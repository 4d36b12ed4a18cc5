"""Linear maps by NumPy, where there is no Numba."""

from __future__ import annotations

import numpy as np

from fastlayers.ops.linear.algorithm import Algorithm, Grads, LinearShape, Pass
from fastlayers.runtime import backend

__all__ = ["Reference"]


class Reference(Algorithm):
    """All passes by `fastlayers.reference`."""

    name = "NumPy"
    together = True

    @classmethod
    def serves(cls, shape: LinearShape, which: Pass) -> bool:
        """All passes, where there is no Numba."""
        return backend.NUMPY

    def describe(self, which: Pass) -> str:
        """Its name."""
        return self.name

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, relu: bool
    ) -> np.ndarray:
        """Output (rows, outputs)."""
        y: np.ndarray = backend.reference("linear", x, weight, bias)
        return np.maximum(y, 0, out=y) if relu else y

    def backward(
        self,
        dy: np.ndarray,
        y: np.ndarray | None,
        x: np.ndarray,
        weight: np.ndarray,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """The gradients that are needed."""
        dy = dy if y is None else backend.reference("relu_backward", dy, y)
        return backend.reference("linear_backward", dy, x, weight, needs)  # type: ignore[no-any-return]
