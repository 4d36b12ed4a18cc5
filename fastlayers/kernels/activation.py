"""Elementwise activations and softmax over the last axis of a matrix.

Elementwise kernels take flat arrays and cut them into chunks of `SPAN` or `EXP_SPAN` elements.
"""

from __future__ import annotations

import math

from fastlayers.kernels.ir.runs import relu_gradient_run, relu_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "SPAN",
    "gelu",
    "gelu_backward",
    "hardswish",
    "hardswish_backward",
    "leaky_relu",
    "leaky_relu_backward",
    "log_softmax",
    "log_softmax_backward",
    "relu",
    "relu_backward",
    "sigmoid",
    "sigmoid_backward",
    "silu",
    "silu_backward",
    "softmax",
    "softmax_backward",
    "tanh",
    "tanh_backward",
]

SPAN = 16384
# The same where each has an exponential or the like, of 4 to 5 ns.
EXP_SPAN = 4096


@kernel
def _chunks(count, span):
    return (count + span - 1) // span


@kernel
def _span(chunk, span):
    """The elements of a chunk. Loops over a view of them start at 0, where Numba needs no check
    for a negative index, without which they vectorise.
    """
    return slice(chunk * span, (chunk + 1) * span)


@kernel
def _rest(chunk, size):
    """Number of elements of a chunk."""
    return min(SPAN, size - chunk * SPAN)


@kernel
def _relu_chunk(chunk, worker, x, y):
    relu_run(y, x, chunk * SPAN, _rest(chunk, x.size))


@kernel
def relu(x, workers, y):
    """``y = max(x, 0)``; NaN stays NaN."""
    parallel_for(_relu_chunk, _chunks(x.size, SPAN), workers, (x, y))


@kernel
def _relu_backward_chunk(chunk, worker, dy, y, dx):
    relu_gradient_run(dx, dy, y, chunk * SPAN, _rest(chunk, y.size))


@kernel
def relu_backward(dy, y, workers, dx):
    """``dx = dy`` where the output is not 0."""
    parallel_for(_relu_backward_chunk, _chunks(y.size, SPAN), workers, (dy, y, dx))


@kernel
def _leaky_relu_chunk(chunk, worker, x, slope, y):
    here = _span(chunk, SPAN)
    x, y = x[here], y[here]
    zero = x.dtype.type(0)
    for i in range(x.size):
        y[i] = x[i] if x[i] > zero else x[i] * slope


@kernel
def leaky_relu(x, slope, workers, y):
    """``y = x`` where positive, else ``slope * x``; `slope` has the dtype of `x`."""
    parallel_for(_leaky_relu_chunk, _chunks(x.size, SPAN), workers, (x, slope, y))


@kernel
def _leaky_relu_backward_chunk(chunk, worker, dy, x, slope, dx):
    here = _span(chunk, SPAN)
    dy, x, dx = dy[here], x[here], dx[here]
    zero = x.dtype.type(0)
    for i in range(dy.size):
        dx[i] = dy[i] if x[i] > zero else dy[i] * slope


@kernel
def leaky_relu_backward(dy, x, slope, workers, dx):
    """``dx = dy`` where the input was positive, else ``slope * dy``."""
    parallel_for(_leaky_relu_backward_chunk, _chunks(x.size, SPAN), workers, (dy, x, slope, dx))


@kernel
def _sigmoid_chunk(chunk, worker, x, y):
    here = _span(chunk, EXP_SPAN)
    x, y = x[here], y[here]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.size):
        small = math.exp(-abs(x[i]))  # never overflows
        y[i] = (one if x[i] >= zero else small) / (one + small)


@kernel
def sigmoid(x, workers, y):
    """``y = 1 / (1 + exp(-x))`` without overflow."""
    parallel_for(_sigmoid_chunk, _chunks(x.size, EXP_SPAN), workers, (x, y))


@kernel
def _sigmoid_backward_chunk(chunk, worker, dy, y, dx):
    here = _span(chunk, SPAN)
    dy, y, dx = dy[here], y[here], dx[here]
    for i in range(dy.size):
        dx[i] = dy[i] * (y[i] - y[i] * y[i])


@kernel
def sigmoid_backward(dy, y, workers, dx):
    """``dx = dy * y * (1 - y)``."""
    parallel_for(_sigmoid_backward_chunk, _chunks(y.size, SPAN), workers, (dy, y, dx))


