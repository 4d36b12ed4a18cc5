"""Heads of the chains of `fastlayers.nn.fuse.chains`: what runs, with all steps that have followed.

Their arguments were checked when they were called. ``run(steps)`` returns what the tape records.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import ops
from fastlayers.autograd import OUTPUT, Recording, Tensor, wants_grad
from fastlayers.nn.fuse.chains import RELU, Add, Chain, MaxPool, Step
from fastlayers.ops import check
from fastlayers.ops.conv.pooled import prepare_pooled
from fastlayers.ops.layout import kernel_ready
from fastlayers.ops.linear import linear_rows, linear_rows_backward, prepare
from fastlayers.ops.norm import normalisation
from fastlayers.ops.norm.layout import flat_elements
from fastlayers.ops.norm.normalisation import Normalisation
from fastlayers.ops.norm.pooled import pooled_backward

__all__ = ["BatchNorm", "Conv", "Linear", "Normalise", "arrays"]

Affine = tuple[Tensor, Tensor | None, Tensor | None]
Steps = tuple[Step, ...]


def _array(t: Tensor | None) -> Any:
    return None if t is None else t.array()


def arrays(inputs: Affine) -> tuple[Any, Any, Any]:
    """The arrays of an input, a weight and a bias."""
    x, w, b = inputs
    return x.array(), _array(w), _array(b)


def _needs(inputs: Affine) -> tuple[bool, bool, bool]:
    """Which gradients the tape will ask for."""
    x, w, b = inputs
    return (
        x.requires_grad,
        w is not None and w.requires_grad,
        b is not None and b.requires_grad,
    )


class _Head:
    __slots__ = ("inputs", "shape")
    inputs: Affine
    shape: tuple[int, ...]


class Conv(_Head):
    """Convolution, with the arguments of `functional.conv2d`."""

    kind = "conv"
    __slots__ = ("arguments", "bias", "convolution", "relu")

    def __init__(self, inputs: Affine, options: Any, activation: str | None) -> None:
        x, w, b = arrays(inputs)
        self.relu = activation is not None and check.is_relu("conv2d", activation)
        x, w, convolution = ops.conv.prepare("conv2d", x, w, *options)
        self.arguments, self.bias = (x, w), convolution.bias("conv2d", b)
        self.inputs, self.convolution, self.shape = inputs, convolution, convolution.out_shape

    def run(self, steps: Steps) -> Recording:
        """Convolve; a normalisation is in the weight already, ReLU and pooling are in the op."""
        (x, w), b, needs = self.arguments, self.bias, _needs(self.inputs)
        images, weight, _ = self.inputs
        convolution, relu = self.convolution, self.relu or RELU in steps
        if steps and isinstance(steps[0], Normalise):
            w, b = steps[0].fold(w, b)
        if steps and isinstance(steps[-1], MaxPool):
            pooled = prepare_pooled("max_pool2d", convolution, steps[-1].window, relu)
            y, offsets = pooled.forward(x, w, b)

            def pooled_backward(dy: np.ndarray) -> Any:
                return pooled.backward(dy, y, offsets, x, w, needs)

            return y, self.inputs, pooled_backward, (images, weight, OUTPUT)
        y = convolution.forward(x, w, b, relu)

        def backward(dy: np.ndarray) -> Any:
            return convolution.backward(ops.relu_backward(dy, y) if relu else dy, x, w, needs)

        return y, self.inputs, backward, (images, weight, OUTPUT if relu else None)


class Linear(_Head):
    """Linear map, with the arguments of `functional.linear`."""

    kind = "linear"
    __slots__ = ("arguments", "relu")

    def __init__(self, inputs: Affine, activation: str | None) -> None:
        x, w, b = arrays(inputs)
        self.relu = activation is not None and check.is_relu("linear", activation)
        self.arguments = prepare("linear", x, w, b)
        self.inputs, self.shape = inputs, (*x.shape[:-1], len(w))

    def run(self, steps: Steps) -> Recording:
        """Map the last axis; the only step is a ReLU."""
        (x, w, b), needs, shape = self.arguments, _needs(self.inputs), self.shape
        relu, before = self.relu or bool(steps), self.inputs[0].array().shape
        y = linear_rows(x, w, b, relu)

        def backward(dy: np.ndarray) -> Any:
            rows = kernel_ready(dy).reshape(y.shape)
            dx, dw, db = linear_rows_backward(rows, y if relu else None, x, w, needs)
            return dx if dx is None else dx.reshape(before), dw, db

        rows, weight, _ = self.inputs
        return y.reshape(shape), self.inputs, backward, (rows, weight, OUTPUT if relu else None)


class BatchNorm(_Head):
    """Batch normalisation by statistics that were taken: one write, whatever follows."""

    kind = "norm"
    __slots__ = ("norm", "statistics")

    def __init__(
        self, inputs: Affine, norm: Normalisation, statistics: tuple[Tensor, ...] = ()
    ) -> None:
        self.inputs, self.shape, self.norm = inputs, norm.x.shape, norm
        # The running ones that it normalises by, which its gradient reads too.
        self.statistics = statistics

    def run(self, steps: Steps) -> Recording:
        """Normalise, with a ReLU, and a pooling or the sum with a residual."""
        relu = RELU in steps
        if steps and isinstance(steps[-1], MaxPool):
            return self._pooled(steps[-1].window, relu)
        if steps and isinstance(steps[0], Add):
            return self._added(steps[0].other, relu)
        norm, needs = self.norm, _needs(self.inputs)
        y = norm.forward(None, relu)
        output = norm.layout.flat(y) if relu and not norm.of_batch else None

        def backward(dy: np.ndarray) -> Any:
            return norm.backward(norm.layout.flat(dy), needs, relu, output)[:3]

        x, w, b = self.inputs
        saved = (x, w, b if relu else None, OUTPUT if output is not None else None)
        return y, self.inputs, backward, (*saved, *self.statistics)

    def _added(self, other: Tensor, relu: bool) -> Recording:
        norm, needs, residual = self.norm, _needs(self.inputs), other.requires_grad
        flat = flat_elements("batch_norm", "residual", other.array(), norm.layout, norm.x)
        y = norm.forward(flat, relu)
        output = norm.layout.flat(y) if relu else None

        def backward(dy: np.ndarray) -> Any:
            *grads, masked = norm.backward(norm.layout.flat(dy), needs, relu, output)
            if not residual:
                return *grads, None
            if not relu:  # other leaves may be given dy too
                masked = dy.copy() if other.is_leaf else dy
            return *grads, masked

        saved = (*self.inputs[:2], OUTPUT if relu else None, *self.statistics)
        return y, (*self.inputs, other), backward, saved

    def _pooled(self, window: tuple[Any, ...], relu: bool) -> Recording:
        norm, (x, w, b), needs = self.norm, arrays(self.inputs), _needs(self.inputs)
        activation = "relu" if relu else None
        y, offsets = ops.batch_norm_max_pool2d(
            x, *norm.statistics, w, b, *window, activation=activation
        )

        def backward(dy: np.ndarray) -> Any:
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

    def fits(self, chain: Chain) -> bool:  # noqa: D102
        return not (chain.requires_grad or wants_grad(self.inputs))

    def alone(self, x: Tensor) -> Recording:  # noqa: D102
        inputs = (x, *self.affine)
        data, w, b = arrays(inputs)
        norm = normalisation.prepare_with("batch_norm", data, self.mean, self.invstd, w, b, False)
        return BatchNorm(inputs, norm).run(())

    def fold(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of the convolution whose output is normalised already."""
        scale, (gamma, beta) = self.invstd, map(_array, self.affine)
        with np.errstate(all="ignore"):
            if gamma is not None:
                scale = scale * gamma
            shift = (bias - self.mean) * scale
            return weight * scale[:, None, None, None], shift if beta is None else shift + beta
