"""Chains of ops that run as one: a convolution with its ReLU and pooling, for example.

A convolution, linear map or normalisation is the head of a chain (`fastlayers.nn.fuse.heads`). It
waits (`fastlayers.lazy`), and so do the steps that follow it. When the last output is used, the
intermediate tensors are usually gone, as in ``pool(relu(conv(x)))``, and the chain runs as one op
that never makes their arrays. Where one is still alive, the chain continues from its values.
"""

from __future__ import annotations

import weakref
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Self

import numpy as np

from fastlayers import lazy, ops
from fastlayers.autograd import OUTPUT, Recording, Tensor, defer, inplace, record, wants_grad
from fastlayers.ops import prepared

__all__ = [
    "RELU",
    "Add",
    "Call",
    "Chain",
    "Head",
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


class Call:
    """A head and steps that were called and have not run: `lazy.Deferred` of the last output."""

    __slots__ = ("dtype", "parts", "requires_grad", "shape")
    head: Any
    steps: tuple[Any, ...]
    between: tuple[weakref.ref[Tensor], ...]
    state: str
    shape: tuple[int, ...]
    dtype: np.dtype
    requires_grad: bool
    # Which layers called the head and the steps; only a `lazy.Watcher` sets it.
    parts: tuple[Any, ...]

    @abstractmethod
    def run(self) -> Recording:
        """Compute the output, and give it with what the tape records of it."""

    def add(self, output: Tensor, other: Tensor, in_place: bool = False) -> Tensor | None:
        """``output + other`` as a step of this call of `output`, where it can be one."""
        if self.shape != other.lengths or self.dtype != other.dtype or other is output:
            return None
        return (replace if in_place else follow)(output, Add(other))

    def reads(self, t: Tensor) -> bool:
        """Whether this continues from the values of `t`, or a step takes them."""
        return any(held() is t for held in self.between) or any(
            t is other for step in self.steps for other in step.inputs
        )


class Head(Call):
    """The first op of a chain, of an input, a weight and a bias; alone, it is a call itself.

    Each kind has a ``run(steps)`` that returns what the tape records.
    """

    __slots__ = ("inputs", "needs")
    kind: str
    inputs: tuple[Tensor, Tensor | None, Tensor | None]
    needs: tuple[bool, bool, bool]  # whose gradients are recorded
    steps = ()
    between = ()

    @property
    def head(self) -> Self:
        """Itself: the head of a chain without steps."""
        return self

    @abstractmethod
    def run(self, steps: tuple[Any, ...] = ()) -> Recording:
        """Run with the steps that follow."""


class Chain(Call):
    """A head and the steps that have followed it.

    A step has ``kind``, ``inputs``, ``fits(call)``, ``shape(before)`` and ``alone(x)``, which
    returns what the tape records.
    """

    __slots__ = ("between", "head", "state", "steps")

    def __init__(
        self,
        head: Head,
        steps: tuple[Any, ...],
        between: tuple[weakref.ref[Tensor], ...],
        state: str,
        shape: tuple[int, ...],
        requires_grad: bool,
    ) -> None:
        self.head, self.steps, self.between, self.state = head, steps, between, state
        self.shape, self.dtype, self.requires_grad = shape, head.dtype, requires_grad

    def run(self) -> Recording:
        """Run as one op, or continue from the last intermediate output that is still alive."""
        for i in range(len(self.between) - 1, -1, -1):
            x = self.between[i]()
            if x is not None:
                for step in self.steps[i:-1]:
                    x = recorded(step.alone(x), self.requires_grad)
                return self.steps[-1].alone(x)  # type: ignore[no-any-return]
        return self.head.run(self.steps)  # type: ignore[no-any-return]


def start(head: Head) -> Tensor:
    """Call the head of a chain."""
    head.requires_grad = requires_grad = True in head.needs
    if lazy.fuses and (lazy.state.call or all(t is None or t.is_own for t in head.inputs)):
        return defer(head, requires_grad)
    if (watcher := lazy.watcher) is not None:
        watcher.started(head)
    return recorded(head.run(), requires_grad)


def follow(x: Tensor, step: Any) -> Tensor | None:
    """Call a step on the output `x` of a chain; None where it can't follow."""
    before = x.deferred
    if not isinstance(before, Call):
        return None
    state = _NEXT.get((before.state, step.kind))
    if state is None or not step.fits(before):
        return None
    requires_grad = before.requires_grad or wants_grad(step.inputs)
    steps, between = (*before.steps, step), (*before.between, weakref.ref(x))
    shape = step.shape(before.shape)
    return defer(Chain(before.head, steps, between, state, shape, requires_grad), requires_grad)


def replace(x: Tensor, step: Any) -> Tensor | None:
    """Call a step on the output `x` of a chain in place; None where it can't follow.

    The tensor of a deferred call has no memory yet, so `x` becomes the new chain's output.
    """
    others = (reference() for reference in lazy.state.waiting)
    if any(t is not None and t.deferred is not None and t.deferred.reads(x) for t in others):
        return None
    held = x.twin()  # stands for `x` in the new chain, and is gone after this
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
    """A step that may follow what `_NEXT` allows, and keeps the shape."""

    __slots__ = ()
    kind: str
    inputs: Inputs = ()
    alone: Callable[[Tensor], Recording]  # runs it by itself

    def fits(self, call: Call) -> bool:
        """Whether it may follow this call."""
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

    def fits(self, call: Call) -> bool:  # noqa: D102
        return len(call.shape) == 4

    def shape(self, before: tuple[int, ...]) -> tuple[int, ...]:  # noqa: D102
        return ops.max_pool2d_shape(before, *self.window)  # type: ignore[arg-type]

    def alone(self, x: Tensor) -> Recording:  # noqa: D102
        images = x.images() if x.ndim == 4 else x.array()
        y, offsets = ops.max_pool2d_forward(images, *self.window)
        shape, window = images.shape, self.window[:4]

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
        y = prepared.add(x.array(), self.other.array())
        other = self.other.requires_grad
        return y, (x, self.other), lambda dy: (dy, dy.copy() if other else None), ()
