"""Reference for `fastlayers.ops.conv`."""

import numpy as np

from fastlayers.reference.types import Array, Gradients, Size
from fastlayers.reference.windows import Pads, add_windows, inner, pad, pair, windows

__all__ = ["conv2d", "conv2d_backward"]


def conv2d(
    input: Array,
    weight: Array,
    bias: Array | None = None,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
) -> Array:
    """Correlate images with kernels, each group of channels with its own.

    ``y[n, m, i, j] = bias[m] + sum_crs weight[m, c, r, s] x[n, c, i SH + r DH, j SW + s DW]``
    for the padded input `x`: (N, C, H, W) or (C, H, W), with weight (M, C/G, KH, KW), gives
    (N, M, OH, OW) or (M, OH, OW).
    https://pytorch.org/docs/stable/generated/torch.nn.Conv2d.html
    """
    kernel = weight.shape[2:]
    fields = windows(pad(input, _pads(padding, kernel, dilation)), kernel, stride, dilation)
    y = _grouped_matrix(weight, groups) @ _columns(fields, groups)
    y = y.reshape(*input.shape[:-3], weight.shape[0], *fields.shape[-2:])
    return y if bias is None else y + bias[:, None, None]


def conv2d_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    stride: Size = 1,
    padding: Size | str = 0,
    dilation: Size = 1,
    groups: int = 1,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Gradients:
    """Give the gradients of `conv2d` by input, weight and bias, None where not needed.

    ``dx[n, c, i SH + r DH, j SW + s DW] += sum_m weight[m, c, r, s] dy[n, m, i, j]``,
    ``dweight[m, c, r, s] = sum_nij dy[n, m, i, j] x[n, c, i SH + r DH, j SW + s DW]``,
    ``dbias[m] = sum_nij dy[n, m, i, j]``.
    """
    kernel, pads = weight.shape[2:], _pads(padding, weight.shape[2:], dilation)
    x = pad(input, pads)
    fields = windows(x, kernel, stride, dilation)
    *batch, m, oh, ow = grad_output.shape
    dy = grad_output.reshape(*batch, groups, m // groups, oh * ow)
    dx = dweight = dbias = None
    if needs[0]:
        dfields = _grouped_matrix(weight, groups).swapaxes(-2, -1) @ dy
        padded = np.zeros_like(x)
        add_windows(padded, dfields.reshape(fields.shape), stride, dilation)
        dx = inner(padded, pads)
    if needs[1]:
        products = dy @ _columns(fields, groups).swapaxes(-2, -1)
        dweight = products.sum(tuple(range(len(batch)))).reshape(weight.shape)
    if needs[2]:
        dbias = grad_output.sum((*range(len(batch)), -2, -1))
    return dx, dweight, dbias


def _pads(padding: Size | str, kernel: Size, dilation: Size) -> Pads:
    """Give ((top, bottom), (left, right)); where "same" is odd, the end gets one cell more."""
    if padding == "same":
        totals = [d * (k - 1) for k, d in zip(pair(kernel), pair(dilation), strict=True)]
        return (totals[0] // 2, -(-totals[0] // 2)), (totals[1] // 2, -(-totals[1] // 2))
    ph, pw = (0, 0) if isinstance(padding, str) else pair(padding)
    return (ph, ph), (pw, pw)


def _grouped_matrix(weight: Array, groups: int) -> Array:
    """Give weights (M, C/G, KH, KW) as matrices (G, M/G, C/G * KH * KW)."""
    m, c, kh, kw = weight.shape
    return weight.reshape(groups, m // groups, c * kh * kw)


def _columns(fields: Array, groups: int) -> Array:
    """Give windows (..., C, KH, KW, OH, OW) as matrices (..., G, C/G * KH * KW, OH * OW)."""
    *batch, c, kh, kw, oh, ow = fields.shape
    return fields.reshape(*batch, groups, c // groups * kh * kw, oh * ow)
