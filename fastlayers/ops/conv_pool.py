"""Convolution, ReLU and max pooling in one op, whose gradients skip what the pooling dropped."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check, direct, planar
from fastlayers.ops.activation import relu_backward
from fastlayers.ops.conv import (
    ALGORITHMS,
    Grads,
    Padding,
    checked_bias,
    conv2d,
    conv2d_backward,
    resolve,
    winograd_tile,
)
from fastlayers.ops.conv_shape import ConvShape
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.pool import max_pool2d_backward, max_pool2d_forward
from fastlayers.ops.window import Window
from fastlayers.ops.window import window as checked_window
from fastlayers.runtime import cpu, memory, threads

__all__ = ["conv2d_max_pool2d", "conv2d_max_pool2d_backward"]

Pool = tuple[Any, Any, Any, Any, bool]

# Partial sums of the weight's gradient.
CHUNKS = 16
# The weight at its place for each cell of a window, and an image, which should stay in L2.
PLACED_BYTES = 256 * 1024
IMAGE_BYTES = 128 * 1024
# Cycles of a vector of a gradient: by weight, whose loads straddle lines, by input, and dense.
WEIGHT_COST, INPUT_COST, DENSE_COST = 2.5, 1.3, 1.25


class Routes:
    """Plan of `kernels.conv_pool.conv2d_max_pool2d_backward`."""

    def __init__(self, shape: ConvShape, window: Window, out_size: tuple[int, int]) -> None:
        n, height, width, c = shape.images
        m, _, kh, kw = shape.weight
        (sh, sw), (oh, ow), (ph, pw) = shape.stride, shape.out_size, out_size
        (rows, columns), (down, across), _, (gap, skip) = window.geometry
        lanes, registers = cpu.lanes(shape.itemsize), 2 * cpu.tile_rows()
        # The padded image, and in it the common field of a window's cells.
        frame = (
            max((oh - 1) * sh + kh, height + shape.padding[0]),
            max((ow - 1) * sw + kw, width + shape.padding[1]),
        )
        pitch = frame[1] * c
        field = (rows - 1) * gap * sh + kh, ((columns - 1) * skip * sw + kw) * c
        fields = np.arange(ph)[:, None] * (down * sh * pitch) + np.arange(pw) * (across * sw * c)
        places = np.arange(rows)[:, None] * (gap * sh), np.arange(columns) * (skip * sw * c)
        in_image, in_field = (places[0] * step + places[1] for step in (pitch, field[1]))
        table = [offsets.ravel() for offsets in (fields, in_image, in_field)]
        # Vectors that stay in registers, of the kernel's rows and of a field.
        vectors = -(-kw * c // lanes)
        steps = -(-kh * vectors // registers)
        held = -(-kh // steps)
        mixed = -(-field[0] * field[1] // lanes)
        mixes = -(-mixed // registers)
        mixed = -(-mixed // mixes)
        image = (frame[0] + held * steps - kh) * pitch + lanes
        part = m * (steps * held * vectors * lanes + 1)
        chunks = max(1, min(CHUNKS, n))
        pixels, cells = ph * pw, rows * columns
        self.tile = ((0,) * held, (0,) * vectors, (0,) * mixed)
        self.sizes = (n, (height, width, c), (*shape.padding, *frame), m)
        self.taps = (kh, kw, kw * c, c)
        self.fields = (np.concatenate(table).astype(np.int64), pixels, cells, field)
        self.cut = (chunks, steps, mixes, image, part)
        self.placed = m * cells * mixes * mixed * lanes
        self.per_worker = 2 * image + mixes * mixed * lanes
        self.parts = chunks * part
        cost = WEIGHT_COST * kh * vectors + INPUT_COST * mixes * mixed
        self.work = n * pixels * m * cost
        dense = 2 * DENSE_COST * shape.pixels * m * kh * kw * c / lanes
        self.serves = (
            (shape.groups, shape.dilation, window.padding) == (1, (1, 1), (0, 0))
            and (ph - 1) * down + (rows - 1) * gap < oh
            and (pw - 1) * across + (columns - 1) * skip < ow
            and cells <= 256
            and vectors <= registers
            and self.placed * shape.itemsize <= PLACED_BYTES
            and image * shape.itemsize <= IMAGE_BYTES
            and self.work < dense
        )


class _Plan:
    """Checked options of a call, and which kernels serve it."""

    def __init__(
        self, op: str, shape: ConvShape, pool: Pool, activation: str | None, algorithm: str
    ) -> None:
        _check.one_of(op, "algorithm", algorithm, ALGORITHMS)
        if activation is not None:
            _check.one_of(op, "activation", activation, ("relu",))
        if not isinstance(pool, tuple) or len(pool) != 5:
            raise TypeError(
                f"{op}: pool must be (kernel_size, stride, padding, dilation, ceil_mode), "
                f"got {pool!r}"
            )
        self.shape, self.window = shape, checked_window(op, *pool[:4])
        self.relu = activation == "relu"
        self.size = self.window.out_size(op, shape.out_size, bool(pool[4]))
        self.out_shape = (*shape.out_shape[:2], *self.size)
        self.winograd = winograd_tile(op, algorithm, shape)

    @functools.cached_property
    def planes(self) -> planar.Planes | None:
        """Plan of a convolution of few output channels, whose windows are 2x2."""
        halved = (self.shape.out_size[0] // 2, self.shape.out_size[1] // 2)
        square = ((2, 2), (2, 2), (0, 0), (1, 1))
        if self.winograd or self.window.geometry != square or self.size != halved:
            return None
        return planar.planes(self.shape, 2)

    @functools.cached_property
    def gather(self) -> direct.Gather | None:
        """Plan of a convolution of whole images, which are pooled from L2."""
        kernel = self.window.kernel
        if self.winograd or self.shape.groups > 1 or kernel[0] * kernel[1] > 256:
            return None
        plan = direct.whole_images(self.shape)
        serves = plan.slabs.bands == 1 and plan.slabs.per * self.pixels < PLACED_BYTES
        return plan if serves else None

    @property
    def pixels(self) -> int:
        """Bytes of one image of the convolution's output."""
        (oh, ow), m = self.shape.out_size, self.shape.out_channels
        return oh * ow * m * self.shape.itemsize

    @functools.cached_property
    def routes(self) -> Routes | None:
        if self.winograd:
            return None
        routes = Routes(self.shape, self.window, self.size)
        return routes if routes.serves else None


