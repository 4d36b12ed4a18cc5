"""Other dtypes, copies, and facts about dtypes."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.recording import wants_grad
from fastlayers.autograd.tensor import Tensor
from fastlayers.autograd.types import Size
from fastlayers.autograd.types import device as Device
from fastlayers.functions.registry import method
from fastlayers.functions.shape import sizes
from fastlayers.functions.table import result
from fastlayers.functions.values import dtype_of
from fastlayers.ops import check

__all__ = [
    "BoolTensor",
    "ByteTensor",
    "CharTensor",
    "DoubleTensor",
    "FloatTensor",
    "HalfTensor",
    "IntTensor",
    "LongTensor",
    "ShortTensor",
    "channels_last",
    "channels_last_3d",
    "clone",
    "contiguous_format",
    "memory_format",
    "preserve_format",
]


class memory_format:  # noqa: N801  PyTorch's name
    """An order of elements in memory, as given by an option."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __repr__(self) -> str:
        return f"torch.{self._name}"


contiguous_format = memory_format("contiguous_format")
preserve_format = memory_format("preserve_format")
channels_last = memory_format("channels_last")
channels_last_3d = memory_format("channels_last_3d")


def _kept(array: np.ndarray) -> np.ndarray:
    """A copy with the same order of axes in memory."""
    return array.copy(order="K")


def _cast(x: Tensor, dtype: np.dtype, copy: bool = False) -> Tensor:
    """`x` in another dtype; `x` itself if it has that dtype and `copy` is false."""
    if x.dtype == dtype:
        return clone(x) if copy else x
    with np.errstate(all="ignore"):
        out = _wrapped(x.array(), dtype)
    if dtype.kind != "f":
        return Tensor(out)
    return result("to_copy", out, (x,), lambda dy: dy)


