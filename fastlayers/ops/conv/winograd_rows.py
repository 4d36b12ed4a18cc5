"""Convolution of batches with kernels 5 wide and few channels, by Winograd's transform of rows.

Plans and allocations of `kernels.conv.winograd.rows`; `ops.conv` and `ops.conv.pooled` check
arguments.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.planar import raw_images
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.runtime import cpu, memory, threads
from fastlayers.runtime.facts import plain

if TYPE_CHECKING:
    from fastlayers.kernels.conv.winograd.rows import Places, Weight

__all__ = ["LEAST_TERMS", "Plan", "WinogradRows", "forward", "plan"]

# Of the filters of a tile that meet one piece of rows, which L1 keeps beside the inputs, and of all
# that is transformed of a block of images, which L2 keeps.
PIECE_BYTES = 18 * 1024
BLOCK_BYTES = 896 * 1024
# Partial sums of the weight gradient.
CHUNKS = 16
# As that of `ops.conv.winograd`; here few terms are those of an edge, and K is five times as large.
# Of the weight gradient, whose edges are the kernel's, K is not.
LEAST_TERMS = 6
LEAST_WEIGHT_TERMS = 8
_NO_CELLS = np.empty(0, np.uint8)


class WinogradRows(Algorithm):
    """A convolution with kernels 5 wide, by transformed rows of as many images as lanes."""

    name = "winograd rows"
    any_layout = True
    exact = False

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        """As `Algorithm.serves`."""
        least = LEAST_WEIGHT_TERMS if which is Pass.BACKWARD_WEIGHT else LEAST_TERMS
        if shape.fewest[list(Pass).index(which)] < least:
            return False
        return plan(shape, which is Pass.BACKWARD_INPUT) is not None

    def describe(self, which: Pass) -> str:
        """Transform, kernel and images."""
        return f"winograd rows F(4), kernels 5 wide, {self.shape.images[0]} images"

    @functools.cached_property
    def _forward(self) -> Plan:
        return _made(self.shape)

    @functools.cached_property
    def _backward_input(self) -> Plan:
        return _made(self.shape, transposed=True)

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output (N, OH, OW, M), or the greater of it and 0."""
        return self._forward.forward(x, weight, bias, relu)[0]

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (N, H, W, C)."""
        return self._backward_input.backward_input(dy, weight)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of weight and bias."""
        return self._forward.backward_weight(x, dy)


