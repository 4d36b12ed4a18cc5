"""Convolution, ReLU and max pooling in one op, whose gradients skip what the pooling dropped."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops import check
from fastlayers.ops.conv import planar, winograd_rows
from fastlayers.ops.conv.convolution import Convolution, Grads, Padding, prepare
from fastlayers.ops.conv.pooled_plan import Pooled, Routes
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.pool.max_pool import max_pool2d_backward, max_pool2d_forward
from fastlayers.ops.pool.window import window as checked_window
from fastlayers.runtime import backend, memory, threads

__all__ = [
    "PooledConvolution",
    "conv2d_max_pool2d",
    "conv2d_max_pool2d_backward",
    "prepare_pooled",
]

Pool = tuple[Any, Any, Any, Any, bool]


class PooledConvolution:
    """Checked options of a call, and the kernels that serve it; kept for such calls."""

    def __init__(self, op: str, convolution: Convolution, pool: Pool, relu: bool) -> None:
        if not isinstance(pool, tuple) or len(pool) != 5:
            raise TypeError(
                f"{op}: pool must be (kernel_size, stride, padding, dilation, ceil_mode), "
                f"got {pool!r}"
            )
        self.convolution, self.pool, self.relu = convolution, pool, relu
        shape = convolution.shape
        self.window = checked_window(op, *pool[:4])
        size = self.window.out_size(op, shape.out_size, bool(pool[4]))
        self.out_shape: tuple[int, ...] = (*shape.out_shape[:2], *size)
        if convolution.unbatched:
            self.out_shape = self.out_shape[1:]
        # Windows of 2x2 for batches of few channels, and for few output channels; images that are
        # pooled from L2; the gradients.
        self.rows: winograd_rows.Plan | None = None
        self.planes: planar.Planes | None = None
        self.pooled: Pooled | None = None
        self.routes: Routes | None = None
        if backend.NUMPY or convolution.algorithms.forward.name == "winograd":
            return
        halved = (shape.out_size[0] // 2, shape.out_size[1] // 2)
        if self.window.geometry == ((2, 2), (2, 2), (0, 0), (1, 1)) and size == halved:
            self.planes = planar.planes(shape, 2)
            if convolution.algorithms.forward.name == "winograd rows" and min(halved):
                self.rows = winograd_rows.plan(shape, pooled=2)
        pooled, routes = Pooled(shape, self.window, size), Routes(shape, self.window, size)
        self.pooled = pooled if pooled.serves else None
        self.routes = routes if routes.serves else None

    def forward(
        self, input: np.ndarray, weight: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Outputs and their cells, of arrays that were checked."""
        convolution = self.convolution
        if not input.size or not (self.rows or self.planes or self.pooled):
            return max_pool2d_forward(
                convolution.forward(input, weight, bias, self.relu), *self.pool
            )
        x, w = input[None] if convolution.unbatched else input, kernel_ready(weight)
        if self.rows:
            y, cells = winograd_rows.forward(x, w, bias, self.rows, self.relu)
        elif self.planes:
            y, cells = planar.forward(x, w, bias, self.planes, self.relu)
        else:
            y, cells = self._pooled(x, w, bias)
        y, cells = from_channels_last(y), from_channels_last(cells)
        return (y[0], cells[0]) if convolution.unbatched else (y, cells)

    def _pooled(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        plan: Any = self.pooled
        dtype, workers = x.dtype, threads.workers_for(plan.work)
        flat, channels_first = planar.raw_images(x)
        y, cells = memory.empty(plan.out_shape, dtype), memory.empty(plan.out_shape, np.uint8)
        (work,) = memory.scratch((plan.packed + workers * plan.per_worker,), dtype)
        kernels.pooled.conv2d_max_pool2d(
            flat,
            channels_first,
            weight.reshape(-1),
            bias,
            dtype.type(0.0 if self.relu else -np.inf),
            plan.sizes,
            plan.frame,
            plan.tables,
            self.window.geometry,
            plan.out_shape[0],
            workers,
            work,
            y.reshape(-1),
            cells.reshape(-1),
        )
        return y, cells

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
        convolution, routes = self.convolution, self.routes
        if routes is None or offsets.dtype != np.uint8 or not input.size:
            arguments = (grad_output, offsets, convolution.out_shape, *self.pool[:4])
            dy = max_pool2d_backward(*arguments, output=output if self.relu else None)
            return convolution.backward(dy, input, weight, needs)
        if convolution.unbatched:
            grad_output, output, offsets = grad_output[None], output[None], offsets[None]
            input = input[None]
        shape, dtype = convolution.shape, input.dtype
        dy = to_channels_last(grad_output).reshape(-1)
        cells = to_channels_last(offsets).reshape(-1)
        y = to_channels_last(output).reshape(-1) if self.relu else dy
        flat, channels_first = planar.raw_images(input)
        workers = threads.workers_for(routes.work)
        dx = memory.empty(shape.images, dtype) if needs[0] else None
        dw, db = memory.empty(shape.weight, dtype), memory.empty(shape.out_channels, dtype)
        (work,) = memory.scratch((routes.places[2] + workers * routes.per_worker,), dtype)
        kernels.pooled.conv2d_max_pool2d_backward(
            routes.tile,
            (dy, y, cells, self.relu),
            flat,
            channels_first,
            kernel_ready(weight).reshape(-1),
            routes.sizes,
            routes.taps,
            routes.fields,
            routes.cut,
            (bool(needs[0]), bool(needs[1] or needs[2])),
            workers,
            routes.places,
            work,
            flat if dx is None else dx.reshape(-1),
            dw.reshape(-1),
            db,
        )
        if dx is not None:
            dx = from_channels_last(dx)[0] if convolution.unbatched else from_channels_last(dx)
        return dx, dw if needs[1] else None, db if needs[2] else None


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
