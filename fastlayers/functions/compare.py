"""Element-wise comparisons, and tests of truth."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axes
from fastlayers.functions.registry import alias, method, numpy_names, register
from fastlayers.functions.table import binary, comparison, operands

__all__ = [
    "all",
    "allclose",
    "any",
    "bitwise_and",
    "bitwise_left_shift",
    "bitwise_not",
    "bitwise_or",
    "bitwise_right_shift",
    "bitwise_xor",
    "eq",
    "equal",
    "ge",
    "greater",
    "greater_equal",
    "gt",
    "isclose",
    "le",
    "less",
    "less_equal",
    "logical_and",
    "logical_not",
    "logical_or",
    "logical_xor",
    "lt",
    "ne",
    "not_equal",
]

eq = comparison("eq", np.equal, "``input == other``.", "eq")
ne = not_equal = comparison("ne", np.not_equal, "``input != other``.", "ne")
lt = less = comparison("lt", np.less, "``input < other``.", "lt")
le = less_equal = comparison("le", np.less_equal, "``input <= other``.", "le")
gt = greater = comparison("gt", np.greater, "``input > other``.", "gt")
ge = greater_equal = comparison("ge", np.greater_equal, "``input >= other``.", "ge")
logical_and = comparison("logical_and", np.logical_and, "Whether both are not 0.")
logical_or = comparison("logical_or", np.logical_or, "Whether one is not 0.")
logical_xor = comparison("logical_xor", np.logical_xor, "Whether just one is not 0.")
alias("ne", "not_equal")
alias("lt", "less")
alias("le", "less_equal")
alias("gt", "greater")
alias("ge", "greater_equal")


def logical_not(input: Any) -> Tensor:
    """Whether it is 0."""
    return Tensor(np.asarray(np.logical_not(tensor(input).array())))


register("logical_not", logical_not, np.logical_not)


def _bits(name: str, ufunc: Any, doc: str, symbol: str) -> Callable[..., Tensor]:
    """A bitwise function of integers and booleans."""

    def forward(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        if a.dtype.kind == "f":
            raise RuntimeError(f"{name}: inputs must be integers or booleans, got {a.dtype}")
        return np.asarray(ufunc(a, b))

    return binary(name, forward, (None, None), doc, symbol=symbol, numpy=ufunc)


bitwise_and = _bits("bitwise_and", np.bitwise_and, "``input & other``.", "and")
bitwise_or = _bits("bitwise_or", np.bitwise_or, "``input | other``.", "or")
bitwise_xor = _bits("bitwise_xor", np.bitwise_xor, "``input ^ other``.", "xor")
bitwise_left_shift = _bits("bitwise_left_shift", np.left_shift, "``input << other``.", "lshift")
bitwise_right_shift = _bits("bitwise_right_shift", np.right_shift, "``input >> other``.", "rshift")


def bitwise_not(input: Any) -> Tensor:
    """``~input``; for booleans the logical negation."""
    x = tensor(input)
    if x.dtype.kind == "f":
        raise RuntimeError(f"bitwise_not: input must be integers or booleans, got {x.dtype}")
    return Tensor(np.asarray(~x.array()))


register("bitwise_not", bitwise_not, np.bitwise_not)
method(bitwise_not, "__invert__")


def _quantified(name: str, find: Any, doc: str) -> Callable[..., Tensor]:
    @numpy_names
    def function(input: Any, dim: Any = None, keepdim: bool = False) -> Tensor:
        x = tensor(input).array()
        y = np.asarray(find(x, axes(name, x.ndim, dim), keepdims=keepdim))
        return Tensor(y.astype(np.uint8) if x.dtype == np.uint8 else y)

    function.__doc__ = doc
    return register(name, function, in_place=False)


any = _quantified("any", np.any, "Whether an element is not 0, over all or some axes.")
all = _quantified("all", np.all, "Whether no element is 0, over all or some axes.")


def equal(input: Any, other: Any) -> bool:
    """Whether two tensors have the same shape and the same elements."""
    return bool(np.array_equal(tensor(input).array(), tensor(other).array()))


def isclose(
    input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> Tensor:
    """Whether ``|input - other| <= atol + rtol * |other|``."""
    *_, x, y = operands("isclose", input, other)
    with np.errstate(invalid="ignore"):
        return Tensor(np.asarray(np.isclose(x, y, rtol, atol, equal_nan)))


def allclose(
    input: Any, other: Any, rtol: float = 1e-05, atol: float = 1e-08, equal_nan: bool = False
) -> bool:
    """Whether `isclose` holds for all elements."""
    return bool(isclose(input, other, rtol, atol, equal_nan).array().all())


for _alike in (equal, isclose, allclose):
    method(_alike, _alike.__name__)
