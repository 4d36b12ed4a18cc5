"""The dtype of a result of several operands, by PyTorch's rules.

Kinds rank bool < int < float. A tensor with axes decides alone, unless a 0-d tensor or a number is
of a higher kind; a 0-d tensor decides unless a number is of a higher kind.
https://docs.pytorch.org/docs/stable/tensor_attributes.html#type-promotion-doc
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.autograd.types import RANKS
from fastlayers.autograd.values import as_array

__all__ = ["common", "floating", "number", "operand", "promote"]

_NUMBERS = ((bool, np.dtype(np.bool_)), (int, np.dtype(np.int64)), (float, np.dtype(np.float32)))


def floating(x: np.ndarray) -> np.ndarray:
    """Floating point values: integers become float32, PyTorch's default."""
    return x if x.dtype.kind == "f" else x.astype(np.float32)


def promote(a: np.dtype, b: np.dtype) -> np.dtype:
    """The smallest dtype that holds both, where integers with float32 stay float32."""
    if a == b:
        return a
    ranks = RANKS[a.kind], RANKS[b.kind]
    if 2 in ranks and ranks[0] != ranks[1]:
        return a if ranks[0] == 2 else b
    return np.promote_types(a, b)


def _combine(higher: np.dtype | None, lower: np.dtype | None) -> np.dtype | None:
    if higher is None or lower is None:
        return lower if higher is None else higher
    return promote(higher, lower) if RANKS[higher.kind] < RANKS[lower.kind] else higher


def operand(op: str, name: str, value: Any) -> Any:
    """A tensor, or the Python number or array that a tensor is computed with.

    Raises
    ------
    TypeError
        If it is none of these, or not numeric.
    """
    if isinstance(value, Tensor):
        return value
    if isinstance(value, (bool, int, float)):
        return value if type(value) in (bool, int, float) else float(value)
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (np.ndarray, list, tuple)):
        array = as_array(value)
        if array.dtype.kind in RANKS:
            return Tensor(array)
    raise TypeError(f"{op}: {name} must be a tensor or a number, got {type(value).__name__}")


def number(value: Any, dtype: np.dtype) -> np.ndarray:
    """A Python number in `dtype`; a negative one of an unsigned dtype wraps around."""
    return np.asarray(value).astype(dtype)


def common(operands: tuple[Any, ...]) -> np.dtype:
    """The dtype that the operands, tensors or Python numbers, are computed in."""
    with_axes = without = number = None
    for x in operands:
        if isinstance(x, Tensor):
            dtype = x.dtype
            if x.ndim:
                with_axes = dtype if with_axes is None else promote(with_axes, dtype)
            else:
                without = dtype if without is None else promote(without, dtype)
        else:
            dtype = next(dtype for kind, dtype in _NUMBERS if isinstance(x, kind))
            number = dtype if number is None else promote(number, dtype)
    return _combine(with_axes, _combine(without, number))  # type: ignore[return-value]
