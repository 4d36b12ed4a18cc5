"""The ops, bound to the tape.

Functions take tensors or arrays, and return tensors; arguments and defaults are PyTorch's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import numpy as np

from fastlayers import autograd, ops
from fastlayers.autograd import OUTPUT, Tensor, record, wants_grad
from fastlayers.functions.masks import one_hot
from fastlayers.functions.padding import pad
from fastlayers.functions.shape import flatten
from fastlayers.functions.table import tensor as _tensor
from fastlayers.names import absent
from fastlayers.nn.fuse import chains, heads
from fastlayers.ops import check
from fastlayers.ops.norm import batchnorm

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


def _optional(value: Input | None) -> Tensor | None:
    return None if value is None else _tensor(value)


def _constant(op: str, name: str, value: Any) -> Any:
    """The array of an argument by which no gradient is computed."""
    if not isinstance(value, Tensor):
        return value
    if value.requires_grad and wants_grad((value,)):
        raise ValueError(
            f"{op}: {name} must not require a gradient, which is not computed by it, got a tensor "
            f"that does; {name}.detach() does not"
        )
    return value.array()


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
    inputs = _tensor(input), _tensor(weight), _optional(bias)
    options = (stride, padding, dilation, groups, algorithm)
    return chains.start(heads.Conv(inputs, options, activation))


def linear(
    input: Input, weight: Input, bias: Input | None = None, *, activation: str | None = None
) -> Tensor:
    """Map the last axis; see `fastlayers.ops.linear`."""
    inputs = _tensor(input), _tensor(weight), _optional(bias)
    return chains.start(heads.Linear(inputs, activation))


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
    x = _tensor(input)
    window = (kernel_size, stride, padding, dilation)
    pool = chains.MaxPool((*window, ceil_mode))
    if not return_indices:
        return chains.apply(x, pool)
    shape = x.array().shape
    y, offsets = ops.max_pool2d_forward(x.array(), *window, ceil_mode)

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
    x = _tensor(input)
    options = (kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)
    shape = x.array().shape
    y = ops.avg_pool2d(x.array(), *options)

    def backward(dy: np.ndarray) -> tuple[np.ndarray]:
        return (ops.avg_pool2d_backward(dy, shape, *options),)

    return record(y, (x,), backward, saved=())


def adaptive_avg_pool2d(input: Input, output_size: int | Sequence[int | None] | None) -> Tensor:
    """Means over windows that give an output size; see `fastlayers.ops.adaptive_avg_pool2d`."""
    x = _tensor(input)
    shape = x.array().shape
    y = ops.adaptive_avg_pool2d(x.array(), output_size)

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
    x, w, b = inputs = _tensor(input), _optional(weight), _optional(bias)
    running = (
        _constant("batch_norm", "running_mean", running_mean),
        _constant("batch_norm", "running_var", running_var),
    )
    affine = tuple(None if t is None else t.array() for t in (w, b))
    if x.deferred is not None and not training and running[0] is not None is not running[1]:
        batchnorm.check_channels(x.lengths, x.dtype, *running, *affine)
        fixed = batchnorm.running_statistics(*running, eps)
        folded = chains.follow(x, heads.Normalise(*fixed, (w, b)))
        if folded is not None:
            return folded
    options = (*running, *affine, training, momentum, eps)
    norm = batchnorm.normalisation("batch_norm", x.array(), *options)
    statistics: tuple[Tensor, ...] = ()
    for t in (running_mean, running_var):
        if isinstance(t, Tensor):
            if training:
                t.changed()
            else:
                statistics += (t,)
    return chains.start(heads.BatchNorm(inputs, norm, statistics))


def dropout(input: Input, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero elements with probability p; see `fastlayers.ops.dropout`."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("dropout_", dropout, input, p, training)
    x = _tensor(input)
    if not training:
        ops.dropout(x.array(), p, False)
        return x
    y, mask = ops.dropout_forward(x.array(), p)
    return record(y, (x,), lambda dy: (ops.dropout_backward(dy, mask, p),), saved=())


def _feature_dropout(input: Input, p: float, training: bool, op: str, batched: int) -> Tensor:
    x = _tensor(input)
    getattr(ops, op)(x.array(), p, False)  # checks rank, dtype and p in both modes
    if not training:
        return x
    axis = 1 if x.ndim == batched else 0
    y, scale = ops.feature_dropout_forward(x.array(), p, axis)

    def backward(dy: np.ndarray) -> tuple[np.ndarray]:
        return (ops.feature_dropout_backward(dy, scale, axis),)

    return record(y, (x,), backward, saved=())


def dropout1d(input: Input, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of (N, C, L) or (C, L); see `fastlayers.ops.dropout1d`."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("dropout1d_", dropout1d, input, p, training)
    return _feature_dropout(input, p, training, "dropout1d", 3)


def dropout2d(input: Input, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """Zero whole channels of (N, C, H, W) or (C, H, W); see `fastlayers.ops.dropout2d`."""
    if inplace and isinstance(input, Tensor):
        return autograd.inplace.apply("dropout2d_", dropout2d, input, p, training)
    return _feature_dropout(input, p, training, "dropout2d", 4)


def _of_output(
    input: Input,
    forward: Callable[..., np.ndarray],
    backward: Callable[..., np.ndarray],
    *options: Any,
) -> Tensor:
    """Record an op whose gradient needs its output."""
    x = _tensor(input)
    y = forward(x.array(), *options)
    return record(y, (x,), lambda dy: (backward(dy, y, *options),), saved=(OUTPUT,))


def _of_input(
    input: Input,
    forward: Callable[..., np.ndarray],
    backward: Callable[..., np.ndarray],
    *options: Any,
) -> Tensor:
    """Record an op whose gradient needs its input."""
    x = _tensor(input)
    data = x.array()
    return record(forward(data, *options), (x,), lambda dy: (backward(dy, data, *options),))


def relu(input: Input, inplace: bool = False) -> Tensor:
    """``max(x, 0)``."""
    if inplace and isinstance(input, Tensor):
        return chains.apply_in_place("relu_", input, chains.RELU)
    return chains.apply(_tensor(input), chains.RELU)


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
    """Logarithm of the probabilities along an axis; see `fastlayers.ops.log_softmax`."""
    return _of_output(input, ops.log_softmax, ops.log_softmax_backward, dim)


def _loss(
    input: Input,
    forward: Callable[..., np.ndarray],
    backward: Callable[..., np.ndarray],
    **arguments: Any,
) -> Tensor:
    """Record a loss; its gradient reaches the input, not the target or the weights."""
    x, op = _tensor(input), forward.__name__
    data, fixed = x.array(), [_constant(op, name, a) for name, a in arguments.items()]
    return record(forward(data, *fixed), (x,), lambda dy: (backward(dy, data, *fixed),))


def cross_entropy(
    input: Input,
    target: Any,
    weight: Input | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Tensor:
    """Loss of logits against class indices, or class probabilities of the shape of `input`.

    See `fastlayers.ops.cross_entropy`. Of probabilities t it is ``-sum_c weight_c * t_c * log p_c``
    with ``p = softmax(input)``, and its mean over the samples is not weighted.
    """
    x = _tensor(input)
    if getattr(target, "dtype", np.dtype(int)).kind == "f":
        return _cross_entropy_of_probabilities(
            x, _tensor(target), weight, ignore_index, reduction, label_smoothing
        )
    logits, needs_grad = x.array(), wants_grad((x,))
    labels = _constant("cross_entropy", "target", target)
    weights = _constant("cross_entropy", "weight", weight)
    options = (labels, weights, ignore_index, reduction, label_smoothing)
    loss, slopes = ops.cross_entropy_forward(logits, *options, needs_grad)
    kept = [] if slopes is None else [slopes]  # until the first backward hands it out

    def backward(dy: np.ndarray) -> tuple[np.ndarray]:
        if kept:
            return (ops.cross_entropy_apply(dy, kept.pop(), reuse=True),)
        return (ops.cross_entropy_backward(dy, logits, *options),)

    return record(loss, (x,), backward, saved=(x,), requires_grad=needs_grad, fresh=True)


def _cross_entropy_of_probabilities(
    x: Tensor,
    target: Tensor,
    weight: Input | None,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
) -> Tensor:
    check.same_shape("cross_entropy", "target", target.array(), x.array().shape)
    check.one_of("cross_entropy", "reduction", reduction, ("none", "mean", "sum"))
    check.probability("cross_entropy", "label_smoothing", label_smoothing)
    if ignore_index >= 0:
        raise ValueError(
            f"cross_entropy: ignore_index must be negative for class probabilities, "
            f"got {ignore_index}"
        )
    axis = min(x.ndim - 1, 1)
    classes = x.array().shape[axis]
    if label_smoothing:
        target = target * (1 - label_smoothing) + label_smoothing / classes
    terms = target * log_softmax(x, axis)
    if weight is not None:
        factors = check.vector("cross_entropy", "weight", _array(weight), classes, x.dtype)
        terms = terms * factors.reshape(-1, *[1] * (x.ndim - axis - 1))
    losses: Tensor = -terms.sum(axis)
    if reduction == "none":
        return losses
    total: Tensor = losses.sum()
    return total if reduction == "sum" else total / losses.numel()


def _array(value: Input) -> np.ndarray:
    return value.array() if isinstance(value, Tensor) else value


def nll_loss(
    input: Input,
    target: Any,
    weight: Input | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Tensor:
    """Loss of log-probabilities against class indices; see `fastlayers.ops.nll_loss`."""
    return _loss(
        input,
        ops.nll_loss,
        ops.nll_loss_backward,
        target=target,
        weight=weight,
        ignore_index=ignore_index,
        reduction=reduction,
    )


def mse_loss(input: Input, target: Input, reduction: str = "mean") -> Tensor:
    """Squared error; see `fastlayers.ops.mse_loss`."""
    x, t = _tensor(input), _tensor(target)
    a, b = x.array(), t.array()

    def backward(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        dx = ops.mse_loss_backward(dy, a, b, reduction)
        return dx, -dx if t.requires_grad else None

    return record(ops.mse_loss(a, b, reduction), (x, t), backward)


def binary_cross_entropy_with_logits(
    input: Input,
    target: Input,
    weight: Input | None = None,
    reduction: str = "mean",
    pos_weight: Input | None = None,
) -> Tensor:
    """Loss of logits against yes-no targets; see the op of the same name in `fastlayers.ops`."""
    x, t = _tensor(input), _tensor(target)
    op = "binary_cross_entropy_with_logits"
    factor, yes = _constant(op, "weight", weight), _constant(op, "pos_weight", pos_weight)
    options = (x.array(), t.array(), factor, reduction, yes)

    def backward(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        dx = ops.binary_cross_entropy_with_logits_backward(dy, *options)
        by_target = ops.loss.binary_cross_entropy_with_logits_by_target
        return dx, by_target(dy, *options) if t.requires_grad else None

    return record(ops.binary_cross_entropy_with_logits(*options), (x, t), backward)


def __getattr__(name: str) -> Any:
    raise absent("nn.functional", name, __all__)
