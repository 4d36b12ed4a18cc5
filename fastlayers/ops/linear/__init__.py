"""Affine maps of the last axis.

Here a call is checked; `routes` chooses the algorithm of each pass.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.layout import kernel_ready
from fastlayers.ops.linear.algorithm import Grads
from fastlayers.ops.linear.routes import algorithms
from fastlayers.ops.reduce import masked_column_sums
from fastlayers.runtime import memory, threads

__all__ = ["linear", "linear_backward", "linear_rows", "linear_rows_backward", "prepare"]

_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


def _prepare(op: str, input: Any, weight: Any) -> tuple[np.ndarray, np.ndarray]:
    """Check the arguments; the input as a matrix, and the weight."""
    if not (
        type(input) is type(weight) is np.ndarray
        and input.dtype is weight.dtype
        and input.dtype in _FLOATS
        and input.ndim == weight.ndim == 2
        and input.shape[1] == weight.shape[1]
    ):  # the checks in detail take 1 us
        input = check.array(op, "input", input)
        weight = check.array(op, "weight", weight, (2,))
        check.same_dtype(op, "weight", weight, input.dtype)
        k = weight.shape[1]
        if input.ndim < 1 or input.shape[-1] != k:
            raise ValueError(
                f"{op}: input must have a last dimension of {k}, the second of weight, "
                f"got {check.describe(input)}"
            )
        input = _rows(input)
    return (
        input if input.flags.carray else kernel_ready(input),
        weight if weight.flags.carray else kernel_ready(weight),
    )


def _rows(x: np.ndarray) -> np.ndarray:
    """The last axis of any others, as a matrix."""
    if x.ndim == 2:
        return x
    rows = x.size // x.shape[-1] if x.shape[-1] else int(np.prod(x.shape[:-1]))
    return kernel_ready(x).reshape(rows, x.shape[-1])


def prepare(
    op: str, input: Any, weight: Any, bias: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Check a call's arguments; the input as a matrix, the weight, the bias."""
    x, w = _prepare(op, input, weight)
    if bias is None:
        return x, w, None
    if not (
        type(bias) is np.ndarray
        and bias.dtype is x.dtype
        and bias.shape == w.shape[:1]
        and bias.flags.carray
    ):
        bias = memory.writable_view(check.vector(op, "bias", bias, w.shape[0], x.dtype))
    return x, w, bias


def linear_rows(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray | None, relu: bool
) -> np.ndarray:
    """`linear` of a matrix, with arguments that were checked."""
    rows, k = x.shape
    chosen = algorithms(rows, k, len(weight), x.dtype, threads.get_num_threads())
    return chosen.forward.forward(x, weight, bias, relu)


def linear(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    activation: str | None = None,
) -> np.ndarray:
    """Affine map of the last axis, ``y = input @ weight.T + bias``, or the greater of that and 0.

    Parameters
    ----------
    input : ndarray
        (..., in), float32 or float64.
    weight : ndarray
        (out, in), of the input's dtype.
    bias : ndarray, optional
        (out,).
    activation : {None, "relu"}
        What is applied to the output before it is written.

    Returns
    -------
    ndarray
        (..., out).

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, rank or size, or another activation.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear.html
    """
    relu = check.is_relu("linear", activation)
    x, w, b = prepare("linear", input, weight, bias)
    y = linear_rows(x, w, b, relu)
    return y if input.ndim == 2 else y.reshape(*input.shape[:-1], w.shape[0])


def linear_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    needs: tuple[bool, bool, bool] = (True, True, True),
    *,
    activation: str | None = None,
    output: np.ndarray | None = None,
) -> Grads:
    """Input, weight and bias gradient of `linear`, each only where `needs` asks for it.

    ``dinput = dy @ weight``, ``dweight = dy.T @ input``, ``dbias = sum of dy over the rows``,
    where ``dy = grad_output``, or with a ReLU that where the output is above 0 (or NaN), else 0.

    Parameters
    ----------
    grad_output : ndarray
        (..., out).
    input, weight, activation
        As they were given to `linear`.
    needs : (bool, bool, bool)
        Which of the three gradients to compute; the others are None.
    output : ndarray, optional
        What `linear` returned; needed where it had an activation.

    Returns
    -------
    (ndarray or None, ndarray or None, ndarray or None)
        Of the shapes of input, weight and bias.

    Raises
    ------
    TypeError, ValueError
        As `linear`, and for a `grad_output` or `output` of another shape or dtype than the
        output's.
    """
    op = "linear_backward"
    x, w = _prepare(op, input, weight)
    n, dtype, y = w.shape[0], x.dtype, None
    dy = _gradient(op, "grad_output", grad_output, input, n, dtype)
    if check.is_relu(op, activation):
        y = _gradient(op, "output", output, input, n, dtype)
    dx, dw, db = linear_rows_backward(dy, y, x, w, check.needs(op, needs, 3))
    return dx if dx is None else dx.reshape(input.shape), dw, db


def linear_rows_backward(
    dy: np.ndarray,
    y: np.ndarray | None,
    x: np.ndarray,
    weight: np.ndarray,
    needs: tuple[bool, bool, bool],
) -> Grads:
    """`linear_backward` of matrices, behind a ReLU if it gave y; arguments were checked."""
    rows, k = x.shape
    chosen = algorithms(rows, k, len(weight), x.dtype, threads.get_num_threads())
    if chosen.backward:
        return chosen.backward.backward(dy, y, x, weight, needs)
    db = None
    if needs[2] or y is not None:
        dy, db = masked_column_sums(dy, y)
    dx = chosen.backward_input.backward_input(dy, weight) if needs[0] else None
    dw = chosen.backward_weight.backward_weight(x, dy)[0] if needs[1] else None
    return dx, dw, db if needs[2] else None


def _gradient(
    op: str, name: str, value: Any, input: np.ndarray, n: int, dtype: np.dtype
) -> np.ndarray:
    """An array of the output's shape and dtype, as a matrix."""
    if not (
        type(value) is np.ndarray
        and value.dtype is dtype
        and value.ndim == input.ndim == 2
        and value.shape == (input.shape[0], n)
    ):
        value = check.array(op, name, value)
        check.same_shape(op, name, value, (*input.shape[:-1], n))
        check.same_dtype(op, name, value, dtype)
        value = _rows(value)
    return value if value.flags.carray else kernel_ready(value)
