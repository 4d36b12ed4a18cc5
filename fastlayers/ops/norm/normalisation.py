"""Batch normalisation of an input that was checked, by statistics that are known.

Internal to `ops.norm`, and what `nn` runs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.kernels import norm as kernels
from fastlayers.ops import check
from fastlayers.ops.norm.layout import (
    EMPTY,
    Layout,
    are_ready,
    input_array,
    layout_of,
    optional_vector,
    vector,
)
from fastlayers.runtime import backend, memory, threads

__all__ = [
    "Grads",
    "Normalisation",
    "check_arguments",
    "check_vectors",
    "prepare",
    "prepare_with",
    "running_statistics",
    "take_statistics",
]

Grads = tuple[np.ndarray | None, ...]
# Mean, 1 / sqrt(var + eps), weight and bias; the last two may be empty.
Channels = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]

_NO_GRADS = {dtype: np.empty((2, 0), dtype) for dtype in EMPTY}


class Normalisation:
    """A checked input, and what each of its channels is normalised by."""

    __slots__ = ("_elements", "channels", "layout", "of_batch", "x")

    def __init__(
        self,
        x: np.ndarray,
        layout: Layout,
        channels: Channels,
        of_batch: bool,
        elements: np.ndarray | None = None,
    ) -> None:
        self.x, self.layout, self._elements = x, layout, elements
        self.channels = channels
        self.of_batch = of_batch  # not running ones: then the gradient passes through them

    @property
    def statistics(self) -> tuple[np.ndarray, np.ndarray]:
        """Mean and ``1 / sqrt(var + eps)``, (C,)."""
        return self.channels[:2]

    def forward(self, residual: np.ndarray | None, relu: bool) -> np.ndarray:
        """The input normalised; the residual is flat, in the order of its memory."""
        if backend.NUMPY:
            other = None if residual is None else self.layout.shaped(residual)
            arguments = (*self.statistics, *self._affine(), other, "relu" if relu else None)
            return np.asarray(backend.reference("batch_norm_apply", self.x, *arguments))
        layout, dtype = self.layout, self.x.dtype
        y, flat = layout.empty(dtype)
        kernels.batchnorm.batch_norm_apply(
            self.elements(),
            EMPTY[dtype] if residual is None else residual,
            self.channels,
            (layout.facts, relu, threads.workers_for(layout.size)),
            memory.scratch((3 * layout.period,), dtype)[0],
            flat,
        )
        return y

    def backward(
        self,
        dy: np.ndarray,
        needs: tuple[bool, ...],
        relu: bool = False,
        output: np.ndarray | None = None,
    ) -> Grads:
        """Input, weight and bias gradient, and with `output`, of a ReLU, the residual's.

        `dy` and `output` are flat, in the order of their memory.
        """
        if backend.NUMPY:
            return self._reference_backward(dy, needs, relu, output)
        layout, dtype, home = self.layout, self.x.dtype, kernels.batchnorm
        if relu and output is None and not self.of_batch:
            # Not from the input, on which the gradient doesn't depend: infinity * 0 would be added.
            output = layout.flat(self.forward(None, True))
        by_channel = needs[1] or needs[2]
        empty = EMPTY[dtype]
        masked, mask = None, (empty, empty)
        mode = home.FROM_INPUT if relu else home.PLAIN
        if output is not None:
            masked, flat = layout.empty(dtype)
            mode, mask = home.FROM_OUTPUT, (output, flat)
        elif not (needs[0] or by_channel):
            return None, None, None, None
        grads = np.empty((2, layout.channels), dtype) if by_channel else _NO_GRADS[dtype]
        statistics = home.OWN if self.of_batch else home.FIXED
        dx = self._run_backward(dy, mask, mode, statistics, needs[0], grads)
        return dx, grads[0] if needs[1] else None, grads[1] if needs[2] else None, masked

    def input_gradient(self, dy: np.ndarray, means: np.ndarray, relu: bool) -> np.ndarray | None:
        """Input gradient where the statistics are those of a larger batch that this is a part of.

        `means` of ``dy * xhat`` and of dy over all of that batch are (2, C).
        """
        if backend.NUMPY:
            dy = self.layout.shaped(dy)
            if relu:
                dy = backend.reference("relu_backward", dy, self.forward(None, False))
            known = (self.x, self._affine()[0], *self.statistics, *means)
            return np.asarray(backend.reference("batch_norm_input_gradient", dy, *known))
        home, empty = kernels.batchnorm, EMPTY[self.x.dtype]
        mode = home.FROM_INPUT if relu else home.PLAIN
        return self._run_backward(dy, (empty, empty), mode, home.SHARED, True, means)

    def pooled_backward(self, run: Callable[..., Grads], needs: tuple[bool, ...]) -> Grads:
        """What ``run(needs, means=None)`` gives, the gradients through a pooling that followed.

        `means` are those of `input_gradient`, where the statistics are those of a larger batch.
        """
        return run(needs)

    def _run_backward(
        self,
        dy: np.ndarray,
        mask: tuple[np.ndarray, np.ndarray],
        mode: int,
        statistics: int,
        needed: bool,
        grads: np.ndarray,
    ) -> np.ndarray | None:
        """The input gradient, where it is needed; the others go to `grads`."""
        layout, dtype = self.layout, self.x.dtype
        dx, flat = layout.empty(dtype) if needed else (None, EMPTY[dtype])
        kernels.batchnorm.batch_norm_backward(
            dy,
            self.elements(),
            mask,
            self.channels,
            (layout.facts, mode, statistics, threads.workers_for(layout.size)),
            memory.scratch(((5 + 2 * layout.chunks) * layout.period,), dtype)[0],
            flat,
            grads,
        )
        return dx

    def elements(self) -> np.ndarray:
        """The input's elements in the order of channels-last memory, converted once."""
        if self._elements is None:
            self._elements = self.layout.flat(self.x)
        return self._elements

    def _affine(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Weight and bias, None for none."""
        _, _, weight, bias = self.channels
        return weight if weight.size else None, bias if bias.size else None

    def _reference_backward(
        self, dy: np.ndarray, needs: tuple[bool, ...], relu: bool, output: np.ndarray | None
    ) -> Grads:
        dy = self.layout.shaped(dy)
        if output is not None:
            dy = backend.reference("relu_backward", dy, self.layout.shaped(output))
        elif relu:
            dy = backend.reference("relu_backward", dy, self.forward(None, False))
        known = (self.x, self._affine()[0], *self.statistics, self.of_batch)
        grads = backend.reference("batch_norm_backward", dy, *known, needs[:3])
        return *grads, None if output is None else dy


def prepare(
    op: str,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: Any,
    eps: Any,
) -> Normalisation:
    """Check everything, then take the statistics, and update the running ones in training."""
    x, mean, var, weight, bias, momentum, eps = check_arguments(
        op, input, running_mean, running_var, weight, bias, training, momentum, eps
    )
    dtype, layout = x.dtype, layout_of(x.shape, x.itemsize)
    of_batch = bool(training or running_mean is None)
    if of_batch and layout.rows < 2:
        if layout.rows == 0:  # no value to normalise, and none to learn from
            zeros, ones = np.zeros(layout.channels, dtype), np.ones(layout.channels, dtype)
            return Normalisation(x, layout, (zeros, ones, weight, bias), False)
        raise ValueError(
            f"{op}: input must have more than one value per channel in training, "
            f"got shape {x.shape}"
        )
    update, elements = bool(training and mean.size), None
    if backend.NUMPY:
        known = (*((mean, var) if mean.size else (None, None)), bool(training), momentum, eps)
        statistics = backend.reference("batch_norm_statistics", x, *known)
        statistics = np.array(statistics, dtype)
    else:
        elements = layout.flat(x) if of_batch else None
        step = momentum if update else math.nan
        statistics, _ = take_statistics(layout, elements, mean, var, step, eps)
    if update:
        for original, updated in ((running_mean, mean), (running_var, var)):
            if updated is not original:
                np.asarray(original)[...] = updated
    channels = (statistics[0], statistics[1], weight, bias)
    return Normalisation(x, layout, channels, of_batch, elements)


def check_arguments(
    op: str,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: Any,
    eps: Any,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, float, float]:
    """The arguments but `training`, as kernels take them: empty arrays for None."""
    if (
        type(input) is np.ndarray
        and are_ready(input.shape, input.dtype, running_mean, running_var, weight, bias)
        and (running_mean is None) is (running_var is None)
        and type(momentum) is type(eps) is float
        and math.isfinite(momentum)
        and 0.0 <= eps < math.inf
    ):  # the checks in detail take 3 us
        empty = EMPTY[input.dtype]
        return (
            input,
            empty if running_mean is None else running_mean,
            empty if running_var is None else running_var,
            empty if weight is None else weight,
            empty if bias is None else bias,
            momentum,
            eps,
        )
    x, layout = input_array(op, input)
    kind = layout.channels, x.dtype
    weight = optional_vector(op, "weight", weight, *kind)
    bias = optional_vector(op, "bias", bias, *kind)
    mean, var = _running_vectors(op, running_mean, running_var, kind, training)
    momentum, eps = check.finite(op, "momentum", momentum), check.epsilon(op, "eps", eps)
    return x, mean, var, weight, bias, momentum, eps


def _running_vectors(
    op: str, mean: Any, var: Any, kind: tuple[int, np.dtype], training: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The running statistics as kernels take them; copies where they are no plain arrays."""
    if (mean is None) != (var is None):
        alone = "running_var" if mean is None else "running_mean"
        raise ValueError(
            f"{op}: running_mean and running_var must both be given or both be None, "
            f"got {alone} alone"
        )
    ready_mean = optional_vector(op, "running_mean", mean, *kind)
    ready_var = optional_vector(op, "running_var", var, *kind)
    if training and mean is not None:
        for name, original, ready in (
            ("running_mean", mean, ready_mean),
            ("running_var", var, ready_var),
        ):
            if ready is not original:
                check.writable(op, name, original)
    return ready_mean, ready_var


def take_statistics(
    layout: Layout,
    elements: np.ndarray | None,
    running_mean: np.ndarray,
    running_var: np.ndarray,
    update: float,
    eps: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and ``1 / sqrt(var + eps)``, (2, C), and the work of the kernel that has taken them.

    They are those of the elements, by which the running arrays are moved unless `update` is NaN;
    without elements they are the running ones.
    """
    dtype, channels = running_mean.dtype, layout.channels
    workers, size = threads.workers_for(layout.size), (layout.chunks + 1) * 2 * channels
    if elements is not None:
        size += (1 + 5 * workers) * layout.period
    out, work = np.empty((2, channels), dtype), memory.scratch((size,), dtype)[0]
    kernels.batchnorm.batch_norm_statistics(
        EMPTY[dtype] if elements is None else elements,
        running_mean,
        running_var,
        (layout.facts, elements is not None, update, eps, workers),
        work,
        out,
    )
    return out, work


def prepare_with(
    op: str, input: Any, mean: Any, invstd: Any, weight: Any, bias: Any, of_batch: bool
) -> Normalisation:
    """Check an input, and the statistics that its channels shall be normalised by."""
    if (
        type(input) is np.ndarray
        and mean is not None
        and invstd is not None
        and are_ready(input.shape, input.dtype, mean, invstd, weight, bias)
    ):  # the checks in detail take 3 us
        x, layout, empty = input, layout_of(input.shape, input.itemsize), EMPTY[input.dtype]
        weight, bias = empty if weight is None else weight, empty if bias is None else bias
        return Normalisation(x, layout, (mean, invstd, weight, bias), of_batch)
    x, layout = input_array(op, input)
    kind = layout.channels, x.dtype
    mean, invstd = vector(op, "mean", mean, *kind), vector(op, "invstd", invstd, *kind)
    weight = optional_vector(op, "weight", weight, *kind)
    bias = optional_vector(op, "bias", bias, *kind)
    return Normalisation(x, layout, (mean, invstd, weight, bias), of_batch)


def check_vectors(shape: tuple[int, ...], dtype: np.dtype, *vectors: np.ndarray | None) -> None:
    """Check running mean and variance, weight and bias for an input of this shape and dtype."""
    if len(shape) < 2 or shape[1] == 0 or dtype not in EMPTY:
        return  # the input's own check says what is wrong
    if are_ready(shape, dtype, *vectors):
        return
    for name, value in zip(("running_mean", "running_var", "weight", "bias"), vectors, strict=True):
        optional_vector("batch_norm", name, value, shape[1], dtype)


def running_statistics(
    running_mean: np.ndarray, running_var: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """`batch_norm_statistics` of evaluation, for arrays that were checked."""
    small = running_var.dtype.type(check.epsilon("batch_norm", "eps", eps))
    with np.errstate(all="ignore"):
        return np.array(running_mean), 1 / np.sqrt(np.asarray(running_var) + small)
