"""Affine maps of the last axis."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastlayers.kernels import linear as kernels
from fastlayers.ops import check
from fastlayers.ops.layout import kernel_ready
from fastlayers.ops.reduce import masked_column_sums, sum_chunks
from fastlayers.runtime import backend, cpu, memory, threads

__all__ = ["linear", "linear_backward", "linear_rows", "linear_rows_backward", "prepare"]

# Rows up to which the input's gradient is rank updates of the streaming weight.
FEW_ROWS = 8
# Elements of a dot product up to which its sum of lanes costs more than transposing the weight:
# at most so many, and half the rows.
SHORT_DOT = 96
# Bytes of a weight that the caches bear as an operand of GEMM where it stands: 1.1 to 1.3 times as
# fast as copies at 2 MiB, 0.9 at 4; for few rows, which wait for the weight, 0.7 there.
SMALL, SMALL_FEW = 2 << 20, 512 << 10
# Rows, or outputs, of which a panel is at most 8 MiB.
SMALL_DEPTH = 1 << 16
# Bytes from which the weight's gradient is written past the caches, which could not hold it.
STREAMED = 32 << 20
# Multiply-adds of a task: 4 us, so that two threads end together and a task's start is nothing.
TASK = 240_000

Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]
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


def _cut(m: int, n: int, k: int, workers: int, width: int) -> tuple[int, int]:
    """Rows and columns of a task of an m x n product: whole tiles and panels of `width`.

    One thread has the whole, as each task reads its part of both operands anew. Rank updates by
    a few rows have whole rows, the same for a thread in each call: 32 to 24 us for the weight's
    gradient of 4x1024 -> 256, and 50 in blocks of columns.
    """
    tasks = min(16, max(1, m * n * k // TASK)) if workers > 1 else 1
    if k <= kernels.linear.FEW:
        return -(-m // (4 * tasks)) * 4 or 4, 1024
    panels = -(-n // width)
    span = min(max(1, panels // tasks), 1024 // width)
    down = max(-(-tasks // max(1, -(-panels // span))), -(-m // 384))
    return -(-m // (12 * down)) * 12 or 12, span * width


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


def _large_input_gradient(dy: np.ndarray, w: np.ndarray) -> np.ndarray:
    (batch, n), k = dy.shape, w.shape[1]
    if batch > FEW_ROWS:
        return _matmul(dy, w, memory.zeros(k, dy.dtype))
    dx, workers = memory.empty((batch, k), dy.dtype), threads.workers_for(batch * n * k / 8)
    flat = dy.reshape(-1), w.reshape(-1)
    kernels.linear.linear_backward_input_few(*flat, (batch, k, n), workers, dx.reshape(-1))
    return dx


def _large_weight_gradient(dy: np.ndarray, x: np.ndarray) -> np.ndarray:
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


@functools.lru_cache(1024)
def _forward_plan(rows: int, k: int, n: int, dtype: np.dtype, available: int) -> tuple[Any, ...]:
    """The kernel, its options, elements of its workspace, zeros for a bias, an empty array."""
    lanes = cpu.lanes(dtype.itemsize)
    workers = 1 if threads.workers_for(rows * n * k / 4) == 1 else available
    constant = np.zeros(n, dtype), np.empty(0, dtype)
    if 0 < k <= min(SHORT_DOT, rows // 2):
        steps = _cut(rows, n, k, workers, 2 * lanes)
        options = steps, lanes, workers
        return kernels.small.linear_short, options, workers * steps[1] * k, *constant
    home = kernels.linear
    size = home.blocked_size(rows, k, home.dot_block(k, lanes))
    return home.linear, (lanes, workers), size, *constant


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
    if backend.NUMPY:
        y: np.ndarray = backend.reference("linear", x, weight, bias)
        return np.maximum(y, 0, out=y) if relu else y
    (rows, k), n, dtype = x.shape, weight.shape[0], x.dtype
    run, options, size, zeros, nothing = _forward_plan(rows, k, n, dtype, threads.get_num_threads())
    work = memory.empty(size, dtype) if size else nothing
    y = memory.empty((rows, n), dtype)
    b = zeros if bias is None else bias
    run(x, weight, b, 0.0 if relu else -np.inf, *options, work, y)
    return y


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


@functools.lru_cache(1024)
def _backward_plan(
    rows: int, k: int, n: int, dtype: np.dtype, needs: tuple[int, int, int], available: int
) -> tuple[Any, ...]:
    """Options of `linear_small_backward` and the elements of its workspace, None for large sizes.

    ``needs = (relu, dx, dw)``.
    """
    most = min(SMALL, SMALL_FEW) if rows <= FEW_ROWS else SMALL
    if n * k * dtype.itemsize > most or max(rows, n) > SMALL_DEPTH:
        return None, 0
    lanes, products = cpu.lanes(dtype.itemsize), needs[1] + needs[2]
    workers = 1 if threads.workers_for(products * rows * n * k / 6) == 1 else available
    steps = tuple(_cut(*size, workers, 2 * lanes) for size in ((rows, k, n), (n, k, rows)))
    sums = sum_chunks(rows, n, available)
    zeros = np.zeros(max(span for _, span in steps), dtype)
    size = needs[0] * rows * n + sums[1] * n + workers * 2 * lanes * max(rows, n)
    return (needs, zeros, steps, sums, lanes, workers), size


def linear_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    needs: tuple[bool, bool, bool] = (True, True, True),
    *,
    activation: str | None = None,
    output: np.ndarray | None = None,
) -> Grads:
    """Gradients of `linear` by input, weight and bias, each only where `needs` asks for it.

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
    if backend.NUMPY:
        dy = dy if y is None else backend.reference("relu_backward", dy, y)
        return backend.reference("linear_backward", dy, x, weight, needs)  # type: ignore[no-any-return]
    (rows, k), n, dtype = x.shape, weight.shape[0], x.dtype
    dx_needed, dw_needed, db_needed = needs
    wanted = int(y is not None), int(bool(dx_needed)), int(bool(dw_needed))
    options, size = _backward_plan(rows, k, n, dtype, wanted, threads.get_num_threads())
    if options is None:
        return _large_backward(dy, y, x, weight, needs)
    dx = memory.empty((rows, k), dtype) if dx_needed else x
    dw = memory.empty((n, k), dtype) if dw_needed else weight
    db = memory.empty(n if db_needed else 0, dtype)
    work = memory.empty(size, dtype)
    kernels.small.linear_small_backward(
        dy, dy if y is None else y, x, weight, *options, work, dx, dw, db
    )
    return dx if dx_needed else None, dw if dw_needed else None, db if db_needed else None


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


def _large_backward(
    dy: np.ndarray,
    y: np.ndarray | None,
    x: np.ndarray,
    w: np.ndarray,
    needs: tuple[bool, bool, bool],
) -> Grads:
    db = None
    if needs[2] or y is not None:
        dy, db = masked_column_sums(dy, y)
    dx = _large_input_gradient(dy, w) if needs[0] else None
    return dx, _large_weight_gradient(dy, x) if needs[1] else None, db if needs[2] else None
