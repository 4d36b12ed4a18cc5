"""Convolution by NumPy, where there is no Numba."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.ops.conv.algorithm import Algorithm, Grads, Pass
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.layout import LAST
from fastlayers.runtime import backend

__all__ = ["Reference"]


class Reference(Algorithm):
    """All passes by `fastlayers.reference`, whose results are channels-first memory."""

    name = "NumPy"
    any_layout = True
    together = True

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        """All passes, where there is no Numba."""
        return backend.NUMPY

    @property
    def _options(self) -> tuple[Any, ...]:
        shape = self.shape
        return shape.stride, shape.given_padding, shape.dilation, shape.groups

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output (N, OH, OW, M), a transposed view."""
        y: np.ndarray = backend.reference("conv2d", x, weight, bias, *self._options)
        return (np.maximum(y, 0, out=y) if relu else y).transpose(LAST[4])

    def backward(
        self,
        dy: np.ndarray,
        x: np.ndarray,
        weight: np.ndarray,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """The gradients that are needed."""
        arguments = (dy, x, weight, *self._options, needs)
        return backend.reference("conv2d_backward", *arguments)  # type: ignore[no-any-return]
