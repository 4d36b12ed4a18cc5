"""Pooling by NumPy, where there is no Numba: results are channels-first memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.ops.layout import LAST, from_channels_last
from fastlayers.ops.pool.algorithm import Algorithm
from fastlayers.runtime import backend

__all__ = ["MaxBackward", "MaxForward", "MeanBackward", "MeanForward"]


class _Reference(Algorithm):
    """A pass by `fastlayers.reference`."""

    name = "NumPy"

    @classmethod
    def serves(cls, shape: Any) -> bool:
        """All shapes, where there is no Numba."""
        return backend.NUMPY

    def describe(self) -> str:
        """Its name."""
        return self.name

    @property
    def _input_shape(self) -> tuple[int, int, int, int]:
        n, h, w, c = self.shape.images
        return n, c, h, w


class MaxForward(_Reference):
    """The maxima."""

    def run(self, x: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
        """The maxima, at least the floor, and the cells that hold them."""
        window, activation = self.shape.window, "relu" if floor == 0 else None
        _, height, width, _ = self.shape.images
        ceil_mode = self.shape.out_shape[1:3] != window.windows((height, width), False)
        options = (*window.geometry, ceil_mode, activation)
        y, cells = backend.reference("max_pool2d_forward", from_channels_last(x), *options)
        return y.transpose(LAST[4]), cells.transpose(LAST[4])


class MaxBackward(_Reference):
    """The input gradient of maxima."""

    def run(
        self, dy: np.ndarray, cells: np.ndarray, y: np.ndarray | None, floor: float
    ) -> np.ndarray:
        """The input gradient; where the flat output y is not above the floor dy counts as 0."""
        dy = dy if y is None else backend.reference("relu_backward", dy, y.reshape(dy.shape))
        arguments = (from_channels_last(dy), from_channels_last(cells), self._input_shape)
        dx = backend.reference("max_pool2d_backward", *arguments, *self.shape.window.geometry)
        return np.asarray(dx).transpose(LAST[4])


class MeanForward(_Reference):
    """The means."""

    def run(self, x: np.ndarray) -> np.ndarray:
        """The means of images."""
        images, options = from_channels_last(x), self.shape.options
        if options is None:
            y = backend.reference("adaptive_avg_pool2d", images, self.shape.out_shape[1:3])
        else:
            y = backend.reference("avg_pool2d", images, *options)
        return np.asarray(y, x.dtype).transpose(LAST[4])


class MeanBackward(_Reference):
    """The input gradient of means."""

    def run(self, dy: np.ndarray) -> np.ndarray:
        """The input gradient of that of the means."""
        arguments, options = (from_channels_last(dy), self._input_shape), self.shape.options
        if options is None:
            dx = backend.reference("adaptive_avg_pool2d_backward", *arguments)
        else:
            dx = backend.reference("avg_pool2d_backward", *arguments, *options)
        return np.asarray(dx, dy.dtype).transpose(LAST[4])