def _wrapped(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """The values in another dtype; values that small integers can't hold wrap, as in PyTorch."""
    if array.dtype.kind == "f" and dtype.kind in "iu" and dtype.itemsize < 8:
        array = array.astype(np.int64)
    return array.astype(dtype)


def _is_dtype(value: Any) -> bool:
    if isinstance(value, (np.dtype, _TensorType)):
        return True
    return isinstance(value, type) and issubclass(value, (int, float, bool, np.generic))


def _to(
    self: Tensor,
    *args: Any,
    device: Any = None,
    dtype: Any = None,
    non_blocking: bool = False,
    copy: bool = False,
    memory_format: Any = None,
    other: Tensor | None = None,
) -> Tensor:
    """The tensor in the given dtype and on the given device, or those of another tensor.

    Parameters
    ----------
    *args
        ``dtype``, ``device, dtype`` or ``other``, then `non_blocking` and `copy`.
    device : str or device
        Must be the CPU.
    copy : bool
        Return a copy even if nothing would change.
    memory_format : memory_format
        With `channels_last`, the memory of the result has that order.

    Returns
    -------
    Tensor
        The tensor itself, if nothing changes and `copy` is false.

    Raises
    ------
    RuntimeError
        For another device.
    TypeError
        If an argument is none of these.
    """
    rest = list(args)
    flags = [rest.pop() for _ in range(2) if len(rest) > 1 and isinstance(rest[-1], bool)]
    if flags:
        copy = flags[0] if len(flags) == 2 else copy
    for value in rest:
        if isinstance(value, Tensor):
            other = value
        elif _is_dtype(value):
            dtype = value
        elif value is None or isinstance(value, (str, Device)):
            device = device if value is None else value
        else:
            raise TypeError(
                f"to: must be given a dtype, device or tensor, got {type(value).__name__}"
            )
    check.device("to", device)
    if other is not None:
        dtype = other.dtype
    kind = self.dtype if dtype is None else given_dtype("to", dtype)
    out = _cast(self, kind, copy)
    return out if memory_format is None else out.contiguous(memory_format=memory_format)


def given_dtype(op: str, value: Any) -> np.dtype:
    """A dtype, given as such or as a tensor class."""
    return value.dtype if isinstance(value, _TensorType) else dtype_of(op, value)


def clone(input: Tensor, *, memory_format: Any = None) -> Tensor:
    """A copy; its gradient is that of the input."""
    array = input.array()
    if not wants_grad((input,)):
        out = Tensor(_kept(array))
        out.is_own = True
    else:
        out = result("clone", _kept(array), (input,), lambda dy: dy)
    plain = memory_format in (None, preserve_format)
    return out if plain else out.contiguous(memory_format=memory_format)


method(clone, "copy")  # NumPy's name


class _TensorType(type):
    """The class of `FloatTensor` and similar ones; `isinstance` compares the dtype."""

    dtype: np.dtype

    def __instancecheck__(cls, value: object) -> bool:
        return isinstance(value, Tensor) and value.dtype == cls.dtype

    def __repr__(cls) -> str:
        return f"<class 'torch.{cls.__name__}'>"


def _tensor_type(dtype: Any, name: str) -> Any:
    kind = np.dtype(dtype)

    def new(cls: Any, *args: Any) -> Tensor:
        data = args[0] if len(args) == 1 else None
        if isinstance(data, Tensor):
            if data.dtype != kind:
                raise TypeError(f"{name}: data must be {kind}, got {data.dtype}; use to()")
            return data.detach()
        if isinstance(data, (list, tuple, np.ndarray)) and not isinstance(data, Size):
            return Tensor(_wrapped(np.asarray(data), kind).copy())
        if data is not None and not isinstance(data, (int, Size)):
            raise TypeError(f"{name}: data must be a sequence or sizes, got {type(data).__name__}")
        return Tensor(np.zeros(sizes(name, args or (0,)), kind))

    doc = f"A tensor of {kind}: of a sequence, or of zeros of a size; `isinstance` tells its dtype."
    return _TensorType(
        name, (), {"dtype": kind, "__new__": new, "__doc__": doc, "__module__": __name__}
    )


FloatTensor = _tensor_type(np.float32, "FloatTensor")
DoubleTensor = _tensor_type(np.float64, "DoubleTensor")
HalfTensor = _tensor_type(np.float16, "HalfTensor")
CharTensor = _tensor_type(np.int8, "CharTensor")
ShortTensor = _tensor_type(np.int16, "ShortTensor")
IntTensor = _tensor_type(np.int32, "IntTensor")
LongTensor = _tensor_type(np.int64, "LongTensor")
ByteTensor = _tensor_type(np.uint8, "ByteTensor")
BoolTensor = _tensor_type(np.bool_, "BoolTensor")
_TYPES = {
    f"torch.{kind.__name__}": kind
    for kind in (
        FloatTensor, DoubleTensor, HalfTensor, CharTensor, ShortTensor, IntTensor, LongTensor,
        ByteTensor, BoolTensor,
    )
}  # fmt: skip


def _type(self: Tensor, dtype: Any = None, non_blocking: bool = False) -> Any:
    """The name of the tensor's type, such as "torch.FloatTensor"; or the tensor in a dtype.

    Raises
    ------
    ValueError
        If there is no type of that name.
    """
    if dtype is None:
        known = (name for name, kind in _TYPES.items() if kind.dtype == self.dtype)
        return next(known, f"torch.{self.dtype}")
    if isinstance(dtype, str):
        if dtype not in _TYPES:
            raise ValueError(f"type: dtype must be such as 'torch.FloatTensor', got {dtype!r}")
        dtype = _TYPES[dtype]
    return _cast(self, given_dtype("type", dtype))


def _cuda(self: Tensor, device: Any = None, non_blocking: bool = False, **options: Any) -> Tensor:
    """Rejected: there is only the CPU.

    Raises
    ------
    RuntimeError
        Always.
    """
    check.device("cuda", "cuda")
    return self


def _cpu(self: Tensor, memory_format: Any = None) -> Tensor:
    """The tensor itself."""
    return self


def _caster(name: str, dtype: Any) -> None:
    kind = np.dtype(dtype)

    def cast(self: Tensor, memory_format: Any = None) -> Tensor:
        out = _cast(self, kind)
        return out if memory_format is None else out.contiguous(memory_format=memory_format)

    cast.__name__ = cast.__qualname__ = name
    cast.__doc__ = f"The tensor in {kind}, itself if it is."
    method(cast, name)


for _name, _kind in {
    "float": np.float32,
    "double": np.float64,
    "half": np.float16,
    "char": np.int8,
    "short": np.int16,
    "int": np.int32,
    "long": np.int64,
    "byte": np.uint8,
    "bool": np.bool_,
}.items():
    _caster(_name, _kind)
method(_to, "to")
method(_type, "type")
method(lambda self, other: _cast(self, other.dtype), "type_as")
method(clone, "clone")
method(_cuda, "cuda")
method(_cpu, "cpu")
