"""Quotients rounded to whole numbers, and their remainders."""

from __future__ import annotations

import numpy as np

from fastlayers.functions.table import binary

__all__ = ["floor_divide", "fmod", "remainder"]


def _divisor(op: str, b: np.ndarray) -> None:
    if b.dtype.kind != "f" and not b.all():
        raise RuntimeError(f"{op}: other must not hold 0 for integers, got one (ZeroDivisionError)")


def _floor_divided(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    _divisor("floor_divide", b)
    return np.asarray(np.floor_divide(a, b))


def _remainder(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    _divisor("remainder", b)
    return np.asarray(np.remainder(a, b))


def _fmod(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    _divisor("fmod", b)
    return np.asarray(np.fmod(a, b))


def _truncated(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a / b`` rounded towards 0, exact for integers."""
    if a.dtype.kind == "f":
        return np.asarray(np.trunc(a / b))
    _divisor("div", b)
    return np.asarray((a - np.fmod(a, b)) // b)


floor_divide = binary(
    "floor_divide",
    _floor_divided,
    (None, None),
    "``input / other`` rounded down.",
    symbol="floordiv",
    numpy=np.floor_divide,
)
remainder = binary(
    "remainder",
    _remainder,
    (lambda dy: dy, lambda dy, a, b: -dy * np.floor_divide(a, b)),
    "What `floor_divide` leaves, with the sign of `other`.",
    symbol="mod",
    numpy=np.remainder,
)
fmod = binary(
    "fmod",
    _fmod,
    (lambda dy: dy, lambda dy, a, b: -dy * np.trunc(a / b)),
    "What division rounded towards 0 leaves, with the sign of `input`.",
    numpy=np.fmod,
)
floored = binary("div", _floor_divided, (None, None), "")
truncated = binary("div", _truncated, (None, None), "")
