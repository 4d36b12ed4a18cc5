"""Losses as functions, which `fastlayers.nn.functional` offers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers import ops
from fastlayers.autograd import OUTPUT, Tensor, record, wants_grad
from fastlayers.autograd.recording import constants, tensor
from fastlayers.ops import check, prepared

__all__ = ["binary_cross_entropy_with_logits", "cross_entropy", "mse_loss", "nll_loss"]

Input = Tensor | np.ndarray


def _loss(
    input: Input,
    forward: Callable[..., np.ndarray],
    backward: Callable[..., np.ndarray],
    **arguments: Any,
) -> Tensor:
    """Record a loss; its gradient reaches the input, not the target or the weights."""
    x, op = tensor(input), forward.__name__
    data, fixed = x.array(), constants(op, **arguments)
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
    x = tensor(input)
    if getattr(target, "dtype", np.dtype(int)).kind == "f":
        return _cross_entropy_of_probabilities(
            x, tensor(target), weight, ignore_index, reduction, label_smoothing
        )
    logits, needs_grad = x.array(), wants_grad((x,))
    labels, weights = constants("cross_entropy", target=target, weight=weight)
    options = (labels, weights, ignore_index, reduction, label_smoothing)
    loss, slopes = ops.cross_entropy_forward(logits, *options, needs_grad)
    kept = [] if slopes is None else [slopes]  # until the first backward returns it

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
    terms = target * _log_softmax(x, axis)
    if weight is not None:
        factors = check.vector("cross_entropy", "weight", _array(weight), classes, x.dtype)
        terms = terms * factors.reshape(-1, *[1] * (x.ndim - axis - 1))
    losses: Tensor = -terms.sum(axis)
    if reduction == "none":
        return losses
    total: Tensor = losses.sum()
    return total if reduction == "sum" else total / losses.numel()


def _log_softmax(x: Tensor, axis: int) -> Tensor:
    y = ops.log_softmax(x.array(), axis)
    return record(y, (x,), lambda dy: (ops.log_softmax_backward(dy, y, axis),), saved=(OUTPUT,))


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
    x, t = tensor(input), tensor(target)
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
    """Loss of logits against binary targets; see the op of the same name in `fastlayers.ops`."""
    x, t = tensor(input), tensor(target)
    op = "binary_cross_entropy_with_logits"
    factor, positive = constants(op, weight=weight, pos_weight=pos_weight)
    options = (x.array(), t.array(), factor, reduction, positive)

    def backward(dy: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        dx = ops.binary_cross_entropy_with_logits_backward(dy, *options)
        by_target = prepared.binary_cross_entropy_with_logits_by_target
        return dx, by_target(dy, *options) if t.requires_grad else None

    return record(ops.binary_cross_entropy_with_logits(*options), (x, t), backward)
