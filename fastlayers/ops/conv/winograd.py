"""Winograd convolution: 3x3 kernels at stride 1 and any dilation, one group.

Plans and allocations of `kernels.conv.winograd.forward` and `weight`; `ops.conv` checks arguments.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.cuts import chunks
from fastlayers.ops.layout import to_channels_last
from fastlayers.runtime import cpu, memory, threads
from fastlayers.runtime.facts import plain

if TYPE_CHECKING:
    from fastlayers.kernels.conv.winograd.tiles import Tiles

__all__ = ["LEAST_CHANNELS", "LEAST_TERMS", "ForcedWinograd", "Winograd", "choose"]

# Of a block: each reads the whole transformed weight.
LEAST_TILES = 48
# Where threads share blocks, all of them have so many tasks, of which none has much fewer tiles or
# rows of the weight gradient than this: each reads a panel again. With 128 tasks, the gradient of
# 64 -> 64 channels takes 1.2 times as long as where each thread has a block, with 64 1.06 times.
SHARED_TASKS = 64
SHARED_TILES = 24
LEAST_ROWS = 12
# With fewer channels the transforms cost more than the products save.
LEAST_CHANNELS = 16
# A sum of few terms, as at an image's edge, may be so much smaller than the others of its tile that
# the tile's error is beyond 20 times the bound of the sum, 2 K 2^-24 times its terms' absolute
# values: 1.7 of it was seen for K = 6, 0.3 for 8.
LEAST_TERMS = 8
WORK_BYTES = 8 * 1024 * 1024
# Up to here the weight gradient is cut by its panels: 16 images of 7 x 7, 512 -> 512, take 18.0 ms
# by panels and 20.9 by tiles (2 threads 10.0, 13.2); of 14 x 14, 256 -> 256, 21.5 and 16.3.
PANEL_TILES = 128
# Partial sums of the weight gradient: at most 16, or more of as many tiles as this, and 64 MiB in
# all. With 64, 64 -> 64 channels of 16 images of 56 x 56 take 1.19 times as long, 32 -> 32 of 128
# of 16 x 16 1.29 times: each has 36 products for every 9 sums. So threads share chunks instead.
CHUNKS = 16
CHUNK_TILES = 256
CHUNK_BYTES = 64 * 1024 * 1024
# Results of this size are written by non-temporal stores. Forward and the batch norm that reads it
# take 0.92 of the time at 8 MiB (16 channels; 2 threads 0.97), but up to 1.05 at 4; both gradients
# and the batch norm's, which meets the input gradient after the weight gradient, 0.92 at 8 and 0.94
# to 1.00 at 2 MiB (2 threads 0.94, 0.96 to 0.99).
STREAMED, STREAMED_GRADIENT = 8 << 20, 2 << 20

Pair = tuple[int, int]


def _grid(tile: int, size: Pair, dilation: Pair) -> Pair:
    """Rows and columns of tiles that cover an image: of each phase as many as it needs."""
    down, across = (
        n // (tile * d) * d + min(n % (tile * d), d) for n, d in zip(size, dilation, strict=True)
    )
    return down, across


def choose(
    images: int,
    out_size: Pair,
    channels: int,
    filters: int,
    itemsize: int,
    dilation: Pair = (1, 1),
) -> int:
    """The tile that is expected to be fastest for a pass: 4, 2, or 0 for direct convolution.

    `out_size` is what is cut into tiles: forward's output, or the image of the input gradient,
    for which `channels` and `filters` change places. Counts vector operations: multiply-adds at
    0.9 of the peak, of which the tiles at the edges waste some; 5.5 a transformed vector on
    either side and 5 a pixel of a tile for its address; 12 a vector of the transformed weight.
    """
    lanes = cpu.lanes(itemsize)
    if min(channels, filters) < max(lanes, LEAST_CHANNELS):
        return 0

    def cost(tile: int) -> float:
        points = (tile + 2) ** 2
        tiles = images * math.prod(_grid(tile, out_size, dilation))
        products = channels * -(-filters // lanes) * (tiles / 0.9 + 12)
        return points * (products + tiles * (5.5 * (channels + filters) / lanes + 5))

    direct = 9 * channels * -(-filters // lanes) * (images * out_size[0] * out_size[1] / 0.9 + 12)
    return min((direct, 0), (cost(2), 2), (cost(4), 4))[1]


class Winograd(Algorithm):
    """A convolution that it `can` compute, by tiles of 4 x 4 or 2 x 2 outputs."""

    name = "winograd"
    exact = False
    LEAST_CHANNELS = LEAST_CHANNELS

    def __init__(self, shape: ConvShape) -> None:
        super().__init__(shape)
        # Outputs on a side of a tile; the weight gradient has those of forward.
        self.tile = self._tile(shape, Pass.FORWARD)
        self.input_tile = self._tile(shape, Pass.BACKWARD_INPUT)

    @classmethod
    def can(cls, shape: ConvShape) -> bool:
        """Whether it can compute such a convolution, however slowly."""
        steps = (shape.kernel, shape.stride, shape.groups)
        least = min(shape.channels, shape.out_channels)
        return steps == ((3, 3), (1, 1), 1) and least >= LEAST_CHANNELS

    @classmethod
    def accurate(cls, shape: ConvShape, which: Pass) -> bool:
        """Whether the shortest sums of a pass have as many terms as its errors need."""
        return shape.fewest[list(Pass).index(which)] >= LEAST_TERMS

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        """As `Algorithm.serves`."""
        return cls.can(shape) and cls.accurate(shape, which) and cls._tile(shape, which) > 0

    @classmethod
    def _tile(cls, shape: ConvShape, which: Pass) -> int:
        """The tile that `choose` takes for a pass."""
        size, channels = shape.out_size, (shape.channels, shape.out_channels)
        if which is Pass.BACKWARD_INPUT:
            size, channels = (shape.images[1], shape.images[2]), channels[::-1]
        return choose(shape.images[0], size, *channels, shape.itemsize, shape.dilation)

    def describe(self, which: Pass) -> str:
        """Tile, kernel and channels."""
        tile = self.input_tile if which is Pass.BACKWARD_INPUT else self.tile
        channels, out = self.shape.channels, self.shape.out_channels
        sides = f"{channels}" if channels == out else f"{channels} -> {out}"
        return f"winograd F({tile}x{tile}), 3x3 at stride 1, {sides} channels"

    @functools.cached_property
    def _forward(self) -> _Convolution:
        return _Convolution(self.shape, self.tile)

    @functools.cached_property
    def _backward_input(self) -> _Convolution:
        """It is a convolution with the filters rotated by 180 degrees and transposed."""
        return _Convolution(self.shape, self.input_tile, transposed=True)

    @functools.cached_property
    def _backward_weight(self) -> _WeightGradient:
        return _WeightGradient(self.shape, self.tile)

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output (N, OH, OW, M), or the greater of it and 0."""
        return self._forward.run(to_channels_last(x), weight, bias, relu)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (N, H, W, C)."""
        plan = self._backward_input
        return plan.run(dy, weight, plan.no_bias, False)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, None]:
        """Weight gradient, and None for that of the bias."""
        return self._backward_weight.run(to_channels_last(x), dy), None


class ForcedWinograd(Winograd):
    """`Winograd` as the caller's choice: where direct should be faster, with tiles of 4 x 4."""

    @classmethod
    def _tile(cls, shape: ConvShape, which: Pass) -> int:
        return super()._tile(shape, which) or 4


