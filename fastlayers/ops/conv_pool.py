"""Convolution, ReLU and max pooling in one op, whose gradients skip what the pooling dropped."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check, planar
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


def _aligned(size: int) -> int:
    """Elements of whole cache lines."""
    return -(-size // 16) * 16


def _frame(shape: ConvShape) -> tuple[int, int]:
    """Rows and columns of an image with all that the kernel reads of its padding."""
    rows, columns = (
        max((out - 1) * step + gap * (taps - 1) + 1, size + before)
        for taps, step, before, gap, out, size in zip(
            *shape.geometry, shape.images[1:3], strict=True
        )
    )
    return rows, columns


class Pooled:
    """Plan of `kernels.conv_pool.conv2d_max_pool2d`."""

    def __init__(self, shape: ConvShape, window: Window, out_size: tuple[int, int]) -> None:
        n, height, width, c = shape.images
        m, _, kh, kw = shape.weight
        (sh, sw), (dh, dw), (oh, ow) = shape.stride, shape.dilation, shape.out_size
        lanes, frame = cpu.lanes(shape.itemsize), _frame(shape)
        pitch = frame[1] * c
        runs, length = np.arange(kh) * (dh * pitch), kw * c
        if dw > 1:
            runs, length = np.add.outer(runs, np.arange(kw) * (dw * c)).ravel(), c
        pixels = np.add.outer(np.arange(oh) * (sh * pitch), np.arange(ow) * (sw * c)).ravel()
        panel = kernels.gemm.panel_width(m, lanes)
        tables = pixels, runs, np.arange(len(runs)) * (length * panel)
        self.tables = tuple(table.astype(np.int64) for table in tables)
        image = _aligned(frame[0] * pitch)
        self.sizes = ((height, width, c), (oh, ow, m), out_size, (image, length, lanes))
        self.frame = (*shape.padding, *frame)
        self.out_shape = (n, *out_size, m)
        self.packed = -(-m // panel) * panel * kh * kw * c
        self.per_worker = image + oh * ow * m
        self.work = 2 * shape.pixels * kh * kw * c * -(-m // lanes)
        cells = window.kernel[0] * window.kernel[1]
        self.serves = (
            shape.groups == 1
            and cells <= 256
            and self.per_worker * shape.itemsize <= IMAGE_BYTES
            and self.packed * shape.itemsize <= PLACED_BYTES
        )


class Routes:
    """Plan of `kernels.conv_pool.conv2d_max_pool2d_backward`."""

    def __init__(self, shape: ConvShape, window: Window, out_size: tuple[int, int]) -> None:
        n, height, width, c = shape.images
        m, _, kh, kw = shape.weight
        (sh, sw), (oh, ow), (ph, pw) = shape.stride, shape.out_size, out_size
        (rows, columns), (down, across), _, (gap, skip) = window.geometry
        lanes, registers = cpu.lanes(shape.itemsize), 2 * cpu.tile_rows()
        # The padded image, and in it the common field of a window's cells.
        frame = _frame(shape)
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
        image = _aligned((frame[0] + held * steps - kh) * pitch + lanes)
        part = _aligned(m * (steps * held * vectors * lanes + 1))
        chunks = max(1, min(CHUNKS, n))
        pixels, cells = ph * pw, rows * columns
        self.tile = ((0,) * held, (0,) * vectors, (0,) * mixed)
        self.sizes = (n, (height, width, c), (*shape.padding, *frame), m)
        self.taps = (kh, kw, kw * c, c)
        self.fields = (np.concatenate(table).astype(np.int64), pixels, cells, field)
        self.cut = (chunks, steps, mixes, image, part)
        placed = m * cells * mixes * mixed * lanes
        turned_at = chunks * part + placed
        self.places = (chunks * part, turned_at, turned_at + _aligned(kh * kw * c))
        self.per_worker = 2 * image + mixes * mixed * lanes
        cost = WEIGHT_COST * kh * vectors + INPUT_COST * mixes * mixed
        self.work = 2 * n * pixels * m * cost  # loads and multiply-adds
        dense = 4 * DENSE_COST * shape.pixels * m * kh * kw * c / lanes
        self.serves = (
            (shape.groups, shape.dilation, window.padding) == (1, (1, 1), (0, 0))
            and (ph - 1) * down + (rows - 1) * gap < oh
            and (pw - 1) * across + (columns - 1) * skip < ow
            and cells <= 256
            and vectors <= registers
            and placed * shape.itemsize <= PLACED_BYTES
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
    def pooled(self) -> Pooled | None:
        """Plan of a convolution whose images are pooled from L2."""
        if self.winograd:
            return None
        plan = Pooled(self.shape, self.window, self.size)
        return plan if plan.serves else None

    @functools.cached_property
    def routes(self) -> Routes | None:
        if self.winograd:
            return None
        routes = Routes(self.shape, self.window, self.size)
        return routes if routes.serves else None


_known_plan = functools.lru_cache(maxsize=256, typed=True)(_Plan)


def _plan(op: str, shape: ConvShape, pool: Pool, activation: str | None, algorithm: str) -> _Plan:
    try:
        return _known_plan(op, shape, pool, activation, algorithm)
    except TypeError:  # an error, or a list, which has no hash
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
    elif pooled := plan.pooled:
        b = checked_bias(op, bias, shape, x.dtype)
        y, cells = _pooled(x, kernel_ready(w), b, plan, pooled)
    else:
        steps = (stride, padding, dilation, groups)
        y = conv2d(input, weight, bias, *steps, algorithm=algorithm, activation=activation)
        return max_pool2d_forward(y, *pool)
    y, cells = from_channels_last(y), from_channels_last(cells)
    return (y[0], cells[0]) if unbatched else (y, cells)


def _pooled(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, plan: _Plan, pooled: Pooled
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (N, PH, PW, M) and cells of images (N, C, H, W)."""
    dtype, workers = x.dtype, threads.workers_for(pooled.work)
    flat, channels_first = planar.raw_images(x)
    y, cells = memory.empty(pooled.out_shape, dtype), memory.empty(pooled.out_shape, np.uint8)
    kernels.conv_pool.conv2d_max_pool2d(
        flat,
        channels_first,
        weight.reshape(-1),
        bias,
        dtype.type(0.0 if plan.relu else -np.inf),
        pooled.sizes,
        pooled.frame,
        pooled.tables,
        plan.window.geometry,
        pooled.out_shape[0],
        workers,
        memory.empty(pooled.packed + workers * pooled.per_worker, dtype),
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
    if output.shape != expected or output.dtype != dtype:
        _check.same_shape(op, "output", _check.array(op, "output", output), expected)
        _check.same_dtype(op, "output", output, dtype)
    if offsets.shape != expected or offsets.dtype.kind != "u":
        _check.same_shape(op, "offsets", offsets, expected)
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
        routes.places,
        memory.empty(routes.places[2] + workers * routes.per_worker, dtype),
        flat if dx is None else dx.reshape(-1),
        dw.reshape(-1),
        db,
    )
    if dx is not None:
        dx = from_channels_last(dx)[0] if unbatched else from_channels_last(dx)
    return dx, dw if needs[1] else None, db if needs[2] else None
