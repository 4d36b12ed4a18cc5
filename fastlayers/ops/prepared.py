"""The door to ops for `fastlayers.nn`: calls that are checked once, and run with or without more.

`fastlayers.ops` has an op as one function that checks, allocates and runs. A layer checks when it
is called, runs when it is known what follows, and goes back with what it has checked: these are the
parts. What they are given has been checked, by the `*_call` that made it or by the caller.
"""

from fastlayers.ops.arithmetic import add
from fastlayers.ops.conv import ALGORITHMS, Convolution
from fastlayers.ops.conv import prepare as conv2d_call
from fastlayers.ops.conv.pooled import PooledConvolution
from fastlayers.ops.conv.pooled import prepare_pooled as conv2d_max_pool2d_call
from fastlayers.ops.layout import kernel_ready
from fastlayers.ops.linear import linear_rows, linear_rows_backward
from fastlayers.ops.linear import prepare as linear_call
from fastlayers.ops.linear.routes import reasons as linear_reasons
from fastlayers.ops.loss import binary_cross_entropy_with_logits_by_target
from fastlayers.ops.norm.layout import flat_elements
from fastlayers.ops.norm.normalisation import Normalisation, check_vectors, running_statistics
from fastlayers.ops.norm.normalisation import prepare as batch_norm_call
from fastlayers.ops.norm.normalisation import prepare_with as batch_norm_of_statistics
from fastlayers.ops.norm.pooled import pooled_backward as batch_norm_max_pool2d_backward

__all__ = [
    "ALGORITHMS",
    "Convolution",
    "Normalisation",
    "PooledConvolution",
    "add",
    "batch_norm_call",
    "batch_norm_max_pool2d_backward",
    "batch_norm_of_statistics",
    "binary_cross_entropy_with_logits_by_target",
    "check_vectors",
    "conv2d_call",
    "conv2d_max_pool2d_call",
    "flat_elements",
    "kernel_ready",
    "linear_call",
    "linear_reasons",
    "linear_rows",
    "linear_rows_backward",
    "running_statistics",
]
