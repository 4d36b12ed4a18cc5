"""Plans of `ops.conv.pooled`: how the fused kernels cut a convolution with its max pooling."""

from __future__ import annotations

import numpy as np

from fastlayers.kernels import gemm
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.pool.window import Window
from fastlayers.runtime import cpu

__all__ = ["Pooled", "Routes"]

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
    """Plan of `kernels.pooled.conv2d_max_pool2d`."""

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
        panel = gemm.gemm.panel_width(m, lanes)
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
    """Plan of `kernels.pooled.conv2d_max_pool2d_backward`."""

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
