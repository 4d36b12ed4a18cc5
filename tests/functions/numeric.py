"""Gradients by finite differences, for the tests of functions."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd import Tensor, grad


def check_gradients(
    function: Callable[..., Any], *arrays: np.ndarray, tolerance: float = 1e-6
) -> None:
    """Compare the gradients of all inputs with central differences, along random directions."""
    rng = np.random.default_rng(0)
    inputs = [Tensor(np.asarray(a, np.float64), requires_grad=True) for a in arrays]
    outputs = flat(function(*inputs))
    weights = [rng.standard_normal(y.shape) for y in outputs]
    gradients = grad(outputs, inputs, [Tensor(w) for w in weights], allow_unused=True)

    def value(*given: np.ndarray) -> float:
        results = flat(function(*map(Tensor, given)))
        return sum(float((np.asarray(y) * w).sum()) for y, w in zip(results, weights, strict=True))

    for i, dx in enumerate(gradients):
        direction = rng.standard_normal(np.shape(arrays[i]))
        step = 1e-6 * direction
        moved = [[*arrays[:i], arrays[i] + s * step, *arrays[i + 1 :]] for s in (1, -1)]
        slope = (value(*moved[0]) - value(*moved[1])) / 2e-6
        found = 0.0 if dx is None else float((np.asarray(dx) * direction).sum())
        np.testing.assert_allclose(found, slope, rtol=tolerance, atol=tolerance)


def flat(result: Any) -> list[Tensor]:
    """The floating point tensors of a result."""
    if isinstance(result, (tuple, list)):
        return [y for part in result for y in flat(part)]
    return [result] if isinstance(result, Tensor) and result.dtype.kind == "f" else []