class Plan:
    """How a convolution or, `transposed`, its input gradient is cut into pieces.

    Or a convolution with the max pooling of 2x2 that follows, for `pooled` of 2 instead of 1.
    """

    def __init__(self, shape: ConvShape, transposed: bool = False, pooled: int = 1) -> None:
        rows = kernels.winograd.rows
        n, height, width, _ = shape.images
        (oh, ow), (top, left) = shape.out_size, shape.padding
        if transposed:
            (height, width), (oh, ow) = (oh, ow), (height, width)
            top, left = (k - 1 - p for k, p in zip(shape.kernel, shape.padding, strict=True))
        weight = _weight(shape, transposed)
        lanes, tiles = cpu.lanes(shape.itemsize), -(-ow // rows.STEP)
        pieces = _Pieces(weight, (height, oh, top), tiles, shape.itemsize, pooled)
        places, total = _places(weight, height, tiles, int(pieces.table[:, 1].max()), lanes, pooled)
        groups, blocks = -(-weight.filters // rows.ROWS), -(-n // lanes)
        columns = len(pieces.filter_table) // rows.VECTORS
        facts = rows.Facts(
            weight=weight,
            images=n,
            height=height,
            width=width,
            channels=weight.depth,
            out_height=oh,
            out_width=ow,
            top=top,
            left=left,
            tiles=tiles,
            pooled=pooled,
            chunks=min(CHUNKS, blocks),
            worker_elements=total,
            weight_elements=rows.POINTS * groups * weight.depth * weight.rows * rows.ROWS,
            part_elements=rows.POINTS * groups * columns * rows.slots(lanes) + weight.filters,
            places=places,
            pieces=pieces.table,
            filter_table=pieces.filter_table,
            image_table=pieces.image_table,
        )
        self.facts = plain(facts)
        self.pooled, self.worker_elements = pooled, total
        self.weight_elements = facts.weight_elements
        self.part_elements = facts.chunks * facts.part_elements
        self.out_shape = (n, oh // pooled, ow // pooled, weight.filters)
        self.weight_shape = shape.weight
        self.dtype = np.dtype(np.float32 if shape.itemsize == 4 else np.float64)
        self.floors = tuple(self.dtype.type(floor) for floor in (-np.inf, 0))
        self.no_bias = np.zeros(weight.filters, self.dtype)
        self.work = blocks * oh * tiles * rows.POINTS * weight.depth * weight.rows * weight.filters
        self.serves = (
            places.in_row * shape.itemsize <= BLOCK_BYTES
            and 0.75 * blocks * lanes <= n
            and rows.POINTS * tiles <= 0.8 * rows.TAPS * ow
            and (pooled == 1 or pieces.reaches == 1)  # a window's rows are of one piece
        )

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> tuple[np.ndarray, np.ndarray]:
        """Output (N, OH, OW, M) of images (N, C, H, W), and the cells of what was pooled."""
        return self._convolve(*raw_images(x), weight, bias, self.floors[relu])

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (N, H, W, C) of dy (N, OH, OW, M)."""
        return self._convolve(dy.reshape(-1), 0, weight, self.no_bias, self.floors[0])[0]

    def _convolve(
        self, x: np.ndarray, channels_first: int, weight: np.ndarray, bias: np.ndarray, floor: Any
    ) -> tuple[np.ndarray, np.ndarray]:
        workers = threads.workers_for(self.work)
        y = memory.empty(self.out_shape, self.dtype)
        cells = memory.empty(self.out_shape, np.uint8) if self.pooled == 2 else _NO_CELLS
        size = workers * self.worker_elements + self.weight_elements
        (work,) = memory.scratch((size,), self.dtype)
        call = (channels_first, floor, workers)
        w, out, out_cells = weight.reshape(-1), y.reshape(-1), cells.reshape(-1)
        run = kernels.winograd.rows.conv2d_winograd_rows
        run(x, w, bias, self.facts, call, work, out, out_cells)
        return y, cells

    def backward_weight(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gradients of dy (N, OH, OW, M) by weight and bias, of images (N, C, H, W)."""
        workers = threads.workers_for(self.work)
        flat, channels_first = raw_images(x)
        dw = memory.empty(self.weight_shape, self.dtype)
        db = memory.empty(self.weight_shape[0], self.dtype)
        sizes = (workers * self.worker_elements, self.part_elements)
        work, parts = memory.scratch(sizes, self.dtype)
        call = (channels_first, self.floors[0], workers)
        run = kernels.winograd.rows.conv2d_winograd_rows_backward_weight
        run(flat, dy.reshape(-1), self.facts, call, work, parts, dw.reshape(-1), db)
        return dw, db


class _Pieces:
    """Rows of the output that reach the same rows of the kernel, and the tables of their sums."""

    def __init__(
        self, weight: Weight, rows: tuple[int, int, int], tiles: int, itemsize: int, pooled: int
    ) -> None:
        height, oh, top = rows
        home, lanes = kernels.winograd.rows, cpu.lanes(itemsize)
        most = max(1, PIECE_BYTES // (home.ROWS * tiles * lanes * itemsize))
        pieces: list[tuple[int, ...]] = []
        filters: list[int] = []
        images: list[int] = []
        i = self.reaches = 0
        while i < oh:
            reach = _reach(i, top, weight.rows, height)
            count = 1
            while i + count < oh and _reach(i + count, top, weight.rows, height) == reach:
                count += 1
            # Both ends of a reach only fall from row to row, so none comes back.
            start = len(filters)
            entries = [(c, r) for c in range(weight.depth) for r in range(*reach)]
            missing = -len(entries) % home.VECTORS
            filters += [(c * weight.rows + r) * home.ROWS for c, r in entries] + [-1] * missing
            offsets = [(c * height + r - top) * tiles * lanes for c, r in entries]
            images += offsets + offsets[-1:] * missing
            for k in range(parts := -(-count // most)):
                first, last = (i + _cut(count, k + j, parts, pooled) for j in (0, 1))
                pieces.append((first, last - first, start, len(entries)))
            i, self.reaches = i + count, self.reaches + 1
        self.table = np.array(pieces, np.int64)
        self.filter_table = np.array(filters, np.int64)
        self.image_table = np.array(images, np.int64)


def _cut(count: int, k: int, parts: int, pooled: int) -> int:
    """Where the k-th part of rows begins, which is not inside of a window."""
    return count if k == parts else count * k // parts // pooled * pooled


def _reach(i: int, top: int, kernel: int, height: int) -> tuple[int, int]:
    """The rows of a kernel that lie inside the image, for a row of the output."""
    first = min(max(0, top - i), kernel)
    return first, max(first, min(kernel, height + top - i))


def _weight(shape: ConvShape, transposed: bool) -> Weight:
    """The weight of a convolution, or that of its input gradient."""
    filters, depth, rows, taps = shape.weight
    each = rows * taps
    facts = (filters, depth, rows, 0, depth * each, each, taps, 1)
    if transposed:
        facts = (depth, filters, rows, each - 1, each, depth * each, -taps, -1)
    weight: Weight = kernels.winograd.rows.Weight(*facts)
    return weight


def _places(
    weight: Weight, height: int, tiles: int, most: int, lanes: int, pooled: int
) -> tuple[Places, int]:
    """Where things are in a worker's memory, and how large it is, for pieces of `most` rows."""
    rows = kernels.winograd.rows
    groups = -(-weight.filters // rows.ROWS)
    columns = -(-most * tiles // rows.VECTORS) * rows.VECTORS
    # One vector more from point to point, which a power of two apart would share lines of L1.
    v_point = (weight.depth * height * tiles + 1) * lanes
    z_filter = columns * lanes
    z_point = groups * rows.ROWS * z_filter + lanes
    z = rows.POINTS * v_point + rows.VECTORS * lanes
    in_row = z + rows.POINTS * z_point
    out_row = in_row + (rows.STEP * tiles + rows.TAPS - 1) * weight.depth * lanes
    wide = rows.STEP * tiles
    totals = out_row + wide * weight.filters * lanes
    if pooled == 2:  # their cells, of which whole squares are read, and two rows before
        totals += (wide * weight.filters + lanes + 2 * wide) * lanes
    places = rows.Places(v_point, z_point, z_filter, z, in_row, out_row, totals)
    return places, totals + weight.filters * lanes


@functools.lru_cache(maxsize=256)
def _made(shape: ConvShape, transposed: bool = False, pooled: int = 1) -> Plan:
    return Plan(shape, transposed, pooled)


def plan(shape: ConvShape, transposed: bool = False, pooled: int = 1) -> Plan | None:
    """Plan of a convolution, or of its input gradient; None where others are as fast."""
    rows = kernels.winograd.rows
    if (
        shape.kernel[1] != rows.TAPS
        or (shape.groups, shape.stride, shape.dilation) != (1, (1, 1), (1, 1))
        or min(shape.out_shape) < 1
        or any(p >= k for p, k in zip(shape.padding, shape.kernel, strict=True))
    ):
        return None
    made = _made(shape, transposed, pooled)
    return made if made.serves else None


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, plan: Plan, relu: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Output (N, OH, OW, M) of images (N, C, H, W), and the cells of what was pooled."""
    return plan.forward(x, weight, bias, relu)
