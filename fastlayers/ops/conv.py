"""Two-dimensional convolution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.ops import _check, depthwise, direct, planar, winograd
from fastlayers.ops.conv_shape import ConvShape, conv_shape
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.reduce import column_sums
from fastlayers.runtime import memory

__all__ = ["ALGORITHMS", "conv2d", "conv2d_backward", "conv2d_shape"]

ALGORITHMS = ("auto", "direct", "winograd")
Padding = int | Sequence[int] | str
Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


def _shape(
    op: str,
    images: tuple[int, ...],
    weight: tuple[int, ...],
    itemsize: int,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> ConvShape:
    """Check shapes and options."""
    stride = _check.pair(op, "stride", stride, 1)
    dilation = _check.pair(op, "dilation", dilation, 1)
    groups = _check.integer(op, "groups", groups, 1)
    if isinstance(padding, str):
        _check.one_of(op, "padding", padding, ("same", "valid"))
        if padding == "same" and stride != (1, 1):
            raise ValueError(f"{op}: padding 'same' needs a stride of 1, got stride {stride}")
    else:
        padding = _check.pair(op, "padding", padding, 0)
    n, c, h, w = images if len(images) == 4 else (1, *images)
    m, depth, kh, kw = weight
    return conv_shape(
        op, (n, c, h, w), (m, depth, kh, kw), stride, padding, dilation, groups, itemsize
    )


_known_shape = functools.lru_cache(maxsize=1024, typed=True)(_shape)


def resolve(
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
    sizes = (op, input.shape, weight.shape, input.itemsize, stride, padding, dilation, groups)
    try:
        shape = _known_shape(*sizes)
    except TypeError:  # an error, or a list, which has no hash
        shape = _shape(*sizes)
    if input.ndim == 3:
        return input[None], weight, shape, True
    return input, weight, shape, False


@functools.lru_cache(maxsize=256)
def _zeros(size: int, dtype: np.dtype) -> np.ndarray:
    """Zeros that nobody writes to."""
    return np.zeros(size, dtype)


def checked_bias(op: str, bias: Any, shape: ConvShape, dtype: np.dtype) -> np.ndarray:
    """The bias, or zeros."""
    if bias is None:
        return _zeros(shape.out_channels, dtype)
    if type(bias) is np.ndarray and bias.shape == shape.weight[:1] and bias.dtype == dtype:
        return kernel_ready(bias)
    return memory.writable_view(_check.vector(op, "bias", bias, shape.out_channels, dtype))


def conv2d_shape(
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
) -> tuple[int, ...]:
    """Shape of what `conv2d` returns for these arguments, which are checked; raises as it does."""
    op = "conv2d"
    _check.one_of(op, "algorithm", algorithm, ALGORITHMS)
    if activation is not None:
        _check.one_of(op, "activation", activation, ("relu",))
    options = (stride, padding, dilation, groups)
    input, weight, shape, unbatched = resolve(op, input, weight, *options)
    checked_bias(op, bias, shape, input.dtype)
    if algorithm == "winograd":
        winograd_tile(op, algorithm, shape)
    return shape.out_shape[1:] if unbatched else shape.out_shape


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
        largest output in float32. "auto" takes whichever should be faster.
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
        For a wrong rank, dtype, channel count or option, or a kernel larger than the padded input.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv2d.html

    Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016.
    """
    op = "conv2d"
    _check.one_of(op, "algorithm", algorithm, ALGORITHMS)
    if activation is not None:
        _check.one_of(op, "activation", activation, ("relu",))
    input, weight, shape, unbatched = resolve(op, input, weight, stride, padding, dilation, groups)
    bias = checked_bias(op, bias, shape, input.dtype)
    w, relu = kernel_ready(weight), activation == "relu"
    tile = winograd_tile(op, algorithm, shape)
    if not tile and (plan := planar.planes(shape, 1)):
        y, _ = planar.forward(input, w, bias, plan, relu)
        y = from_channels_last(y)
        return y[0] if unbatched else y
    x = to_channels_last(input)
    if tile:
        y = winograd.forward(x, w, bias, shape.padding, shape.dilation, relu, tile)
    elif _few_channels(shape):
        y = depthwise.forward(x, w, bias, shape.geometry, shape.groups, relu)
    else:
        y = direct.forward(x, w, bias, shape, relu)
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
    *,
    algorithm: str = "auto",
) -> Grads:
    """Gradients of `conv2d` by input, weight and bias, each only where `needs` asks for it.

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
    _check.one_of(op, "algorithm", algorithm, ALGORITHMS)
    input, weight, shape, unbatched = resolve(op, input, weight, stride, padding, dilation, groups)
    expected = shape.out_shape[1:] if unbatched else shape.out_shape
    grad_output = _check.gradient(op, grad_output, expected, input.dtype)
    dy = to_channels_last(grad_output[None] if unbatched else grad_output)
    x, w = to_channels_last(input), kernel_ready(weight)
    dx = _input_gradient(op, algorithm, dy, w, shape) if needs[0] else None
    if dx is not None and unbatched:
        dx = dx[0]
    dw = db = None
    if needs[1]:
        dw, db = _weight_gradient(op, algorithm, x, dy, shape)
    if needs[2] and db is None:
        db = column_sums(dy.reshape(shape.pixels, shape.out_channels))
    return dx, dw, db if needs[2] else None


@functools.lru_cache(maxsize=1024)
def _few_channels(shape: ConvShape) -> bool:
    """Whether the channels of a group are so few that GEMM would waste most lanes."""
    return shape.groups > 1 and depthwise.suits(
        shape.channels, shape.out_channels, shape.groups, shape.itemsize
    )


@functools.lru_cache(maxsize=1024)
def winograd_tile(op: str, algorithm: str, shape: ConvShape, transposed: bool = False) -> int:
    """Outputs on a side of Winograd's tiles, or 0 for direct convolution."""
    if algorithm == "direct":
        return 0
    least = min(shape.channels, shape.out_channels)
    steps = (shape.kernel, shape.stride, shape.groups)
    if steps != ((3, 3), (1, 1), 1) or least < winograd.LEAST_CHANNELS:
        if algorithm == "auto":
            return 0
        raise ValueError(
            f"{op}: algorithm 'winograd' needs a 3x3 kernel, a stride and groups of 1 and at "
            f"least {winograd.LEAST_CHANNELS} channels of input and output, got a weight of "
            f"shape {shape.weight}, stride {shape.stride} and groups {shape.groups}"
        )
    size, channels = shape.out_size, (shape.channels, shape.out_channels)
    if transposed:
        size, channels = (shape.images[1], shape.images[2]), channels[::-1]
    tile = winograd.choose(shape.images[0], size, *channels, shape.itemsize, shape.dilation)
    return tile or (4 if algorithm == "winograd" else 0)


def _input_gradient(
    op: str, algorithm: str, dy: np.ndarray, weight: np.ndarray, shape: ConvShape
) -> np.ndarray:
    if tile := winograd_tile(op, algorithm, shape, transposed=True):
        dx = winograd.backward_input(dy, weight, shape.padding, shape.dilation, tile)
    elif _few_channels(shape):
        size = (shape.images[1], shape.images[2])
        dx = depthwise.input_gradient(dy, weight, shape.geometry, size, shape.groups)
    else:
        dx = direct.backward_input(dy, weight, shape)
    return from_channels_last(dx)


def _weight_gradient(
    op: str, algorithm: str, x: np.ndarray, dy: np.ndarray, shape: ConvShape
) -> tuple[np.ndarray, np.ndarray | None]:
    """The weight's gradient, and that of the bias where it costs no other pass."""
    if tile := winograd_tile(op, algorithm, shape):
        return winograd.backward_weight(x, dy, shape.padding, shape.dilation, tile), None
    if _few_channels(shape):
        return depthwise.weight_gradient(x, dy, shape.geometry, shape.groups)
    return direct.backward_weight(x, dy, shape), None
