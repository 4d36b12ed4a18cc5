"""Plans of Winograd convolution: 3x3 kernels at stride 1 and any dilation, one group.

Internal to `ops.conv`, which checks arguments. Images are C-contiguous (N, H, W, C), weights
(M, C, 3, 3), with at least `cpu.lanes` channels on either side.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.layout import to_channels_last
from fastlayers.runtime import cpu, memory, threads

__all__ = [
    "LEAST_CHANNELS",
    "LEAST_TERMS",
    "backward_input",
    "backward_weight",
    "choose",
    "forward",
]

# Transformed inputs and products of one block stay in L2, where that leaves a block of at least
# 48 tiles: each block reads the whole transformed weight.
BLOCK_BYTES = 768 * 1024
LEAST_TILES = 48
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
# Partial sums of the weight gradient: at most 16, and 64 MiB in all.
CHUNKS = 16
CHUNK_BYTES = 64 * 1024 * 1024
# Results of this size are written past the caches. Forward and the batch norm that reads it take
# 0.92 of the time at 8 MiB (16 channels; 2 threads 0.97), but up to 1.05 at 4; both gradients and
# the batch norm's, which meets the input's after that by the weight, 0.92 at 8 and 0.94 to 1.00 at
# 2 MiB (2 threads 0.94, 0.96 to 0.99).
STREAMED, STREAMED_GRADIENT = 8 << 20, 2 << 20
# Below them a result is raised, by type and whether there is a ReLU.
_FLOORS = {
    (np.dtype(t), relu): t(0 if relu else -np.inf)
    for t in (np.float32, np.float64)
    for relu in (False, True)
}

Pair = tuple[int, int]


def _grid(tile: int, size: Pair, dilation: Pair) -> Pair:
    """Rows and columns of tiles that cover an image: of each phase as many as it needs."""
    down, across = (
        n // (tile * d) * d + min(n % (tile * d), d) for n, d in zip(size, dilation, strict=True)
    )
    return down, across


@dataclass(frozen=True)
class _Plan:
    """All that follows from the shapes of a call; kept for the next such call."""

    tile: int
    images: tuple[int, int, int, int]  # N, H, W, C
    filters: int
    out_size: Pair
    padding: Pair
    dilation: Pair
    itemsize: int

    @functools.cached_property
    def channels(self) -> int:
        return self.images[3]

    @functools.cached_property
    def sizes(self) -> tuple[int, int]:
        return self.channels, self.filters

    @functools.cached_property
    def geometry(self) -> tuple[Pair, Pair, Pair, Pair, Pair]:
        """All of the window and its tiles, as kernels take it."""
        return (self.images[1:3], self.out_size, self.padding, self.dilation, self.grid)

    @functools.cached_property
    def lanes(self) -> int:
        return cpu.lanes(self.itemsize)

    @functools.cached_property
    def points(self) -> int:
        return (self.tile + 2) ** 2

    @functools.cached_property
    def grid(self) -> Pair:
        """Tiles of an image."""
        return _grid(self.tile, self.out_size, self.dilation)

    @functools.cached_property
    def tiles(self) -> int:
        """Of all images."""
        return self.images[0] * self.grid[0] * self.grid[1]

    @functools.cached_property
    def zeros(self) -> int:
        """Of the longest row of pixels that is read, and of the first tile's left edge."""
        return (max(self.images[2], self.out_size[1]) + self.tile + 2) * max(self.sizes)

    @functools.cached_property
    def tile_bytes(self) -> int:
        """Both sides of one tile, transformed."""
        return self.points * sum(self.sizes) * self.itemsize

    @functools.cached_property
    def step(self) -> int:
        """Tiles of a block: a multiple of 4, and blocks of one size, an even number of them."""
        fits = max(BLOCK_BYTES // self.tile_bytes, LEAST_TILES)
        fits = max(min(fits, WORK_BYTES // self.tile_bytes), 4)
        blocks = max(-(-self.tiles // fits), min(8, self.tiles // 24), 2)
        return -(-self.tiles // (blocks + blocks % 2) // 4) * 4 or 4

    @functools.cached_property
    def span(self) -> int:
        """Tiles of a chunk of the weight gradient."""
        one = self.filters * 9 * self.channels * self.itemsize
        most = max(self.tiles // 64, min(2, self.tiles // 16))
        chunks = max(1, min(CHUNKS, CHUNK_BYTES // one, most))
        chunks += chunks > 1 and chunks % 2  # 3 would take two threads as long as 4
        return max(1, -(-self.tiles // chunks))

    @functools.cached_property
    def deep_step(self) -> int:
        """Tiles of a block of the weight gradient: a chunk in equal parts."""
        fits = max(min(WORK_BYTES // self.tile_bytes, 256), 4)
        blocks = -(-self.span // fits)
        return -(-self.span // blocks)

    @functools.cached_property
    def many_panels(self) -> bool:
        """Whether panels of filters are enough tasks."""
        return self.tiles > 0 and self.filters >= 8 * 2 * self.lanes

    @functools.cached_property
    def by_panels(self) -> bool:
        """Whether a panel of filters meets all tiles, since the weight is larger than they are.

        Of 4 images of 14 x 14, 512 -> 512: 15.9 ms by panels, 19.5 by tiles.
        """
        return self.many_panels and self.tiles < self.filters and not self.filters % self.lanes

    @functools.cached_property
    def gradient_by_panels(self) -> bool:
        """Whether the weight gradient transforms all tiles first; see `PANEL_TILES`."""
        return self.many_panels and self.tiles <= PANEL_TILES

    @functools.cached_property
    def whole_lines(self) -> bool:
        """Whether each vector of the output is a cache line.

        Of 16 pixels that are written in turn, halves of lines would leave the core one by one: 1.5
        times as slow with AVX2's vectors.
        """
        return self.filters % self.lanes == 0 and self.lanes * self.itemsize == memory.ALIGNMENT

    @functools.cached_property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.images[0], *self.out_size, self.filters)

    @functools.cached_property
    def forward_sizes(self) -> tuple[int, int]:
        """Elements of the transformed weight, or of all inputs by panels, and of a worker."""
        home, tile, lanes = kernels.winograd.forward, self.tile, self.lanes
        if self.by_panels:
            v = self.points * home.matrix_stride(self.tiles, self.channels, lanes)
            return v, home.panel_work(tile, self.tiles, self.channels, lanes)
        u = home.filter_size(tile, *self.sizes, lanes)
        return u, home.forward_work(tile, self.step, *self.sizes, lanes)

    @functools.cached_property
    def gradient_sizes(self) -> tuple[int, int]:
        """Elements of a worker, and of the partial sums."""
        home = kernels.winograd.weight
        step = 0 if self.gradient_by_panels else self.deep_step
        chunks = 1 if self.gradient_by_panels else max(1, -(-self.tiles // self.span))
        size = self.filters * 9 * home.gradient_row(self.channels, self.lanes)
        return home.gradient_work(self.tile, step, *self.sizes, self.lanes), chunks * size

    @functools.cached_property
    def matrices(self) -> tuple[int, int]:
        """Elements of all transformed inputs, and of the gradients."""
        stride = kernels.winograd.forward.matrix_stride
        first, second = (self.points * stride(self.tiles, n, self.lanes) for n in self.sizes)
        return first, second

    @functools.cached_property
    def work(self) -> float:
        return self.tiles * self.points * self.channels * self.filters / 8


@functools.lru_cache(maxsize=1024)
def _plan(*arguments: Any) -> _Plan:
    return _Plan(*arguments)


@functools.lru_cache(maxsize=1024)
def choose(
    images: int,
    out_size: Pair,
    channels: int,
    filters: int,
    itemsize: int,
    dilation: Pair = (1, 1),
) -> int:
    """The tile that is expected to be fastest for a pass: 4, 2, or 0 for direct convolution.

    `out_size` is what is cut into tiles: forward's output, or the image of the input's gradient,
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


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    padding: Pair,
    dilation: Pair = (1, 1),
    relu: bool = False,
    tile: int = 4,
) -> np.ndarray:
    """Convolution of x (N, H, W, C) with weight (M, C, 3, 3) and bias (M,), to (N, OH, OW, M)."""
    down, across = (2 * (p - d) for p, d in zip(padding, dilation, strict=True))
    out = (x.shape[1] + down, x.shape[2] + across)
    plan = _plan(tile, x.shape, weight.shape[0], out, padding, dilation, x.itemsize)
    return _run(plan, x, weight, bias, relu, transposed=False)


def backward_input(
    dy: np.ndarray,
    weight: np.ndarray,
    padding: Pair,
    dilation: Pair = (1, 1),
    tile: int = 4,
) -> np.ndarray:
    """Gradient (N, H, W, C) of dy (N, OH, OW, M) by the input of `forward`.

    It is the convolution with the rotated, transposed filters, padded by 2 * dilation - padding.
    """
    size = tuple(n + 2 * (d - p) for n, d, p in zip(dy.shape[1:3], dilation, padding, strict=True))
    rest = tuple(2 * d - p for d, p in zip(dilation, padding, strict=True))
    plan = _plan(tile, dy.shape, weight.shape[1], size, rest, dilation, dy.itemsize)
    return _run(plan, dy, weight, None, relu=False, transposed=True)


def _run(
    plan: _Plan,
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None,
    relu: bool,
    transposed: bool,
) -> np.ndarray:
    home, dtype, workers = kernels.winograd.forward, x.dtype, threads.workers_for(plan.work)
    y = memory.empty(plan.out_shape, dtype)
    size, share = plan.forward_sizes
    zeros, matrices, work = memory.scratch((plan.zeros, size, workers * share), dtype)
    if plan.by_panels:
        home.winograd_by_panels(
            plan.tile,
            x.reshape(-1),
            weight.reshape(-1),
            transposed,
            zeros if bias is None else bias,
            _FLOORS[dtype, relu],
            plan.sizes,
            plan.geometry,
            plan.tiles,
            plan.lanes,
            workers,
            zeros,
            matrices,
            work,
            y.reshape(-1),
        )
        return y
    large = y.nbytes >= (STREAMED_GRADIENT if transposed else STREAMED)
    home.winograd(
        plan.tile,
        x.reshape(-1),
        weight.reshape(-1),
        transposed,
        zeros if bias is None else bias,
        _FLOORS[dtype, relu],
        plan.sizes,
        plan.geometry,
        plan.tiles,
        plan.step,
        plan.lanes,
        workers,
        zeros,
        matrices,
        work,
        y.reshape(-1),
        int(large and plan.whole_lines),
    )
    return y


def backward_weight(
    x: np.ndarray,
    dy: np.ndarray,
    padding: Pair,
    dilation: Pair = (1, 1),
    tile: int = 4,
) -> np.ndarray:
    """Gradient (M, C, 3, 3) of dy (N, OH, OW, M) by the weight of `forward`."""
    plan = _plan(tile, x.shape, dy.shape[3], dy.shape[1:3], padding, dilation, x.itemsize)
    home, dtype, workers = kernels.winograd.weight, x.dtype, threads.workers_for(plan.work)
    dw = memory.empty((plan.filters, plan.channels, 3, 3), dtype)
    share, size = plan.gradient_sizes
    buffers = (plan.zeros, workers * share, size)
    if plan.gradient_by_panels:
        zeros, work, sums, *matrices = memory.scratch((*buffers, *plan.matrices), dtype)
        home.winograd_backward_weight_by_panels(
            plan.tile,
            x.reshape(-1),
            dy.reshape(-1),
            plan.sizes,
            plan.geometry,
            plan.tiles,
            plan.lanes,
            workers,
            zeros,
            *matrices,
            work,
            sums,
            dw.reshape(-1),
        )
        return dw
    zeros, work, parts = memory.scratch(buffers, dtype)
    home.winograd_backward_weight(
        plan.tile,
        x.reshape(-1),
        dy.reshape(-1),
        plan.sizes,
        plan.geometry,
        plan.tiles,
        plan.deep_step,
        plan.span,
        plan.lanes,
        workers,
        zeros,
        work,
        parts,
        dw.reshape(-1),
    )
    return dw


class Winograd(Algorithm):
    """Convolution with 3x3 kernels at stride 1 by transformed tiles."""

    name = "winograd"
    exact = False
    LEAST_CHANNELS = LEAST_CHANNELS

    @classmethod
    def can(cls, shape: ConvShape) -> bool:
        """Whether it can compute the convolution at all."""
        least = min(shape.channels, shape.out_channels)
        steps = (shape.kernel, shape.stride, shape.groups)
        return steps == ((3, 3), (1, 1), 1) and least >= LEAST_CHANNELS

    @classmethod
    def tile(cls, shape: ConvShape, which: Pass) -> int:
        """Outputs on a side of the tiles, or 0."""
        fewest = shape.fewest[list(Pass).index(which)]
        return cls._tile(shape, which) if cls.can(shape) and fewest >= LEAST_TERMS else 0

    @classmethod
    def _tile(cls, shape: ConvShape, which: Pass) -> int:
        size, channels = shape.out_size, (shape.channels, shape.out_channels)
        if which is Pass.BACKWARD_INPUT:
            size, channels = (shape.images[1], shape.images[2]), channels[::-1]
        return choose(shape.images[0], size, *channels, shape.itemsize, shape.dilation)

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        return cls.tile(shape, which) > 0

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        options = (self.shape.padding, self.shape.dilation, relu)
        return forward(
            to_channels_last(x), weight, bias, *options, self.tile(self.shape, Pass.FORWARD)
        )

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        options = (self.shape.padding, self.shape.dilation)
        return backward_input(dy, weight, *options, self.tile(self.shape, Pass.BACKWARD_INPUT))

    def backward_weight(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, None]:
        options = (self.shape.padding, self.shape.dilation)
        tile = self.tile(self.shape, Pass.BACKWARD_WEIGHT)
        return backward_weight(to_channels_last(x), dy, *options, tile), None


class ForcedWinograd(Winograd):
    """The same, where the caller asked for it."""

    @classmethod
    def _tile(cls, shape: ConvShape, which: Pass) -> int:
        return super()._tile(shape, which) or 4
