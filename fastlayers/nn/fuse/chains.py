"""Chains of ops that run as one: a convolution with its ReLU and pooling, for example.

A convolution, linear map or normalisation is the head of a chain (`fastlayers.nn.fuse.heads`). It
waits (`fastlayers.lazy`), and so do the steps that follow it. When the last output is used, the
tensors between have usually died, as in ``pool(relu(conv(x)))``, and the chain runs as one op that
never makes their arrays. Where one is still held, the chain goes on from its values.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers import lazy, ops
from fastlayers.autograd import OUTPUT, Recording, Tensor, defer, inplace, record, wants_grad

__all__ = [
    "RELU",
    "Add",
    "Chain",
    "MaxPool",
    "Step",
    "apply",
    "apply_in_place",
    "follow",
    "recorded",
    "replace",
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

    __slots__ = ("between", "dtype", "head", "parts", "requires_grad", "shape", "state", "steps")
    # Who called the head and the steps; known to a `lazy.Watcher` alone.
    parts: tuple[Any, ...]

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
                    x = recorded(step.alone(x), self.requires_grad)
                return self.steps[-1].alone(x)  # type: ignore[no-any-return]
        return self.head.run(self.steps)  # type: ignore[no-any-return]

    def add(self, output: Tensor, other: Tensor, in_place: bool = False) -> Tensor | None:
        """``output + other`` as a step of this chain of `output`, where it can be one."""
        if self.shape != other.lengths or self.dtype != other.dtype or other is output:
            return None
        return (replace if in_place else follow)(output, Add(other))

    def reads(self, t: Tensor) -> bool:
        """Whether the values of `t` are what this goes on from, or a step takes."""
        return any(held() is t for held in self.between) or any(
            t is other for step in self.steps for other in step.inputs
        )


def start(head: Any) -> Tensor:
    """Call the head of a chain."""
    inputs = head.inputs
    requires_grad = wants_grad(inputs)
    if not lazy.is_fusion_enabled() or not (
        lazy.state.depth or all(t is None or t.is_own for t in inputs)
    ):
        if (watcher := lazy.watcher) is not None:
            watcher.started(head)
        return recorded(head.run(()), requires_grad)
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


def replace(x: Tensor, step: Any) -> Tensor | None:
    """Call a step on the output `x` of a chain in place; None where it can't follow.

    Nobody has seen the memory of a tensor that waits, so `x` becomes the new chain's output.
    """
    others = (reference() for reference in lazy.state.waiting)
    if any(t is not None and t.deferred is not None and t.deferred.reads(x) for t in others):
        return None
    held = x.twin()  # follows the chain in the place of `x`, and dies here
    out = follow(held, step)
    del held
    if out is None:
        return None
    x.deferred, x.requires_grad = out.deferred, out.requires_grad
    return x


def apply_in_place(op: str, x: Tensor, step: Any) -> Tensor:
    """As `apply`, in the place of `x`."""
    if x.deferred is not None and (out := replace(x, step)) is not None:
        return out
    return inplace.apply(op, lambda t: apply(t, step), x)


def apply(x: Tensor, step: Any) -> Tensor:
    """Call a step that may also stand alone on any tensor."""
    if x.deferred is not None and (out := follow(x, step)) is not None:
        return out
    return recorded(step.alone(x), wants_grad((x,)))


def recorded(recording: Recording, requires_grad: bool) -> Tensor:
    """The tensor of what a head or a step has run."""
    output, inputs, backward, saved = recording
    return record(output, inputs, backward, saved=saved, requires_grad=requires_grad, fresh=True)


class Step:
    """A step that may follow whatever `_NEXT` lets it, and keeps the shape."""

    __slots__ = ()
    kind: str
    inputs: Inputs = ()
    alone: Callable[[Tensor], Recording]  # runs it by itself

    def fits(self, chain: Chain) -> bool:
        """Whether it may follow this chain."""
        return True

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:
        """Shape of the output for an input of shape `before`."""
        return before


class Relu(Step):
    """``max(x, 0)``."""

    kind = "relu"
    __slots__ = ()

    def alone(self, x: Tensor) -> Recording:
        y = ops.relu(x.array())
        return y, (x,), lambda dy: (ops.relu_backward(dy, y),), (OUTPUT,)


RELU = Relu()


class MaxPool(Step):
    """Maximum of each window; `window` is (kernel_size, stride, padding, dilation, ceil_mode)."""

    kind = "pool"
    __slots__ = ("window",)

    def __init__(self, window: tuple[Any, ...]) -> None:
        self.window = window

    def fits(self, chain: Chain) -> bool:  # noqa: D102
        return len(chain.shape) == 4

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        return ops.max_pool2d_shape(before, *self.window)  # type: ignore[arg-type]

    def alone(self, x: Tensor) -> Recording:  # noqa: D102
        y, offsets = ops.max_pool2d_forward(x.array(), *self.window)
        shape, window = x.array().shape, self.window[:4]

        def backward(dy: np.ndarray) -> Any:
            return (ops.max_pool2d_backward(dy, offsets, shape, *window),)

        return y, (x,), backward, ()


class Add(Step):
    """Sum with a tensor of the same shape."""

    kind = "add"
    __slots__ = ("inputs", "other")

    def __init__(self, other: Tensor) -> None:
        self.other, self.inputs = other, (other,)

    def alone(self, x: Tensor) -> Recording:  # noqa: D102
        y = ops.arithmetic.add(x.array(), self.other.array())
        other = self.other.requires_grad
        return y, (x, self.other), lambda dy: (dy, dy.copy() if other else None), ()
