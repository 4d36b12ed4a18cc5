"""Tensors of given values.

`device` must be the CPU; `layout`, `pin_memory` and `memory_format` are taken as PyTorch has them
and change nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.autograd.types import device as Device
from fastlayers.functions.shape import sizes
from fastlayers.functions.table import method

__all__ = [
    "arange",
    "as_tensor",
    "asarray",
    "empty",
    "empty_like",
    "eye",
    "from_numpy",
    "full",
    "full_like",
    "linspace",
    "logspace",
    "ones",
    "ones_like",
    "tensor",
    "zeros",
    "zeros_like",
]

_KINDS = "biuf"


def dtype_of(op: str, dtype: Any, default: Any = np.float32) -> np.dtype:
    """The dtype that is asked for; None is the default.

    Raises
    ------
    TypeError
        If it is none of numbers or booleans.
    """
    try:
        found = np.dtype(default if dtype is None else dtype)
    except TypeError:
        found = np.dtype(object)
    if found.kind not in _KINDS:
        raise TypeError(f"{op}: dtype must be one of numbers or bool, got {dtype!r}")
    return found


def check_device(op: str, device: Any) -> None:
    """Refuse other devices than the CPU.

    Raises
    ------
    RuntimeError
        If it is one.
    """
    if device is not None and Device(device).type != "cpu":
        raise RuntimeError(
            f"{op}: device must be 'cpu', got {str(device)!r} (fastlayers has no CUDA and no other "
            f"device; torch.cuda.is_available() is False)"
        )


def made(
    op: str,
    array: np.ndarray,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """The tensor of an array of its own.

    Raises
    ------
    RuntimeError
        If another device is asked for, or gradients of other values than floating point ones.
    """
    check_device(op, device)
    if requires_grad and array.dtype.kind != "f":
        raise RuntimeError(
            f"{op}: only tensors of floating point dtype can require gradients, got {array.dtype}"
        )
    out = Tensor(array, bool(requires_grad))
    out.is_own = True
    return out


def scalar(op: str, value: Any, dtype: np.dtype) -> np.ndarray:
    """A number as an array of a dtype.

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
    """What nested lists hold first."""
    while isinstance(data, (list, tuple)) and data:
        data = data[0]
    return data


def _bare(data: Any) -> Any:
    """Nested lists with arrays in the place of tensors."""
    if isinstance(data, (list, tuple)):
        return [_bare(part) for part in data]
    return data.array() if isinstance(data, Tensor) else data


def array_of(op: str, data: Any, dtype: Any, *, copy: bool | None) -> np.ndarray:
    """The values of tensors, arrays, numbers and nested lists of these.

    Raises
    ------
    TypeError, ValueError
        If they are no numbers, or lists of several lengths.
    RuntimeError
        If an integer is too large.
    """
    wanted = None if dtype is None else dtype_of(op, dtype)
    values = data.settled() if isinstance(data, Tensor) else data
    if not isinstance(values, (np.ndarray, np.generic)):
        values = _read(op, values)
    array = np.asarray(values)
    if array.dtype.kind not in _KINDS:
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
    if array.dtype == np.float64 and not isinstance(_leaf(data), (Tensor, np.ndarray, np.generic)):
        array = array.astype(np.float32)
    if array.dtype.kind == "O" and array.size and isinstance(_leaf(data), int):
        raise RuntimeError(f"{op}: data must fit 64-bit integers, got a larger one (overflow)")
    if array.dtype == np.uint64 and isinstance(_leaf(data), int):
        raise RuntimeError(f"{op}: data must fit int64, got a larger integer (overflow)")
    return array


def tensor(
    data: Any,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    pin_memory: bool = False,
) -> Tensor:
    """A tensor of a copy of `data`; Python's floats become float32, its integers int64.

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
        If the data are no numbers, lists of several lengths, or don't fit the dtype; if gradients
        of other values than floating point ones or another device is asked for.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.tensor.html
    """
    return made("tensor", array_of("tensor", data, dtype, copy=True), device, requires_grad)


def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
    """`data` itself if it is a tensor of the dtype, or a tensor of the memory of an array."""
    check_device("as_tensor", device)
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
    """A tensor of the memory of `obj` where it has the dtype, else of a copy.

    Raises
    ------
    ValueError
        If `copy` is False and one is needed.
    """
    check_device("asarray", device)
    if isinstance(obj, Tensor) and copy is not True and dtype in (None, obj.dtype):
        return (
            obj
            if requires_grad == obj.requires_grad
            else obj.detach().requires_grad_(requires_grad)
        )
    array = array_of("asarray", obj, dtype, copy=copy)
    return made("asarray", array, device, requires_grad)


def from_numpy(array: np.ndarray) -> Tensor:
    """A tensor of the memory of an array.

    Raises
    ------
    TypeError
        If it is no array of numbers or booleans.
    """
    if not isinstance(array, np.ndarray) or array.dtype.kind not in _KINDS:
        raise TypeError(
            f"from_numpy: array must be a NumPy array of numbers or bool, "
            f"got {type(array).__name__}"
        )
    return Tensor(array)


def size_of(op: str, given: tuple[Any, ...], size: Any = None) -> tuple[int, ...]:
    """The shape of a new tensor.

    Raises
    ------
    TypeError, RuntimeError
        If there is none, it holds other than integers, or a negative one.
    """
    if (not given) == (size is None):
        raise TypeError(f"{op}: size must be given once, as integers or a sequence, got {given!r}")
    shape = sizes(op, given or (size,), "size")
    if min(shape, default=0) < 0:
        raise RuntimeError(f"{op}: size must be non-negative, got {shape}")
    return shape


