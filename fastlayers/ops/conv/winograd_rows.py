"""Convolution of batches with kernels 5 wide and few channels: plans and allocations.

Internal to `ops.conv`, which checks arguments; see `kernels.winograd.rows`.
"""

from __future__ import annotations

import functools

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.planar import raw_images
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.runtime import cpu, memory, threads

__all__ = ["LEAST_TERMS", "Plan", "backward_input", "backward_weight", "forward", "plan"]

# Of the filters of a tile that meet one piece of rows, which L1 keeps beside the inputs, and of all
# that is transformed of a block of images, which L2 keeps.
PIECE_BYTES = 18 * 1024
BLOCK_BYTES = 896 * 1024
# Partial sums of the weight's gradient.
CHUNKS = 16
# As that of `ops.conv.winograd`; here few terms are those of an edge, and K is five times as large.
LEAST_TERMS = 6
_NO_CELLS = np.empty(0, np.uint8)


class Plan:
    """How a convolution or, `transposed`, the gradient by its input is cut into pieces.

    Or a convolution with the max pooling of 2x2 that follows, for `pooled` of 2 instead of 1.
    """

    def __init__(self, shape: ConvShape, transposed: bool, pooled: int) -> None:
        rows = kernels.winograd.rows
        n, height, width, depth = shape.images
        filters, (oh, ow), (top, left) = shape.out_channels, shape.out_size, shape.padding
        kh, taps = shape.kernel
        # The weight's elements: the first, then strides of filters, channels, rows and taps.
        self.strides = (0, depth * kh * taps, kh * taps, taps, 1)
        if transposed:
            (height, width), (oh, ow) = (oh, ow), (height, width)
            self.strides = (kh * taps - 1, kh * taps, depth * kh * taps, -taps, -1)
            depth, filters = filters, depth
            top, left = kh - 1 - top, taps - 1 - left
        self.shape = (filters, depth, kh)
        lanes, tiles = cpu.lanes(shape.itemsize), -(-ow // rows.STEP)
        most = max(1, PIECE_BYTES // (rows.ROWS * tiles * lanes * shape.itemsize))
        pieces: list[tuple[int, ...]] = []
        tables: tuple[list[int], list[int]] = ([], [])
        i = reaches = 0
        while i < oh:
            reach = _reach(i, top, kh, height)
            count = 1
            while i + count < oh and _reach(i + count, top, kh, height) == reach:
                count += 1
            # Both ends of a reach only fall from row to row, so none comes back.
            start, entries = len(tables[0]), [(c, r) for c in range(depth) for r in range(*reach)]
            missing = -len(entries) % rows.VECTORS
            tables[0].extend([(c * kh + r) * rows.ROWS for c, r in entries] + [-1] * missing)
            offsets = [(c * height + r - top) * tiles * lanes for c, r in entries]
            tables[1].extend(offsets + offsets[-1:] * missing)
            for k in range(parts := -(-count // most)):
                first, last = (i + self._cut(count, k + j, parts, pooled) for j in (0, 1))
                size = depth * max(0, reach[1] - reach[0])
                pieces.append((first, last - first, start, size))
            i, reaches = i + count, reaches + 1
        self.pieces = np.array(pieces, np.int64)
        self.tables = tuple(np.array(table, np.int64) for table in tables)
        groups = -(-filters // rows.ROWS)
        self.filter_size = rows.POINTS * groups * depth * kh * rows.ROWS
        columns = -(-int(self.pieces[:, 1].max()) * tiles // rows.VECTORS) * rows.VECTORS
        # One vector more from point to point, which a power of two apart would share lines of L1.
        point = (depth * height * tiles + 1) * lanes
        z_row = columns * lanes
        z_point = groups * rows.ROWS * z_row + lanes
        z = rows.POINTS * point + rows.VECTORS * lanes
        in_row = z + rows.POINTS * z_point
        out_row = in_row + (rows.STEP * tiles + taps - 1) * depth * lanes
        wide = rows.STEP * tiles
        totals = out_row + wide * filters * lanes
        if pooled == 2:  # their cells, of which whole squares are read, and two rows before
            totals += (wide * filters + lanes + 2 * wide) * lanes
        self.form = (
            ((n, height, width, depth), (oh, ow, filters)),
            left,
            tiles,
            (point, z_point, z_row),
            (z, in_row, out_row, totals, totals + filters * lanes),
            pooled,
        )
        self.out_shape = (n, oh // pooled, ow // pooled, filters)
        blocks = -(-n // lanes)
        self.chunks = min(CHUNKS, blocks)
        self.parts = rows.POINTS * groups * (len(tables[0]) // rows.VECTORS) * rows.slots(lanes)
        self.parts += filters
        self.work = blocks * oh * tiles * rows.POINTS * depth * kh * filters
        self.serves = (
            in_row * shape.itemsize <= BLOCK_BYTES
            and 0.75 * blocks * lanes <= n
            and rows.POINTS * tiles <= 0.8 * taps * ow
            and (pooled == 1 or reaches == 1)  # a window's rows are of one piece
        )

    @staticmethod
    def _cut(count: int, k: int, parts: int, pooled: int) -> int:
        """Where the k-th part of rows begins, which is not inside of a window."""
        return count if k == parts else count * k // parts // pooled * pooled


def _reach(i: int, top: int, kernel: int, height: int) -> tuple[int, int]:
    """The rows of a kernel that lie inside the image, for a row of the output."""
    first = min(max(0, top - i), kernel)
    return first, max(first, min(kernel, height + top - i))


@functools.lru_cache(maxsize=256)
def plan(shape: ConvShape, transposed: bool = False, pooled: int = 1) -> Plan | None:
    """Plan of a convolution, or of the gradient by its input; None where others are as fast."""
    rows = kernels.winograd.rows
    if (
        shape.kernel[1] != rows.TAPS
        or (shape.groups, shape.stride, shape.dilation) != (1, (1, 1), (1, 1))
        or min(shape.out_shape) < 1
        or any(p >= k for p, k in zip(shape.padding, shape.kernel, strict=True))
    ):
        return None
    made = Plan(shape, transposed, pooled)
    return made if made.serves else None


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, plan: Plan, relu: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Output (N, OH, OW, M) of images (N, C, H, W), and the cells of what was pooled."""
    return _convolve(*raw_images(x), weight, bias, plan, 0.0 if relu else -np.inf)


def backward_input(dy: np.ndarray, weight: np.ndarray, plan: Plan) -> np.ndarray:
    """Gradient of dy (N, OH, OW, M) by the input (N, H, W, C)."""
    zeros = memory.zeros(plan.shape[0], dy.dtype)
    return _convolve(dy.reshape(-1), 0, weight, zeros, plan, -np.inf)[0]


def _convolve(
    x: np.ndarray, planar: int, weight: np.ndarray, bias: np.ndarray, plan: Plan, floor: float
) -> tuple[np.ndarray, np.ndarray]:
    dtype, workers = x.dtype, threads.workers_for(plan.work)
    y = memory.empty(plan.out_shape, dtype)
    cells = memory.empty(plan.out_shape, np.uint8) if plan.form[5] == 2 else _NO_CELLS
    u, work = memory.scratch((plan.filter_size, workers * plan.form[4][4]), dtype)
    kernels.winograd.rows.conv2d_winograd_rows(
        x,
        planar,
        weight.reshape(-1),
        plan.shape,
        plan.strides,
        bias,
        dtype.type(floor),
        plan.form,
        plan.pieces,
        plan.tables,
        workers,
        u,
        work,
        y.reshape(-1),
        cells.reshape(-1),
    )
    return y, cells


def backward_weight(x: np.ndarray, dy: np.ndarray, plan: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Gradients of dy (N, OH, OW, M) by weight and bias, of images (N, C, H, W)."""
    dtype, workers = dy.dtype, threads.workers_for(plan.work)
    flat, planar = raw_images(x)
    dw, db = (
        memory.empty((*plan.shape, kernels.winograd.rows.TAPS), dtype),
        memory.empty(plan.shape[0], dtype),
    )
    sizes = (workers * plan.form[4][4], plan.chunks * plan.parts)
    work, parts = memory.scratch(sizes, dtype)
    kernels.winograd.rows.conv2d_winograd_rows_backward_weight(
        flat,
        planar,
        dy.reshape(-1),
        plan.shape,
        plan.form,
        plan.pieces,
        plan.tables,
        plan.chunks,
        workers,
        work,
        parts,
        dw.reshape(-1),
        db,
    )
    return dw, db


class WinogradRows(Algorithm):
    """Convolution with kernels 5 wide by transformed rows."""

    name = "winograd rows"
    exact = False

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        least = 8 if which is Pass.BACKWARD_WEIGHT else LEAST_TERMS
        transposed = which is Pass.BACKWARD_INPUT
        enough = shape.fewest[list(Pass).index(which)] >= least
        return plan(shape, transposed) is not None and enough

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        return forward(x, weight, bias, plan(self.shape), relu)[0]  # type: ignore[arg-type]

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        return backward_input(dy, weight, plan(self.shape, True))  # type: ignore[arg-type]

    def backward_weight(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return backward_weight(x, dy, plan(self.shape))  # type: ignore[arg-type]
