"""Checks of arguments, with errors that name the function, the argument and what was given."""

from collections.abc import Iterable, Sequence
from typing import Any, SupportsIndex, TypeVar

import numpy as np
from numpy.typing import NDArray

T = TypeVar("T")
Indices = SupportsIndex | slice | Sequence[int] | NDArray[np.integer[Any]]


def whole_number(function: str, argument: str, value: int, minimum: int) -> int:
    """Return `value` as an int; ValueError if it is not one, or below `minimum`, 0 or 1."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < minimum:
        kind = "positive" if minimum else "non-negative"
        raise ValueError(f"{function}: {argument} must be a {kind} integer, got {value!r}")
    return int(value)


def as_indices(function: str, argument: str, indices: Iterable[int]) -> NDArray[np.int64]:
    """Turn an iterable of ints into an int64 array (M,); TypeError for anything else."""
    array = np.asarray(indices if isinstance(indices, np.ndarray) else list(indices))
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise TypeError(
            f"{function}: {argument} must be a sequence of integers, "
            f"got {array.dtype} of shape {array.shape}"
        )
    return array.astype(np.int64)


def first_axis_index(function: str, index: Indices, length: int) -> int | slice | NDArray[Any]:
    """Return `index` in a form that NumPy applies to the first axis only, of the given length."""
    if isinstance(index, slice):
        return index
    array = np.asarray(index)
    if array.ndim == 1 and array.size == 0:  # an empty list is float64 to NumPy
        return array.astype(np.int64)
    if array.ndim > 1 or array.dtype.kind not in "iu":
        raise TypeError(
            f"{function}: index must be an integer, a slice or a 1-d integer array, "
            f"got {type(index).__name__} of dtype {array.dtype} and shape {array.shape}"
        )
    if array.min() < -length or array.max() >= length:
        wrong = array[(array < -length) | (array >= length)].flat[0]
        raise IndexError(f"{function}: index must be in [{-length}, {length}), got {wrong}")
    return array if array.ndim else int(array)


def true_or_false(function: str, argument: str, value: bool) -> bool:
    """Return `value`; TypeError if it is not a bool."""
    if not isinstance(value, bool | np.bool_):
        raise TypeError(f"{function}: {argument} must be True or False, got {value!r}")
    return bool(value)


def callable_or_none(function: str, argument: str, value: T) -> T:
    """Return `value`; TypeError if it is neither callable nor None."""
    if value is not None and not callable(value):
        raise TypeError(f"{function}: {argument} must be a function or None, got {value!r}")
    return value
