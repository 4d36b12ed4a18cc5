"""Two-dimensional convolution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.conv import depthwise, direct, planar, winograd, winograd_rows
from fastlayers.ops.conv.shape import ConvShape, conv_shape
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.reduce import column_sums
from fastlayers.runtime import backend, memory

__all__ = ["ALGORITHMS", "Convolution", "conv2d", "conv2d_backward", "prepare"]

ALGORITHMS = ("auto", "direct", "winograd")
Padding = int | Sequence[int] | str
Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))


class Convolution:
    """Checked shapes and options of a call, and the kernels that serve it; kept for such calls."""

    def __init__(
        self,
        op: str,
        images: tuple[int, ...],
        weight: tuple[int, ...],
        dtype: np.dtype,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: Any,
        algorithm: Any,
    ) -> None:
        check.one_of(op, "algorithm", algorithm, ALGORITHMS)
        stride = check.pair(op, "stride", stride, 1)
        dilation = check.pair(op, "dilation", dilation, 1)
        groups = check.integer(op, "groups", groups, 1)
        if isinstance(padding, str):
            check.one_of(op, "padding", padding, ("same", "valid"))
            if padding == "same" and stride != (1, 1):
                raise ValueError(f"{op}: padding 'same' needs a stride of 1, got stride {stride}")
        else:
            padding = check.pair(op, "padding", padding, 0)
        n, c, h, w = images if len(images) == 4 else (1, *images)
        m, depth, kh, kw = weight
        options = (stride, padding, dilation, groups, dtype.itemsize)
        shape = self.shape = conv_shape(op, (n, c, h, w), (m, depth, kh, kw), *options)
        self.unbatched = len(images) == 3
        self.out_shape = shape.out_shape[1:] if self.unbatched else shape.out_shape
        self.zeros = np.zeros(m, dtype)  # for no bias; nobody writes to them
        self.options = (stride, padding, dilation, groups)
        # Outputs on a side of Winograd's tiles, or 0 for direct convolution, which sums of few
        # terms need: their error would be that of a whole tile.
        by_output, by_input, by_weight = shape.fewest
        least = winograd.LEAST_TERMS
        tile = _winograd_tile(op, algorithm, shape)
        self.tile = tile if by_output >= least else 0
        self.weight_tile = tile if by_weight >= least else 0
        tile = _winograd_tile(op, algorithm, shape, transposed=True)
        self.input_tile = tile if by_input >= least else 0
        # Whether it reads images in the layout that they come in.
        self.any_layout = True
        if backend.NUMPY:
            return
        # Whether the channels of a group are so few that GEMM would waste most lanes.
        self.few = groups > 1 and depthwise.suits(c, m, groups, dtype.itemsize)
        auto = algorithm == "auto"
        rows, least = winograd_rows.plan(shape) if auto else None, winograd_rows.LEAST_TERMS
        self.rows = rows if by_output >= least else None
        self.weight_rows = rows if by_weight >= winograd.LEAST_TERMS else None
        served = auto and by_input >= least
        self.input_rows = winograd_rows.plan(shape, transposed=True) if served else None
        self.planes = None if self.tile or self.rows else planar.planes(shape, 1)
        self.any_layout = bool(self.rows or self.planes)

    def bias(self, op: str, bias: Any) -> np.ndarray:
        """The bias as kernels take it, zeros for None."""
        zeros = self.zeros
        if bias is None:
            return zeros
        if type(bias) is np.ndarray and bias.dtype is zeros.dtype and bias.shape == zeros.shape:
            return bias if bias.flags.carray else kernel_ready(bias)
        return memory.writable_view(check.vector(op, "bias", bias, len(zeros), zeros.dtype))

    def forward(
        self, input: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output of arrays that were checked."""
        if not input.size:  # there are no images, and maybe no pixels that plans could cut
            return memory.empty(self.out_shape, input.dtype)
        if backend.NUMPY:
            y: np.ndarray = backend.reference("conv2d", input, weight, bias, *self.options)
            return np.maximum(y, 0, out=y) if relu else y
        shape = self.shape
        if self.unbatched:
            input = input[None]
        w = kernel_ready(weight)
        if self.rows:
            y, _ = winograd_rows.forward(input, w, bias, self.rows, relu)
        elif self.planes:
            y, _ = planar.forward(input, w, bias, self.planes, relu)
        elif self.tile:
            options = (shape.padding, shape.dilation, relu, self.tile)
            y = winograd.forward(to_channels_last(input), w, bias, *options)
        elif self.few:
            x = to_channels_last(input)
            y = depthwise.forward(x, w, bias, shape.geometry, shape.groups, relu)
        else:
            y = direct.forward(to_channels_last(input), w, bias, shape, relu)
        y = from_channels_last(y)
        return y[0] if self.unbatched else y

    def backward(
        self,
        grad_output: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """Gradients of arrays that were checked."""
        dx = dw = db = None
        if not input.size:
            shapes = (input.shape, weight.shape, weight.shape[:1])
            wanted = zip(shapes, needs, strict=True)
            dx, dw, db = (memory.zeros(s, input.dtype) if need else None for s, need in wanted)
            return dx, dw, db
        if backend.NUMPY:
            arguments = (grad_output, input, weight, *self.options, needs)
            return backend.reference("conv2d_backward", *arguments)  # type: ignore[no-any-return]
        shape = self.shape
        if self.unbatched:
            grad_output, input = grad_output[None], input[None]
        dy, w = to_channels_last(grad_output), kernel_ready(weight)
        if needs[0]:
            dx = self._input_gradient(dy, w)
            if self.unbatched:
                dx = dx[0]
        if needs[1]:
            dw, db = self._weight_gradient(input, dy)
        if needs[2] and db is None:
            db = column_sums(dy.reshape(shape.pixels, shape.out_channels))
        return dx, dw, db if needs[2] else None

    def _input_gradient(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        shape = self.shape
        if self.input_tile:
            options = (shape.padding, shape.dilation, self.input_tile)
            dx = winograd.backward_input(dy, weight, *options)
        elif self.input_rows:
            dx = winograd_rows.backward_input(dy, weight, self.input_rows)
        elif self.few:
            size = (shape.images[1], shape.images[2])
            dx = depthwise.input_gradient(dy, weight, shape.geometry, size, shape.groups)
        else:
            dx = direct.backward_input(dy, weight, shape)
        return from_channels_last(dx)

    def _weight_gradient(
        self, input: np.ndarray, dy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """The weight's gradient, and that of the bias where it costs no other pass."""
        shape = self.shape
        if self.weight_rows:
            return winograd_rows.backward_weight(input, dy, self.weight_rows)
        x = to_channels_last(input)
        if self.weight_tile:
            options = (shape.padding, shape.dilation, self.weight_tile)
            return winograd.backward_weight(x, dy, *options), None
        if self.few:
            return depthwise.weight_gradient(x, dy, shape.geometry, shape.groups)
        return direct.backward_weight(x, dy, shape), None


@functools.lru_cache(maxsize=1024, typed=True)
def _known(*arguments: Any) -> Convolution:
    return Convolution("conv2d", *arguments)


def prepare(
    op: str,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
    algorithm: Any,
) -> tuple[np.ndarray, np.ndarray, Convolution]:
    """Check a call's arguments; the arrays, and what follows from shapes and options."""
    if not (
        type(input) is type(weight) is np.ndarray
        and input.dtype is weight.dtype
        and input.dtype in _FLOATS
        and weight.ndim == 4
        and 3 <= input.ndim <= 4
    ):  # the checks in detail take 1.5 us
        input = check.array(op, "input", input, (3, 4))
        weight = check.array(op, "weight", weight, (4,))
        check.same_dtype(op, "weight", weight, input.dtype)
    sizes = (input.shape, weight.shape, input.dtype, stride, padding, dilation, groups, algorithm)
    try:
        return input, weight, _known(*sizes)
    except (MemoryError, TypeError, ValueError):  # told in the op's name; or lists have no hash
        return input, weight, Convolution(op, *sizes)


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
    image. The gradients alike: by the input over a tile, by the weight over all taps of the channel
    or, for a gradient that is NaN, of the filter. Where a weight that is NaN or infinite meets the
    padding, the output may be NaN.

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
    options = (stride, padding, dilation, groups, algorithm)
    input, weight, convolution = prepare(op, input, weight, *options)
    dy = check.gradient(op, grad_output, convolution.out_shape, input.dtype)
    return convolution.backward(dy, input, weight, check.needs(op, needs, 3))


def _winograd_tile(op: str, algorithm: str, shape: ConvShape, transposed: bool = False) -> int:
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
    if backend.NUMPY:
        return 0
    size, channels = shape.out_size, (shape.channels, shape.out_channels)
    if transposed:
        size, channels = (shape.images[1], shape.images[2]), channels[::-1]
    tile = winograd.choose(shape.images[0], size, *channels, shape.itemsize, shape.dilation)
    return tile or (4 if algorithm == "winograd" else 0)
