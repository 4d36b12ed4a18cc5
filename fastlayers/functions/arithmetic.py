"""Sums, products and quotients of pairs of elements, and products of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.division import floored, truncated
from fastlayers.functions.promotion import common, operand
from fastlayers.functions.registry import alias, method, register
from fastlayers.functions.table import binary, recorded, unbroadcast
from fastlayers.ops import arithmetic

__all__ = [
    "add",
    "div",
    "divide",
    "matmul",
    "mul",
    "multiply",
    "sub",
    "subtract",
    "true_divide",
]

_sum = binary("add", arithmetic.add, (lambda dy: dy, lambda dy: dy), "")
_difference = binary("sub", np.subtract, (lambda dy: dy, lambda dy: -dy), "")
mul = multiply = binary(
    "mul",
    np.multiply,
    (lambda dy, b: dy * b, lambda dy, a: dy * a),
    "``input * other``.",
    symbol="mul",
)
_quotient = binary(
    "div",
    np.true_divide,
    (lambda dy, b: dy / b, lambda dy, a, b: -dy * a / (b * b)),
    "``input / other``, of integers in float32.",
    symbol="truediv",
    real=True,
)


def _scaled(op: str, input: Any, other: Any, alpha: Any) -> Any:
    """``alpha * other`` in the dtype of ``input + other``."""
    if alpha == 1:
        return other
    dtype = common((operand(op, "input", input), operand(op, "other", other)))
    if isinstance(alpha, float) and dtype.kind != "f":
        raise RuntimeError(f"{op}: alpha must be an integer for integers, got {alpha}")
    return mul(other, Tensor(np.asarray(alpha, dtype)))


def add(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """``input + alpha * other``."""
    if isinstance(input, Tensor) and isinstance(other, Tensor) and alpha == 1:
        for a, b in ((input, other), (other, input)):
            if a.deferred is not None and (out := a.deferred.add(a, b)) is not None:
                return out
    return _sum(input, _scaled("add", input, other, alpha))


def sub(input: Any, other: Any, *, alpha: Any = 1) -> Tensor:
    """``input - alpha * other``."""
    return _difference(input, _scaled("sub", input, other, alpha))


def div(input: Any, other: Any, *, rounding_mode: str | None = None) -> Tensor:
    """``input / other``, of integers in float32; rounded by `rounding_mode` "floor" or "trunc".

    Raises
    ------
    ValueError
        If `rounding_mode` is unknown.
    """
    if rounding_mode is None:
        return _quotient(input, other)
    if rounding_mode not in ("floor", "trunc"):
        raise ValueError(
            f"div: rounding_mode must be None, 'floor' or 'trunc', got {rounding_mode!r}"
        )
    return (floored if rounding_mode == "floor" else truncated)(input, other)


def _add_in_place(self: Tensor, other: Any) -> Tensor:
    """``self += other``; a residual sum waits, as ``self + other`` does."""
    if isinstance(other, Tensor) and self.deferred is not None:
        out = self.deferred.add(self, other, in_place=True)
        if out is not None:
            return out
    return inplace.apply("add_", add, self, other)


register("add", add, np.add, symbol="add")
register("sub", sub, np.subtract, symbol="sub")
register("div", div, np.true_divide, symbol="truediv")
method(_add_in_place, "__iadd__")
subtract, divide, true_divide = sub, div, div
alias("sub", "subtract")
alias("mul", "multiply")
alias("div", "divide", "true_divide")


@recorded(tensors=2, saves=(0, 1), numpy=np.matmul)
def matmul(a: np.ndarray, b: np.ndarray) -> Any:
    """Product of matrices, with NumPy's rules for vectors and stacks of matrices.

    Raises
    ------
    RuntimeError
        If the shapes do not fit.
    """
    try:
        product = a @ b
    except ValueError as error:
        raise RuntimeError(
            f"matmul: shapes must be (..., n, k) and (..., k, m), or (k,) for a vector, "
            f"got {a.shape} and {b.shape}"
        ) from error

    def gradient(dy: np.ndarray) -> Any:
        left = a[None, :] if a.ndim == 1 else a
        right = b[:, None] if b.ndim == 1 else b
        dy = dy[..., None, :] if a.ndim == 1 and b.ndim > 1 else dy
        dy = dy[..., None] if b.ndim == 1 else dy
        dy = dy[None] if a.ndim == b.ndim == 1 else dy
        da = unbroadcast(dy @ np.swapaxes(right, -1, -2), left.shape).reshape(a.shape)
        db = unbroadcast(np.swapaxes(left, -1, -2) @ dy, right.shape).reshape(b.shape)
        return da, db

    return product, gradient


method(matmul, "__matmul__")
method(lambda self, other: matmul(other, self), "__rmatmul__")
