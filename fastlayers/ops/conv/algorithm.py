"""What every algorithm of convolution offers; `fastlayers.ops.conv.routes` chooses among them."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from fastlayers.ops import routes
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.routes import Grads, Pass

__all__ = ["Algorithm", "Grads", "Pass"]


class Algorithm(routes.Algorithm):
    """A way to compute the passes of a convolution of one shape, which `serves` has accepted.

    Images x are (N, C, H, W) in any layout; `dy` and results are C-contiguous and channels-last,
    (N, OH, OW, M) and (N, H, W, C). Weights (M, C / groups, R, S) and biases (M,) are C-contiguous.
    Nothing is checked here, and `shape` has images with pixels.
    """

    # Whether each result is the sum of the products as they stand, exact for integers.
    exact: ClassVar[bool] = True
    # Whether its forward pass reads images of channels-first memory without converting them.
    any_layout: ClassVar[bool] = False
    shape: ConvShape

    def __init__(self, shape: ConvShape) -> None:
        super().__init__(shape)

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
