"""What a function of tensors becomes: a method, an operator, and what NumPy's function does."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.tensor import Tensor

__all__ = [
    "NUMPY",
    "Function",
    "alias",
    "by_torch_names",
    "method",
    "numpy_names",
    "operator",
    "register",
]

Function = Callable[..., Tensor]
Named = TypeVar("Named", bound=Callable[..., Any])
# What NumPy's functions do to tensors (`fastlayers.functions.numpy_protocol`).
NUMPY: dict[Any, Callable[..., Any]] = {}
_TORCH_NAMES = {"axis": "dim", "keepdims": "keepdim"}


def method(function: Callable[..., Any], *names: str) -> None:
    """Make a function a method of `Tensor`."""
    for name in names:
        setattr(Tensor, name, function)


def alias(name: str, *others: str) -> None:
    """Give the methods `name` and `name_` other names."""
    for other in others:
        for suffix in ("", "_"):
            if hasattr(Tensor, name + suffix):
                method(getattr(Tensor, name + suffix), other + suffix)


def register(
    name: str, function: Function, numpy: Any = None, *, in_place: bool = True, symbol: str = ""
) -> Function:
    """Make a function a method, what NumPy's function does to tensors, and an operator.

    With `in_place` there is a method `name_` too, and the operator's in-place form.
    """
    function.__name__ = function.__qualname__ = name
    function.__module__ = "fastlayers"
    method(function, name)
    if numpy is not None:
        NUMPY[numpy] = function
    if in_place:
        method(_in_place(function), f"{name}_")
    if symbol:
        method(operator(function), f"__{symbol}__")
        method(operator(function, swapped=True), f"__r{symbol}__")
        if in_place:
            method(_in_place(function), f"__i{symbol}__")
    return function


def _in_place(function: Function) -> Function:
    name = f"{function.__name__}_"

    def changed(self: Tensor, *args: Any, **options: Any) -> Tensor:
        return inplace.apply(name, function, self, *args, **options)

    changed.__name__ = changed.__qualname__ = name
    changed.__doc__ = f"`{function.__name__}`, in place."
    return changed


def operator(function: Function, swapped: bool = False) -> Callable[..., Any]:
    """The operator of a function, which leaves operands that it does not know to others."""

    def apply(self: Tensor, other: Any) -> Any:
        if not isinstance(other, (Tensor, bool, int, float, np.ndarray, np.generic, list, tuple)):
            return NotImplemented
        return function(other, self) if swapped else function(self, other)

    return apply


def by_torch_names(options: dict[str, Any]) -> dict[str, Any]:
    """Options with PyTorch's names where NumPy's were given."""
    return {_TORCH_NAMES.get(name, name): value for name, value in options.items()}


def numpy_names(function: Named) -> Named:
    """Let a function take `axis` and `keepdims` for `dim` and `keepdim`, as PyTorch's do."""

    @functools.wraps(function)
    def call(*args: Any, **options: Any) -> Any:
        return function(*args, **(by_torch_names(options) if options else options))

    return call  # type: ignore[return-value]
