"""Gradient descent's updates of a parameter, in place and in one pass over memory.

Arrays are flat and contiguous, of one floating type; scalars are float64 and rounded to that
type once. The updates are elementwise, so their bits do not depend on the number of threads.
"""

from __future__ import annotations

import numpy as np

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["adam", "sgd"]

# Elements of a task: some microseconds of work, where taking the next task costs about 0.1.
CHUNK = 16384


@kernel
def _sgd_chunk(chunk, worker, param, grad, buffer, scalars, nesterov):
    part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    p, g, b = param[part], grad[part], buffer[part]
    sign, decay, lr, momentum, fresh = scalars
    if buffer.size == 0:
        for i in range(p.size):
            p[i] -= lr * (sign * g[i] + decay * p[i])
    else:
        for i in range(p.size):
            d = sign * g[i] + decay * p[i]
            b[i] = momentum * b[i] + fresh * d
            p[i] -= lr * (d + momentum * b[i] if nesterov else b[i])


@kernel
def sgd(param, grad, buffer, sign, decay, lr, momentum, dampening, nesterov, workers):
    """``b = momentum * b + (1 - dampening) * d; p -= lr * b``, with ``d = sign * g + decay * p``.

    Nesterov's form subtracts ``lr * (d + momentum * b)``. With an empty `buffer` there is no
    momentum: ``p -= lr * d``.
    """
    real = param.dtype.type
    scalars = (real(sign), real(decay), real(lr), real(momentum), real(1 - dampening))
    chunks = (param.size + CHUNK - 1) // CHUNK
    parallel_for(_sgd_chunk, chunks, workers, (param, grad, buffer, scalars, nesterov))


@kernel
def _adam_chunk(chunk, worker, param, grad, mean, square, largest, scalars):
    part = slice(chunk * CHUNK, (chunk + 1) * CHUNK)
    p, g, m, v, top = param[part], grad[part], mean[part], square[part], largest[part]
    sign, decay, shrink, beta1, fresh1, beta2, fresh2, scale, eps, step_size = scalars
    amsgrad = largest.size > 0
    for i in range(p.size):
        d = sign * g[i] + decay * p[i]
        m[i] = beta1 * m[i] + fresh1 * d
        v[i] = beta2 * v[i] + fresh2 * d * d
        bound = v[i]
        if amsgrad:
            bound = top[i] if top[i] >= bound else bound
            top[i] = bound
        p[i] = shrink * p[i] - step_size * (m[i] / (np.sqrt(bound) * scale + eps))


@kernel
def adam(
    param, grad, mean, square, largest, step, sign, decay, shrink, lr, beta1, beta2, eps, workers
):
    """``p = shrink * p - lr * m_hat / (sqrt(v_hat) + eps)`` for step number `step` = 1, 2, ...

    `mean` and `square` are the running means m and v of ``d = sign * g + decay * p`` and its
    square; ``m_hat = m / (1 - beta1^step)``, ``v_hat = v / (1 - beta2^step)``. Where `largest` is
    not empty it keeps the largest v so far, which takes v's place (AMSGrad).
    """
    real = param.dtype.type
    step_size, scale = lr / (1 - beta1**step), 1 / np.sqrt(1 - beta2**step)
    scalars = (
        *(real(sign), real(decay), real(shrink)),
        *(real(beta1), real(1 - beta1), real(beta2), real(1 - beta2)),
        *(real(scale), real(eps), real(step_size)),
    )
    chunks = (param.size + CHUNK - 1) // CHUNK
    parallel_for(_adam_chunk, chunks, workers, (param, grad, mean, square, largest, scalars))
