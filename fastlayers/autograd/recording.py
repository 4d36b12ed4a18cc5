"""From the arguments of an op to arrays, and from its output to a recorded tensor."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers import lazy
from fastlayers.autograd import mode
from fastlayers.autograd.tape import Backward, Node
from fastlayers.autograd.tensor import Tensor

__all__ = [
    "Recording",
    "arguments",
    "changed",
    "constants",
    "defer",
    "record",
    "tensor",
    "wants_grad",
]

# How an op that ran is recorded: its output, its inputs, its backward function, and those of the
# inputs, and `OUTPUT`, that it reads.
Recording = tuple[np.ndarray, tuple[Tensor | None, ...], Backward, tuple[Any, ...]]


def tensor(value: Any) -> Tensor:
    """An input as a tensor."""
    if isinstance(value, Tensor):
        return value
    # `Tensor` takes an int for a size.
    return Tensor(np.asarray(value) if isinstance(value, int) else value)


def arguments(*values: Any) -> tuple[Any, list[Any], Any]:
    """The inputs of an op as tensors, their arrays, and which gradients are to be recorded.

    An input that is not given, None, stays None. It loops, as a comprehension is a call.
    """
    for value in values:
        if value is not None and not isinstance(value, Tensor):
            values = tuple(None if value is None else tensor(value) for value in values)
            break
    records, arrays, needs = mode.thread.enabled, list[Any](), list[bool]()
    for t in values:
        if t is None:
            arrays.append(None)
            needs.append(False)
        else:
            arrays.append(t._array if t.deferred is None else t.array())
            needs.append(records and t.requires_grad)
    return values, arrays, tuple(needs)


def changed(*values: Any) -> None:
    """Count a change of the values of those that are tensors."""
    for value in values:
        if isinstance(value, Tensor) and value._storage is not None:
            value._storage.version += 1


def constants(op: str, **values: Any) -> list[Any]:
    """The arrays of arguments that get no gradient."""
    found = []
    for name, value in values.items():
        if not isinstance(value, Tensor):
            found.append(value)
            continue
        if value.requires_grad and mode.thread.enabled:
            raise ValueError(
                f"{op}: {name} must not require a gradient, which is not computed by it, got a "
                f"tensor that does; {name}.detach() does not"
            )
        found.append(value._array if value.deferred is None else value.array())
    return found


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
        Whether the output requires a gradient, where that is known already.
    fresh : bool
        The gradients and the output share no memory, and the gradients have the shapes and dtypes
        of the inputs; otherwise that is checked.

    Returns
    -------
    Tensor
    """
    if (watcher := lazy.watcher) is not None:
        backward = watcher.recorded(data, inputs, backward)
    if requires_grad is None:
        requires_grad = wants_grad(inputs)
    out = Tensor.__new__(Tensor)  # as `unfilled`, without its call
    out._array, out.requires_grad, out.is_own = data, requires_grad, fresh
    out._node = out._grad = out._storage = out.deferred = None
    if requires_grad:
        kept = inputs if saved is None else saved
        out._node = Node(inputs, backward, kept, out, is_fresh=fresh)
    return out


def defer(deferred: lazy.Deferred, requires_grad: bool) -> Tensor:
    """The tensor of a call that runs when its values are first used."""
    out = Tensor.__new__(Tensor)  # as `unfilled`, without its call
    out._array = out._node = out._grad = out._storage = None
    out.deferred, out.requires_grad, out.is_own = deferred, requires_grad, True
    waiting = lazy.state.waiting
    if len(waiting) >= 64:  # a program without modules and gradients never empties it
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
