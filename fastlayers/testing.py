"""Checks for code that defines ops of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fastlayers.autograd import Tensor

__all__ = ["gradcheck", "numerical_gradient"]


def numerical_gradient(
    function: Callable[[np.ndarray], np.ndarray | float],
    x: np.ndarray,
    dy: np.ndarray | float = 1.0,
    eps: float = 1e-6,
) -> np.ndarray:
    """Gradient of ``sum(function(x) * dy)`` by central differences, one element at a time.

    Parameters
    ----------
    function : callable
        From an array of the shape of `x` to one that broadcasts against `dy`.
    x : ndarray
        float64.
    dy : ndarray or float
        Gradient by the function's value.
    eps : float
        Half of the difference's width.

    Returns
    -------
    ndarray
        Of the shape of `x`.
    """
    gradient = np.empty(x.shape)
    for index in np.ndindex(x.shape):
        values = []
        for step in (eps, -eps):
            moved = x.copy()
            moved[index] += step
            values.append(np.sum(np.asarray(function(moved)) * dy))
        gradient[index] = (values[0] - values[1]) / (2 * eps)
    return gradient


def gradcheck(
    function: Callable[..., Tensor],
    inputs: Sequence[Tensor],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
) -> bool:
    """Compare a function's gradients with central differences.

    Parameters
    ----------
    function : callable
        From tensors to a tensor; the same value for the same inputs.
    inputs : sequence of Tensor
        float64; those that require a gradient are checked.
    eps, atol, rtol : float
        Half width of the differences, and the tolerances.

    Returns
    -------
    bool
        True.

    Raises
    ------
    TypeError
        If an input to check is not float64.
    AssertionError
        If a gradient differs; it names the input and the largest difference.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.autograd.gradcheck.gradcheck.html
    """
    for position, given in enumerate(inputs):
        if given.requires_grad and given.dtype != np.float64:
            raise TypeError(f"gradcheck: inputs[{position}] must be float64, got {given.dtype}")
        given.grad = None
    output = function(*inputs)
    dy = np.random.default_rng(0).standard_normal(output.shape)
    output.backward(dy)
    for position, given in enumerate(inputs):
        if not given.requires_grad:
            continue

        def moved(value: np.ndarray, position: int = position) -> np.ndarray:
            others = [Tensor(value if i == position else t.data) for i, t in enumerate(inputs)]
            return function(*others).data

        expected = numerical_gradient(moved, given.data, dy, eps)
        found = np.zeros(given.shape) if given.grad is None else given.grad
        np.testing.assert_allclose(
            found, expected, rtol, atol, err_msg=f"gradcheck: gradient by inputs[{position}]"
        )
    return True
