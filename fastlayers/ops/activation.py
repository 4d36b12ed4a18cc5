"""Elementwise activations and softmax."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import check
from fastlayers.ops.layout import kernel_ready, like, raveled
from fastlayers.runtime import memory, threads

__all__ = [
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

# An exponential costs about as much as ten multiply-adds.
EXP_WORK = 10


def _forward(op: str, input: Any, *options: Any, work: int = 1) -> np.ndarray:
    """What the kernel of the op's name gives; `work` is that of an element."""
    x = check.array(op, "input", input)
    y, flat = like(x)
    workers = threads.workers_for(work * x.size)
    getattr(kernels.activation, op)(raveled(x), *options, workers, flat)
    return y


def _backward(
    op: str, grad_output: Any, name: str, saved: Any, *options: Any, work: int = 1
) -> np.ndarray:
    """Input gradient, of the input or the output that was saved."""
    saved = check.array(op, name, saved)
    dy = check.gradient(op, grad_output, saved.shape, saved.dtype)
    dx, flat = like(saved)
    workers = threads.workers_for(work * saved.size)
    getattr(kernels.activation, op)(raveled(dy), raveled(saved), *options, workers, flat)
    return dx


def relu(input: np.ndarray) -> np.ndarray:
    """Rectified linear unit, ``y = max(x, 0)``, of a float array of any shape; NaN stays NaN.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.relu.html
    """
    return _forward("relu", input)


