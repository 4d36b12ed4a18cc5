"""Argument checks of the ops: each error names op, argument, what was expected and given."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.runtime import memory

__all__ = [
    "array",
    "describe",
    "device",
    "epsilon",
    "finite",
    "float_type",
    "gradient",
    "integer",
    "is_device",
    "is_relu",
    "labels",
    "needs",
    "number",
    "offsets",
    "one_of",
    "pair",
    "plain",
    "possible",
    "probability",
    "same_dtype",
    "same_shape",
    "scalar",
    "shape",
    "vector",
    "writable",
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


def plain(op: str, name: str, value: Any) -> np.ndarray:
    """`value` as an array of NumPy's own class, on the same memory."""
    if type(value) is np.ndarray:
        return value
    if not isinstance(value, np.ndarray):
        raise TypeError(f"{op}: {name} must be a NumPy array, got {describe(value)}")
    if isinstance(value, np.ma.MaskedArray):  # nothing here would heed the mask
        raise TypeError(
            f"{op}: {name} must have no mask, got a masked {describe(value)}; fill it first"
        )
    return np.asarray(value)


def array(op: str, name: str, value: Any, ndims: Sequence[int] | None = None) -> np.ndarray:
    """`value` as a plain float32 or float64 array in native byte order."""
    x: np.ndarray = value if type(value) is np.ndarray else plain(op, name, value)
    if x.dtype not in _FLOATS:
        native = x.dtype.newbyteorder("=")
        if native not in _FLOATS:
            raise TypeError(f"{op}: {name} must be float32 or float64, got {describe(value)}")
        x = x.astype(native)
    if ndims is not None and x.ndim not in ndims:
        wanted = " or ".join(str(n) for n in ndims)
        raise ValueError(f"{op}: {name} must have {wanted} dimensions, got {describe(value)}")
    return x


def vector(op: str, name: str, value: Any, size: int, dtype: np.dtype) -> np.ndarray:
    """`value` as a contiguous array of shape (size,) and of the input's dtype."""
    value = array(op, name, value)
    if value.shape != (size,):
        raise ValueError(f"{op}: {name} must have shape ({size},), got {describe(value)}")
    same_dtype(op, name, value, dtype)
    return np.ascontiguousarray(value)


def same_dtype(op: str, name: str, value: np.ndarray, dtype: np.dtype) -> None:
    """Raise TypeError unless the dtype is that of another argument."""
    if value.dtype != dtype:
        hint = ""
        if name != "grad_output" and value.dtype in _FLOATS:  # a layer's; what is fed is converted
            kind = "float" if value.dtype == np.float32 else "double"
            hint = f"; input.{kind}(), or .astype(np.{value.dtype}) of an array, converts the input"
        raise TypeError(
            f"{op}: {name} must be {dtype} as the input is, got {describe(value)}{hint}"
        )


