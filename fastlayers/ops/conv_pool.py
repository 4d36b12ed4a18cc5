"""Convolution and max pooling in one op."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check, pool as pooling
from fastlayers.ops.activation import relu_backward
from fastlayers.ops.conv import ALGORITHMS, Grads, Padding, _prepare, _winograd_tile
from fastlayers.ops.conv import conv2d, conv2d_backward
from fastlayers.ops.conv_shape import ConvShape
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.runtime import cpu, memory, threads

CHUNKS = 16


class Routes:
    """Plan of `kernels.conv_pool.conv2d_max_pool2d_backward`."""

    def __init__(self, shape: ConvShape, window: Any) -> None:
        n, height, width, c = shape.images
        m, _, kh, kw = shape.weight
        (sh, sw), (oh, ow) = shape.stride, shape.out_size
        ph, pw = self.out_size = window.out_size("conv2d_max_pool2d_backward", (oh, ow))
        (rows, columns), (down, across), _, (gap, skip) = window.geometry
        lanes, registers = cpu.lanes(shape.itemsize), 2 * cpu.tile_rows()
        # The padded image, and the field of a window in it.
        frame = (oh - 1) * sh + kh, (ow - 1) * sw + kw
        frame = max(frame[0], height + shape.padding[0]), max(frame[1], width + shape.padding[1])
        pitch = frame[1] * c
        field = (rows - 1) * gap * sh + kh, ((columns - 1) * skip * sw + kw) * c
        fields = np.arange(ph)[:, None] * (down * sh * pitch) + np.arange(pw) * (across * sw * c)
        cells = np.arange(rows)[:, None] * (gap * sh), np.arange(columns) * (skip * sw * c)
        in_image, in_field = (cells[0] * step + cells[1] for step in (pitch, field[1]))
        table = [offsets.ravel() for offsets in (fields, in_image, in_field)]
        # Vectors that stay in registers: of rows of the kernel, and of a field.
        vectors = -(-kw * c // lanes)
        steps = -(-kh * vectors // registers)
        held = -(-kh // steps)
        mixed = -(-field[0] * field[1] // lanes)
        mixes = -(-mixed // registers)
        mixed = -(-mixed // mixes)
        self.tile = ((0,) * held, (0,) * vectors, (0,) * mixed)
        image = frame[0] * pitch + (held * steps - kh) * pitch + lanes
        part = m * (steps * held * vectors * lanes + 1)
        chunks = max(1, min(CHUNKS, n))
        self.sizes = (n, (height, width, c), (*shape.padding, *frame), m)
        self.taps = (kh, kw, kw * c, c)
        pixels, cell_count = ph * pw, rows * columns
        self.fields = (np.concatenate(table).astype(np.int64), pixels, cell_count, field)
        self.cut = (chunks, steps, mixes, image, part)
        self.moved = m * cell_count * mixes * mixed * lanes
        self.per_worker = 2 * image + mixes * mixed * lanes
        self.parts = chunks * part
        self.work = n * pixels * m * (kh * vectors + mixes * mixed)


def _images(x: np.ndarray) -> tuple[np.ndarray, int]:
    """Flat memory of images (N, C, H, W), and whether it is channels-first."""
    last = x.transpose(0, 2, 3, 1)
    if x.flags.c_contiguous and not last.flags.c_contiguous:
        return kernel_ready(x).reshape(-1), 1
    return to_channels_last(x).reshape(-1), 0


@functools.lru_cache(maxsize=256)
def _routes(shape: ConvShape, window: Any) -> Routes:
    return Routes(shape, window)


def conv2d_max_pool2d_backward(
    grad_output, output, offsets, input, weight, stride=1, padding=0, dilation=1, groups=1,
    needs=(True, True, True), *, pool, activation=None, algorithm="auto",
):
    op = "conv2d_max_pool2d_backward"
    x, w, shape, unbatched = _prepare(op, input, weight, stride, padding, dilation, groups)
    window = pooling._window(op, *pool)
    plan = _routes(shape, window)
    n, (h, wd, c), _, m = plan.sizes
    dy, y, cells = (to_channels_last(a).reshape(-1) for a in (grad_output, output, offsets))
    flat, planar = _images(x)
    dtype = x.dtype
    workers = threads.workers_for(plan.work)
    dx = memory.empty(shape.images, dtype) if needs[0] else None
    dw = memory.empty(shape.weight, dtype)
    db = memory.empty(m, dtype)
    kernels.conv_pool.conv2d_max_pool2d_backward(
        plan.tile, (dy, y, cells, int(activation == "relu")), flat, planar, kernel_ready(w).reshape(-1),
        plan.sizes, plan.taps, plan.fields, plan.cut, (int(needs[0]), int(needs[1] or needs[2])), workers,
        memory.empty(w.size, dtype), memory.empty(plan.moved, dtype), memory.empty(workers * plan.per_worker, dtype),
        memory.empty(plan.parts, dtype), dx.reshape(-1) if needs[0] else flat, dw.reshape(-1), db,
    )
    return from_channels_last(dx) if needs[0] else None, dw, db
