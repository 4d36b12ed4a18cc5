"""Ops that run as one: a convolution with its ReLU and pooling, a normalisation with what follows.

A convolution, linear map or normalisation is the head of a chain. It waits (`fastlayers.lazy`),
and so do the steps that follow it. When the last output is used, the tensors between have usually
died, as in ``pool(relu(conv(x)))``, and the chain runs as one op that never makes their arrays.
Where one is still held, as a residual connection does, the chain goes on from its values.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers import lazy, ops
from fastlayers.autograd import Recording, Tensor, defer, record, wants_grad

__all__ = [
    "RELU",
    "BatchNorm",
    "Conv",
    "Linear",
    "MaxPool",
    "Norm",
    "Normalise",
    "apply",
    "arrays",
    "follow",
    "start",
]

Inputs = tuple[Tensor | None, ...]

# What may follow: the state of a chain and the next step give the new state.
_NEXT = {
    ("conv", "normalise"): "conv",
    ("conv", "relu"): "conv relu",
    ("conv", "pool"): "pooled",
    ("conv relu", "pool"): "pooled",
    ("linear", "relu"): "linear relu",
    ("norm", "relu"): "norm relu",
    ("norm", "add"): "norm add",
    ("norm", "pool"): "pooled",
    ("norm add", "relu"): "norm add relu",
    ("norm relu", "pool"): "pooled",
}


class Chain:
    """A head and its steps, called and not run yet; `lazy.Deferred` of the last one's output.

    A head has ``kind``, ``inputs``, ``shape`` and ``run(steps)``, a step ``kind``, ``inputs``,
    ``fits(chain)``, ``shape(before)`` and ``alone(x)``; both runs return what the tape records.
    """

    __slots__ = ("between", "dtype", "head", "requires_grad", "shape", "state", "steps")

    def __init__(
        self,
        head: Any,
        steps: tuple[Any, ...],
        between: tuple[weakref.ref[Tensor], ...],
        state: str,
        shape: tuple[int, ...],
        dtype: np.dtype,
        requires_grad: bool,
    ) -> None:
        self.head, self.steps, self.between, self.state = head, steps, between, state
        self.shape, self.dtype, self.requires_grad = shape, dtype, requires_grad

    def run(self) -> Recording:
        """Run as one op, or go on from the last output between that is still held."""
        for i in range(len(self.between) - 1, -1, -1):
            x = self.between[i]()
            if x is not None:
                for step in self.steps[i:-1]:
                    x = record(*step.alone(x), requires_grad=self.requires_grad, fresh=True)
                return self.steps[-1].alone(x)  # type: ignore[no-any-return]
        return self.head.run(self.steps)  # type: ignore[no-any-return]

    def add(self, output: Tensor, other: Tensor) -> Tensor | None:
        """``output + other`` as a step of this chain of `output`, where it can be one."""
        if self.shape != other.shape or self.dtype != other.dtype:
            return None
        return follow(output, Add(other))


def start(head: Any) -> Tensor:
    """Call the head of a chain."""
    inputs = head.inputs
    requires_grad = wants_grad(inputs)
    if not lazy.is_fusion_enabled() or not (
        lazy.state.depth or all(t is None or t.is_own for t in inputs)
    ):
        return record(*head.run(()), requires_grad=requires_grad, fresh=True)
    kind = head.kind
    chain = Chain(head, (), (), kind, head.shape, inputs[0].dtype, requires_grad)
    return defer(chain, requires_grad)


def follow(x: Tensor, step: Any) -> Tensor | None:
    """Call a step on the output `x` of a chain; None where it can't follow."""
    before = x.deferred
    if not isinstance(before, Chain):
        return None
    state = _NEXT.get((before.state, step.kind))
    if state is None or not step.fits(before):
        return None
    requires_grad = before.requires_grad or wants_grad(step.inputs)
    steps, between = (*before.steps, step), (*before.between, weakref.ref(x))
    shape, dtype = step.shape(before.shape), before.dtype
    chain = Chain(before.head, steps, between, state, shape, dtype, requires_grad)
    return defer(chain, requires_grad)