@kernel
def _silu_chunk(chunk, worker, x, y):
    here = _span(chunk, EXP_SPAN)
    x, y = x[here], y[here]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(x.size):
        small = math.exp(-abs(x[i]))
        y[i] = x[i] * ((one if x[i] >= zero else small) / (one + small))


@kernel
def silu(x, workers, y):
    """``y = x / (1 + exp(-x))``."""
    parallel_for(_silu_chunk, _chunks(x.size, EXP_SPAN), workers, (x, y))


@kernel
def _silu_backward_chunk(chunk, worker, dy, x, dx):
    here = _span(chunk, EXP_SPAN)
    dy, x, dx = dy[here], x[here], dx[here]
    zero, one = x.dtype.type(0), x.dtype.type(1)
    for i in range(dy.size):
        small = math.exp(-abs(x[i]))
        near, far = one / (one + small), small / (one + small)
        p, rest = (near, far) if x[i] >= zero else (far, near)  # the rest is 1 - p, not rounded
        dx[i] = dy[i] * p * (one + x[i] * rest)


@kernel
def silu_backward(dy, x, workers, dx):
    """``dx = dy * p * (1 + x * (1 - p))``, p the logistic function of x."""
    parallel_for(_silu_backward_chunk, _chunks(x.size, EXP_SPAN), workers, (dy, x, dx))


@kernel
def _tanh_chunk(chunk, worker, x, y):
    here = _span(chunk, EXP_SPAN)
    x, y = x[here], y[here]
    for i in range(x.size):
        y[i] = math.tanh(x[i])


@kernel
def tanh(x, workers, y):
    """``y = tanh(x)``."""
    parallel_for(_tanh_chunk, _chunks(x.size, EXP_SPAN), workers, (x, y))


@kernel
def _tanh_backward_chunk(chunk, worker, dy, y, dx):
    here = _span(chunk, SPAN)
    dy, y, dx = dy[here], y[here], dx[here]
    for i in range(dy.size):
        dx[i] = dy[i] - dy[i] * y[i] * y[i]


@kernel
def tanh_backward(dy, y, workers, dx):
    """``dx = dy * (1 - y^2)``."""
    parallel_for(_tanh_backward_chunk, _chunks(y.size, SPAN), workers, (dy, y, dx))


@kernel
def _hardswish_chunk(chunk, worker, x, y):
    here = _span(chunk, SPAN)
    x, y = x[here], y[here]
    zero, three, six = x.dtype.type(0), x.dtype.type(3), x.dtype.type(6)
    for i in range(x.size):
        ramp = x[i] + three
        ramp = zero if ramp < zero else ramp  # of NaN neither holds
        ramp = six if ramp > six else ramp
        y[i] = x[i] * (ramp / six)


@kernel
def hardswish(x, workers, y):
    """``y = x * min(max(x + 3, 0), 6) / 6``; NaN stays NaN."""
    parallel_for(_hardswish_chunk, _chunks(x.size, SPAN), workers, (x, y))


@kernel
def _hardswish_backward_chunk(chunk, worker, dy, x, dx):
    here = _span(chunk, SPAN)
    dy, x, dx = dy[here], x[here], dx[here]
    zero, half, three = x.dtype.type(0), x.dtype.type(0.5), x.dtype.type(3)
    for i in range(dy.size):
        inner = dy[i] * (x[i] / three + half)
        dx[i] = zero if x[i] <= -three else dy[i] if x[i] >= three else inner


@kernel
def hardswish_backward(dy, x, workers, dx):
    """``dx = 0`` up to -3, ``dy`` from 3 on, else ``dy * (x / 3 + 1 / 2)``."""
    parallel_for(_hardswish_backward_chunk, _chunks(x.size, SPAN), workers, (dy, x, dx))


SQRT_HALF = math.sqrt(0.5)
SQRT_2_PI = math.sqrt(2 / math.pi)
CUBIC = 0.044715  # Hendrycks and Gimpel, 2016


@kernel
def _gelu_chunk(chunk, worker, x, approximate, y):
    here = _span(chunk, EXP_SPAN)
    x, y = x[here], y[here]
    for i in range(x.size):
        value = x[i]
        if approximate:
            share = math.tanh(SQRT_2_PI * (value + CUBIC * value**3))
        else:
            share = math.erf(value * SQRT_HALF)
        y[i] = 0.5 * value * (1 + share)


