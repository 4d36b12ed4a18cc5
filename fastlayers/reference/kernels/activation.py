"""Stand-in for `fastlayers.kernels.activation`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.reference import activation as reference
from fastlayers.reference.types import Array

__all__ = [*reference.__all__]  # noqa: PLE0604


def _stand_in(name: str, *dim: int) -> Callable[..., None]:
    """A function of inputs, options, workers and the array that takes the result."""
    op = getattr(reference, name)

    def run(*arguments: Any) -> None:
        *inputs, _, out = arguments
        with np.errstate(all="ignore"):
            out[...] = op(*inputs, *dim)

    return run


hardswish, hardswish_backward = map(_stand_in, ("hardswish", "hardswish_backward"))
leaky_relu, leaky_relu_backward = map(_stand_in, ("leaky_relu", "leaky_relu_backward"))
relu, relu_backward = map(_stand_in, ("relu", "relu_backward"))
sigmoid, sigmoid_backward = map(_stand_in, ("sigmoid", "sigmoid_backward"))
silu, silu_backward = map(_stand_in, ("silu", "silu_backward"))
tanh, tanh_backward = map(_stand_in, ("tanh", "tanh_backward"))
# Of rows.
log_softmax, log_softmax_backward = (
    _stand_in(name, -1) for name in ("log_softmax", "log_softmax_backward")
)
softmax, softmax_backward = (_stand_in(name, -1) for name in ("softmax", "softmax_backward"))


def gelu(x: Array, approximate: bool, workers: int, y: Array) -> None:
    """`gelu`, with the approximation or without."""
    with np.errstate(all="ignore"):
        y[...] = reference.gelu(x, "tanh" if approximate else "none")


def gelu_backward(dy: Array, x: Array, approximate: bool, workers: int, dx: Array) -> None:
    """`gelu_backward`, with the approximation or without."""
    with np.errstate(all="ignore"):
        dx[...] = reference.gelu_backward(dy, x, "tanh" if approximate else "none")
