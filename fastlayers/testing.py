"""Checks for code that defines its own ops."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from fastlayers.autograd import Tensor

__all__ = ["GradcheckError", "gradcheck", "numerical_gradient"]

Arrays = list[np.ndarray]


class GradcheckError(AssertionError):
    """A function's gradient is wrong, or the function is not deterministic."""


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
        Gradient with respect to the function's value.
    eps : float
        Half the width of the difference.

    Returns
    -------
    ndarray
        Of the shape of `x`.
    """

    def outputs(moved: np.ndarray) -> Arrays:
        return [np.asarray(function(moved))]

    return _differences(outputs, x, [dy], eps)[0]


def gradcheck(
    function: Callable[..., Tensor | Sequence[Tensor]],
    inputs: Tensor | Sequence[Any],
    eps: float = 1e-6,
    atol: float = 1e-5,
    rtol: float = 1e-3,
    *,
    raise_exception: bool = True,
    nondet_tol: float = 0.0,
    fast_mode: bool = False,
) -> bool:
    """Compare a function's gradients with central differences.

    Each floating-point output is differentiated with respect to each input that requires a
    gradient; an output that requires none must not depend on them.

    Parameters
    ----------
    function : callable
        From the inputs to a tensor, or a sequence of tensors; the same values for the same inputs.
    inputs : Tensor or sequence
        Tensors that require a gradient are checked, and must be float64. All others, of any type,
        are passed on unchanged. The function gets tensors in place of those checked, with the same
        memory and strides, so the ones given need not be leaves and keep their `grad`; one that is
        given twice is a single tensor in the function too.
    eps, atol, rtol : float
        Half width of the differences, and the tolerances.
    raise_exception : bool
        Otherwise return False if the check fails.
    nondet_tol : float
        How much outputs and gradients of two equal calls may differ.
    fast_mode : bool
        Compare the derivative along one random direction of each input, which takes two calls
        instead of two for each element.

    Returns
    -------
    bool
        Whether the gradients are correct.

    Raises
    ------
    TypeError
        If an input to check is not float64, or the function returns anything but tensors.
    ValueError
        If no input requires a gradient, or no output is floating point.
    GradcheckError
        An AssertionError: a gradient differs (the message names it, and the element that differs
        most), or two calls do.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.autograd.gradcheck.gradcheck.html
    """
    given = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    positions: dict[int, int] = {}  # of the tensors to check, by identity
    for position, t in enumerate(given):
        if isinstance(t, Tensor) and t.requires_grad:
            if t.dtype != np.float64:
                raise TypeError(f"gradcheck: inputs[{position}] must be float64, got {t.dtype}")
            positions.setdefault(id(t), position)
    if not positions:
        raise ValueError("gradcheck: inputs must hold a tensor that requires a gradient, got none")
    try:
        _check(function, given, list(positions.values()), (eps, atol, rtol, nondet_tol), fast_mode)
    except GradcheckError:
        if raise_exception:
            raise
        return False
    return True


def _check(
    function: Callable[..., Any],
    given: tuple[Any, ...],
    positions: list[int],
    tolerances: tuple[float, float, float, float],
    fast: bool,
) -> None:
    eps, atol, rtol, nondet = tolerances
    values, found, dys = _gradients(function, given, positions)
    others = _gradients(function, given, positions)
    for what, some, more in (("output", values, others[0]), ("gradient", found, others[1])):
        if not all(
            a.shape == b.shape and np.allclose(a, b, rtol=0, atol=nondet, equal_nan=True)
            for a, b in zip(some, more, strict=True)
        ):
            raise GradcheckError(
                f"gradcheck: function must give the same in each call, got another {what} in the "
                f"second of two; seed its random numbers in it, and let it change no input"
            )
    constants = {id(given[i]): _in_place_of(given[i], given[i].array()) for i in positions}
    for number, position in enumerate(positions):
        t, direction = given[position], None
        if fast:
            direction = np.random.default_rng(position).standard_normal(t.shape)
            direction /= np.linalg.norm(direction) or 1.0

        def outputs(x: np.ndarray, t: Tensor = t, u: np.ndarray | None = direction) -> Arrays:
            moved = _in_place_of(t, x if u is None else t.array() + x * u)
            outputs = _call(function, given, constants | {id(t): moved})
            return [y.array() for y in outputs if _real(y)]

        gradients, start = found[number :: len(positions)], t.array()
        if fast:
            gradients, start = [np.sum(g * direction) for g in gradients], np.zeros(())
        expected = _differences(outputs, start, dys, eps)
        for output, (got, want) in enumerate(zip(gradients, expected, strict=True)):
            wrong = np.abs(got - want)
            if not np.all(wrong <= atol + rtol * np.abs(want)):
                at = np.unravel_index(np.argmax(wrong), wrong.shape)
                raise GradcheckError(
                    f"gradcheck: gradient of output {output} by inputs[{position}] must be that "
                    f"of central differences, "
                    f"{'along a direction' if fast else f'at {tuple(map(int, at))}'} "
                    f"{want[at]:.8g}, got {got[at]:.8g}"
                )


def _call(
    function: Callable[..., Any], given: tuple[Any, ...], replaced: Mapping[int, Tensor]
) -> Sequence[Tensor]:
    """What the function returns with other tensors in place of some, by identity."""
    outputs = function(*(replaced.get(id(t), t) for t in given))
    outputs = (outputs,) if isinstance(outputs, Tensor) else outputs
    if not isinstance(outputs, Sequence) or not all(isinstance(y, Tensor) for y in outputs):
        raise TypeError(
            f"gradcheck: function must return a Tensor or a sequence of them, "
            f"got {type(outputs).__name__}"
        )
    return outputs


def _real(t: Tensor) -> bool:
    return t.dtype.kind == "f"


def _in_place_of(t: Tensor, values: np.ndarray, requires_grad: bool = False) -> Tensor:
    """A leaf; ops wait for what follows them where they would with the given one."""
    leaf = Tensor(values, requires_grad=requires_grad)
    leaf.is_own = t.is_own
    return leaf


def _gradients(
    function: Callable[..., Any], given: tuple[Any, ...], positions: list[int]
) -> tuple[Arrays, Arrays, list[np.ndarray | float]]:
    """Outputs, for each output in turn its gradients by all inputs, and where they started."""
    leaves = {id(given[i]): _in_place_of(given[i], given[i].array(), True) for i in positions}
    outputs = [y for y in _call(function, given, leaves) if _real(y)]
    if not outputs:
        raise ValueError("gradcheck: function must return a floating point tensor, got none")
    rng, found = np.random.default_rng(0), []
    dys: list[np.ndarray | float] = []
    for number, y in enumerate(outputs, 1):
        dys.append(rng.standard_normal(y.shape))
        for leaf in leaves.values():
            leaf.grad = None
        if y.requires_grad:
            y.backward(dys[-1], retain_graph=number < len(outputs))
        for leaf, position in zip(leaves.values(), positions, strict=True):
            gradient = leaf.grad_array()
            gradient = np.zeros(leaf.shape) if gradient is None else gradient
            if gradient.shape != leaf.shape or gradient.dtype != leaf.dtype:
                raise GradcheckError(
                    f"gradcheck: gradient by inputs[{position}] must be a float64 array of shape "
                    f"{tuple(leaf.shape)}, got {gradient.dtype} of shape {gradient.shape}"
                )
            found.append(gradient)
    return [np.array(y.array()) for y in outputs], found, dys


def _differences(
    function: Callable[[np.ndarray], Arrays],
    x: np.ndarray,
    dys: Sequence[np.ndarray | float],
    eps: float,
) -> Arrays:
    """For each output and its dy the gradient by x, by central differences."""
    gradients = [np.empty(x.shape) for _ in dys]
    for index in np.ndindex(x.shape):
        sides = []
        for step in (eps, -eps):
            moved = x.copy(order="K")
            moved[index] += step
            sides.append(function(moved))
        for gradient, more, less, dy in zip(gradients, *sides, dys, strict=True):
            gradient[index] = np.sum((more - less) * dy) / (2 * eps)
    return gradients