def _filled(name: str, fill: Callable[..., np.ndarray], what: str) -> tuple[Any, Any]:
    """A function that makes a tensor of a size, and that of another tensor's size."""

    def function(
        *size: Any,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        layout: Any = None,
        pin_memory: bool = False,
        memory_format: Any = None,
        **named: Any,
    ) -> Tensor:
        if named.keys() - {"size"}:
            raise TypeError(f"{name}: {next(iter(named.keys() - {'size'}))} is no option of it")
        shape = size_of(name, size, named.get("size"))
        return made(name, fill(shape, dtype_of(name, dtype)), device, requires_grad)

    def like(
        input: Tensor,
        *,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        layout: Any = None,
        memory_format: Any = None,
    ) -> Tensor:
        op = f"{name}_like"
        out = fill(input.shape, dtype_of(op, dtype, input.dtype))
        return made(op, out, device, requires_grad)

    function.__doc__ = f"A tensor of {what}, of a size given as integers or a sequence."
    like.__doc__ = f"A tensor of {what}, of the shape and dtype of another."
    for made_by, known in ((function, name), (like, f"{name}_like")):
        made_by.__name__ = made_by.__qualname__ = known
    return function, like


zeros, zeros_like = _filled("zeros", np.zeros, "zeros")
ones, ones_like = _filled("ones", np.ones, "ones")
empty, empty_like = _filled("empty", np.empty, "any values")


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
    """A tensor of one number, whose dtype is int64, bool or float32 by the number.

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
    """A tensor of one number, of the shape and dtype of another."""
    kind = dtype_of("full_like", dtype, input.dtype)
    out = np.full(input.shape, scalar("full_like", fill_value, kind))
    return made("full_like", out, device, requires_grad)


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, (Tensor, np.ndarray, np.generic)) else value


def arange(
    *bounds: Any,
    start: Any = None,
    end: Any = None,
    step: Any = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """Numbers from `start` on, below `end`, `step` apart: ``arange(start, end, step)``.

    Of integers int64, otherwise float32, if `dtype` is not given. Computed in float64, or int64.

    Raises
    ------
    TypeError
        If there is no end.
    RuntimeError
        If the step is 0, or leads away from the end.
    """
    names = ("end",) if len(bounds) == 1 else ("start", "end", "step")[: len(bounds)]
    given = {"start": start, "end": end, "step": step} | dict(zip(names, bounds, strict=True))
    numbers = {name: _number(value) for name, value in given.items() if value is not None}
    if "end" not in numbers:
        raise TypeError("arange: end must be given, got none")
    first, last, by = numbers.get("start", 0), numbers["end"], numbers.get("step", 1)
    if by == 0:
        raise RuntimeError("arange: step must be nonzero, got 0")
    if not all(math.isfinite(n) for n in (first, last, by)) or (last - first) * by < 0:
        raise RuntimeError(
            f"arange: the bounds must be finite and consistent with step sign, "
            f"got {first}, {last} and {by}"
        )
    integers = all(isinstance(n, int) for n in (first, last, by))
    kind = dtype_of("arange", dtype, np.int64 if integers else np.float32)
    count = -((first - last) // by) if integers else math.ceil((last - first) / by)
    if kind.kind in "iu":  # PyTorch counts in the dtype
        first, by = int(first), int(by)
    out = (first + np.arange(count) * by).astype(kind)
    return made("arange", out, device, requires_grad)


def _spaced(
    op: str, start: Any, end: Any, steps: Any, dtype: Any, base: float | None
) -> np.ndarray:
    first, last, kind = _number(start), _number(end), dtype_of(op, dtype)
    if steps < 0:
        raise RuntimeError(f"{op}: number of steps must be non-negative, got {steps}")
    if kind.kind in "iu":  # PyTorch casts the bounds first
        first, last = int(first), int(last)
    out = np.linspace(first, last, int(steps))
    return (out if base is None else np.power(float(base), out)).astype(kind)


def linspace(
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """`steps` numbers, equally far apart, from `start` to `end`."""
    out = _spaced("linspace", start, end, steps, dtype, None)
    return made("linspace", out, device, requires_grad)


def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """The powers of `base` whose exponents are `linspace`'s."""
    out = _spaced("logspace", start, end, steps, dtype, base)
    return made("logspace", out, device, requires_grad)


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
    """The identity matrix of `n` rows and `m` or as many columns."""
    rows, columns = size_of("eye", (n, n if m is None else m))
    return made("eye", np.eye(rows, columns, dtype=dtype_of("eye", dtype)), device, requires_grad)


def _new(name: str, function: Any) -> None:
    """The method ``new_<name>``, which has the tensor's dtype if none is given."""

    def new(self: Tensor, *args: Any, dtype: Any = None, **options: Any) -> Tensor:
        return function(*args, dtype=self.dtype if dtype is None else dtype, **options)

    new.__name__ = new.__qualname__ = f"new_{name}"
    new.__doc__ = f"`fastlayers.{name}`, of this tensor's dtype by default."
    method(new, new.__name__)


for _function in (zeros, ones, empty, full, tensor):
    _new(_function.__name__, _function)