def same_shape(op: str, name: str, value: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless the value has the given shape."""
    if value.shape != shape:
        raise ValueError(f"{op}: {name} must have shape {shape}, got {describe(value)}")


def float_type(op: str, name: str, value: Any) -> np.dtype:
    """The dtype that `value` names, float32 or float64."""
    dtype: np.dtype | None = None
    with contextlib.suppress(TypeError):
        dtype = None if value is None else np.dtype(value)
    if dtype is None or dtype not in _FLOATS:
        raise TypeError(f"{op}: {name} must be float32 or float64, got {value!r}")
    return dtype


def is_device(value: Any) -> bool:
    """Whether `value` names a device, rather than a dtype: text as "cuda:0", or what has a type."""
    name = getattr(value, "type", value)
    kinds = ("cpu", "cuda", "mps", "xpu", "meta", "mkldnn", "hip", "xla")
    return isinstance(name, str) and name.partition(":")[0] in kinds


def device(op: str, value: Any) -> None:
    """Raise RuntimeError, as PyTorch does, unless `value` is None or names the only device."""
    name = getattr(value, "type", value)
    if value is not None and not (isinstance(name, str) and name.partition(":")[0] == "cpu"):
        raise RuntimeError(
            f"{op}: device must be 'cpu', the only device, got {str(value)!r} (there is no CUDA: "
            f"cuda.is_available() is False)"
        )


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


def scalar(value: Any) -> Any:
    """The number in an array or tensor without dimensions; anything else as it is."""
    return value.item() if getattr(value, "shape", None) == () else value


def integer(op: str, name: str, value: Any, least: int, most: float = math.inf) -> int:
    """An integer within bounds, also as a NumPy or tensor scalar, as an int."""
    if type(value) is int:
        number = value
    elif isinstance(value, np.integer):
        number = int(value)
    elif type(value) is not type(element := scalar(value)):
        return integer(op, name, element, least, most)
    else:
        raise TypeError(f"{op}: {name} must be an integer, got {describe(value)}")
    if number < least:
        raise ValueError(f"{op}: {name} must be at least {least}, got {number}")
    if number > most:
        raise ValueError(f"{op}: {name} must be at most {most}, got {number}")
    return number


def pair(op: str, name: str, value: Any, least: int) -> tuple[int, int]:
    """An integer, alone or in a sequence, or a pair of (height, width), as a pair."""
    if type(value) is not tuple or len(value) != 2:  # layers keep one; an ABC check takes 0.5 us
        value = scalar(value)
        if isinstance(value, (tuple, list)) and len(value) == 1:
            value = scalar(value[0])
        if isinstance(value, (int, np.integer)):
            number = integer(op, name, value, least, LARGEST)
            return number, number
        if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
            raise TypeError(f"{op}: {name} must be an integer or a pair, got {describe(value)}")
    first, second = value
    return integer(op, name, first, least, LARGEST), integer(op, name, second, least, LARGEST)


def needs(op: str, value: Any, *lengths: int) -> Any:
    """Which gradients are wanted, for so many arguments."""
    if not isinstance(value, (tuple, list)) or len(value) not in lengths:
        wanted = " or ".join(map(str, lengths))
        raise TypeError(f"{op}: needs must be {wanted} bools, got {describe(value)}")
    return tuple(map(bool, value))


def shape(op: str, value: Any) -> tuple[int, ...]:
    """An input's shape, for the gradient by it."""
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{op}: input_shape must be a tuple of integers, got {describe(value)}")
    for size in value:
        if type(size) is not int or size < 0:  # of an array they are; the other check takes 0.7 us
            return tuple(integer(op, "input_shape", size, 0) for size in value)
    return tuple(value)


def one_of(op: str, name: str, value: Any, choices: Sequence[str]) -> None:
    """Raise ValueError unless it is one of these strings."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"{op}: {name} must be one of {', '.join(choices)}, got {value!r}")


def is_relu(op: str, activation: Any) -> bool:
    """Whether the activation is a ReLU; None is the only other one."""
    if activation is None:
        return False
    one_of(op, "activation", activation, ("relu",))
    return True


def number(op: str, name: str, value: Any) -> float:
    """Any real number, NaN and infinity included; also the element of an array of no dimension."""
    value = scalar(value)
    if isinstance(value, bool) or not isinstance(value, (int, float, np.floating, np.integer)):
        raise TypeError(f"{op}: {name} must be a number, got {describe(value)}")
    return float(value)


def finite(op: str, name: str, value: Any) -> float:
    """A number that is neither infinite nor NaN."""
    if type(value) is float and math.isfinite(value):
        return value
    if not math.isfinite(x := number(op, name, value)):
        raise ValueError(f"{op}: {name} must be finite, got {value!r}")
    return x


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


def writable(op: str, name: str, value: np.ndarray) -> None:
    """Raise ValueError unless each element has a place of its own that can be written to."""
    apart = all(stride or size < 2 for size, stride in zip(value.shape, value.strides, strict=True))
    if not (value.flags.writeable and apart):
        raise ValueError(
            f"{op}: {name} must be writable, got a read-only array or one that repeats its "
            f"elements, {describe(value)}"
        )


def labels(
    op: str, target: Any, shape: tuple[int, ...], classes: int, ignore_index: int
) -> np.ndarray:
    """Class indices as a contiguous int64 array, each in [0, classes) or `ignore_index`."""
    if not isinstance(target, np.ndarray) or target.dtype.kind not in "iu":
        raise TypeError(
            f"{op}: target must be an integer array of class indices, got {describe(target)}"
        )
    target = plain(op, "target", target)
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


def offsets(op: str, value: Any, shape: tuple[int, ...]) -> np.ndarray:
    """The cells that hold the maxima of windows, as pooling forward gave them."""
    dtype = getattr(value, "dtype", np.dtype(float))
    if dtype.kind != "u" or dtype.itemsize not in (1, 4):
        raise TypeError(
            f"{op}: offsets must be uint8 or uint32, as pooling forward gives them, "
            f"got {describe(value)}"
        )
    cells = plain(op, "offsets", value)
    same_shape(op, "offsets", cells, shape)
    return cells if cells.dtype.isnative else cells.astype(cells.dtype.newbyteorder("="))
