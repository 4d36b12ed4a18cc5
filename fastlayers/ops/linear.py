"""Affine maps of the last axis."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check
from fastlayers.ops.layout import kernel_ready
from fastlayers.ops.reduce import column_sums
from fastlayers.runtime import cpu, memory, threads

__all__ = ["linear", "linear_backward"]

# Rows up to which the input's gradient is rank updates of the streaming weight.
FEW_ROWS = 8
# From so many rows a product over so few elements is a GEMM: a dot product's sum of lanes costs
# as much as 5 of its vectors.
SHORT_DOTS = (512, 256)
# Bytes from which the weight's gradient is written past the caches, which could not hold it.
STREAMED = 32 << 20

Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


def _prepare(op: str, input: Any, weight: Any) -> tuple[np.ndarray, np.ndarray]:
    """Check the arguments; the input as a matrix, and the weight."""
    input = _check.array(op, "input", input)
    weight = _check.array(op, "weight", weight, (2,))
    _check.same_dtype(op, "weight", weight, input.dtype)
    if input.ndim < 1 or input.shape[-1] != weight.shape[1]:
        raise ValueError(
            f"{op}: input must have a last dimension of {weight.shape[1]}, the second of weight, "
            f"got {_check.describe(input)}"
        )
    rows = input.size // input.shape[-1] if input.shape[-1] else int(np.prod(input.shape[:-1]))
    return kernel_ready(input).reshape(rows, input.shape[-1]), kernel_ready(weight)


def _matmul(a: np.ndarray, b: np.ndarray, init: np.ndarray) -> np.ndarray:
    """``init + a @ b`` of contiguous matrices."""
    (m, k), n, dtype, home = a.shape, b.shape[1], a.dtype, kernels.linear
    out, workers = memory.empty((m, n), dtype), threads.workers_for(m * n * k / 8)
    packed = memory.empty(home.blocked_size(m, k, home.DEPTH), dtype)
    work = memory.empty(workers * home.MATMUL_WORK, dtype)
    size, lanes = (m, k, n), cpu.lanes(dtype.itemsize)
    flat = a.reshape(-1), b.reshape(-1), init
    home.matmul(*flat, size, lanes, workers, packed, work, out.reshape(-1))
    return out


def _input_gradient(dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    (batch, n), k = dy.shape, w.shape[1]
    if batch > FEW_ROWS:
        return _matmul(dy, w, memory.zeros(k, dy.dtype))
    dx, workers = memory.empty((batch, k), dy.dtype), threads.workers_for(batch * n * k / 8)
    flat = dy.reshape(-1), w.reshape(-1)
    kernels.linear.linear_backward_input_few(*flat, (batch, k, n), workers, dx.reshape(-1))
    return dx


def _weight_gradient(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
    (batch, n), k, dtype, home = dy.shape, x.shape[1], x.dtype, kernels.linear
    if batch == 0:
        return memory.zeros((n, k), dtype)
    dw, workers = memory.empty((n, k), dtype), threads.workers_for(batch * n * k / 8)
    stream = dw.nbytes >= STREAMED and k * dtype.itemsize % memory.ALIGNMENT == 0
    flat, size = (dy.reshape(-1), x.reshape(-1)), (batch, k, n)
    if batch <= home.FEW:
        home.linear_backward_weight_few(*flat, size, stream, workers, dw.reshape(-1))
        return dw
    zeros, lanes = memory.zeros(home.WEIGHT_SPAN, dtype), cpu.lanes(dtype.itemsize)
    work = memory.empty(workers * home.WEIGHT_WORK, dtype)
    home.linear_backward_weight(*flat, zeros, size, stream, lanes, workers, work, dw.reshape(-1))
    return dw


def linear(input: np.ndarray, weight: np.ndarray, bias: np.ndarray | None = None) -> np.ndarray:
    """Affine map of the last axis, ``y = input @ weight.T + bias``.

    Parameters
    ----------
    input : ndarray
        (..., in), float32 or float64.
    weight : ndarray
        (out, in), of the input's dtype.
    bias : ndarray, optional
        (out,).

    Returns
    -------
    ndarray
        (..., out).

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, rank or size.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.linear.html
    """
    x, w = _prepare("linear", input, weight)
    (rows, k), n = x.shape, w.shape[0]
    if bias is None:
        bias = memory.zeros(n, x.dtype)
    else:
        bias = memory.writable_view(_check.vector("linear", "bias", bias, n, x.dtype))
    shape = (*input.shape[:-1], n)
    if rows >= SHORT_DOTS[0] and k < SHORT_DOTS[1]:
        transposed = memory.empty((k, n), x.dtype)
        kernels.layout.swap_axes(w[None], threads.workers_for(w.size), transposed[None])
        return _matmul(x, transposed, bias).reshape(shape)
    home, lanes = kernels.linear, cpu.lanes(x.dtype.itemsize)
    packed = memory.empty(home.blocked_size(rows, k, home.dot_block(k, lanes)), x.dtype)
    out, workers = memory.empty((rows, n), x.dtype), threads.workers_for(rows * n * k / 8)
    flat = x.reshape(-1), w.reshape(-1), bias
    home.linear(*flat, (rows, k, n), lanes, workers, packed, out.reshape(-1))
    return out.reshape(shape)


def linear_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Grads:
    """Gradients of `linear` by input, weight and bias, each only where `needs` asks for it.

    ``dinput = grad_output @ weight``, ``dweight = grad_output.T @ input``,
    ``dbias = sum of grad_output over the rows``.

    Parameters
    ----------
    grad_output : ndarray
        (..., out).
    input, weight : ndarray
        As they were given to `linear`.
    needs : (bool, bool, bool)
        Which of the three gradients to compute; the others are None.

    Returns
    -------
    (ndarray or None, ndarray or None, ndarray or None)
        Of the shapes of input, weight and bias.

    Raises
    ------
    TypeError, ValueError
        As `linear`, and for a `grad_output` of another shape or dtype than the output's.
    """
    op = "linear_backward"
    x, w = _prepare(op, input, weight)
    rows, n = x.shape[0], w.shape[0]
    grad_output = _check.gradient(op, grad_output, (*input.shape[:-1], n), x.dtype)
    dy = kernel_ready(grad_output).reshape(rows, n)
    dx = _input_gradient(dy, w).reshape(input.shape) if needs[0] else None
    return dx, _weight_gradient(dy, x) if needs[1] else None, column_sums(dy) if needs[2] else None
