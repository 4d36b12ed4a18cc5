"""How the kernels of `kernels.pooled` cut a convolution with its max pooling, and its gradients."""

from __future__ import annotations

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.kernels import gemm
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.cuts import chunks
from fastlayers.ops.pool.window import Window
from fastlayers.runtime import cpu
from fastlayers.runtime.facts import plain

__all__ = ["ImagePlan", "SparsePlan"]

# Partial sums of the weight gradient, at most: with 64, of 2 images each, both gradients of 128
# images of 6 x 14 x 14 take 1.07 times as long.
MOST_CHUNKS = 32
# The weight at its place for each cell of a window, and an image, which should stay in L2.
PLACED_BYTES = 256 * 1024
IMAGE_BYTES = 128 * 1024
# Cycles of a vector of a gradient: by weight, whose loads straddle lines, by input, and dense.
WEIGHT_COST, INPUT_COST, DENSE_COST = 2.5, 1.3, 1.25


def _aligned(size: int) -> int:
    """Elements of whole cache lines."""
    return -(-size // 16) * 16


def _padded_size(shape: ConvShape) -> tuple[int, int]:
    """Rows and columns of an image with all that the kernel reads of its padding."""
    rows, columns = (
        max((out - 1) * step + gap * (taps - 1) + 1, size + before)
        for taps, step, before, gap, out, size in zip(
            *shape.geometry, shape.images[1:3], strict=True
        )
    )
    return rows, columns


class ImagePlan:
    """Images whose output stays in L2, from where it is pooled."""

    def __init__(self, shape: ConvShape, window: Window, out_size: tuple[int, int]) -> None:
        n, height, width, c = shape.images
        m, _, kh, kw = shape.weight
        (sh, sw), (dh, dw), (oh, ow) = shape.stride, shape.dilation, shape.out_size
        lanes, (rows, columns) = cpu.lanes(shape.itemsize), _padded_size(shape)
        pitch = columns * c
        runs, length = np.arange(kh) * (dh * pitch), kw * c
        if dw > 1:
            runs, length = np.add.outer(runs, np.arange(kw) * (dw * c)).ravel(), c
        pixels = np.add.outer(np.arange(oh) * (sh * pitch), np.arange(ow) * (sw * c)).ravel()
        panel = gemm.gemm.panel_width(m, lanes)
        tables = pixels, runs, np.arange(len(runs)) * (length * panel)
        image = _aligned(rows * pitch)
        self.out_shape = (n, *out_size, m)
        self.packed = -(-m // panel) * panel * kh * kw * c
        self.worker_elements = image + oh * ow * m
        facts = kernels.pooled.Facts(
            kernels.padded.Images(height, width, c, *shape.padding, rows, columns, image),
            n,
            oh,
            ow,
            m,
            kernels.pooled.Window(*(size for pair in window.geometry for size in pair)),
            *out_size,
            length,
            *(table.astype(np.int64) for table in tables),
            self.packed,
            self.worker_elements,
        )
        self.facts = plain(facts)
        self.work = 2 * shape.pixels * kh * kw * c * -(-m // lanes)
        self.serves = (
            shape.groups == 1
            and window.cells <= 256
            and self.worker_elements * shape.itemsize <= IMAGE_BYTES
            and self.packed * shape.itemsize <= PLACED_BYTES
        )


class SparsePlan:
    """Gradients as sums over the pooled outputs, each of which has one cell of its window."""

    def __init__(self, shape: ConvShape, window: Window, out_size: tuple[int, int]) -> None:
        n, height, width, c = shape.images
        m, _, kh, kw = shape.weight
        lanes, registers = cpu.lanes(shape.itemsize), 2 * cpu.tile_rows()
        rows, columns = _padded_size(shape)
        field, table = _field(shape, window, out_size, columns * c)
        # Vectors that stay in registers, of the kernel's rows and of a field.
        vectors = -(-kw * c // lanes)
        steps = -(-kh * vectors // registers)
        held = -(-kh // steps)
        field_vectors = -(-field[0] * field[1] // lanes)
        field_steps = -(-field_vectors // registers)
        field_vectors = -(-field_vectors // field_steps)
        mixed = field_steps * field_vectors * lanes
        image = _aligned((rows + held * steps - kh) * columns * c + lanes)
        part = _aligned(m * (steps * held * vectors * lanes + 1))
        pixels, cells = out_size[0] * out_size[1], window.cells
        cost = WEIGHT_COST * kh * vectors + INPUT_COST * field_steps * field_vectors
        self.work = 2 * n * pixels * m * cost  # loads and multiply-adds
        parts = chunks(self.work / 2, most=max(1, min(MOST_CHUNKS, n)))
        placed = m * cells * mixed
        self.workers_at = parts * part + _aligned(placed)
        self.worker_elements = 2 * image + mixed
        facts = kernels.pooled.GradientFacts(
            kernels.pooled.Sums((0,) * held, (0,) * vectors, (0,) * field_vectors),
            kernels.padded.Images(height, width, c, *shape.padding, rows, columns, image),
            n,
            m,
            kernels.pooled.Taps(kh, kw, steps),
            kernels.pooled.Field(*field, cells, pixels, table, field_steps),
            parts,
            kernels.pooled.Places(part, parts * part, self.workers_at, self.worker_elements),
        )
        self.facts = plain(facts)
        dense = 4 * DENSE_COST * shape.pixels * m * kh * kw * c / lanes
        self.serves = (
            (shape.groups, shape.dilation, window.padding) == (1, (1, 1), (0, 0))
            and _inside(shape, window, out_size)
            and cells <= 256
            and vectors <= registers
            and placed * shape.itemsize <= PLACED_BYTES
            and image * shape.itemsize <= IMAGE_BYTES
            and self.work < dense
        )


def _field(
    shape: ConvShape, window: Window, out_size: tuple[int, int], pitch: int
) -> tuple[tuple[int, int], np.ndarray]:
    """Rows of what a window's cells see, elements of each, and the table of `kernels.pooled.Field`.

    An image's rows are `pitch` elements apart.
    """
    (sh, sw), c = shape.stride, shape.channels
    (rows, columns), (down, across), _, (gap, skip) = window.geometry
    height = (rows - 1) * gap * sh + shape.kernel[0]
    width = ((columns - 1) * skip * sw + shape.kernel[1]) * c
    fields = np.add.outer(
        np.arange(out_size[0]) * (down * sh * pitch), np.arange(out_size[1]) * (across * sw * c)
    )
    cell_rows, cell_columns = np.arange(rows) * (gap * sh), np.arange(columns) * (skip * sw * c)
    cells = (np.add.outer(cell_rows * step, cell_columns) for step in (pitch, width))
    table = np.concatenate([offsets.ravel() for offsets in (fields, *cells)])
    return (height, width), table.astype(np.int64)


def _inside(shape: ConvShape, window: Window, out_size: tuple[int, int]) -> bool:
    """Whether no window reaches beyond the convolution's output."""
    return all(
        (count - 1) * step + (cells - 1) * gap < size
        for count, step, cells, gap, size in zip(
            out_size, window.stride, window.kernel, window.dilation, shape.out_size, strict=True
        )
    )
