"""Reference for `fastlayers.kernels.optimizer`; a table has tuples of arrays, not addresses."""

from collections.abc import Sequence

import numpy as np

from fastlayers.reference.types import Array

__all__ = ["adadelta", "adam", "sgd"]

Table = Sequence[tuple[Array, ...]]
Floats = tuple[float, ...]


def sgd(
    like: Array,
    table: Table,
    options: tuple[float, float, float, float, float, bool],
    workers: int,
) -> None:
    """Take a step of gradient descent, in place: ``p -= lr d`` with ``d = sign g + decay p``.

    With momentum, the arrays are p, g and b, ``b = momentum b + (1 - dampening) d`` and b takes d's
    place, or in Nesterov's form ``d + momentum b``.
    https://pytorch.org/docs/stable/generated/torch.optim.SGD.html
    """
    sign, decay, lr, momentum, dampening, nesterov = options
    for p, g, *buffers in table:
        d = sign * g + decay * p
        for b in buffers:
            b[...] = momentum * b + (1 - dampening) * d
            d = d + momentum * b if nesterov else b
        p[...] = p - lr * d


def adam(like: Array, table: Table, options: Floats, workers: int) -> None:
    """Take step 1, 2, ... of Adam in place: ``p = shrink p - lr m_hat / (sqrt(v_hat) + eps)``.

    The arrays are p, g and the running means m and v of ``d = sign g + decay p`` and its square,
    ``m_hat = m / (1 - beta1^step)``, ``v_hat = v / (1 - beta2^step)``, and for AMSGrad the largest
    v so far, which takes v's place.
    https://pytorch.org/docs/stable/generated/torch.optim.Adam.html
    """
    step, sign, decay, shrink, lr, beta1, beta2, eps = options
    step_size, scale = lr / (1 - beta1**step), float(1 / np.sqrt(1 - beta2**step))
    for p, g, m, v, *largest in table:
        d = sign * g + decay * p
        m[...] = beta1 * m + (1 - beta1) * d
        v[...] = beta2 * v + (1 - beta2) * d * d
        bound = v
        for top in largest:
            top[...] = bound = np.where(top >= v, top, v)
        p[...] = shrink * p - step_size * (m / (np.sqrt(bound) * scale + eps))


def adadelta(like: Array, table: Table, options: Floats, workers: int) -> None:
    """Take a step of Adadelta in place: ``p -= lr delta``.

    The arrays are p, g and the running means v and u of the squares of ``d = sign g + decay p``
    and of ``delta = sqrt(u + eps) / sqrt(v + eps) d``.
    https://pytorch.org/docs/stable/generated/torch.optim.Adadelta.html
    """
    sign, decay, lr, rho, eps = options
    for p, g, v, u in table:
        d = sign * g + decay * p
        v[...] = rho * v + (1 - rho) * d * d
        delta = np.sqrt(u + eps) / np.sqrt(v + eps) * d
        u[...] = rho * u + (1 - rho) * delta * delta
        p[...] = p - lr * delta
