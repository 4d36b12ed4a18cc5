"""The ops, bound to the tape.

Functions take tensors or arrays, and return tensors; arguments and defaults are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np

from fastlayers import autograd, ops
from fastlayers.autograd import OUTPUT, Tensor, record
from fastlayers.autograd.recording import arguments, changed, constants, tensor
from fastlayers.functions.masks import one_hot
from fastlayers.functions.padding import pad
from fastlayers.functions.shape import flatten
from fastlayers.names import absent
from fastlayers.nn.fuse import chains, heads
from fastlayers.nn.losses import (
    binary_cross_entropy_with_logits,
    cross_entropy,
    mse_loss,
    nll_loss,
)
from fastlayers.ops import prepared

__all__ = [
    "adaptive_avg_pool2d",
    "avg_pool2d",
    "batch_norm",
    "binary_cross_entropy_with_logits",
    "conv2d",
    "cross_entropy",
    "dropout",
    "dropout1d",
    "dropout2d",
    "flatten",
    "gelu",
    "hardswish",
    "leaky_relu",
    "linear",
    "log_softmax",
    "max_pool2d",
    "mse_loss",
    "nll_loss",
    "one_hot",
    "pad",
    "relu",
    "sigmoid",
    "silu",
    "softmax",
    "tanh",
]

Input = Tensor | np.ndarray
IntPair = int | Sequence[int]


def conv2d(
    input: Input,
    weight: Input,
    bias: Input | None = None,
    stride: IntPair = 1,
    padding: IntPair | str = 0,
    dilation: IntPair = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
    activation: str | None = None,
) -> Tensor:
    """Convolve images; see `fastlayers.ops.conv2d`."""
    options = (stride, padding, dilation, groups, algorithm)
    return chains.start(heads.Conv(input, weight, bias, options, activation))


def linear(
    input: Input, weight: Input, bias: Input | None = None, *, activation: str | None = None
) -> Tensor:
    """Map the last axis; see `fastlayers.ops.linear`."""
    return chains.start(heads.Linear(input, weight, bias, activation))


@overload
def max_pool2d(
    input: Input,
    kernel_size: IntPair,
    stride: IntPair | None = ...,
    padding: IntPair = ...,
    dilation: IntPair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> Tensor: ...


@overload
def max_pool2d(
    input: Input,
    kernel_size: IntPair,
    stride: IntPair | None = ...,
    padding: IntPair = ...,
    dilation: IntPair = ...,
    ceil_mode: bool = ...,
    *,
    return_indices: Literal[True],
) -> tuple[Tensor, Tensor]: ...


@overload
def max_pool2d(
    input: Input,
    kernel_size: IntPair,
    stride: IntPair | None = ...,
    padding: IntPair = ...,
    dilation: IntPair = ...,
    ceil_mode: bool = ...,
    return_indices: bool = ...,
) -> Tensor | tuple[Tensor, Tensor]: ...


def max_pool2d(
    input: Input,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """Maximum of each window; see `fastlayers.ops.max_pool2d`."""
    x = tensor(input)
    window = (kernel_size, stride, padding, dilation)
    pool = chains.MaxPool((*window, ceil_mode))
    if not return_indices:
        return chains.apply(x, pool)
    images = x.images() if x.ndim == 4 else x.array()
    shape = images.shape
    y, offsets = ops.max_pool2d_forward(images, *window, ceil_mode)

    def backward(dy: np.ndarray) -> tuple[np.ndarray]:
        return (ops.max_pool2d_backward(dy, offsets, shape, *window),)

    out = record(y, (x,), backward, saved=())
    return out, Tensor(ops.max_pool2d_indices(offsets, shape, *window))


def avg_pool2d(
    input: Input,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Tensor:
    """Mean of each window; see `fastlayers.ops.avg_pool2d`."""
    x = tensor(input)
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    images = x.images() if x.ndim == 4 else x.array()
    shape = images.shape
    y = ops.avg_pool2d(images, *options)

    def backward(dy: np.ndarray) -> tuple[np.ndarray]:
        return (ops.avg_pool2d_backward(dy, shape, *options),)

    return record(y, (x,), backward, saved=())


def adaptive_avg_pool2d(input: Input, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Means over windows that give an output size; see `fastlayers.ops.adaptive_avg_pool2d`."""
    x = tensor(input)
    images = x.images() if x.ndim == 4 else x.array()
    shape = images.shape
    y = ops.adaptive_avg_pool2d(images, output_size)

    def backward(dy: np.ndarray) -> tuple[np.ndarray]:
        return (ops.adaptive_avg_pool2d_backward(dy, shape),)

    return record(y, (x,), backward, saved=())


