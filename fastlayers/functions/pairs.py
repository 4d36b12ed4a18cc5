"""Element-wise functions of two or three tensors, except sums and products.

References
----------
https://docs.pytorch.org/docs/stable/torch.html#pointwise-ops
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.recording import record, tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.arithmetic import add, mul, sub
from fastlayers.functions.promotion import common, operand
from fastlayers.functions.registry import alias, method, register
from fastlayers.functions.table import binary, unbroadcast

__all__ = [
    "addcdiv",
    "addcmul",
    "atan2",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clip",
    "fmax",
    "fmin",
    "hypot",
    "lerp",
    "logaddexp",
    "maximum",
    "minimum",
    "pow",
    "where",
]


def _halved(dy: np.ndarray, a: np.ndarray, b: np.ndarray, lost: np.ndarray) -> np.ndarray:
    """The gradient of an input of `maximum`: half where both are equal, 0 where it is smaller."""
    return np.where(a == b, dy / 2, np.where(lost, 0, dy)).astype(dy.dtype)


maximum = binary(
    "maximum",
    np.maximum,
    (lambda dy, a, b: _halved(dy, a, b, a < b), lambda dy, a, b: _halved(dy, a, b, a > b)),
    "The larger one; of equal ones each gets half of the gradient.",
    in_place=False,
)
minimum = binary(
    "minimum",
    np.minimum,
    (lambda dy, a, b: _halved(dy, a, b, a > b), lambda dy, a, b: _halved(dy, a, b, a < b)),
    "The smaller one; of equal ones each gets half of the gradient.",
    in_place=False,
)
fmax = binary(
    "fmax",
    np.fmax,
    (
        lambda dy, a, b: dy * ((a >= b) | np.isnan(b)),
        lambda dy, a, b: dy * ~((a >= b) | np.isnan(b)),
    ),
    "The larger one, or the one that is not NaN.",
    in_place=False,
)
fmin = binary(
    "fmin",
    np.fmin,
    (
        lambda dy, a, b: dy * ((a <= b) | np.isnan(b)),
        lambda dy, a, b: dy * ~((a <= b) | np.isnan(b)),
    ),
    "The smaller one, or the one that is not NaN.",
    in_place=False,
)


def _scale(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``1 / (a^2 + b^2)``; 0 at the origin."""
    square = a * a + b * b
    return np.asarray(np.where(square == 0, square, 1 / square))


atan2 = binary(
    "atan2",
    np.arctan2,
    (lambda dy, a, b: dy * b * _scale(a, b), lambda dy, a, b: -dy * a * _scale(a, b)),
    "Angle of the point (`other`, `input`) from the first axis, in radians.",
    real=True,
)
hypot = binary(
    "hypot",
    np.hypot,
    (lambda dy, a, y: dy * (a / y), lambda dy, b, y: dy * (b / y)),
    "``sqrt(input^2 + other^2)``.",
)
logaddexp = binary(
    "logaddexp",
    np.logaddexp,
    (lambda dy, a, y: dy * np.exp(a - y), lambda dy, b, y: dy * np.exp(b - y)),
    "``log(e^input + e^other)``.",
    real=True,
    in_place=False,
)


