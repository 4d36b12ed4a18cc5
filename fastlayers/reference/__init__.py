"""Plain NumPy implementations of all operations: the specification that the kernels must meet.

The names, arguments and results are those of `fastlayers.ops`, without its checks. Only dropout
differs: the mask or scale that an operation draws is an argument here.
"""

from fastlayers.reference import activation
from fastlayers.reference.activation import *
from fastlayers.reference.batchnorm import (
    batch_norm,
    batch_norm_apply,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_input_gradient,
    batch_norm_moments,
    batch_norm_statistics,
)
from fastlayers.reference.conv import conv2d, conv2d_backward
from fastlayers.reference.dropout import (
    dropout,
    dropout_backward,
    feature_dropout,
    feature_dropout_backward,
)
from fastlayers.reference.flatten import flatten, flatten_backward
from fastlayers.reference.linear import linear, linear_backward
from fastlayers.reference.loss import (
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_backward,
    cross_entropy,
    cross_entropy_backward,
    mse_loss,
    mse_loss_backward,
    nll_loss,
    nll_loss_backward,
)
from fastlayers.reference.philox import kept
from fastlayers.reference.pool import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    avg_pool2d,
    avg_pool2d_backward,
    max_pool2d,
    max_pool2d_backward,
    max_pool2d_forward,
)

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_input_gradient",
    "batch_norm_moments",
    "batch_norm_statistics",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "conv2d",
    "conv2d_backward",
    "cross_entropy",
    "cross_entropy_backward",
    "dropout",
    "dropout_backward",
    "feature_dropout",
    "feature_dropout_backward",
    "flatten",
    "flatten_backward",
    "kept",
    "linear",
    "linear_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "mse_loss",
    "mse_loss_backward",
    "nll_loss",
    "nll_loss_backward",
]
__all__ += activation.__all__
