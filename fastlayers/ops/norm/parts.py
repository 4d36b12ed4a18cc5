"""Batch normalisation of a part of a batch by the statistics of the whole.

Who holds the other parts is reached by an `add`, which replaces an array by the sum of the arrays
that all of them give, equal for all to the bit. They make the same calls.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.kernels import norm as kernels
from fastlayers.ops import check
from fastlayers.ops.norm.batchnorm import Grads, Normalisation, running
from fastlayers.ops.norm.form import NOTHING, Form, batch, optional
from fastlayers.runtime import backend, memory, threads

__all__ = ["Add", "PartNormalisation", "normalisation_of_part"]

Add = Callable[[np.ndarray], None]


class PartNormalisation(Normalisation):
    """A part of a batch, normalised by the statistics of all `count` values a channel.

    Each part has a loss of its own, a mean over its samples; the loss of the batch is their mean,
    weighed by the samples. So is the input's gradient: with n samples here, and sums over parts of
    n_s samples each, ``dx = weight * invstd * (dy - (total + xhat * dot) / (n * count))`` where
    ``total = sum(n_s * sum(dy_s))`` and ``dot = sum(n_s * sum(dy_s * xhat_s))``. The gradients by
    weight and bias are the part's own sums.
    """

    __slots__ = ("add", "count")
    add: Add
    count: float

    def exchange(self, dw: Any, db: Any) -> np.ndarray:
        """Means of ``dy * xhat`` and dy over the batch, by this part's scale, for its sums."""
        samples = self.x.shape[0]
        with np.errstate(all="ignore"):
            sums = np.array((dw, db), np.float64) * samples
            self.add(sums)
            means: np.ndarray = sums / (max(samples, 1) * self.count)
            return means.astype(self.x.dtype)

    def backward(
        self,
        dy: np.ndarray,
        needs: tuple[bool, ...],
        relu: bool = False,
        output: np.ndarray | None = None,
        means: np.ndarray | None = None,
    ) -> Grads:
        """As `Normalisation.backward`; the input's gradient takes a sum over the parts."""
        if not needs[0]:
            return super().backward(dy, needs, relu, output)
        _, dw, db, masked = super().backward(dy, (False, True, True), relu, output)
        means = self.exchange(dw, db)
        if masked is not None:  # the mask was applied
            dy, relu = self.form.flat(masked), False
        dx = super().backward(dy, (True, False, False), relu, means=means)[0]
        return dx, dw if needs[1] else None, db if needs[2] else None, masked


def normalisation_of_part(
    op: str,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    momentum: Any,
    eps: Any,
    add: Add,
) -> PartNormalisation:
    """Check everything, then take the whole batch's statistics, and update the running ones.

    Means and sums of squared deviations are merged in float64, as Chan, Golub and LeVeque do it
    (see `fastlayers.kernels.norm.batchnorm`), in two sums over the parts.
    """
    x, form = batch(op, input)
    dtype = x.dtype
    weight = optional(op, "weight", weight, form, dtype)
    bias = optional(op, "bias", bias, form, dtype)
    kept = running(op, form, dtype, running_mean, running_var, True)
    momentum, eps = check.finite(op, "momentum", momentum), check.epsilon(op, "eps", eps)
    own = form.rows[0]
    with np.errstate(all="ignore"):
        own_mean, m2 = _moments(x, form)
        sums = np.empty(1 + own_mean.size)
        sums[0], sums[1:] = own, own * own_mean
        add(sums)
        count = float(sums[0])
        if count < 2:  # so it is for all
            raise ValueError(
                f"{op}: input must have more than one value per channel in training, "
                f"got {count:.0f} in all parts of the batch, and shape {x.shape} here"
            )
        mean = sums[1:] / count
        m2 += own * (own_mean - mean) ** 2
        add(m2)
        statistics = mean.astype(dtype), (1 / np.sqrt(m2 / count + eps)).astype(dtype)
        if kept[0].size:
            share = dtype.type(momentum)
            keep = dtype.type(1) - share
            batches = statistics[0], (m2 / (count - 1)).astype(dtype)
            for given, old, new in zip((running_mean, running_var), kept, batches, strict=True):
                np.asarray(given)[...] = keep * old + share * new
    part = PartNormalisation(x, form, statistics, weight, bias, True)
    part.add, part.count = add, count
    return part


def _moments(x: np.ndarray, form: Form) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations from it of each channel; zeros of no values."""
    dtype, channels = x.dtype, form.rows[1]
    if form.rows[0] == 0:
        return np.zeros(channels), np.zeros(channels)
    if backend.NUMPY:
        mean, m2 = backend.reference("batch_norm_moments", x)
        return mean, m2
    workers, flat = threads.workers_for(form.size), form.flat(x)
    size = (form.chunks + 1) * (2 * channels + 1) + workers * 6 * form.period
    work = memory.scratch((size,), dtype)[0]
    kernels.batchnorm.batch_norm_statistics(
        flat,
        form.rows,
        True,
        NOTHING[dtype],
        NOTHING[dtype],
        np.nan,
        0.0,
        workers,
        work,
        np.empty((2, channels), dtype),
    )
    # Not the mean that the kernel gives: rounded, it is off by more than a merged one may be.
    moments = work[: 2 * channels].astype(np.float64)
    return flat[:channels] + moments[:channels], moments[channels:]
