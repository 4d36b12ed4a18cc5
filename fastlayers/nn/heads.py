"""Heads of the chains of `fastlayers.nn.fusion`: what runs, with all steps that have followed.

Their arguments were checked when they were called. ``run(steps)`` returns what the tape records.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers import ops
from fastlayers.autograd import Recording, Tensor, wants_grad
from fastlayers.nn.fusion import RELU, Add, Chain, MaxPool, Step
from fastlayers.ops import _check
from fastlayers.ops.layout import kernel_ready
from fastlayers.ops.linear import linear_rows, linear_rows_backward, prepare

__all__ = ["BatchNorm", "Conv", "Linear", "Norm", "Normalise", "arrays"]

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
    __slots__ = ("inputs", "needs", "shape")

    def __init__(self, inputs: Affine, shape: tuple[int, ...]) -> None:
        self.inputs, self.needs, self.shape = inputs, _needs(inputs), shape


class Conv(_Head):
    """Convolution, with the arguments of `functional.conv2d`."""

    kind = "conv"
    __slots__ = ("arguments", "bias", "convolution", "relu")

    def __init__(self, inputs: Affine, options: Any, activation: str | None) -> None:
        op, (x, w, b) = "conv2d", arrays(inputs)
        self.relu = _check.is_relu(op, activation)
        x, w, self.convolution = ops.conv.prepare(op, x, w, *options)
        self.arguments, self.bias = (x, w), self.convolution.bias(op, b)
        super().__init__(inputs, self.convolution.out_shape)

    def run(self, steps: Steps) -> Recording:
        """Convolve; a normalisation is in the weight already, ReLU and pooling are in the op."""
        (x, w), b, needs, convolution = self.arguments, self.bias, self.needs, self.convolution
        relu = self.relu or RELU in steps
        if steps and isinstance(steps[0], Normalise):
            w, b = steps[0].fold(w, b)
        if steps and isinstance(steps[-1], MaxPool):
            pooled = ops.conv_pool.prepare_pooled("max_pool2d", convolution, steps[-1].window, relu)
            y, offsets = pooled.forward(x, w, b)

            def pooled_backward(dy: np.ndarray) -> Any:
                return pooled.backward(dy, y, offsets, x, w, needs)

            return y, self.inputs, pooled_backward
        y = convolution.forward(x, w, b, relu)

        def backward(dy: np.ndarray) -> Any:
            return convolution.backward(ops.relu_backward(dy, y) if relu else dy, x, w, needs)

        return y, self.inputs, backward


class Linear(_Head):
    """Linear map, with the arguments of `functional.linear`."""

    kind = "linear"
    __slots__ = ("arguments", "relu")

    def __init__(self, inputs: Affine, activation: str | None) -> None:
        op, (x, w, b) = "linear", arrays(inputs)
        self.relu = _check.is_relu(op, activation)
        self.arguments = prepare(op, x, w, b)
        super().__init__(inputs, (*x.shape[:-1], len(w)))

    def run(self, steps: Steps) -> Recording:
        """Map the last axis; the only step is a ReLU."""
        (x, w, b), needs, shape = self.arguments, self.needs, self.shape
        relu, before = self.relu or bool(steps), self.inputs[0].shape
        y = linear_rows(x, w, b, relu)

        def backward(dy: np.ndarray) -> Any:
            rows = kernel_ready(dy).reshape(y.shape)
            dx, dw, db = linear_rows_backward(rows, y if relu else None, x, w, needs)
            return dx if dx is None else dx.reshape(before), dw, db

        return y.reshape(shape), self.inputs, backward


@dataclass(slots=True, eq=False)
class Norm:
    """What a batch normalisation does to its input; the statistics were taken at its call."""

    mean: np.ndarray
    invstd: np.ndarray
    weight: Tensor | None
    bias: Tensor | None
    of_batch: bool


class BatchNorm(_Head):
    """Batch normalisation: one write, whatever follows."""

    kind = "norm"
    __slots__ = ("norm",)

    def __init__(self, x: Tensor, norm: Norm) -> None:
        super().__init__((x, norm.weight, norm.bias), x.shape)
        self.norm = norm

    def run(self, steps: Steps) -> Recording:
        """Normalise, with a ReLU, and a pooling or the sum with a residual."""
        activation = "relu" if RELU in steps else None
        if steps and isinstance(steps[-1], MaxPool):
            return self._pooled(steps[-1].window, activation)
        if steps and isinstance(steps[0], Add):
            return self._plain(steps[0].other, activation)
        return self._plain(None, activation)

    def _plain(self, other: Tensor | None, activation: str | None) -> Recording:
        x, w, b = arrays(self.inputs)
        mean, invstd, of_batch = self.norm.mean, self.norm.invstd, self.norm.of_batch
        y = ops.batch_norm_apply(
            x, mean, invstd, w, b, residual=_array(other), activation=activation
        )
        needs: tuple[bool, ...] = self.needs
        inputs: tuple[Tensor | None, ...] = self.inputs
        if other is not None:
            needs, inputs = (*needs, other.requires_grad), (*inputs, other)
        how: Any = {
            "bias": b,
            "activation": activation,
            "output": None if other is None else y,
        }

        def backward(dy: np.ndarray) -> Any:
            grads = ops.batch_norm_backward(dy, x, w, mean, invstd, of_batch, needs, **how)
            if other is not None and other.is_leaf and grads[3] is dy:
                return *grads[:3], dy.copy()  # other leaves may be given dy too
            return grads

        return y, inputs, backward

    def _pooled(self, window: tuple[Any, ...], activation: str | None) -> Recording:
        x, w, b = arrays(self.inputs)
        mean, invstd, of_batch = self.norm.mean, self.norm.invstd, self.norm.of_batch
        y, offsets = ops.batch_norm_max_pool2d(
            x, mean, invstd, w, b, *window, activation=activation
        )
        rest = (x, w, mean, invstd, of_batch, self.needs, *window[:4])

        def backward(dy: np.ndarray) -> Any:
            return ops.batch_norm_max_pool2d_backward(dy, y, offsets, *rest, activation=activation)

        return y, self.inputs, backward


class Normalise(Step):
    """Batch normalisation by running statistics, which a convolution's weight can take in."""

    kind = "normalise"
    __slots__ = ("inputs", "norm")

    def __init__(self, norm: Norm) -> None:
        self.norm, self.inputs = norm, (norm.weight, norm.bias)

    def fits(self, chain: Chain) -> bool:  # noqa: D102
        return not (chain.requires_grad or wants_grad(self.inputs))

    def alone(self, x: Tensor) -> Recording:  # noqa: D102
        return BatchNorm(x, self.norm).run(())

    def fold(self, weight: np.ndarray, bias: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of the convolution whose output is normalised already."""
        mean, scale = self.norm.mean, self.norm.invstd
        gamma, beta = _array(self.norm.weight), _array(self.norm.bias)
        if gamma is not None:
            scale = scale * gamma
        shift = (bias - mean) * scale
        return weight * scale[:, None, None, None], shift if beta is None else shift + beta