@functools.lru_cache(maxsize=256, typed=True)
def _plan(op: str, shape: ConvShape, pool: Pool, activation: str | None, algorithm: str) -> _Plan:
    return _Plan(op, shape, pool, activation, algorithm)


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
    op = "conv2d_max_pool2d"
    x, w, shape, unbatched = resolve(op, input, weight, stride, padding, dilation, groups)
    plan = _plan(op, shape, pool, activation, algorithm)
    if planes := plan.planes:
        b = checked_bias(op, bias, shape, x.dtype)
        y, cells = planar.forward(x, kernel_ready(w), b, planes, plan.relu)
    elif gather := plan.gather:
        b = checked_bias(op, bias, shape, x.dtype)
        y, cells = _gathered(to_channels_last(x), kernel_ready(w), b, plan, gather)
    else:
        options = {"activation": activation, "algorithm": algorithm}
        y = conv2d(input, weight, bias, stride, padding, dilation, groups, **options)
        return max_pool2d_forward(y, *pool)
    y, cells = from_channels_last(y), from_channels_last(cells)
    return (y[0], cells[0]) if unbatched else (y, cells)


def _gathered(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, plan: _Plan, gather: direct.Gather
) -> tuple[np.ndarray, np.ndarray]:
    dtype, workers = x.dtype, threads.workers_for(gather.work)
    n, (ph, pw), m = x.shape[0], plan.size, weight.shape[0]
    y, cells = memory.empty((n, ph, pw, m), dtype), memory.empty((n, ph, pw, m), np.uint8)
    slab = workers * gather.slabs.elements
    pixels = gather.slabs.per * plan.pixels // dtype.itemsize
    size, (oh, ow, _) = gather.sizes
    targets, rows, runs = gather.tables[1], gather.tables[0], gather.tables[2]
    kernels.conv_pool.conv2d_max_pool2d(
        x.reshape(-1),
        weight.reshape(-1),
        (gather.pack_shape, gather.pack_table),
        bias,
        dtype.type(0.0 if plan.relu else -np.inf),
        (size, (oh, ow, m), plan.size, slab),
        (gather.layout[0], gather.layout[1], int(gather.phases[0, 4]), int(gather.phases[0, 5])),
        (targets, rows, runs),
        gather.lanes,
        plan.window.geometry,
        gather.slabs.count,
        workers,
        memory.empty(gather.packed_size, dtype),
        memory.empty(slab + workers * pixels, dtype),
        y.reshape(-1),
        cells.reshape(-1),
    )
    return y, cells


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
    is as fast, take `max_pool2d_backward` and `conv2d_backward`.

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
    x, w, shape, unbatched = resolve(op, input, weight, stride, padding, dilation, groups)
    plan = _plan(op, shape, pool, activation, algorithm)
    expected = plan.out_shape[1:] if unbatched else plan.out_shape
    dtype, routes = x.dtype, plan.routes
    grad_output = _check.gradient(op, grad_output, expected, dtype)
    output = _check.array(op, "output", output)
    _check.same_dtype(op, "output", output, dtype)
    for name, value in (("output", output), ("offsets", offsets)):
        _check.same_shape(op, name, value, expected)
    if offsets.dtype.kind != "u":
        raise TypeError(f"{op}: offsets must be unsigned, got {_check.describe(offsets)}")
    if routes is None or offsets.dtype != np.uint8:
        dy = relu_backward(grad_output, output) if plan.relu else grad_output
        size = shape.out_shape[1:] if unbatched else shape.out_shape
        dy = max_pool2d_backward(dy, offsets, size, *pool[:4])
        options = (stride, padding, dilation, groups, needs)
        return conv2d_backward(dy, input, weight, *options, algorithm=algorithm)
    if unbatched:
        grad_output, output, offsets = grad_output[None], output[None], offsets[None]
    if not any(needs):
        return None, None, None
    dy, cells = (to_channels_last(a).reshape(-1) for a in (grad_output, offsets))
    y = to_channels_last(output).reshape(-1) if plan.relu else dy
    flat, channels_first = planar.raw_images(x)
    workers = threads.workers_for(routes.work)
    dx = memory.empty(shape.images, dtype) if needs[0] else None
    dw, db = memory.empty(shape.weight, dtype), memory.empty(shape.out_channels, dtype)
    kernels.conv_pool.conv2d_max_pool2d_backward(
        routes.tile,
        (dy, y, cells, plan.relu),
        flat,
        channels_first,
        kernel_ready(w).reshape(-1),
        routes.sizes,
        routes.taps,
        routes.fields,
        routes.cut,
        (bool(needs[0]), bool(needs[1] or needs[2])),
        workers,
        memory.empty(w.size, dtype),
        memory.empty(routes.placed, dtype),
        memory.empty(workers * routes.per_worker, dtype),
        memory.empty(routes.parts, dtype),
        flat if dx is None else dx.reshape(-1),
        dw.reshape(-1),
        db,
    )
    if dx is not None:
        dx = from_channels_last(dx)[0] if unbatched else from_channels_last(dx)
    return dx, dw if needs[1] else None, db if needs[2] else None
