"""Argument checks of the ops: each error names op, argument, what was expected and given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.runtime import memory

__all__ = [
    "array",
    "describe",
    "epsilon",
    "gradient",
    "integer",
    "is_relu",
    "labels",
    "number",
    "one_of",
    "pair",
    "possible",
    "probability",
    "same_dtype",
    "same_shape",
    "vector",
]

IntPair = int | Sequence[int]
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
# Of an option in pixels: sums and products of two are 64-bit integers.
LARGEST = 2**31 - 1


def describe(value: Any) -> str:
    """What was given, in words: dtype and shape of an array, type and value of the rest."""
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {value.shape}"
    return f"{type(value).__name__} {value!r}"


def array(op: str, name: str, value: Any, ndims: Sequence[int] | None = None) -> np.ndarray:
    """`value` as a plain float32 or float64 array in native byte order."""
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{op}: {name} must be a NumPy array, got {describe(value)}")
    if value.dtype not in _FLOATS:
        native = value.dtype.newbyteorder("=")
        if native not in _FLOATS:
            raise TypeError(f"{op}: {name} must be float32 or float64, got {describe(value)}")
        value = np.asarray(value.astype(native))
    if ndims is not None and value.ndim not in ndims:
        wanted = " or ".join(str(n) for n in ndims)
        raise ValueError(f"{op}: {name} must have {wanted} dimensions, got {describe(value)}")
    return value if type(value) is np.ndarray else np.asarray(value)


def vector(op: str, name: str, value: Any, size: int, dtype: np.dtype) -> np.ndarray:
    """`value` as a contiguous array of shape (size,) and of the input's dtype."""
    value = array(op, name, value)
    if value.shape != (size,):
        raise ValueError(f"{op}: {name} must have shape ({size},), got {describe(value)}")
    same_dtype(op, name, value, dtype)
    return np.ascontiguousarray(value)


def same_dtype(op: str, name: str, value: np.ndarray, dtype: np.dtype) -> None:
    if value.dtype != dtype:
        raise TypeError(f"{op}: {name} must be {dtype} as the input is, got {describe(value)}")


def same_shape(op: str, name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    if value.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {describe(value)}")


def gradient(op: str, value: Any, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """The output's gradient, checked against the output's shape and dtype."""
    dy = array(op, "grad_output", value)
    same_shape(op, "grad_output", dy, shape)
    same_dtype(op, "grad_output", dy, dtype)
    return dy


def possible(op: str, name: str, shape: tuple[int, ...], itemsize: int) -> None:
    """Refuse an array that the machine cannot hold, before tables are made for it."""
    nbytes = math.prod(shape) * itemsize
    if nbytes > memory.largest():
        raise MemoryError(f"{op}: {name} must fit into memory, got {shape}, {nbytes} bytes")


def integer(op: str, name: str, value: Any, least: int, most: float = math.inf) -> int:
    if type(value) is int:
        number = value
    elif isinstance(value, np.integer):
        number = int(value)
    else:
        raise TypeError(f"{op}: {name} must be an integer, got {describe(value)}")
    if number < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {number}")
    if number > most:
        raise ValueError(f"{op}: {name} must be at most {most}, got {number}")
    return number


def pair(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """An integer, or a pair of (height, width), as a pair."""
    if type(value) is not tuple or len(value) != 2:  # layers keep one; an ABC check takes 0.5 us
        if isinstance(value, (int, np.integer)):
            number = integer(op, name, value, least, LARGEST)
            return number, number
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise TypeError(f"{op}: {name} must be an integer or a pair, got {describe(value)}")
    first, second = value
    return integer(op, name, first, least, LARGEST), integer(op, name, second, least, LARGEST)


def one_of(op: str, name: str, value: Any, choices: Sequence[str]) -> None:
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")


def is_relu(op: str, activation: Any) -> bool:
    """Whether the activation is a ReLU; None is the only other one."""
    if activation is None:
        return False
    one_of(op, "activation", activation, ("relu",))
    return True


def number(op: str, name: str, value: Any) -> float:
    """Any real number, NaN and infinity included."""
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{op}: {name} must be a number, got {describe(value)}")
    return float(value)


def probability(op: str, name: str, value: Any) -> float:
    """A number in [0, 1]."""
    if type(value) is float and 0.0 <= value <= 1.0:
        return value
    share = number(op, name, value)
    if not 0 <= share <= 1:
        raise ValueError(f"{op}: {name} must be in [0, 1], got {value!r}")
    return share


def epsilon(op: str, name: str, value: Any) -> float:
    """A finite number that is not negative."""
    if type(value) is float and 0.0 <= value < np.inf:
        return value
    small = number(op, name, value)
    if not 0 <= small < np.inf:
        raise ValueError(f"{op}: {name} must be finite and at least 0, got {value!r}")
    return small


def labels(
    op: str, target: Any, shape: tuple[int, ...], classes: int, ignore_index: int
) -> np.ndarray:
    """Class indices as a contiguous int64 array, each in [0, classes) or `ignore_index`."""
    if not isinstance(target, np.ndarray) or target.dtype.kind not in "iu":
        raise TypeError(
            f"{op}: target must be an integer array of class indices, got {describe(target)}"
        )
    same_shape(op, "target", target, shape)
    if target.size and (target.min() < 0 or target.max() >= classes):
        # Compared in its own type: a large uint64 would wrap around in int64.
        wrong = ((target < 0) | (target >= classes)) & (target != ignore_index)
        if wrong.any():
            raise ValueError(
                f"{op}: target must be in [0, {classes}) or {ignore_index} (ignore_index), "
                f"got {target[wrong].flat[0]}"
            )
    return np.ascontiguousarray(target, np.int64)
