"""Heads of the chains of `fastlayers.nn.fuse.chains`, which run with the steps that follow them.

Their arguments were checked when they were called. ``run(steps)`` returns what the tape records.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import ops
from fastlayers.autograd import OUTPUT, Recording, Tensor, wants_grad
from fastlayers.autograd.recording import arguments
from fastlayers.nn.fuse.chains import RELU, Add, Call, Head, MaxPool, Step
from fastlayers.ops import check, prepared

__all__ = ["BatchNorm", "Conv", "Linear", "Normalise"]

Affine = tuple[Tensor, Tensor | None, Tensor | None]
Needs = tuple[bool, bool, bool]
Steps = tuple[Step, ...]


class Conv(Head):
    """Convolution, with the arguments of `functional.conv2d`."""

    kind = state = "conv"
    __slots__ = ("arguments", "bias", "convolution", "relu")

    def __init__(
        self, input: Any, weight: Any, bias: Any, options: Any, activation: str | None
    ) -> None:
        self.inputs, (x, w, b), self.needs = arguments(input, weight, bias)
        self.relu = activation is not None and check.is_relu("conv2d", activation)
        x, w, convolution = prepared.conv2d_call("conv2d", x, w, *options)
        self.arguments, self.bias = (x, w), convolution.bias("conv2d", b)
        self.convolution, self.shape, self.dtype = convolution, convolution.out_shape, x.dtype

    def run(self, steps: Steps = ()) -> Recording:
        """Convolve; a normalisation is folded into the weight, ReLU and pooling into the op."""
        if steps and isinstance(steps[-1], MaxPool):
            return self._pooled(steps, steps[-1].window)
        (x, w), b, needs = self.arguments, self.bias, self.needs
        images, weight, _ = self.inputs
        convolution, relu = self.convolution, self.relu or RELU in steps
        if steps and isinstance(steps[0], Normalise):
            w, b = steps[0].fold(w, b)
        if not convolution.any_layout:
            x = images.images(x) if x.ndim == 4 else images.images(x[None])[0]
        y = convolution.forward(x, w, b, relu)

        def backward(dy: np.ndarray) -> Any:
            return convolution.backward(ops.relu_backward(dy, y) if relu else dy, x, w, needs)

        return y, self.inputs, backward, (images, weight, OUTPUT if relu else None)

    def reasons(self, steps: Steps) -> list[tuple[str, str, str]]:
        """Each pass, what computes it, and why."""
        if not (steps and isinstance(steps[-1], MaxPool)):
            return self.convolution.reasons()
        relu, window = self.relu or RELU in steps, steps[-1].window
        call = prepared.conv2d_max_pool2d_call("max_pool2d", self.convolution, window, relu)
        return call.reasons()

    def _pooled(self, steps: Steps, window: tuple[Any, ...]) -> Recording:
        (x, w), b, needs = self.arguments, self.bias, self.needs
        images, weight, _ = self.inputs
        convolution, relu = self.convolution, self.relu or RELU in steps
        if isinstance(steps[0], Normalise):
            w, b = steps[0].fold(w, b)
        call = prepared.conv2d_max_pool2d_call("max_pool2d", convolution, window, relu)
        if not call.any_layout:
            x = images.images(x) if x.ndim == 4 else images.images(x[None])[0]
        y, offsets = call.forward(x, w, b)

        def backward(dy: np.ndarray) -> Any:
            return call.backward(dy, y, offsets, x, w, needs)

        return y, self.inputs, backward, (images, weight, OUTPUT)


class Linear(Head):
    """Linear map, with the arguments of `functional.linear`."""

    kind = state = "linear"
    __slots__ = ("arguments", "relu")

    def __init__(self, input: Any, weight: Any, bias: Any, activation: str | None) -> None:
        self.inputs, (x, w, b), self.needs = arguments(input, weight, bias)
        self.relu = activation is not None and check.is_relu("linear", activation)
        self.arguments = prepared.linear_call("linear", x, w, b)
        self.shape, self.dtype = (*x.shape[:-1], len(w)), self.arguments[0].dtype

    def run(self, steps: Steps = ()) -> Recording:
        """Map the last axis; the only step is a ReLU."""
        (x, w, b), needs, shape = self.arguments, self.needs, self.shape
        relu, before = self.relu or bool(steps), self.inputs[0].array().shape
        y = prepared.linear_rows(x, w, b, relu)

        def backward(dy: np.ndarray) -> Any:
            rows = prepared.kernel_ready(dy).reshape(y.shape)
            grads = prepared.linear_rows_backward(rows, y if relu else None, x, w, needs)
            dx, dw, db = grads
            return dx if dx is None else dx.reshape(before), dw, db

        rows, weight, _ = self.inputs
        return y.reshape(shape), self.inputs, backward, (rows, weight, OUTPUT if relu else None)

    def reasons(self, steps: Steps) -> list[tuple[str, str, str]]:
        """Each pass, what computes it, and why."""
        x, w, _ = self.arguments
        return prepared.linear_reasons(x, w)


class BatchNorm(Head):
    """Batch normalisation by known statistics: the output is written once, whatever follows."""

    kind = state = "norm"
    __slots__ = ("norm", "statistics")

    def __init__(
        self,
        inputs: Affine,
        needs: Needs,
        norm: prepared.Normalisation,
        statistics: tuple[Tensor, ...] = (),
    ) -> None:
        self.inputs, self.needs, self.norm = inputs, needs, norm
        self.shape, self.dtype = norm.x.shape, norm.x.dtype
        # The running statistics that it normalises by; its gradient reads them too.
        self.statistics = statistics

    def run(self, steps: Steps = ()) -> Recording:
        """Normalise, with a ReLU, and a pooling or the sum with a residual."""
        relu = RELU in steps
        if steps and isinstance(steps[-1], MaxPool):
            return self._pooled(steps[-1].window, relu)
        if steps and isinstance(steps[0], Add):
            return self._added(steps[0].other, relu)
        norm, needs = self.norm, self.needs
        y = norm.forward(None, relu)
        output = norm.layout.flat(y) if relu and not norm.of_batch else None

        def backward(dy: np.ndarray) -> Any:
            return norm.backward(norm.layout.flat(dy), needs, relu, output)[:3]

        x, w, b = self.inputs
        saved = (x, w, b if relu else None, OUTPUT if output is not None else None)
        return y, self.inputs, backward, (*saved, *self.statistics)

    def _added(self, other: Tensor, relu: bool) -> Recording:
        norm, needs, residual = self.norm, self.needs, other.requires_grad
        images = other.images()
        flat = prepared.flat_elements("batch_norm", "residual", images, norm.layout, norm.x)
        y = norm.forward(flat, relu)
        output = norm.layout.flat(y) if relu else None

        def backward(dy: np.ndarray) -> Any:
            *grads, masked = norm.backward(norm.layout.flat(dy), needs, relu, output)
            if not residual:
                return *grads, None
            if not relu:  # two leaves must not share dy
                masked = dy.copy() if other.is_leaf else dy
            return *grads, masked

        saved = (*self.inputs[:2], OUTPUT if relu else None, *self.statistics)
        return y, (*self.inputs, other), backward, saved

    def _pooled(self, window: tuple[Any, ...], relu: bool) -> Recording:
        norm, needs, (_, (_, w, b), _) = self.norm, self.needs, arguments(*self.inputs)
        activation = "relu" if relu else None
        y, offsets = ops.batch_norm_max_pool2d(
            norm.x, *norm.statistics, w, b, *window, activation=activation
        )

        def backward(dy: np.ndarray) -> Any:
            pooled_backward = prepared.batch_norm_max_pool2d_backward
            return pooled_backward(norm, dy, y, offsets, window[:4], needs, relu)

        return y, self.inputs, backward, (*self.inputs, OUTPUT, *self.statistics)


class Normalise(Step):
    """Batch normalisation by running statistics, which a convolution's weight can take in."""

    kind = "normalise"
    __slots__ = ("affine", "inputs", "invstd", "mean")

    def __init__(
        self,
        mean: np.ndarray,
        invstd: np.ndarray,
        affine: tuple[Tensor | None, Tensor | None],
    ) -> None:
        self.mean, self.invstd, self.affine = mean, invstd, affine
        self.inputs = affine

    def fits(self, call: Call) -> bool:  # noqa: D102
        return not (call.requires_grad or wants_grad(self.inputs))

    def alone(self, x: Tensor) -> Recording:  # noqa: D102
        inputs, (data, w, b), needs = arguments(x, *self.affine)
        fixed = self.mean, self.invstd, w, b
        norm = prepared.batch_norm_of_statistics("batch_norm", data, *fixed, False)
        return BatchNorm(inputs, needs, norm).run()

    def fold(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of the convolution that also normalises."""
        scale, (_, (gamma, beta), _) = self.invstd, arguments(*self.affine)
        with np.errstate(all="ignore"):
            if gamma is not None:
                scale = scale * gamma
            shift = (bias - self.mean) * scale
            return weight * scale[:, None, None, None], shift if beta is None else shift + beta