def apply(x: Tensor, step: Any) -> Tensor:
    """Call a step that may also stand alone on any tensor."""
    if x.deferred is not None and (out := follow(x, step)) is not None:
        return out
    return record(*step.alone(x), requires_grad=wants_grad((x,)), fresh=True)


class _Step:
    """A step that may follow whatever `_NEXT` lets it, and keeps the shape."""

    __slots__ = ()
    inputs: Inputs = ()

    def fits(self, chain: Chain) -> bool:
        return True

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        return before


class Relu(_Step):
    """``max(x, 0)``."""

    kind = "relu"
    __slots__ = ()

    def alone(self, x: Tensor) -> Recording:
        y = ops.relu(x.array())
        return y, (x,), lambda dy: (ops.relu_backward(dy, y),)


RELU = Relu()


class MaxPool(_Step):
    """Maximum of each window; `window` is (kernel_size, stride, padding, dilation, ceil_mode)."""

    kind = "pool"
    __slots__ = ("window",)

    def __init__(self, window: tuple[Any, ...]) -> None:
        self.window = window

    def fits(self, chain: Chain) -> bool:
        return len(chain.shape) == 4

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        return ops.max_pool2d_shape(before, *self.window)  # type: ignore[arg-type]

    def alone(self, x: Tensor) -> Recording:
        y, offsets = ops.max_pool2d_forward(x.array(), *self.window)
        shape, window = x.shape, self.window[:4]
        return y, (x,), lambda dy: (ops.max_pool2d_backward(dy, offsets, shape, *window),)


class Add(_Step):
    """Sum with a tensor of the same shape."""

    kind = "add"
    __slots__ = ("inputs", "other")

    def __init__(self, other: Tensor) -> None:
        self.other, self.inputs = other, (other,)

    def alone(self, x: Tensor) -> Recording:
        y = ops.arithmetic.add(x.array(), self.other.array())
        return y, (x, self.other), lambda dy: (dy, dy.copy())


@dataclass(slots=True, eq=False)
class Norm:
    """What a batch normalisation does to its input; the statistics are taken at its call."""

    mean: np.ndarray
    invstd: np.ndarray
    weight: Tensor | None
    bias: Tensor | None
    of_batch: bool

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray | None, np.ndarray | None]:
        return self.mean, self.invstd, _array(self.weight), _array(self.bias)