def _power(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    if a.dtype.kind == "f":
        return np.asarray(np.square(a) if not b.ndim and b == 2 else np.power(a, b))
    if a.dtype.kind != "i" or not (b < 0).any():
        return np.asarray(np.power(a, b))
    # 1 / a^-b rounded towards 0; that of 0 is 0.
    whole = np.power(a, np.where(b < 0, b & 1, b))
    return np.asarray(np.where((b < 0) & (np.abs(a) != 1), 0, whole), a.dtype)


def _base_part(dy: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    slope = np.where(b == 0, 0, b * np.power(a, b - 1))
    return np.asarray(dy * slope, dy.dtype)


def _exponent_part(dy: np.ndarray, a: np.ndarray, b: np.ndarray, y: np.ndarray) -> np.ndarray:
    slope = np.where((a == 0) & (b >= 0), 0, y * np.log(a))
    return np.asarray(dy * slope, dy.dtype)


_powers = binary("pow", _power, (_base_part, _exponent_part), "", numpy=np.power)


def pow(input: Any, exponent: Any) -> Tensor:
    """``input^exponent``.

    Raises
    ------
    RuntimeError
        If `exponent` is a negative integer for integers.
    """
    if isinstance(exponent, int) and exponent < 0 and tensor(input).dtype.kind in "iub":
        raise RuntimeError(
            f"pow: exponent must not be negative for integers, got {exponent} (Integers to "
            f"negative integer powers are not allowed)"
        )
    return _powers(input, exponent)


register("pow", pow, np.power, symbol="pow")


def _operands(op: str, **values: Any) -> tuple[list[Tensor | None], list[Any]]:
    """Tensors, None for numbers, and the arrays of all in the common dtype; None stays None."""
    given = {k: None if v is None else operand(op, k, v) for k, v in values.items()}
    dtype = common(tuple(v for v in given.values() if v is not None))
    tensors = [v if isinstance(v, Tensor) else None for v in given.values()]
    arrays = [
        None if v is None else np.asarray(v.array() if isinstance(v, Tensor) else v, dtype)
        for v in given.values()
    ]
    return tensors, arrays


def where(condition: Any, input: Any = None, other: Any = None) -> Any:
    """`input` where the condition is true, else `other`; alone, ``nonzero(as_tuple=True)``.

    Parameters
    ----------
    condition : Tensor
        Booleans.
    input, other : Tensor or number
        Broadcast with the condition.

    Raises
    ------
    TypeError
        If only one of `input` and `other` is given.
    RuntimeError
        If the condition is not boolean.
    """
    chosen = tensor(condition).array()
    if input is None and other is None:
        return tuple(Tensor(index) for index in np.nonzero(np.atleast_1d(chosen)))
    if input is None or other is None:
        raise TypeError("where: input and other must be given both or neither, got one")
    if chosen.dtype not in (np.bool_, np.uint8):
        raise RuntimeError(f"where: condition must be booleans, got {chosen.dtype}")
    chosen = chosen.astype(bool)
    (a, b), (x, y) = _operands("where", input=input, other=other)

    def backward(dy: np.ndarray) -> Any:
        zero = dy.dtype.type(0)
        return (
            unbroadcast(np.where(chosen, dy, zero), x.shape),
            unbroadcast(np.where(chosen, zero, dy), y.shape),
        )

    backward.__qualname__ = "where.<locals>.backward"
    return record(np.where(chosen, x, y), (a, b), backward, saved=())


method(lambda self, condition, other: where(condition, self, other), "where")


def clamp(input: Any, min: Any = None, max: Any = None) -> Tensor:
    """``minimum(maximum(input, min), max)``; the gradient passes where nothing was clipped.

    Parameters
    ----------
    input : Tensor
    min, max : Tensor or number, optional
        At least one of them.

    Raises
    ------
    RuntimeError
        If neither is given.
    """
    if min is None and max is None:
        raise RuntimeError("clamp: at least one of min and max must not be None, got neither")
    tensors, (x, low, high) = _operands("clamp", input=input, min=min, max=max)
    y = x
    if low is not None:
        y = np.maximum(y, low)
    if high is not None:
        y = np.minimum(y, high)

    def backward(dy: np.ndarray) -> Any:
        def part(like: Any, chosen: Any) -> Any:
            return unbroadcast(np.where(chosen, dy, dy.dtype.type(0)), like.shape)

        least = True if low is None else x >= low
        most = True if high is None else x <= high
        below = low is not None and (x < low) & (True if high is None else low < high)
        above = high is not None and (x > high) | (False if low is None else high < low)
        return (
            part(x, least & most),
            None if tensors[1] is None else part(low, below),
            None if tensors[2] is None else part(high, above),
        )

    backward.__qualname__ = "clamp.<locals>.backward"
    return record(np.array(y), tuple(tensors), backward)


def clamp_min(input: Any, min: Any) -> Tensor:
    """``maximum(input, min)``, with the gradient of `clamp`."""
    return clamp(input, min=min)


def clamp_max(input: Any, max: Any) -> Tensor:
    """``minimum(input, max)``, with the gradient of `clamp`."""
    return clamp(input, max=max)


def lerp(input: Any, end: Any, weight: Any) -> Tensor:
    """``input + weight * (end - input)``."""
    return add(input, mul(weight, sub(end, input)))


def addcmul(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
    """``input + value * tensor1 * tensor2``."""
    return add(input, mul(tensor1, tensor2), alpha=value)


def addcdiv(input: Any, tensor1: Any, tensor2: Any, *, value: Any = 1) -> Tensor:
    """``input + value * tensor1 / tensor2``."""
    return add(input, tensor(tensor1) / tensor2, alpha=value)


clip = clamp
for _function in (clamp, clamp_min, clamp_max, lerp, addcmul, addcdiv):
    register(_function.__name__, _function)
alias("clamp", "clip")
