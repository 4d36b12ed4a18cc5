"""What every algorithm of convolution offers; `fastlayers.ops.conv.routes` chooses among them."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

import numpy as np

from fastlayers.ops.conv.shape import ConvShape

__all__ = ["Algorithm", "Grads", "Pass"]

Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


class Pass(StrEnum):
    """What is computed of a convolution."""

    FORWARD = "forward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"


class Algorithm:
    """A way to compute the passes of a convolution of one shape, which `serves` has accepted.

    Images x are (N, C, H, W) in any layout; `dy` and results are C-contiguous and channels-last,
    (N, OH, OW, M) and (N, H, W, C). Weights (M, C / groups, R, S) and biases (M,) are C-contiguous.
    Nothing is checked here, and `shape` has images with pixels.
    """

    name: ClassVar[str]
    # Whether each result is the sum of the products as they stand, exact for integers.
    exact: ClassVar[bool] = True
    # Whether its forward pass reads images of channels-first memory without converting them.
    any_layout: ClassVar[bool] = False
    # Whether `backward` gives all gradients at once.
    together: ClassVar[bool] = False

    def __init__(self, shape: ConvShape) -> None:
        self.shape = shape

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        """Whether it can compute the pass, and should be faster than those after it."""
        raise NotImplementedError

    def describe(self, which: Pass) -> str:
        """How it computes the pass, in words: its name and variant."""
        return self.name

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output (N, OH, OW, M), or the greater of it and 0."""
        raise NotImplementedError

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (N, H, W, C)."""
        raise NotImplementedError

    def backward_weight(
        self, x: np.ndarray, dy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight gradient, and bias gradient where it comes at no further pass over `dy`."""
        raise NotImplementedError

    def backward(
        self,
        dy: np.ndarray,
        x: np.ndarray,
        weight: np.ndarray,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """The gradients that are needed, of images with or without a batch axis.

        Only where `together`; all are in any layout.
        """
        raise NotImplementedError
