"""Two-dimensional convolution and its gradients.

`convolution` checks a call's arguments and keeps what follows from them; `routes` chooses the
algorithm of each pass, and each algorithm is a file, with the methods of `algorithm.Algorithm`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.conv.convolution import Convolution, Grads, Padding, prepare
from fastlayers.ops.conv.routes import ALGORITHMS

__all__ = ["ALGORITHMS", "Convolution", "conv2d", "conv2d_backward", "prepare"]


def conv2d(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    algorithm: str = "auto",
    activation: str | None = None,
) -> np.ndarray:
    """Cross-correlate images with a set of kernels, and apply ReLU where asked.

    ``y[n, m, i, j] = bias[m] + sum over c, r, s of weight[m, c, r, s]
    * input[n, c, i * stride + r * dilation - padding, j * stride + s * dilation - padding]``,
    or the greater of that and 0.

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
    algorithm : {"auto", "direct", "winograd"}
        "direct" sums the products as they stand: exact for integers, and an image's output has
        the same bits in every batch. "winograd" needs a third or less of the products of 3x3
        kernels at stride 1, for an error of up to 20 times that of "direct", about 1e-6 of the
        largest output in float32; sums of fewer than 8 terms stay direct. "auto" takes whichever
        should be faster, and for batches of few channels and kernels 5 wide a Winograd transform
        of the rows.
    activation : {None, "relu"}
        What is applied to the output before it is written.

    Returns
    -------
    ndarray
        (N, M, OH, OW) or (M, OH, OW), ``OH = (H + 2 * padding - dilation * (R - 1) - 1) // stride
        + 1``.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype, channel count or option, images without pixels, or a kernel larger
        than the padded input.

    Notes
    -----
    NaN or infinity in an image reaches the outputs whose windows see it, and "direct" keeps it
    there, as PyTorch does. "winograd" spreads it as NaN over the tile, of up to 4 x 4 outputs at
    the distance of the dilation, and the transform of rows over 4 outputs of a row, of the same
    image. In the input gradient it spreads likewise, in the weight gradient over all taps of the
    channel or, if the output gradient is NaN, of the filter. Where a weight that is NaN or infinite
    meets the padding, the output may be NaN.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv2d.html

    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
    """
    op, relu = "conv2d", check.is_relu("conv2d", activation)
    options = (stride, padding, dilation, groups, algorithm)
    input, weight, convolution = prepare(op, input, weight, *options)
    return convolution.forward(input, weight, convolution.bias(op, bias), relu)


def conv2d_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    needs: tuple[bool, bool, bool] = (True, True, True),
    *,
    algorithm: str = "auto",
) -> Grads:
    """Input, weight and bias gradient of `conv2d`, each only where `needs` asks for it.

    Parameters
    ----------
    grad_output : ndarray
        Of the shape that `conv2d` returns.
    input, weight, stride, padding, dilation, groups, algorithm
        As they were given to `conv2d`. Where that had an activation, `grad_output` is the
        gradient before it, such as `relu_backward` gives.
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
    options = (stride, padding, dilation, groups, algorithm)
    input, weight, convolution = prepare(op, input, weight, *options)
    dy = check.gradient(op, grad_output, convolution.out_shape, input.dtype)
    return convolution.backward(dy, input, weight, check.needs(op, needs, 3))
