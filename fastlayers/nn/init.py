"""Initialisation of parameters in place, drawn from the generator of `fastlayers.manual_seed`.

The default of convolution and linear layers is PyTorch's: `kaiming_uniform_` with ``a =
sqrt(5)``, which is uniform in ``+-1 / sqrt(fan_in)``, for weights and biases.
"""

from __future__ import annotations

import math
from typing import Any, TypeVar

import numpy as np

from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.ops import check

__all__ = [
    "calculate_gain",
    "constant_",
    "kaiming_normal_",
    "kaiming_uniform_",
    "normal_",
    "ones_",
    "uniform_",
    "xavier_normal_",
    "xavier_uniform_",
    "zeros_",
]

T = TypeVar("T", bound=Tensor)

_GAINS = {
    "linear": 1.0,
    "conv1d": 1.0,
    "conv2d": 1.0,
    "sigmoid": 1.0,
    "tanh": 5.0 / 3,
    "relu": math.sqrt(2.0),
    "selu": 3.0 / 4,
}


def calculate_gain(nonlinearity: str, param: float | None = None) -> float:
    """Factor that keeps the variance through a nonlinearity, as PyTorch's table has it."""
    if nonlinearity == "leaky_relu":
        slope = 0.01 if param is None else param
        return math.sqrt(2.0 / (1 + slope**2))
    if nonlinearity not in _GAINS:
        known = ", ".join([*_GAINS, "leaky_relu"])
        raise ValueError(
            f"calculate_gain: nonlinearity must be one of {known}, got {nonlinearity!r}"
        )
    return _GAINS[nonlinearity]


def fans(op: str, tensor: Tensor) -> tuple[int, int]:
    """Inputs and outputs that each output and input of a weight (out, in, ...) is connected to."""
    if tensor.ndim < 2:
        raise ValueError(
            f"{op}: tensor must have at least 2 dimensions for a fan, got shape "
            f"{tuple(tensor.shape)}"
        )
    taps = math.prod(tensor.shape[2:])
    return tensor.shape[1] * taps, tensor.shape[0] * taps


def _calculate_fan_in_and_fan_out(tensor: Tensor) -> tuple[int, int]:
    """`fans` by PyTorch's name, which layers copied from its source call."""
    return fans("_calculate_fan_in_and_fan_out", tensor)


def _fan(op: str, tensor: Tensor, mode: str) -> int:
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"{op}: mode must be fan_in or fan_out, got {mode!r}")
    return fans(op, tensor)[mode == "fan_out"]


def _fill(tensor: Tensor, values: Any) -> None:
    tensor.settled()[...] = values
    tensor.changed()


def constant_(tensor: T, val: float) -> T:
    """Set all elements to `val`."""
    _fill(tensor, val)
    return tensor


def zeros_(tensor: T) -> T:
    """Set all elements to 0."""
    return constant_(tensor, 0.0)


def ones_(tensor: T) -> T:
    """Set all elements to 1."""
    return constant_(tensor, 1.0)


def uniform_(tensor: T, a: float = 0.0, b: float = 1.0) -> T:
    """Draw from the uniform distribution on [a, b)."""
    _fill(tensor, random.numpy_generator().uniform(a, b, tensor.shape))
    return tensor


def normal_(tensor: T, mean: float = 0.0, std: float = 1.0) -> T:
    """Draw from the normal distribution."""
    _fill(tensor, random.numpy_generator().normal(mean, std, tensor.shape))
    return tensor


def xavier_uniform_(tensor: T, gain: float = 1.0) -> T:
    """Uniform in ``+-gain * sqrt(6 / (fan_in + fan_out))`` (Glorot and Bengio, AISTATS 2010)."""
    bound = gain * math.sqrt(6.0 / sum(fans("xavier_uniform_", tensor)))
    return uniform_(tensor, -bound, bound)


def xavier_normal_(tensor: T, gain: float = 1.0) -> T:
    """Normal with deviation ``gain * sqrt(2 / (fan_in + fan_out))`` (Glorot and Bengio, 2010)."""
    return normal_(tensor, 0.0, gain * math.sqrt(2.0 / sum(fans("xavier_normal_", tensor))))


def kaiming_uniform_(
    tensor: T, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> T:
    """Uniform in ``+-gain * sqrt(3 / fan)`` (He et al., ICCV 2015)."""
    fan = _fan("kaiming_uniform_", tensor, mode)
    bound = calculate_gain(nonlinearity, a) * math.sqrt(3.0 / fan) if fan else 0.0
    return uniform_(tensor, -bound, bound)


def kaiming_normal_(
    tensor: T, a: float = 0.0, mode: str = "fan_in", nonlinearity: str = "leaky_relu"
) -> T:
    """Normal with deviation ``gain / sqrt(fan)`` (He et al., ICCV 2015)."""
    fan = _fan("kaiming_normal_", tensor, mode)
    return normal_(tensor, 0.0, calculate_gain(nonlinearity, a) / math.sqrt(fan) if fan else 0.0)


def reset_affine(weight: Tensor, bias: Tensor | None) -> None:
    """PyTorch's default for convolution and linear layers."""
    kaiming_uniform_(weight, a=math.sqrt(5))
    if bias is not None:
        fan_in = fans("reset_affine", weight)[0]
        bound = 1 / math.sqrt(fan_in) if fan_in else 0.0
        uniform_(bias, -bound, bound)


def new(op: str, shape: tuple[int, ...], dtype: type | np.dtype | None) -> np.ndarray:
    """Memory for a parameter, float32 unless a dtype is named."""
    return np.zeros(shape, check.float_type(op, "dtype", np.float32 if dtype is None else dtype))