def _tiles(shape: ConvShape, tile: int, transposed: bool = False) -> Tiles:
    """How a convolution is cut, or the one that gives its input gradient."""
    n, height, width, channels = shape.images
    sizes = (height, width), shape.out_size
    sides = channels, shape.out_channels
    padding = shape.padding
    if transposed:
        sizes, sides = sizes[::-1], sides[::-1]
        (top, left), (down, across) = padding, shape.dilation
        padding = 2 * down - top, 2 * across - left
    grid = _grid(tile, sizes[1], shape.dilation)
    total, lanes = n * grid[0] * grid[1], cpu.lanes(shape.itemsize)
    tiles: Tiles = kernels.winograd.tiles.Tiles(
        tile, *sides, *sizes[0], *sizes[1], *padding, *shape.dilation, *grid, total, lanes
    )
    return tiles


class _Plan:
    """What the plans of all passes have: sizes that follow from the tiles."""

    def __init__(self, shape: ConvShape, tile: int, transposed: bool = False) -> None:
        tiles = self.tiles = _tiles(shape, tile, transposed)
        points = (tile + 2) ** 2
        self.dtype = np.dtype(np.float32 if shape.itemsize == 4 else np.float64)
        # Both sides of one tile, transformed.
        self.tile_bytes = points * (tiles.channels + tiles.filters) * shape.itemsize
        # Of the longest row of pixels that is read, and of the first tile's left edge.
        longest = max(tiles.width, tiles.out_width) + tile + 2
        self.zeros = longest * max(tiles.channels, tiles.filters)
        # Whether panels of filters are enough tasks.
        self.many_panels = tiles.total > 0 and tiles.filters >= 8 * 2 * tiles.lanes
        self.work = tiles.total * points * tiles.channels * tiles.filters / 8