def relu_backward(grad_output: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Input gradient of `relu`: `grad_output` where the output is not 0."""
    return _backward("relu_backward", grad_output, "output", output)


def _slope(op: str, x: np.ndarray, negative_slope: Any) -> Any:
    return x.dtype.type(check.number(op, "negative_slope", negative_slope))


def leaky_relu(input: np.ndarray, negative_slope: float = 0.01) -> np.ndarray:
    """Leaky rectified linear unit: ``y = x`` where ``x > 0``, else ``negative_slope * x``.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.leaky_relu.html
    """
    op = "leaky_relu"
    x = check.array(op, "input", input)
    return _forward(op, x, _slope(op, x, negative_slope))


def leaky_relu_backward(
    grad_output: np.ndarray, input: np.ndarray, negative_slope: float = 0.01
) -> np.ndarray:
    """Input gradient of `leaky_relu`."""
    op = "leaky_relu_backward"
    x = check.array(op, "input", input)
    slope = _slope(op, x, negative_slope)
    return _backward(op, grad_output, "input", x, slope)


def sigmoid(input: np.ndarray) -> np.ndarray:
    """Logistic function, ``y = 1 / (1 + exp(-x))``, of a float array of any shape.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.sigmoid.html
    """
    return _forward("sigmoid", input, work=EXP_WORK)


def sigmoid_backward(grad_output: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Input gradient of `sigmoid`: ``grad_output * y * (1 - y)``."""
    return _backward("sigmoid_backward", grad_output, "output", output)


def silu(input: np.ndarray) -> np.ndarray:
    """Sigmoid linear unit, ``y = x / (1 + exp(-x))``, of a float array of any shape.

    Minus infinity gives NaN, and so do the gradients at both infinities.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.silu.html
    """
    return _forward("silu", input, work=EXP_WORK)


def silu_backward(grad_output: np.ndarray, input: np.ndarray) -> np.ndarray:
    """Input gradient of `silu`: ``grad_output * p * (1 + x * (1 - p))``, p its sigmoid."""
    return _backward("silu_backward", grad_output, "input", input, work=EXP_WORK)


def tanh(input: np.ndarray) -> np.ndarray:
    """Hyperbolic tangent of a float array of any shape.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.tanh.html
    """
    return _forward("tanh", input, work=EXP_WORK)


def tanh_backward(grad_output: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Input gradient of `tanh`: ``grad_output * (1 - y^2)``."""
    return _backward("tanh_backward", grad_output, "output", output)


def hardswish(input: np.ndarray) -> np.ndarray:
    """Hard swish, ``y = x * min(max(x + 3, 0), 6) / 6``, of a float array of any shape.

    Minus infinity gives NaN.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.hardswish.html
    """
    return _forward("hardswish", input)


def hardswish_backward(grad_output: np.ndarray, input: np.ndarray) -> np.ndarray:
    """Input gradient of `hardswish`: ``grad_output * (x / 3 + 1 / 2)``.

    It is 0 for -3 and below, and `grad_output` for 3 and above.
    """
    return _backward("hardswish_backward", grad_output, "input", input)


def _approximation(op: str, approximate: Any) -> bool:
    """The option as kernels take it, whether it is "tanh"."""
    check.one_of(op, "approximate", approximate, ("none", "tanh"))
    return bool(approximate == "tanh")


def gelu(input: np.ndarray, approximate: str = "none") -> np.ndarray:
    """Gaussian error linear unit, ``y = x * Phi(x)`` with the normal distribution function.

    Minus infinity gives NaN, and so do the gradients at both infinities.

    Parameters
    ----------
    input : ndarray
        Of any shape, float32 or float64.
    approximate : {"none", "tanh"}
        "tanh": ``y = x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x^3)))``.

    References
    ----------
    Hendrycks and Gimpel, 2016, https://arxiv.org/abs/1606.08415
    """
    return _forward("gelu", input, _approximation("gelu", approximate), work=EXP_WORK)


def gelu_backward(
    grad_output: np.ndarray, input: np.ndarray, approximate: str = "none"
) -> np.ndarray:
    """Input gradient of `gelu`: ``grad_output * (Phi(x) + x * Phi'(x))``."""
    op = "gelu_backward"
    how = _approximation(op, approximate)
    return _backward(op, grad_output, "input", input, how, work=EXP_WORK)


def _axis(op: str, x: np.ndarray, dim: Any) -> int:
    dim = check.integer(op, "dim", dim, -x.ndim)
    if x.ndim == 0 or dim >= x.ndim:
        raise ValueError(f"{op}: dim must be an axis of the input, got {dim} for shape {x.shape}")
    return int(dim % x.ndim)


def _along(op: str, dim: int, arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    """Apply the op's kernel of rows along one axis."""
    moved = [kernel_ready(np.moveaxis(a, dim, -1)) for a in arrays]
    shape = moved[0].shape
    out = memory.empty(shape, moved[0].dtype)
    if out.size:
        rows = [a.reshape(-1, shape[-1]) for a in moved]
        workers = threads.workers_for(EXP_WORK * out.size)
        getattr(kernels.activation, op)(*rows, workers, out.reshape(-1, shape[-1]))
    return np.moveaxis(out, -1, dim)


def softmax(input: np.ndarray, dim: int) -> np.ndarray:
    """Probabilities along an axis, ``y = exp(x) / sum(exp(x))``, without overflow.

    They sum to 1, and that of minus infinity is 0. All is NaN along an axis that holds NaN or
    infinity, or nothing but minus infinity.

    Parameters
    ----------
    input : ndarray
        Of any shape, float32 or float64.
    dim : int
        The axis.

    Returns
    -------
    ndarray
        Of the input's shape.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, or an axis that the input doesn't have.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.softmax.html
    """
    x = check.array("softmax", "input", input)
    return _along("softmax", _axis("softmax", x, dim), (x,))


def softmax_backward(grad_output: np.ndarray, output: np.ndarray, dim: int) -> np.ndarray:
    """Input gradient of `softmax`: ``y * (dy - sum(dy * y))`` along the axis."""
    op = "softmax_backward"
    y = check.array(op, "output", output)
    dy = check.gradient(op, grad_output, y.shape, y.dtype)
    return _along(op, _axis(op, y, dim), (dy, y))


def log_softmax(input: np.ndarray, dim: int) -> np.ndarray:
    """Logarithm of `softmax`, ``y = x - log(sum(exp(x)))``, without overflow or loss of digits.

    Takes the parameters of `softmax`.
    """
    x = check.array("log_softmax", "input", input)
    return _along("log_softmax", _axis("log_softmax", x, dim), (x,))


def log_softmax_backward(grad_output: np.ndarray, output: np.ndarray, dim: int) -> np.ndarray:
    """Input gradient of `log_softmax`: ``dy - exp(y) * sum(dy)`` along the axis."""
    op = "log_softmax_backward"
    y = check.array(op, "output", output)
    dy = check.gradient(op, grad_output, y.shape, y.dtype)
    return _along(op, _axis(op, y, dim), (dy, y))
