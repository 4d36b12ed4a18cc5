"""Reference for `fastlayers.ops.dropout`; what is dropped is an argument here."""

import numpy as np
from numpy.typing import NDArray

from fastlayers.reference.types import Array

__all__ = ["dropout", "dropout_backward", "feature_dropout", "feature_dropout_backward"]


def dropout(input: Array, mask: NDArray[np.uint8], p: float) -> Array:
    """Zero the cells whose mask is 0, and multiply the others by ``1 / (1 - p)``.

    Srivastava et al., https://jmlr.org/papers/v15/srivastava14a.html;
    https://pytorch.org/docs/stable/generated/torch.nn.Dropout.html
    """
    scale = input.dtype.type(1 / (1 - p) if p < 1 else 0)
    return np.where(mask, input * scale, input.dtype.type(0))


def dropout_backward(grad_output: Array, mask: NDArray[np.uint8], p: float) -> Array:
    """Give the gradient of `dropout`: ``dx = dy / (1 - p)`` where the mask is 1, or 0."""
    return dropout(grad_output, mask, p)


def feature_dropout(input: Array, scale: Array, channel_axis: int) -> Array:
    """Multiply each channel by its scale: 0, whatever it holds, or ``1 / (1 - p)``.

    `scale` has the shape of input up to and with `channel_axis`: (N, C) or (C,).
    Tompson et al., https://arxiv.org/abs/1411.4280;
    https://pytorch.org/docs/stable/generated/torch.nn.Dropout2d.html
    """
    scale = scale.reshape(*scale.shape, *[1] * (input.ndim - channel_axis - 1))
    return np.where(scale, input * scale, input.dtype.type(0))


def feature_dropout_backward(grad_output: Array, scale: Array, channel_axis: int) -> Array:
    """Give the gradient of `feature_dropout`: ``dx = dy * scale``."""
    return feature_dropout(grad_output, scale, channel_axis)
