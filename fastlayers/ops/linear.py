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


def _matmul(
    size: tuple[int, int, int],
    a: tuple[np.ndarray, int, int],
    b: tuple[np.ndarray, int, int],
    bias: np.ndarray | None = None,
) -> np.ndarray:
    """``A @ B + bias`` for (m, n, k) and operands of (array, row stride, column stride)."""
    m, n, k = size
    dtype = a[0].dtype
    lanes = cpu.lanes(dtype.itemsize)
    if bias is None:
        bias = memory.zeros(n, dtype)
    out = memory.empty((m, n), dtype)
    left, right = (a[0].reshape(-1), 0, a[1], a[2]), (b[0].reshape(-1), 0, b[1], b[2])
    target, workers = (out.reshape(-1), 0, n), threads.workers_for(m * n * k / 8)
    packed_size = kernels.gemm.packed_size
    if m <= lanes // 2 < n:
        packed, work = memory.empty(packed_size(k, m, lanes), dtype), memory.empty(n * m, dtype)
        kernels.gemm.matmul_narrow(m, n, k, left, right, bias, target, lanes, workers, packed, work)
    else:
        packed = memory.empty(packed_size(k, n, lanes), dtype)
        kernels.gemm.matmul(m, n, k, left, right, (bias, 0, 0), target, lanes, workers, packed)
    return out


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
    if bias is not None:
        bias = memory.writable_view(_check.vector("linear", "bias", bias, n, x.dtype))
    return _matmul((rows, n, k), (x, k, 1), (w, 1, k), bias).reshape(*input.shape[:-1], n)


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
    (rows, k), n = x.shape, w.shape[0]
    grad_output = _check.gradient(op, grad_output, (*input.shape[:-1], n), x.dtype)
    dy = kernel_ready(grad_output).reshape(rows, n)
    dx = _matmul((rows, k, n), (dy, n, 1), (w, k, 1)).reshape(input.shape) if needs[0] else None
    dw = _matmul((n, k, rows), (dy, 1, n), (x, k, 1)) if needs[1] else None
    return dx, dw, column_sums(dy) if needs[2] else None