class Normalise(_Step):
    """Batch normalisation by running statistics, which a convolution's weight can take in."""

    kind = "normalise"
    __slots__ = ("inputs", "norm")

    def __init__(self, norm: Norm) -> None:
        self.norm, self.inputs = norm, (norm.weight, norm.bias)

    def fits(self, chain: Chain) -> bool:
        return not (chain.requires_grad or wants_grad(self.inputs))

    def alone(self, x: Tensor) -> Recording:
        return BatchNorm(x, self.norm).run(())

    def fold(self, weight: np.ndarray, bias: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Weight and bias of the convolution that is normalised already."""
        mean, scale, gamma, beta = self.norm.arrays()
        if gamma is not None:
            scale = scale * gamma
        shift = -mean * scale if bias is None else (bias - mean) * scale
        return weight * scale[:, None, None, None], shift if beta is None else shift + beta


class Conv:
    """Head of a convolution's chain; arguments are those of `functional.conv2d`, and checked."""

    kind = "conv"
    __slots__ = ("activation", "algorithm", "inputs", "needs", "options", "shape")

    def __init__(
        self,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        options: tuple[Any, ...],
        algorithm: str,
        activation: str | None,
        shape: tuple[int, ...],
    ) -> None:
        self.inputs, self.needs, self.shape = inputs, _needs(inputs), shape
        self.options, self.algorithm, self.activation = options, algorithm, activation

    def run(self, steps: tuple[Any, ...]) -> Recording:
        x, w, b = arrays(self.inputs)
        activation: str | None = "relu" if RELU in steps else self.activation
        options, needs, algorithm = self.options, self.needs, self.algorithm
        if steps and isinstance(steps[0], Normalise):
            w, b = steps[0].fold(w, b)
        if steps and isinstance(steps[-1], MaxPool):
            how: dict[str, Any] = {
                "pool": steps[-1].window,
                "activation": activation,
                "algorithm": algorithm,
            }
            y, offsets = ops.conv2d_max_pool2d(x, w, b, *options, **how)

            def backward(dy: np.ndarray) -> Any:
                return ops.conv2d_max_pool2d_backward(
                    dy, y, offsets, x, w, *options, needs, **how
                )
        else:
            y = ops.conv2d(x, w, b, *options, algorithm=algorithm, activation=activation)

            def backward(dy: np.ndarray) -> Any:
                if activation:
                    dy = ops.relu_backward(dy, y)
                return ops.conv2d_backward(dy, x, w, *options, needs, algorithm=algorithm)

        return y, self.inputs, backward


class Linear:
    """Head of a linear map's chain."""

    kind = "linear"
    __slots__ = ("activation", "inputs", "needs", "shape")

    def __init__(
        self,
        inputs: tuple[Tensor, Tensor, Tensor | None],
        activation: str | None,
        shape: tuple[int, ...],
    ) -> None:
        self.inputs, self.needs, self.shape = inputs, _needs(inputs), shape
        self.activation = activation

    def run(self, steps: tuple[Any, ...]) -> Recording:
        x, w, b = arrays(self.inputs)
        activation, needs = "relu" if steps else self.activation, self.needs
        y = ops.linear(x, w, b, activation=activation)

        def backward(dy: np.ndarray) -> Any:
            return ops.linear_backward(dy, x, w, needs, activation=activation, output=y)

        return y, self.inputs, backward


class BatchNorm:
    """Head of a normalisation's chain: one write, however many steps follow."""

    kind = "norm"
    __slots__ = ("inputs", "needs", "norm", "shape")

    def __init__(self, x: Tensor, norm: Norm) -> None:
        self.inputs, self.norm, self.shape = (x, norm.weight, norm.bias), norm, x.shape
        self.needs = _needs(self.inputs)

    def run(self, steps: tuple[Any, ...]) -> Recording:
        x, of_batch, needs = self.inputs[0].array(), self.norm.of_batch, self.needs  # type: ignore
        mean, invstd, w, b = self.norm.arrays()
        activation = "relu" if RELU in steps else None
        inputs: Inputs = self.inputs
        if steps and isinstance(steps[-1], MaxPool):
            window = steps[-1].window
            y, offsets = ops.batch_norm_max_pool2d(
                x, mean, invstd, w, b, *window, activation=activation
            )

            def backward(dy: np.ndarray) -> Any:
                return ops.batch_norm_max_pool2d_backward(
                    dy,
                    y,
                    offsets,
                    x,
                    w,
                    mean,
                    invstd,
                    of_batch,
                    needs,
                    *window[:4],
                    activation=activation,
                )
        else:
            residual = None
            if steps and isinstance(steps[0], Add):
                residual = steps[0].other.array()
                inputs = (*inputs, steps[0].other)
                needs = (*needs, steps[0].other.requires_grad)
            y = ops.batch_norm_apply(
                x, mean, invstd, w, b, residual=residual, activation=activation
            )
            output = None if residual is None else y

            def backward(dy: np.ndarray) -> Any:
                return ops.batch_norm_backward(
                    dy,
                    x,
                    w,
                    mean,
                    invstd,
                    of_batch,
                    needs,
                    bias=b,
                    activation=activation,
                    output=output,
                )

        return y, inputs, backward


def _array(t: Tensor | None) -> Any:
    return None if t is None else t.array()


def arrays(inputs: tuple[Tensor, Tensor | None, Tensor | None]) -> tuple[Any, Any, Any]:
    """The arrays of an input, a weight and a bias."""
    x, w, b = inputs
    return x.array(), _array(w), _array(b)


def _needs(inputs: tuple[Tensor, Tensor | None, Tensor | None]) -> tuple[bool, ...]:
    """Which gradients the tape will ask for."""
    x, w, b = inputs
    return (
        x.requires_grad,
        w is not None and w.requires_grad,
        b is not None and b.requires_grad,
    )
