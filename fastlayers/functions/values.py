"""The arrays from which new tensors are made, and checks of their options."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.shape import sizes
from fastlayers.ops import check
from fastlayers.ops.check import plain

__all__ = ["array_of", "dtype_of", "made", "number", "of_size", "scalar", "size_of"]

KINDS = "biuf"


def dtype_of(op: str, dtype: Any, default: Any = np.float32) -> np.dtype:
    """The dtype that an argument names; None means the default.

    Raises
    ------
    TypeError
        If it is not a dtype of numbers or booleans.
    """
    found: np.dtype
    try:
        found = np.dtype(default if dtype is None else dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in KINDS:
        raise TypeError(f"{op}: dtype must be one of numbers or bool, got {dtype!r}")
    return found


def made(
    op: str,
    array: np.ndarray,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """The tensor of a new array.

    Raises
    ------
    RuntimeError
        For another device, or if gradients of values that are not floating point are requested.
    """
    check.device(op, device)
    if requires_grad and array.dtype.kind != "f":
        raise RuntimeError(
            f"{op}: only tensors of floating point dtype can require gradients, got {array.dtype}"
        )
    out = Tensor(array, requires_grad=bool(requires_grad))
    out.is_own = True
    return out


def scalar(op: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """A number as an array of a given dtype.

    Raises
    ------
    RuntimeError
        If an integer dtype does not hold it; unsigned ones wrap negative numbers.
    """
    number = value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value
    if dtype.kind not in "iu":
        with np.errstate(all="ignore"):
            return np.asarray(number).astype(dtype)
    info = np.iinfo(dtype)
    least = -int(info.max) if dtype.kind == "u" else int(info.min)
    if not math.isfinite(number) or not least <= int(number) <= info.max:
        raise RuntimeError(
            f"{op}: value must fit {dtype}, got {number} (value cannot be converted to type "
            f"{dtype} without overflow)"
        )
    return np.asarray(int(number) % 2 ** (8 * dtype.itemsize)).astype(dtype)


def _leaf(data: Any) -> Any:
    """The first element of nested lists."""
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return data


def _is_pythons(data: Any) -> bool:
    """Whether nested lists hold only Python numbers."""
    if isinstance(data, (list, tuple)):
        return all(_is_pythons(part) for part in data)
    return not isinstance(data, (Tensor, np.ndarray, np.generic))


def _bare(data: Any) -> Any:
    """Nested lists, with arrays in place of tensors."""
    if isinstance(data, (list, tuple)):
        return [_bare(part) for part in data]
    return data.array() if isinstance(data, Tensor) else data


def array_of(op: str, data: Any, dtype: Any, *, copy: bool | None) -> np.ndarray:
    """The values of tensors, arrays, numbers and nested lists of these.

    Raises
    ------
    TypeError, ValueError
        If they are not numbers, or lists of different lengths.
    RuntimeError
        If an integer is too large.
    """
    wanted = None if dtype is None else dtype_of(op, dtype)
    values = data.settled() if isinstance(data, Tensor) else data
    if isinstance(values, np.ndarray):
        values = plain(op, "data", values)  # of no mask
    elif not isinstance(values, np.generic):
        values = _read(op, values)
    array = np.asarray(values)
    if array.dtype.kind not in KINDS:
        raise TypeError(
            f"{op}: data must be numbers or booleans, got {type(data).__name__} of {array.dtype}"
        )
    wanted = wanted or array.dtype.newbyteorder("=")
    if wanted.kind in "iu" and array.ndim == 0 and not isinstance(data, (Tensor, np.ndarray)):
        return scalar(op, array, wanted)
    with np.errstate(all="ignore"):
        return np.array(array, wanted, copy=copy)


def _read(op: str, data: Any) -> np.ndarray:
    """The array of a number or nested lists; Python's floats are float32."""
    try:
        try:
            array = np.asarray(data)
        except RuntimeError:  # of a tensor that requires a gradient
            array = np.asarray(_bare(data))
    except ValueError as error:
        raise ValueError(
            f"{op}: data must be nested lists of one length (expected sequence of one length at "
            f"each dim), got others: {error}"
        ) from None
    if array.dtype.kind == "O" and isinstance(_leaf(data), Tensor):
        array = np.asarray(_bare(data))
    if array.dtype == np.float64 and _is_pythons(data):
        array = array.astype(np.float32)
    if array.dtype.kind == "O" and array.size and isinstance(_leaf(data), int):
        raise ValueError(f"{op}: data must fit 64-bit integers, got a larger one (overflow)")
    if array.dtype == np.uint64 and isinstance(_leaf(data), int):
        raise ValueError(f"{op}: data must fit int64, got a larger integer (overflow)")
    return array


def size_of(op: str, given: tuple[Any, ...], size: Any = None) -> tuple[int, ...]:
    """The shape of a new tensor.

    Raises
    ------
    TypeError, RuntimeError
        If there is none, or it holds anything but non-negative integers.
    """
    if (not given) == (size is None):
        raise TypeError(f"{op}: size must be given once, as integers or a sequence, got {given!r}")
    shape = sizes(op, given or (size,), "size")
    if min(shape, default=0) < 0:
        raise RuntimeError(f"{op}: size must be non-negative, got {shape}")
    return shape


def number(value: Any) -> Any:
    """A Python number."""
    return value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value


def of_size(
    name: str, fill: Callable[..., np.ndarray], what: str, *options: str
) -> tuple[Callable[..., Tensor], Callable[..., Tensor]]:
    """A function that makes a tensor of a given size, and `name_like`, of another tensor's size.

    Parameters
    ----------
    name : str
    fill : callable
        From the op's name, a shape, a dtype and `options` by name to the array.
    what : str
        What the tensor holds, in words.
    *options : str
        Further arguments by name.
    """

    def checked(op: str, given: dict[str, Any]) -> dict[str, Any]:
        if other := sorted(given.keys() - set(options)):
            raise TypeError(f"{op}: options must be PyTorch's, got {other[0]!r}")
        return given

    def function(
        *size: Any,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        layout: Any = None,
        pin_memory: bool = False,
        memory_format: Any = None,
        **given: Any,
    ) -> Tensor:
        shape = size_of(name, size, given.pop("size", None))
        out = fill(name, shape, dtype_of(name, dtype), **checked(name, given))
        return made(name, out, device, requires_grad)

    def like(
        input: Tensor,
        *,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        layout: Any = None,
        memory_format: Any = None,
        **given: Any,
    ) -> Tensor:
        op = f"{name}_like"
        kind = dtype_of(op, dtype, input.dtype)
        out = fill(op, tuple(input.shape), kind, **checked(op, given))
        return made(op, out, device, requires_grad)

    function.__doc__ = f"A tensor of {what}, of a size given as integers or a sequence."
    like.__doc__ = f"A tensor of {what}, of the shape and dtype of another."
    for made_by, known in ((function, name), (like, f"{name}_like")):
        made_by.__name__ = made_by.__qualname__ = known
    return function, like
