"""Hooks: functions that are called with a gradient in the backward pass, or by a module."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from fastlayers.autograd.tensor import Tensor

__all__ = ["RemovableHandle", "add", "hooked"]

_numbers = itertools.count()


class RemovableHandle:
    """What a registration returns: it removes the hook, also at the end of a ``with`` block."""

    def __init__(self, hooks: dict[int, Any], number: int) -> None:
        self._hooks, self.id = hooks, number

    def remove(self) -> None:
        """Stop calling the hook."""
        self._hooks.pop(self.id, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.remove()


def add(op: str, hooks: dict[int, Any], hook: Callable[..., Any], entry: Any) -> RemovableHandle:
    """Append the `entry` of a hook."""
    if not callable(hook):
        raise TypeError(f"{op}: hook must be callable, got {type(hook).__name__}")
    number = next(_numbers)
    hooks[number] = entry
    return RemovableHandle(hooks, number)


def hooked(hooks: Mapping[int, Callable[[Tensor], Any]], gradient: np.ndarray) -> np.ndarray:
    """The gradient that the hooks return: a new array, as a hook may change it in place."""
    from fastlayers.autograd.tensor import Tensor

    value = Tensor(np.array(gradient))
    for hook in tuple(hooks.values()):
        new = hook(value)
        if new is None:
            continue
        if not isinstance(new, Tensor):
            raise TypeError(
                f"register_hook: a hook must return a tensor or None, got {type(new).__name__}"
            )
        if (new.shape, new.dtype) != (value.shape, value.dtype):
            raise RuntimeError(
                f"register_hook: a hook must return a gradient of {gradient.dtype} and shape "
                f"{gradient.shape}, got {new.dtype} and {tuple(new.shape)}"
            )
        value = Tensor(np.array(new.array()))
    return value.array()
