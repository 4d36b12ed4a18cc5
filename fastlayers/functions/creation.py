"""Tensors with given values.

`device` must be the CPU; `layout`, `pin_memory` and `memory_format` are accepted as in PyTorch and
have no effect.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.registry import method
from fastlayers.functions.values import (
    KINDS,
    array_of,
    dtype_of,
    made,
    of_size,
    scalar,
    size_of,
)
from fastlayers.ops import check

__all__ = [
    "as_tensor",
    "asarray",
    "empty",
    "empty_like",
    "eye",
    "from_numpy",
    "full",
    "full_like",
    "ones",
    "ones_like",
    "tensor",
    "zeros",
    "zeros_like",
]


def tensor(
    data: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """A tensor with a copy of `data`; Python floats become float32, integers int64.

    Parameters
    ----------
    data : array_like, Tensor, or nested lists of these
    dtype : dtype, optional
        That of `data` by default.
    device : str or device, optional
    requires_grad : bool

    Returns
    -------
    Tensor
        A leaf.

    Raises
    ------
    TypeError, ValueError, RuntimeError
        If the data are not numbers, or lists of different lengths, or don't fit the dtype; if
        gradients for values that are not floating point, or another device, are requested.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.tensor.html
    """
    return made("tensor", array_of("tensor", data, dtype, copy=True), device, requires_grad)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """`data` itself if it is a tensor of the dtype, or a tensor on the memory of an array."""
    check.device("as_tensor", device)
    if isinstance(data, Tensor):
        return data if dtype is None else data.to(dtype_of("as_tensor", dtype))
    return Tensor(array_of("as_tensor", data, dtype, copy=None))


def asarray(
    obj: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    copy: bool | None = None,
    requires_grad: bool = False,
) -> Tensor:
    """A tensor on the memory of `obj` if that has the dtype, else on a copy.

    Raises
    ------
    ValueError
        If `copy` is False and one is needed.
    """
    check.device("asarray", device)
    if isinstance(obj, Tensor) and copy is not True and dtype in (None, obj.dtype):
        return (
            obj
            if requires_grad == obj.requires_grad
            else obj.detach().requires_grad_(requires_grad)
        )
    array = array_of("asarray", obj, dtype, copy=copy)
    return made("asarray", array, device, requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor on the memory of an array.

    Raises
    ------
    TypeError
        If it is not an array of numbers or booleans.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in KINDS:
        raise TypeError(
            f"from_numpy: array must be a NumPy array of numbers or bool, "
            f"got {type(array).__name__}"
        )
    return Tensor(array)


zeros, zeros_like = of_size("zeros", lambda op, shape, dtype: np.zeros(shape, dtype), "zeros")
ones, ones_like = of_size("ones", lambda op, shape, dtype: np.ones(shape, dtype), "ones")
empty, empty_like = of_size("empty", lambda op, shape, dtype: np.empty(shape, dtype), "any values")


def full(
    size: Any,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """A tensor filled with a number; the dtype is int64, bool or float32, as the number's.

    Raises
    ------
    RuntimeError
        If the dtype does not hold the number.
    """
    if hasattr(size, "__index__") and not np.ndim(size):
        raise TypeError(f"full: size must be a sequence of integers, got {type(size).__name__}")
    value = fill_value.item() if isinstance(fill_value, (Tensor, np.generic)) else fill_value
    kind = dtype_of("full", dtype, np.float32 if isinstance(value, float) else type(value))
    out = np.full(size_of("full", (size,)), scalar("full", value, kind))
    return made("full", out, device, requires_grad)


def full_like(
    input: Tensor,
    fill_value: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    memory_format: Any = None,
) -> Tensor:
    """A tensor filled with a number, of the shape and dtype of another."""
    kind = dtype_of("full_like", dtype, input.dtype)
    out = np.full(input.shape, scalar("full_like", fill_value, kind))
    return made("full_like", out, device, requires_grad)


def eye(
    n: int,
    m: int | None = None,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """The identity matrix with `n` rows and `m` columns, by default `n`."""
    rows, columns = size_of("eye", (n, n if m is None else m))
    return made("eye", np.eye(rows, columns, dtype=dtype_of("eye", dtype)), device, requires_grad)


def _new(name: str, function: Callable[..., Tensor]) -> None:
    """The method ``new_<name>``, with the tensor's dtype if none is given."""

    def new(self: Tensor, *args: Any, dtype: Any = None, **options: Any) -> Tensor:
        return function(*args, dtype=self.dtype if dtype is None else dtype, **options)

    new.__name__ = new.__qualname__ = f"new_{name}"
    new.__doc__ = f"`fastlayers.{name}`, of this tensor's dtype by default."
    method(new, new.__name__)


for _function in (zeros, ones, empty, full, tensor):
    _new(_function.__name__, _function)
