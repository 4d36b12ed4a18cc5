"""A thin tape: tensors that remember how they were made, and reverse-mode differentiation.

An op is recorded by `record`, with a function from the output's gradient to those of the inputs.
`fastlayers.ops` computes convolutions, pooling and the like; `fastlayers.functions` has what NumPy
computes.
"""

from fastlayers import functions  # noqa: F401  gives tensors their methods
from fastlayers.autograd.gradient import backward, grad
from fastlayers.autograd.mode import (
    enable_grad,
    inference_mode,
    is_grad_enabled,
    no_grad,
    set_grad_enabled,
)
from fastlayers.autograd.recording import Recording, defer, record, wants_grad
from fastlayers.autograd.tape import OUTPUT, Backward, Gradients, Listener, listen
from fastlayers.autograd.tensor import Tensor

__all__ = [
    "OUTPUT",
    "Backward",
    "Gradients",
    "Listener",
    "Recording",
    "Tensor",
    "backward",
    "defer",
    "enable_grad",
    "grad",
    "inference_mode",
    "is_grad_enabled",
    "listen",
    "no_grad",
    "record",
    "set_grad_enabled",
    "wants_grad",
]
