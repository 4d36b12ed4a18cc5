"""Ops on NumPy arrays, forward and backward in pairs.

Arguments, defaults and shapes are PyTorch's; arrays are float32 or float64. Image arrays come
back with PyTorch's shape (N, C, H, W) on channels-last memory. An op whose gradient needs more
than its input or output has an ``*_forward`` that returns that too.

An array may have any order, strides, alignment and byte order, repeat its elements (a broadcast
view), be read-only, mapped from a file or of a subclass: results have the bits of a plain array's
(without Numba, where NumPy's sums follow the order in memory, its values within rounding).
Other dtypes are a TypeError, and so is a masked array, whose mask no op would heed. Arguments are
never written to, but for running statistics in training, which must be writable, each element in a
place of its own. Results are plain arrays in native byte order that share no memory with arguments
or each other, but for views of the input that `flatten` and its gradient, `dropout` in evaluation,
`cross_entropy_apply` with `reuse` and `batch_norm_backward` for a residual give.

NaN and infinity go through as they do in PyTorch, without warnings; where an op differs, or NaN
reaches further than one would expect, its docstring says so.
"""

from fastlayers.ops import activation
from fastlayers.ops.activation import *
from fastlayers.ops.conv import conv2d, conv2d_backward
from fastlayers.ops.conv.pooled import conv2d_max_pool2d, conv2d_max_pool2d_backward
from fastlayers.ops.dropout import (
    dropout,
    dropout1d,
    dropout2d,
    dropout_backward,
    dropout_forward,
    feature_dropout_backward,
    feature_dropout_forward,
)
from fastlayers.ops.flatten import flatten, flatten_backward
from fastlayers.ops.linear import linear, linear_backward
from fastlayers.ops.loss import (
    binary_cross_entropy_with_logits,
    binary_cross_entropy_with_logits_backward,
    cross_entropy,
    cross_entropy_apply,
    cross_entropy_backward,
    cross_entropy_forward,
    mse_loss,
    mse_loss_backward,
    nll_loss,
    nll_loss_backward,
)
from fastlayers.ops.norm.batchnorm import (
    batch_norm,
    batch_norm_apply,
    batch_norm_backward,
    batch_norm_forward,
    batch_norm_statistics,
)
from fastlayers.ops.norm.pooled import batch_norm_max_pool2d, batch_norm_max_pool2d_backward
from fastlayers.ops.pool.avg_pool import (
    adaptive_avg_pool2d,
    adaptive_avg_pool2d_backward,
    avg_pool2d,
    avg_pool2d_backward,
)
from fastlayers.ops.pool.max_pool import (
    max_pool2d,
    max_pool2d_backward,
    max_pool2d_forward,
    max_pool2d_indices,
    max_pool2d_shape,
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
    "batch_norm_max_pool2d",
    "batch_norm_max_pool2d_backward",
    "batch_norm_statistics",
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "conv2d",
    "conv2d_backward",
    "conv2d_max_pool2d",
    "conv2d_max_pool2d_backward",
    "cross_entropy",
    "cross_entropy_apply",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout_backward",
    "dropout_forward",
    "feature_dropout_backward",
    "feature_dropout_forward",
    "flatten",
    "flatten_backward",
    "linear",
    "linear_backward",
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "max_pool2d_indices",
    "max_pool2d_shape",
    "mse_loss",
    "mse_loss_backward",
    "nll_loss",
    "nll_loss_backward",
]
__all__ += activation.__all__
