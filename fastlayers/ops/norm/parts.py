"""Statistics of a batch of which others have the other parts.

Each part gives its `sums`, and then its `squares`; whoever has the parts adds up these arrays over
all of them. Then each is normalised by the statistics of the whole batch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.ops.norm.layout import EMPTY, layout_of
from fastlayers.ops.norm.normalisation import check_arguments, take_statistics
from fastlayers.runtime import backend

__all__ = ["Part"]


class Part:
    """A checked part of a batch, and its share of the statistics.

    Means and sums of squared deviations are merged in float64, as Chan, Golub and LeVeque do it
    (see `fastlayers.kernels.norm.batchnorm`).
    """

    def __init__(
        self,
        op: str,
        input: Any,
        running_mean: Any,
        running_var: Any,
        weight: Any,
        bias: Any,
        momentum: Any,
        eps: Any,
    ) -> None:
        vectors = (running_mean, running_var, weight, bias)
        checked = check_arguments(op, input, *vectors, True, momentum, eps)
        self.x, mean, var, self.weight, self.bias, self._momentum, self._eps = checked
        self.layout, self._op = layout_of(self.x.shape, self.x.itemsize), op
        self.elements = None if backend.NUMPY else self.layout.flat(self.x)
        self._running = (running_mean, mean), (running_var, var)  # the caller's, and as arrays
        self._mean, self._squares = self._moments()
        self.count = 0.0  # values a channel of the whole batch, once that is known

    def sums(self) -> np.ndarray:
        """Number of values a channel here, and the sum of each channel; (1 + C,) in float64."""
        rows = self.layout.rows
        with np.errstate(all="ignore"):
            return np.concatenate(([rows], rows * self._mean))

    def squares(self, sums: np.ndarray) -> np.ndarray:
        """Sums of the squared deviations here from the means that follow from all parts' `sums`.

        Raises
        ------
        ValueError
            If all parts together have fewer than two values a channel.
        """
        self.count = float(sums[0])
        if self.count < 2:  # so it is for all parts
            raise ValueError(
                f"{self._op}: input must have more than one value per channel in training, "
                f"got {self.count:.0f} in all parts of the batch, and shape {self.x.shape} here"
            )
        with np.errstate(all="ignore"):
            here, self._mean = self._mean, sums[1:] / self.count
            return self._squares + self.layout.rows * (here - self._mean) ** 2

    def statistics(self, squares: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Mean and ``1 / sqrt(var + eps)`` of the batch, from all parts' `squares`.

        The running statistics are updated.
        """
        dtype, count = self.x.dtype, self.count
        with np.errstate(all="ignore"):
            mean = self._mean.astype(dtype)
            invstd = (1 / np.sqrt(squares / count + self._eps)).astype(dtype)
            share = dtype.type(self._momentum)
            keep = dtype.type(1) - share
            batch = mean, (squares / (count - 1)).astype(dtype)
            for (original, old), new in zip(self._running, batch, strict=True):
                if original is not None:
                    np.asarray(original)[...] = keep * old + share * new
        return mean, invstd

    def _moments(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and sum of squared deviations from it of each channel here; zeros of no values."""
        channels, empty = self.layout.channels, EMPTY[self.x.dtype]
        if self.layout.rows == 0:
            return np.zeros(channels), np.zeros(channels)
        if self.elements is None:
            mean, squares = backend.reference("batch_norm_moments", self.x)
            return mean, squares
        _, work = take_statistics(self.layout, self.elements, empty, empty, np.nan, 0.0)
        # Not the mean that it gives: rounded, it is off by more than a merged one may be.
        moments = work[: 2 * channels].astype(np.float64)
        return self.elements[:channels] + moments[:channels], moments[channels:]
