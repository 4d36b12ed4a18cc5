"""Reference for `fastlayers.ops.activation`; all functions keep the shape of their input."""

import math

import numpy as np

from fastlayers.reference.types import Array

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

_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def relu(input: Array) -> Array:
    """Give ``y = max(x, 0)``, and NaN for NaN.

    https://pytorch.org/docs/stable/generated/torch.nn.ReLU.html
    """
    return np.maximum(input, input.dtype.type(0))


def relu_backward(grad_output: Array, output: Array) -> Array:
    """Give the gradient of `relu`: ``dx = dy`` where ``y > 0`` or is NaN, and 0 elsewhere."""
    return np.where(output <= 0, output.dtype.type(0), grad_output)


def leaky_relu(input: Array, negative_slope: float = 0.01) -> Array:
    """Give ``y = x`` where ``x > 0`` and ``negative_slope x`` elsewhere.

    https://pytorch.org/docs/stable/generated/torch.nn.LeakyReLU.html
    """
    return np.where(input > 0, input, input * input.dtype.type(negative_slope))


def leaky_relu_backward(grad_output: Array, input: Array, negative_slope: float = 0.01) -> Array:
    """Give the gradient of `leaky_relu`: ``dx = dy (1 if x > 0 else negative_slope)``."""
    return np.where(input > 0, grad_output, grad_output * input.dtype.type(negative_slope))


def sigmoid(input: Array) -> Array:
    """Give ``y = 1 / (1 + exp(-x))``, in a form that does not overflow.

    https://pytorch.org/docs/stable/generated/torch.nn.Sigmoid.html
    """
    z = np.exp(-np.abs(input))
    y: Array = np.where(input >= 0, input.dtype.type(1), z) / (1 + z)
    return y


def sigmoid_backward(grad_output: Array, output: Array) -> Array:
    """Give the gradient of `sigmoid`: ``dx = dy y (1 - y)``."""
    return grad_output * output * (1 - output)


def silu(input: Array) -> Array:
    """Give ``y = x p(x)``, where p is `sigmoid`.

    https://pytorch.org/docs/stable/generated/torch.nn.SiLU.html
    """
    return input * sigmoid(input)


def silu_backward(grad_output: Array, input: Array) -> Array:
    """Give the gradient of `silu`: ``dx = dy p(x) (1 + x p(-x))``."""
    return grad_output * sigmoid(input) * (1 + input * sigmoid(-input))


def tanh(input: Array) -> Array:
    """Give ``y = tanh(x)``.

    https://pytorch.org/docs/stable/generated/torch.nn.Tanh.html
    """
    return np.tanh(input)


def tanh_backward(grad_output: Array, output: Array) -> Array:
    """Give the gradient of `tanh`: ``dx = dy (1 - y^2)``."""
    return grad_output * (1 - output * output)


def gelu(input: Array, approximate: str = "none") -> Array:
    """Give ``y = x P(x)``, where P is the normal distribution function or close to it.

    ``P(x) = (1 + erf(x / sqrt(2))) / 2``, or with "tanh"
    ``P(x) = (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3))) / 2``.
    Hendrycks and Gimpel, https://arxiv.org/abs/1606.08415;
    https://pytorch.org/docs/stable/generated/torch.nn.GELU.html
    """
    p, _ = _normal(input.astype(np.float64), approximate)
    return (input * p).astype(input.dtype)


def gelu_backward(grad_output: Array, input: Array, approximate: str = "none") -> Array:
    """Give the gradient of `gelu`: ``dx = dy (P(x) + x P'(x))``."""
    p, density = _normal(input.astype(np.float64), approximate)
    return (grad_output * (p + input * density)).astype(input.dtype)


def hardswish(input: Array) -> Array:
    """Give ``y = x min(max(x + 3, 0), 6) / 6``, and NaN for NaN.

    https://pytorch.org/docs/stable/generated/torch.nn.Hardswish.html
    """
    return input * (np.clip(input + 3, 0, 6) / 6)


def hardswish_backward(grad_output: Array, input: Array) -> Array:
    """Give the gradient of `hardswish`: 0 up to -3, dy from 3 on, else ``dy (x / 3 + 1 / 2)``."""
    dx = np.where(input >= 3, grad_output, grad_output * (input / 3 + 0.5))
    return np.where(input <= -3, input.dtype.type(0), dx)


def softmax(input: Array, dim: int) -> Array:
    """Give ``y = exp(x - max(x)) / sum(exp(x - max(x)))`` along `dim`.

    https://pytorch.org/docs/stable/generated/torch.nn.Softmax.html
    """
    z = np.exp(input - input.max(dim, keepdims=True))
    y: Array = z / z.sum(dim, keepdims=True)
    return y


def softmax_backward(grad_output: Array, output: Array, dim: int) -> Array:
    """Give the gradient of `softmax`: ``dx = y (dy - sum(dy y))``."""
    dx: Array = output * (grad_output - (grad_output * output).sum(dim, keepdims=True))
    return dx


def log_softmax(input: Array, dim: int) -> Array:
    """Give ``y = z - log(sum(exp(z)))`` along `dim`, with ``z = x - max(x)``.

    https://pytorch.org/docs/stable/generated/torch.nn.LogSoftmax.html
    """
    z = input - input.max(dim, keepdims=True)
    y: Array = z - np.log(np.exp(z).sum(dim, keepdims=True))
    return y


def log_softmax_backward(grad_output: Array, output: Array, dim: int) -> Array:
    """Give the gradient of `log_softmax`: ``dx = dy - exp(y) sum(dy)``."""
    dx: Array = grad_output - np.exp(output) * grad_output.sum(dim, keepdims=True)
    return dx


def _normal(x: Array, approximate: str) -> tuple[Array, Array]:
    """Give the distribution function of `gelu` and its derivative."""
    if approximate == "none":
        # erfc keeps the digits that 1 + erf would cancel on the left.
        return _erfc(-x / math.sqrt(2)) / 2, np.exp(-x * x / 2) / math.sqrt(2 * math.pi)
    scale = math.sqrt(2 / math.pi)
    t = np.tanh(scale * (x + 0.044715 * x**3))
    return (1 + t) / 2, (1 - t * t) / 2 * scale * (1 + 3 * 0.044715 * x**2)
