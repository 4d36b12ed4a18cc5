"""Parameters of the tests of optimisers."""

import numpy as np

from fastlayers import nn


def Parameter(data, grad=None):
    """Give a parameter of this very array, of which `nn.Parameter` may take a copy."""
    p = nn.Parameter(data)
    p.data, p.grad = data, grad
    return p


def parameter(*shape, dtype=np.float64, grad=True, seed=0):
    """Give a parameter of normal numbers, and a gradient of others."""
    rng = np.random.default_rng(seed)
    draw = lambda: rng.standard_normal(shape).astype(dtype)  # noqa: E731
    return Parameter(np.asarray(draw()), np.asarray(draw()) if grad else None)


def run(optimizer, p, grads):
    """Take a step by each gradient, and give the values after the last."""
    for grad in grads:
        p.grad = grad
        optimizer.step()
    return p.array()
