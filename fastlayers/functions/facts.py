"""Facts about dtypes and tensors."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.conversion import given_dtype
from fastlayers.functions.promotion import common, operand, promote
from fastlayers.functions.registry import method

__all__ = [
    "can_cast",
    "finfo",
    "get_default_dtype",
    "iinfo",
    "is_floating_point",
    "is_tensor",
    "numel",
    "promote_types",
    "result_type",
    "set_default_dtype",
]


def is_tensor(obj: Any) -> bool:
    """Whether it is a tensor."""
    return isinstance(obj, Tensor)


def is_floating_point(input: Tensor) -> bool:
    """Whether the elements are floating point numbers."""
    return input.dtype.kind == "f"


def numel(input: Tensor) -> int:
    """Number of elements."""
    return input.numel()


def get_default_dtype() -> np.dtype:
    """The dtype of Python floats in tensors: float32."""
    return np.dtype(np.float32)


def set_default_dtype(d: Any) -> None:
    """Accept float32, the only default dtype.

    Raises
    ------
    TypeError
        If it is not floating point.
    NotImplementedError
        If it is any other dtype.
    """
    kind = given_dtype("set_default_dtype", d)
    if kind.kind != "f":
        raise TypeError(f"set_default_dtype: d must be a floating-point type, got {kind}")
    if kind != np.float32:
        raise NotImplementedError(
            f"set_default_dtype: d must be float32, got {kind}; say dtype= where tensors are made, "
            f"or call model.double()"
        )


class finfo:  # noqa: N801  PyTorch's name
    """Limits of a floating point dtype, float32 by default, as Python's numbers.

    Attributes
    ----------
    bits : int
    eps, max, min, tiny, smallest_normal, resolution : float
    dtype : str
    """

    def __init__(self, type: Any = None) -> None:
        info = np.finfo(get_default_dtype() if type is None else given_dtype("finfo", type))
        self.bits, self.dtype = int(info.bits), str(info.dtype)
        self.eps, self.max, self.min = float(info.eps), float(info.max), float(info.min)
        self.tiny = self.smallest_normal = float(info.tiny)
        self.resolution = float(f"1e-{info.precision}")

    def __repr__(self) -> str:
        return f"finfo({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


class iinfo:  # noqa: N801  PyTorch's name
    """Limits of an integer dtype.

    Attributes
    ----------
    bits, max, min : int
    dtype : str
    """

    def __init__(self, type: Any) -> None:
        info = np.iinfo(given_dtype("iinfo", type))
        self.bits, self.max, self.min = int(info.bits), int(info.max), int(info.min)
        self.dtype = str(info.dtype)

    def __repr__(self) -> str:
        return f"iinfo({', '.join(f'{name}={value}' for name, value in vars(self).items())})"


def promote_types(type1: Any, type2: Any) -> np.dtype:
    """The smallest dtype that both can be cast to."""
    return promote(given_dtype("promote_types", type1), given_dtype("promote_types", type2))


def can_cast(from_: Any, to: Any) -> bool:
    """Whether in-place operations cast so: to the same or a higher kind of bool < int < float."""
    kinds = (given_dtype("can_cast", dtype).kind.replace("u", "i") for dtype in (from_, to))
    first, second = ("bif".index(kind) for kind in kinds)
    return first <= second


def result_type(tensor1: Any, tensor2: Any) -> np.dtype:
    """The dtype of an operation of two tensors or numbers."""
    pair = operand("result_type", "tensor1", tensor1), operand("result_type", "tensor2", tensor2)
    return common(pair)


method(lambda self: self.numel(), "nelement")
method(lambda self: self.ndim, "ndimension")