class _Convolution(_Plan):
    """Plan of forward or, `transposed`, of the input gradient."""

    def __init__(self, shape: ConvShape, tile: int, transposed: bool = False) -> None:
        super().__init__(shape, tile, transposed)
        home, tiles = kernels.winograd.forward, self.tiles
        # A panel of filters meets all tiles where the weight is larger than they are. Of 4 images
        # of 14 x 14, 512 -> 512: 15.9 ms by panels, 19.5 by tiles.
        whole = tiles.filters % tiles.lanes == 0
        self.by_panels = self.many_panels and tiles.total < tiles.filters and whole
        if self.by_panels:
            step, elements = 0, home.panel_elements(tiles)
            self.transformed = (tile + 2) ** 2 * _stride(tiles.total, tiles.channels, tiles.lanes)
        else:
            step = self._step()
            elements = home.block_elements(tiles, step)
            self.transformed = home.filter_elements(tiles)
        self.out_shape = (shape.images[0], tiles.out_height, tiles.out_width, tiles.filters)
        # Each vector of the output must be a cache line: of 16 pixels that are written in turn,
        # halves of lines would leave the core one by one, 1.5 times as slow with AVX2's vectors.
        lines = whole and tiles.lanes * shape.itemsize == memory.ALIGNMENT
        size = math.prod(self.out_shape) * shape.itemsize
        large = size >= (STREAMED_GRADIENT if transposed else STREAMED)
        stream = int(large and lines and not self.by_panels)
        self.worker_elements = _whole_lines(elements)
        cut = self._shared(step)
        share = self.worker_elements
        facts = home.Facts(tiles, transposed, step, *cut, share, self.zeros, stream)
        self.facts = plain(facts)
        self.no_bias = np.zeros(tiles.filters, self.dtype)
        self.floors = tuple(self.dtype.type(floor) for floor in (-np.inf, 0))

    def _step(self) -> int:
        """Tiles of a block: a multiple of 4, and blocks of one size, an even number of them."""
        total = self.tiles.total
        fits = max(cpu.slab_bytes() // self.tile_bytes, LEAST_TILES)
        fits = max(min(fits, WORK_BYTES // self.tile_bytes), 4)
        blocks = max(-(-total // fits), min(8, total // 24), 2)
        return -(-total // (blocks + blocks % 2) // 4) * 4 or 4

    def _shared(self, step: int) -> Pair:
        """Groups of panels of filters, and tiles, to cut blocks into where threads share them."""
        tiles, wanted = self.tiles, chunks(self.work, most=SHARED_TASKS)
        panels = -(-tiles.filters // (2 * tiles.lanes))
        if self.by_panels:
            return panels, _piece(tiles.total, -(-wanted // panels))
        wanted = -(-wanted // max(1, -(-tiles.total // step)))  # tasks of a block
        groups = -(-panels // max(1, panels // wanted))
        return groups, _piece(step, -(-wanted // groups))

    def run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool) -> np.ndarray:
        """Output of channels-last images."""
        home, workers = kernels.winograd.forward, threads.workers_for(self.work)
        y = memory.empty(self.out_shape, self.dtype)
        sizes = (self.transformed, workers * self.worker_elements + self.zeros)
        transformed, work = memory.scratch(sizes, self.dtype)
        run = home.winograd_by_panels if self.by_panels else home.winograd
        call = (self.floors[relu], workers)
        x, weight, out = x.reshape(-1), weight.reshape(-1), y.reshape(-1)
        run(x, weight, bias, self.facts, call, transformed, work, out)
        return y


class _WeightGradient(_Plan):
    """Plan of the weight gradient."""

    def __init__(self, shape: ConvShape, tile: int) -> None:
        super().__init__(shape, tile)
        home, tiles = kernels.winograd.weight, self.tiles
        self.by_panels = self.many_panels and tiles.total <= PANEL_TILES
        self.sums = home.sum_elements(tiles)
        self.transformed = step = span = 0
        if self.by_panels:  # all tiles are transformed first
            for side in (tiles.channels, tiles.filters):
                self.transformed += (tile + 2) ** 2 * _stride(tiles.total, side, tiles.lanes)
        else:
            span = self._span()
            step = self._step(span)
            self.sums *= max(1, -(-tiles.total // span))
        self.worker_elements = _whole_lines(home.worker_elements(tiles, step))
        rows, share = self._shared_rows(span), self.worker_elements
        self.facts = plain(home.Facts(tiles, step, span, rows, share, self.zeros))
        self.shape = shape.weight

    def _span(self) -> int:
        """Tiles of a chunk."""
        tiles = self.tiles
        one = tiles.filters * 9 * tiles.channels * self.dtype.itemsize
        most = max(tiles.total // 64, min(2, tiles.total // 16))
        most = max(min(CHUNKS, most), chunks(tiles.total, CHUNK_TILES))
        parts = max(1, min(most, CHUNK_BYTES // one))
        parts += parts > 1 and parts % 2  # 3 would take two threads as long as 4
        return max(1, -(-tiles.total // parts))

    def _shared_rows(self, span: int) -> int:
        """Filters of a task where threads share chunks, or 0 where a chunk is one task."""
        if self.by_panels:
            return 0
        home = kernels.winograd.weight
        filters, rows = self.tiles.filters, cpu.tile_rows()
        panels = -(-self.tiles.channels // (2 * self.tiles.lanes))
        tasks = chunks(self.work, most=SHARED_TASKS) * span // max(1, self.tiles.total)
        blocks = max(1, min(filters // LEAST_ROWS, -(-tasks // panels)))
        if panels * blocks == 1:
            return 0
        return min(-(-filters // (blocks * rows)) * rows, int(home.GRADIENT_ROWS))

    def _step(self, span: int) -> int:
        """Tiles of a block: a chunk in equal parts."""
        fits = max(min(WORK_BYTES // self.tile_bytes, 256), 4)
        blocks = -(-span // fits)
        return -(-span // blocks)

    def run(self, x: np.ndarray, dy: np.ndarray) -> np.ndarray:
        """Gradient (M, C, 3, 3) of channels-last images and outputs."""
        home, workers = kernels.winograd.weight, threads.workers_for(self.work)
        dw = memory.empty(self.shape, self.dtype)
        sizes = (workers * self.worker_elements + self.zeros, self.sums)
        x, dy, out = x.reshape(-1), dy.reshape(-1), dw.reshape(-1)
        if self.by_panels:
            work, sums, transformed = memory.scratch((*sizes, self.transformed), self.dtype)
            home.winograd_backward_weight_by_panels(
                x, dy, self.facts, workers, transformed, work, sums, out
            )
            return dw
        work, parts = memory.scratch(sizes, self.dtype)
        home.winograd_backward_weight(x, dy, self.facts, workers, work, parts, out)
        return dw


def _whole_lines(elements: int) -> int:
    """So many elements or a few more, which fill cache lines of any type."""
    return -(-elements // 16) * 16


def _piece(step: int, wanted: int) -> int:
    """Tiles of a task, where so many are `wanted` to share `step` of them."""
    pieces = max(1, min(round(step / SHARED_TILES), wanted))
    return -(-step // pieces // 12) * 12  # whole tiles of the GEMM


def _stride(tiles: int, channels: int, lanes: int) -> int:
    """Elements of a point's matrix of so many tiles."""
    stride: int = kernels.winograd.tiles.matrix_stride(tiles, channels, lanes)
    return stride
