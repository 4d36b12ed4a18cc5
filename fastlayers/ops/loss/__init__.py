"""Losses of classification and regression."""

from fastlayers.ops.loss.binary_entropy import (
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_backward,
    binary_cross_entropy_with_logits_by_target,
)
from fastlayers.ops.loss.entropy import (
    cross_entropy,
    cross_entropy_apply,
    cross_entropy_backward,
    cross_entropy_forward,
)
from fastlayers.ops.loss.mse import mse_loss, mse_loss_backward
from fastlayers.ops.loss.nll import nll_loss, nll_loss_backward

__all__ = [
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "binary_cross_entropy_with_logits_by_target",
    "cross_entropy",
    "cross_entropy_apply",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "mse_loss",
    "mse_loss_backward",
    "nll_loss",
    "nll_loss_backward",
]
