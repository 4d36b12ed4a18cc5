"""Checks of arguments, with errors that name the class, the argument and what was given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.ops.check import plain, writable

__all__ = [
    "arrays",
    "flag",
    "fraction",
    "hint",
    "is_number",
    "is_parameter",
    "number",
    "parameter",
    "scalar",
    "whole_number",
]


def scalar(value: Any) -> Any:
    """The number in an array or tensor of one element; anything else as it is."""
    if hasattr(value, "item") and hasattr(value, "shape") and math.prod(value.shape) == 1:
        return value.item()
    return value


def is_number(value: Any) -> bool:
    """Whether `value`, or its only element, is a finite real number >= 0, not a bool."""
    if type(value) is float:  # an ABC check takes 0.5 us
        return 0 <= value < math.inf
    value = scalar(value)
    real = isinstance(value, Real) and not isinstance(value, bool)
    return real and math.isfinite(value) and value >= 0


def number(op: str, name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a finite number >= 0."""
    if not is_number(value):
        raise ValueError(f"{op}: {name} must be a finite number >= 0, got {value!r}")


def whole_number(op: str, name: str, value: Any, minimum: int = 1) -> None:
    """Raise ValueError unless `value` is an integer of at least `minimum`."""
    if isinstance(value, bool) or not isinstance(value, Integral) or int(value) < minimum:
        raise ValueError(f"{op}: {name} must be an integer >= {minimum}, got {value!r}")


def fraction(op: str, name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a number in [0, 1]."""
    if not is_number(value) or value > 1:
        raise ValueError(f"{op}: {name} must be a number in [0, 1], got {value!r}")


def hint(op: str, name: str, value: Any) -> None:
    """Raise ValueError if an option of PyTorch's asks for anything that is not done here."""
    if name in ("foreach", "fused"):  # which of its loops PyTorch takes
        if value is not None and not isinstance(value, bool):
            raise ValueError(f"{op}: {name} must be a bool or None, got {value!r}")
    elif value is not False:
        raise ValueError(f"{op}: {name} must be False, the only choice here, got {value!r}")


def flag(op: str, name: str, value: Any) -> None:
    """Raise ValueError unless `value` is a bool."""
    if not isinstance(value, bool):
        raise ValueError(f"{op}: {name} must be a bool, got {value!r}")


def is_parameter(item: Any) -> bool:
    """Whether `item` is a tensor."""
    return isinstance(item, Tensor)


def parameter(op: str, item: Any) -> None:
    """Raise TypeError unless `item` is a floating-point parameter, ValueError if an op made it."""
    if not is_parameter(item):
        raise TypeError(f"{op}: params must hold parameters, got {type(item).__name__}")
    if item.dtype not in (np.float32, np.float64):
        raise TypeError(f"{op}: params must be float32 or float64, got {item.dtype}")
    if not item.is_leaf:
        raise ValueError(f"{op}: params must be leaves, got the result of an op")


def arrays(op: str, p: Any, state: Mapping[str, Any]) -> None:
    """Raise an error unless `p` can be updated with its gradient and the arrays of its state."""
    data = p.array()
    for name, array in ({"params": data, "grad": p.grad_array()} | dict(state)).items():
        if name == "step":
            continue
        if not isinstance(array, np.ndarray):
            raise TypeError(f"{op}: {name} must be an array, got {type(array).__name__}")
        plain(op, name, array)
        if name != "grad":
            writable(op, name, array)
        if array.shape != data.shape or array.dtype != data.dtype:
            raise ValueError(
                f"{op}: {name} must be {data.dtype} of shape {data.shape} as its parameter is, "
                f"got {array.dtype} of shape {array.shape}"
            )