def batch_norm(
    input: Input,
    running_mean: Input | None,
    running_var: Input | None,
    weight: Input | None = None,
    bias: Input | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Normalise each channel, updating the running arrays; see `fastlayers.ops.batch_norm`."""
    if not training and isinstance(input, Tensor) and input.deferred is not None:
        folded = _folded(input, running_mean, running_var, weight, bias, eps)
        if folded is not None:
            return folded
    inputs, (_, w, b), needs = arguments(input, weight, bias)
    running = constants("batch_norm", running_mean=running_mean, running_var=running_var)
    options = (*running, w, b, training, momentum, eps)
    norm = prepared.batch_norm_call("batch_norm", inputs[0].images(), *options)
    if training:
        changed(running_mean, running_var)
        return chains.start(heads.BatchNorm(inputs, needs, norm))
    statistics = tuple(t for t in (running_mean, running_var) if isinstance(t, Tensor))
    return chains.start(heads.BatchNorm(inputs, needs, norm, statistics))


def _folded(
    x: Tensor, running_mean: Any, running_var: Any, weight: Any, bias: Any, eps: float
) -> Tensor | None:
    """Fold the normalisation into the weight of a deferred convolution; None where it can't be."""
    affine, (w, b), _ = arguments(weight, bias)
    mean, var = constants("batch_norm", running_mean=running_mean, running_var=running_var)
    if mean is None or var is None:
        return None
    prepared.check_vectors(x.lengths, x.dtype, mean, var, w, b)
    return chains.follow(x, heads.Normalise(*prepared.running_statistics(mean, var, eps), affine))


def dropout(input: Input, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero elements with probability p; see `fastlayers.ops.dropout`."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("dropout_", dropout, input, p, training)
    x = tensor(input)
    if not training:
        ops.dropout(x.array(), p, False)
        return x
    y, mask = ops.dropout_forward(x.array(), p)
    return record(y, (x,), lambda dy: (ops.dropout_backward(dy, mask, p),), saved=())


def _feature_dropout(input: Input, p: float, training: bool, op: str) -> Tensor:
    x = tensor(input)
    getattr(ops, op)(x.array(), p, False)  # checks rank, dtype and p in both modes
    if not training:
        return x
    axis = 1 if x.ndim > 2 else 0
    y, scale = ops.feature_dropout_forward(x.array(), p, axis)

    def backward(dy: np.ndarray) -> tuple[np.ndarray]:
        return (ops.feature_dropout_backward(dy, scale, axis),)

    return record(y, (x,), backward, saved=())


def dropout1d(input: Input, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of (N, C, L) or (C, L); see `fastlayers.ops.dropout1d`."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("dropout1d_", dropout1d, input, p, training)
    return _feature_dropout(input, p, training, "dropout1d")


def dropout2d(input: Input, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of (N, C, H, W) or (N, C, L); see `fastlayers.ops.dropout2d`."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("dropout2d_", dropout2d, input, p, training)
    return _feature_dropout(input, p, training, "dropout2d")


def _of_output(
    input: Input,
    forward: Callable[..., np.ndarray],
    backward: Callable[..., np.ndarray],
    *options: Any,
) -> Tensor:
    """Record an op whose gradient needs its output."""
    x = tensor(input)
    y = forward(x.array(), *options)
    return record(y, (x,), lambda dy: (backward(dy, y, *options),), saved=(OUTPUT,))


def _of_input(
    input: Input,
    forward: Callable[..., np.ndarray],
    backward: Callable[..., np.ndarray],
    *options: Any,
) -> Tensor:
    """Record an op whose gradient needs its input."""
    x = tensor(input)
    data = x.array()
    return record(forward(data, *options), (x,), lambda dy: (backward(dy, data, *options),))


def relu(input: Input, inplace: bool = False) -> Tensor:
    """``max(x, 0)``."""
    if inplace and isinstance(input, Tensor):
        return chains.apply_in_place("relu_", input, chains.RELU)
    return chains.apply(tensor(input), chains.RELU)


def leaky_relu(input: Input, negative_slope: float = 0.01, inplace: bool = False) -> Tensor:
    """``x`` or ``negative_slope * x``."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("leaky_relu_", leaky_relu, input, negative_slope)
    return _of_input(input, ops.leaky_relu, ops.leaky_relu_backward, negative_slope)


def sigmoid(input: Input) -> Tensor:
    """``1 / (1 + exp(-x))``."""
    return _of_output(input, ops.sigmoid, ops.sigmoid_backward)


def silu(input: Input, inplace: bool = False) -> Tensor:
    """``x / (1 + exp(-x))``."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("silu_", silu, input)
    return _of_input(input, ops.silu, ops.silu_backward)


def tanh(input: Input) -> Tensor:
    """Hyperbolic tangent."""
    return _of_output(input, ops.tanh, ops.tanh_backward)


def gelu(input: Input, approximate: str = "none") -> Tensor:
    """``x * Phi(x)``; see `fastlayers.ops.gelu`."""
    return _of_input(input, ops.gelu, ops.gelu_backward, approximate)


def hardswish(input: Input, inplace: bool = False) -> Tensor:
    """``x * min(max(x + 3, 0), 6) / 6``."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("hardswish_", hardswish, input)
    return _of_input(input, ops.hardswish, ops.hardswish_backward)


def softmax(input: Input, dim: int) -> Tensor:
    """Probabilities along an axis; see `fastlayers.ops.softmax`."""
    return _of_output(input, ops.softmax, ops.softmax_backward, dim)


def log_softmax(input: Input, dim: int) -> Tensor:
    """Log-probabilities along an axis; see `fastlayers.ops.log_softmax`."""
    return _of_output(input, ops.log_softmax, ops.log_softmax_backward, dim)


def __getattr__(name: str) -> Any:
    raise absent("nn.functional", name, __all__)