@kernel
def gelu(x, approximate, workers, y):
    """``y = x * Phi(x)``, Phi the normal distribution or its tanh approximation."""
    parallel_for(_gelu_chunk, _chunks(x.size, EXP_SPAN), workers, (x, approximate, y))


@kernel
def _gelu_backward_chunk(chunk, worker, dy, x, approximate, dx):
    here = _span(chunk, EXP_SPAN)
    dy, x, dx = dy[here], x[here], dx[here]
    for i in range(dy.size):
        value = x[i]
        if approximate:
            share = math.tanh(SQRT_2_PI * (value + CUBIC * value**3))
            slope = (1 - share * share) * SQRT_2_PI * (1 + 3 * CUBIC * value * value)
        else:
            share = math.erf(value * SQRT_HALF)
            slope = SQRT_2_PI * math.exp(-0.5 * value * value)
        dx[i] = dy[i] * 0.5 * (1 + share + value * slope)


@kernel
def gelu_backward(dy, x, approximate, workers, dx):
    """``dx = dy * (Phi(x) + x * Phi'(x))``."""
    parallel_for(_gelu_backward_chunk, _chunks(x.size, EXP_SPAN), workers, (dy, x, approximate, dx))


@kernel
def _rows_per_chunk(columns):
    return max(1, EXP_SPAN // max(1, columns))


@kernel
def _softmax_chunk(chunk, worker, x, logarithm, y):
    rows = _rows_per_chunk(x.shape[1])
    for i in range(chunk * rows, min((chunk + 1) * rows, x.shape[0])):
        top = x[i, 0]
        for j in range(1, x.shape[1]):
            top = max(top, x[i, j])
        total = x.dtype.type(0)
        for j in range(x.shape[1]):
            y[i, j] = math.exp(x[i, j] - top)
            total += y[i, j]
        if logarithm:
            total = math.log(total)
            for j in range(x.shape[1]):
                y[i, j] = x[i, j] - top - total
        else:
            for j in range(x.shape[1]):
                y[i, j] /= total


@kernel
def _softmax(x, logarithm, workers, y):
    rows = _rows_per_chunk(x.shape[1])
    chunks = (x.shape[0] + rows - 1) // rows
    parallel_for(_softmax_chunk, chunks, workers, (x, logarithm, y))


@kernel
def softmax(x, workers, y):
    """``y = exp(x - max) / sum(exp(x - max))`` in each row."""
    _softmax(x, False, workers, y)


@kernel
def log_softmax(x, workers, y):
    """``y = x - max - log(sum(exp(x - max)))`` in each row."""
    _softmax(x, True, workers, y)


@kernel
def _softmax_backward_chunk(chunk, worker, dy, y, dx):
    rows = _rows_per_chunk(y.shape[1])
    for i in range(chunk * rows, min((chunk + 1) * rows, y.shape[0])):
        total = y.dtype.type(0)
        for j in range(y.shape[1]):
            total += dy[i, j] * y[i, j]
        for j in range(y.shape[1]):
            dx[i, j] = y[i, j] * (dy[i, j] - total)


@kernel
def _log_softmax_backward_chunk(chunk, worker, dy, y, dx):
    rows = _rows_per_chunk(y.shape[1])
    for i in range(chunk * rows, min((chunk + 1) * rows, y.shape[0])):
        total = y.dtype.type(0)
        for j in range(y.shape[1]):
            total += dy[i, j]
        for j in range(y.shape[1]):
            dx[i, j] = dy[i, j] - math.exp(y[i, j]) * total


@kernel
def softmax_backward(dy, y, workers, dx):
    """``dx = y * (dy - sum(dy * y))`` in each row."""
    rows = _rows_per_chunk(y.shape[1])
    parallel_for(_softmax_backward_chunk, (y.shape[0] + rows - 1) // rows, workers, (dy, y, dx))


@kernel
def log_softmax_backward(dy, y, workers, dx):
    """``dx = dy - exp(y) * sum(dy)`` in each row."""
    rows = _rows_per_chunk(y.shape[1])
    chunks = (y.shape[0] + rows - 1) // rows
    parallel_for(_log_softmax_backward_chunk, chunks, workers, (dy, y, dx))
