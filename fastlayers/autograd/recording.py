"""How an op gets the arrays of its arguments, and what it gives becomes a tensor."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers import lazy
from fastlayers.autograd import mode
from fastlayers.autograd.tape import Backward, node_of
from fastlayers.autograd.tensor import Tensor, unfilled

__all__ = [
    "Recording",
    "arrays",
    "changed",
    "constant",
    "defer",
    "record",
    "tensor",
    "tensors",
    "wants_grad",
]

# What an op that ran is recorded by: its output, its inputs, the way back, and what of these that
# needs: inputs and `OUTPUT`.
Recording = tuple[np.ndarray, tuple[Tensor | None, ...], Backward, tuple[Any, ...]]


def tensor(value: Any) -> Tensor:
    """An input as a tensor."""
    if isinstance(value, Tensor):
        return value
    # An int alone would be a size.
    return Tensor(np.asarray(value) if isinstance(value, int) else value)


def tensors(*values: Any) -> Any:
    """The inputs of an op as tensors, None for those that are not given."""
    for value in values:
        if value is not None and not isinstance(value, Tensor):
            return tuple(None if value is None else tensor(value) for value in values)
    return values


def arrays(inputs: Sequence[Tensor | None]) -> list[Any]:
    """The values of an op's inputs, None for those that are not given."""
    found: list[Any] = []
    for t in inputs:
        found.append(None if t is None else t._array if t.deferred is None else t.array())
    return found


def changed(*values: Any) -> None:
    """Count a change of the values of those that are tensors."""
    for value in values:
        if isinstance(value, Tensor) and value._storage is not None:
            value._storage.version += 1


def constant(op: str, name: str, value: Any) -> Any:
    """The array of an argument that gets no gradient."""
    if not isinstance(value, Tensor):
        return value
    if value.requires_grad and mode.thread.enabled:
        raise ValueError(
            f"{op}: {name} must not require a gradient, which is not computed by it, got a tensor "
            f"that does; {name}.detach() does not"
        )
    return value._array if value.deferred is None else value.array()


def record(
    data: np.ndarray,
    inputs: tuple[Tensor | None, ...],
    backward: Backward,
    *,
    saved: tuple[Any, ...] | None = None,
    requires_grad: bool | None = None,
    fresh: bool = False,
) -> Tensor:
    """The tensor of an op's output, with a node on the tape where a gradient is required.

    Parameters
    ----------
    data : ndarray
        The output.
    inputs : tuple of Tensor or None
    backward : callable
        From the output's gradient to one for each input, None where it isn't required.
    saved : tuple, optional
        The inputs, and `OUTPUT`, whose values `backward` reads: where they are changed in place
        before, it is not called. All inputs by default.
    requires_grad : bool, optional
        Whether the output requires a gradient, where an earlier call has found it out.
    fresh : bool
        The gradients and the output are arrays of their own, which share no memory, and the
        gradients have the shapes and dtypes of the inputs; otherwise that is checked.

    Returns
    -------
    Tensor
    """
    if (watcher := lazy.watcher) is not None:
        backward = watcher.recorded(data, inputs, backward)
    if requires_grad is None:
        requires_grad = wants_grad(inputs)
    out = unfilled(requires_grad, fresh)
    out._array = data
    if requires_grad:
        out._node = node_of(out, inputs, backward, inputs if saved is None else saved, fresh)
    return out


def defer(deferred: lazy.Deferred, requires_grad: bool) -> Tensor:
    """The tensor of a call that runs when its values are first used."""
    out = unfilled(requires_grad, True)
    out.deferred = deferred
    waiting = lazy.state.waiting
    if len(waiting) >= 64:  # of a program without modules and gradients, which never empties it
        lazy.prune(waiting)
    waiting.append(weakref.ref(out))
    if (watcher := lazy.watcher) is not None:
        watcher.deferred(deferred)
    return out


def wants_grad(inputs: Sequence[Tensor | None]) -> bool:
    """Whether an op of these inputs is to be recorded."""
    if mode.thread.enabled:
        for t in inputs:
            if t is not None and t.requires_grad:
                return True
    return False
