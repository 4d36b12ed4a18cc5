"""Arrays of the values that callers give: tensors, arrays, numbers, lists."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.facts import Facts
from fastlayers.ops.check import plain

__all__ = ["as_array"]


def as_array(value: Any) -> np.ndarray:
    """The values of a tensor, an array or numbers; Python floats become float32."""
    if isinstance(value, Facts):
        return value.array()
    if type(value) is np.ndarray:
        return value
    if isinstance(value, np.ndarray):  # a subclass, such as a memory map
        return plain("Tensor", "data", value)
    if isinstance(value, (list, tuple)) and _holds_tensors(value):
        value = _values(value)
        return np.asarray(value)
    array = np.asarray(value)
    is_python = not isinstance(value, np.generic)
    return array.astype(np.float32) if is_python and array.dtype == np.float64 else array


def _holds_tensors(values: Any) -> bool:
    while isinstance(values, (list, tuple)) and values:
        values = values[0]
    return isinstance(values, Facts)


def _values(values: Any) -> Any:
    """Nested lists of tensors, as NumPy reads them."""
    if isinstance(values, (list, tuple)):
        return [_values(value) for value in values]
    return as_array(values)
