"""Convolution, ReLU and max pooling in one op, whose gradients skip what the pooling dropped."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.convolution import Convolution, Grads, Padding, prepare
from fastlayers.ops.conv.pooled_routes import Pool, PooledAlgorithm, Separate, Setting, choose
from fastlayers.ops.pool.window import window

__all__ = [
    "PooledConvolution",
    "conv2d_max_pool2d",
    "conv2d_max_pool2d_backward",
    "prepare_pooled",
]


class PooledConvolution:
    """Checked options of a call, and the algorithms that serve it; kept for such calls."""

    def __init__(self, op: str, convolution: Convolution, pool: Pool, relu: bool) -> None:
        if not isinstance(pool, tuple) or len(pool) != 5:
            raise TypeError(
                f"{op}: pool must be (kernel_size, stride, padding, dilation, ceil_mode), "
                f"got {pool!r}"
            )
        self.relu = relu
        pooling, images = window(op, *pool[:4]), convolution.out_shape
        size = pooling.out_size(op, convolution.shape.out_size, bool(pool[4]))
        self.out_shape: tuple[int, ...] = (*images[:-2], *size)
        setting = Setting(convolution, pool, pooling, size)
        self._separate = Separate(setting)
        # All gradients are of one algorithm.
        self._forward = choose(setting, Pass.FORWARD)
        self._backward = choose(setting, Pass.BACKWARD_WEIGHT)
        # Whether its forward pass reads images in the layout that they come in.
        fused = not isinstance(self._forward.algorithm, Separate)
        self.any_layout = fused or convolution.any_layout

    def algorithm(self, which: Pass) -> PooledAlgorithm:
        """The algorithm that serves a pass."""
        return (self._forward if which is Pass.FORWARD else self._backward).algorithm

    def reasons(self) -> list[tuple[str, str, str]]:
        """Each pass, what computes it, and why."""
        choices = (self._forward, self._backward, self._backward)
        pairs = zip(Pass, choices, strict=True)
        return [(which, made.algorithm.describe(which), made.reason) for which, made in pairs]

    def forward(
        self, input: np.ndarray, weight: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outputs and their cells, of arrays that were checked."""
        algorithm = self._forward.algorithm if input.size else self._separate
        return algorithm.forward(input, weight, bias, self.relu)

    def backward(
        self,
        grad_output: np.ndarray,
        output: np.ndarray,
        offsets: np.ndarray,
        input: np.ndarray,
        weight: np.ndarray,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """Gradients, of arrays that were checked."""
        if not any(needs):
            return None, None, None
        usual = input.size and offsets.dtype == np.uint8
        algorithm = self._backward.algorithm if usual else self._separate
        return algorithm.backward(grad_output, output, offsets, input, weight, self.relu, needs)


@functools.lru_cache(maxsize=1024, typed=True)
def _known(convolution: Convolution, pool: Pool, relu: bool) -> PooledConvolution:
    return PooledConvolution("conv2d_max_pool2d", convolution, pool, relu)


def prepare_pooled(op: str, convolution: Convolution, pool: Pool, relu: bool) -> PooledConvolution:
    """Check the pooling's options; what follows from them."""
    try:
        return _known(convolution, pool, relu)
    except (TypeError, ValueError):  # an error, told in the op's name, or a list without a hash
        return PooledConvolution(op, convolution, pool, relu)


def conv2d_max_pool2d(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    *,
    pool: Pool,
    activation: str | None = None,
    algorithm: str = "auto",
) -> tuple[np.ndarray, np.ndarray]:
    """Max pooling of `conv2d`, without its full-size output in memory where that can be avoided.

    ``y, offsets = max_pool2d_forward(conv2d(input, weight, bias, ...), *pool)``

    Parameters
    ----------
    input, weight, bias, stride, padding, dilation, groups, activation, algorithm
        As of `conv2d`.
    pool : tuple
        ``(kernel_size, stride, padding, dilation, ceil_mode)`` as of `max_pool2d`.

    Returns
    -------
    y, offsets : ndarray
        As of `max_pool2d_forward`.

    Raises
    ------
    TypeError, ValueError
        As `conv2d` and `max_pool2d`.
    """
    op, relu = "conv2d_max_pool2d", check.is_relu("conv2d_max_pool2d", activation)
    options = (stride, padding, dilation, groups, algorithm)
    input, weight, convolution = prepare(op, input, weight, *options)
    pooled = prepare_pooled(op, convolution, pool, relu)
    return pooled.forward(input, weight, convolution.bias(op, bias))


def conv2d_max_pool2d_backward(
    grad_output: np.ndarray,
    output: np.ndarray,
    offsets: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    needs: tuple[bool, bool, bool] = (True, True, True),
    *,
    pool: Pool,
    activation: str | None = None,
    algorithm: str = "auto",
) -> Grads:
    """Gradients of `conv2d_max_pool2d` by input, weight and bias, each only where `needs` asks.

    Only one pixel of each window has a gradient, so both products are sums over the pooled
    outputs: a quarter of the work for windows of 2x2. Many channels, for which dense arithmetic
    is as fast, take `max_pool2d_backward` and `conv2d_backward`. So pixels that the pooling dropped
    may leave the weight's gradient finite where they are NaN or infinite; a gradient that is NaN
    reaches all pixels that its pooling window sees.

    Parameters
    ----------
    grad_output : ndarray
        Of the shape of `output`.
    output, offsets : ndarray
        As `conv2d_max_pool2d` returned them; a ReLU passes the gradient where the output is not 0.
    input, weight, stride, padding, dilation, groups, pool, activation, algorithm
        As they were given to `conv2d_max_pool2d`.
    needs : (bool, bool, bool)
        Which of the three gradients to compute; the others are None.

    Returns
    -------
    (ndarray or None, ndarray or None, ndarray or None)
        Of the shapes of input, weight and bias.

    Raises
    ------
    TypeError, ValueError
        As `conv2d_max_pool2d`, and for a `grad_output`, `output` or `offsets` of another shape or
        dtype than the output's.
    """
    op = "conv2d_max_pool2d_backward"
    relu = check.is_relu(op, activation)
    options = (stride, padding, dilation, groups, algorithm)
    input, weight, convolution = prepare(op, input, weight, *options)
    pooled = prepare_pooled(op, convolution, pool, relu)
    dy = check.gradient(op, grad_output, pooled.out_shape, input.dtype)
    output = check.array(op, "output", output)
    check.same_shape(op, "output", output, pooled.out_shape)
    check.same_dtype(op, "output", output, input.dtype)
    offsets = check.offsets(op, offsets, pooled.out_shape)
    return pooled.backward(dy, output, offsets, input, weight, check.needs(op, needs, 3))
