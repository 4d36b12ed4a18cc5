"""Two-dimensional convolution."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.ops import _check, direct
from fastlayers.ops.conv_shape import ConvShape, conv_shape
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.reduce import column_sums
from fastlayers.runtime import memory

__all__ = ["conv2d", "conv2d_backward"]

Padding = int | Sequence[int] | str
Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


def _prepare(
    op: str,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> tuple[np.ndarray, np.ndarray, ConvShape, bool]:
    """Check a call's arguments: batched input, weight, shape, whether a batch axis was added."""
    input = _check.array(op, "input", input, (3, 4))
    weight = _check.array(op, "weight", weight, (4,))
    _check.same_dtype(op, "weight", weight, input.dtype)
    stride = _check.pair(op, "stride", stride, 1)
    dilation = _check.pair(op, "dilation", dilation, 1)
    groups = _check.integer(op, "groups", groups, 1)
    if isinstance(padding, str):
        _check.one_of(op, "padding", padding, ("same", "valid"))
        if padding == "same" and stride != (1, 1):
            raise ValueError(f"{op}: padding 'same' needs a stride of 1, got stride {stride}")
    else:
        padding = _check.pair(op, "padding", padding, 0)
    unbatched = input.ndim == 3
    if unbatched:
        input = input[None]
    sizes = (op, input.shape, weight.shape, stride, padding, dilation, groups, input.itemsize)
    return input, weight, conv_shape(*sizes), unbatched


def conv2d(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> np.ndarray:
    """Cross-correlate images with a set of kernels.

    ``y[n, m, i, j] = bias[m] + sum over c, r, s of weight[m, c, r, s]
    * input[n, c, i * stride + r * dilation - padding, j * stride + s * dilation - padding]``

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    weight : ndarray
        (M, C / groups, R, S), of the input's dtype.
    bias : ndarray, optional
        (M,).
    stride, dilation : int or (int, int)
        For height and width.
    padding : int, (int, int), "same" or "valid"
        Zeros added on both sides; "same" keeps the size at stride 1, with the odd zero behind.
    groups : int
        Blocks of channels that are convolved apart; ``groups == C`` is depthwise.

    Returns
    -------
    ndarray
        (N, M, OH, OW) or (M, OH, OW), ``OH = (H + 2 * padding - dilation * (R - 1) - 1) // stride
        + 1``.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype, channel count or option, or a kernel larger than the padded input.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv2d.html
    """
    op = "conv2d"
    input, weight, shape, unbatched = _prepare(op, input, weight, stride, padding, dilation, groups)
    if bias is None:
        bias = memory.zeros(shape.out_channels, input.dtype)
    else:
        bias = _check.vector(op, "bias", bias, shape.out_channels, input.dtype)
        bias = memory.writable_view(bias)
    y = direct.forward(to_channels_last(input), kernel_ready(weight), bias, shape)
    y = from_channels_last(y)
    return y[0] if unbatched else y


def conv2d_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Grads:
    """Gradients of `conv2d` by input, weight and bias, each only where `needs` asks for it.

    Parameters
    ----------
    grad_output : ndarray
        Of the shape that `conv2d` returns.
    input, weight, stride, padding, dilation, groups
        As they were given to `conv2d`.
    needs : (bool, bool, bool)
        Which of the three gradients to compute; the others are None.

    Returns
    -------
    (ndarray or None, ndarray or None, ndarray or None)
        Of the shapes of input, weight and bias.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`, and for a `grad_output` of another shape or dtype than the output's.
    """
    op = "conv2d_backward"
    input, weight, shape, unbatched = _prepare(op, input, weight, stride, padding, dilation, groups)
    expected = shape.out_shape[1:] if unbatched else shape.out_shape
    grad_output = _check.gradient(op, grad_output, expected, input.dtype)
    dy = to_channels_last(grad_output[None] if unbatched else grad_output)
    dx = dw = db = None
    if needs[0]:
        dx = from_channels_last(direct.backward_input(dy, kernel_ready(weight), shape))
        dx = dx[0] if unbatched else dx
    if needs[1]:
        dw = direct.backward_weight(to_channels_last(input), dy, shape)
    if needs[2]:
        db = column_sums(dy.reshape(shape.pixels, shape.out_channels))
    return dx, dw, db
