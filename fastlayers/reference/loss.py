"""Reference for `fastlayers.ops.loss`.

`reduction` gives the loss of each element ("none"), their sum or their mean.
"""

from typing import Any

import numpy as np

from fastlayers.reference.activation import log_softmax, log_softmax_backward, sigmoid
from fastlayers.reference.types import Array, Labels

__all__ = [
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "mse_loss",
    "mse_loss_backward",
    "nll_loss",
    "nll_loss_backward",
]


def cross_entropy(
    input: Array,
    target: Labels,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Any:
    """Give the cross entropy of logits (N, C, ...) or (C,) with labels (N, ...) or ().

    ``loss[n] = -sum_c q[n, c] log_softmax(x)[n, c]`` with
    ``q[n, c] = weight[c] ((1 - smoothing) [c = target[n]] + smoothing / C)``, and 0 where the
    target is `ignore_index`; the mean divides the sum by ``sum_n weight[target[n]]``.
    https://pytorch.org/docs/stable/generated/torch.nn.CrossEntropyLoss.html
    """
    q, total_weight = _label_weights(input, target, weight, ignore_index, label_smoothing)
    return _expected_loss(log_softmax(input, _class_axis(input)), q, total_weight, reduction)


def cross_entropy_backward(
    grad_output: Array,
    input: Array,
    target: Labels,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> Array:
    """Give the gradient of `cross_entropy`: that of `nll_loss` through `log_softmax`."""
    axis = _class_axis(input)
    q, total_weight = _label_weights(input, target, weight, ignore_index, label_smoothing)
    dy = _expected_loss_backward(grad_output, q, total_weight, reduction)
    return log_softmax_backward(dy, log_softmax(input, axis), axis)


def nll_loss(
    input: Array,
    target: Labels,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Any:
    """Give ``loss[n] = -weight[target[n]] x[n, target[n]]``, in all else as `cross_entropy`.

    https://pytorch.org/docs/stable/generated/torch.nn.NLLLoss.html
    """
    q, total_weight = _label_weights(input, target, weight, ignore_index)
    return _expected_loss(input, q, total_weight, reduction)


def nll_loss_backward(
    grad_output: Array,
    input: Array,
    target: Labels,
    weight: Array | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> Array:
    """Give the gradient of `nll_loss`: ``dx[n, target[n]] = -weight[target[n]] dy[n]``, else 0."""
    q, total_weight = _label_weights(input, target, weight, ignore_index)
    return _expected_loss_backward(grad_output, q, total_weight, reduction)


def mse_loss(input: Array, target: Array, reduction: str = "mean") -> Any:
    """Give ``loss = (x - target)^2``.

    https://pytorch.org/docs/stable/generated/torch.nn.MSELoss.html
    """
    return _reduced((input - target) ** 2, reduction)


def mse_loss_backward(
    grad_output: Array, input: Array, target: Array, reduction: str = "mean"
) -> Array:
    """Give the gradient of `mse_loss` by input: ``dx = 2 (x - target) dy``."""
    return 2 * (input - target) * _spread(grad_output, input, reduction)


def binary_cross_entropy_with_logits(
    input: Array,
    target: Array,
    weight: Array | None = None,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> Any:
    """Give the cross entropy of ``sigmoid(x)`` with probabilities of input's shape.

    ``loss = -weight (pos_weight t log(sigmoid(x)) + (1 - t) log(1 - sigmoid(x)))``, with
    ``log(sigmoid(x)) = min(x, 0) - log(1 + exp(-|x|))``; the weights broadcast to input.
    https://pytorch.org/docs/stable/generated/torch.nn.BCEWithLogitsLoss.html
    """
    positive = target if pos_weight is None else target * pos_weight
    tail = np.log1p(np.exp(-np.abs(input)))
    loss = positive * (tail - np.minimum(input, 0)) + (1 - target) * (tail + np.maximum(input, 0))
    return _reduced(loss if weight is None else loss * weight, reduction)


def binary_cross_entropy_with_logits_backward(
    grad_output: Array,
    input: Array,
    target: Array,
    weight: Array | None = None,
    reduction: str = "mean",
    pos_weight: Array | None = None,
) -> Array:
    """Give the gradient of `binary_cross_entropy_with_logits` by input.

    ``dx = weight ((1 - t) sigmoid(x) - pos_weight t sigmoid(-x)) dy``.
    """
    positive = target if pos_weight is None else target * pos_weight
    dx = (1 - target) * sigmoid(input) - positive * sigmoid(-input)
    return (dx if weight is None else dx * weight) * _spread(grad_output, input, reduction)


def _class_axis(input: Array) -> int:
    return min(1, input.ndim - 1)


def _label_weights(
    input: Array,
    target: Labels,
    weight: Array | None,
    ignore_index: int,
    label_smoothing: float = 0.0,
) -> tuple[Array, Any]:
    """Give q of `cross_entropy`, in input's shape, and ``sum_n weight[target[n]]``."""
    axis = _class_axis(input)
    classes = np.arange(input.shape[axis]).reshape(-1, *[1] * (input.ndim - axis - 1))
    labels = np.expand_dims(target, axis)
    chosen, counted = labels == classes, labels != ignore_index
    w = np.ones(input.shape[axis], input.dtype) if weight is None else weight
    w = np.where(counted, w.reshape(classes.shape), input.dtype.type(0))
    q = w * ((1 - label_smoothing) * chosen + label_smoothing / len(classes)).astype(input.dtype)
    return q, (w * chosen).sum()


def _expected_loss(log_p: Array, q: Array, total_weight: Any, reduction: str) -> Any:
    """Give ``-sum_c q log_p``, whose mean is weighted; q = 0 counts even against -inf."""
    terms = q * np.where(q != 0, log_p, log_p.dtype.type(0))
    loss = -terms.sum(_class_axis(log_p))
    if reduction != "mean":
        return _reduced(loss, reduction)
    with np.errstate(invalid="ignore"):  # all ignored: NaN, as in PyTorch
        return loss.sum() / total_weight


def _expected_loss_backward(
    grad_output: Array, q: Array, total_weight: Any, reduction: str
) -> Array:
    axis = _class_axis(q)
    if reduction == "none":
        return -q * np.expand_dims(grad_output, axis)
    scale = grad_output / total_weight if reduction == "mean" and total_weight else grad_output
    return -q * scale


def _reduced(loss: Array, reduction: str) -> Any:
    if reduction == "none":
        return loss
    return loss.sum() if reduction == "sum" else loss.sum() / loss.dtype.type(loss.size)


def _spread(grad_output: Array, input: Array, reduction: str) -> Array:
    """Give the gradient of each element's loss, or one for all."""
    return grad_output / input.dtype.type(input.size) if reduction == "mean" else grad_output
