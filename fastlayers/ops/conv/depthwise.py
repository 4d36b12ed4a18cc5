"""Convolution of few channels a group: tables, workspace and chunks for `kernels.depthwise`.

Internal to `ops`: `ops.conv` checks the arguments and calls these with channels-last arrays.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.layout import to_channels_last
from fastlayers.runtime import cpu, memory, threads

__all__ = ["forward", "input_gradient", "suits", "weight_gradient"]

Pair = tuple[int, int]
Geometry = tuple[Pair, Pair, Pair, Pair, Pair]
# (first, size, [(delta, cell of the kernel)]) of each phase along one axis
Phases = list[tuple[int, int, list[tuple[int, int]]]]

# The longest kernel row that slides over its inputs; longer ones load each tap's.
LONGEST_SPAN = 7
# Tasks to cut a pass into at least; partial sums of the weight gradient.
CHUNKS = 16
# Rows of a band: down its rows a tile finds most of its inputs in L1, 10-15 % against one row.
BAND = 8


@dataclass(frozen=True)
class _Tables:
    """What the kernels are told about one geometry; see `kernels.depthwise`."""

    shape: tuple[tuple[int, ...], tuple[int, ...]]
    sizes: tuple[Pair, Pair, Pair, Pair]
    channels: tuple[int, int, int, int, int]
    phases: np.ndarray
    deltas: np.ndarray
    steps: np.ndarray
    order: np.ndarray
    taps: np.ndarray

    @property
    def pixels(self) -> int:
        return int(kernels.grouped_tile.tile_pixels(len(self.shape[0])))

    @property
    def vectors(self) -> int:
        return -(-self.channels[2] // self.channels[3])

    @property
    def packed_size(self) -> int:
        return self.vectors * len(self.taps) * self.channels[4]


def _forward_axis(kernel: int, stride: int, padding: int, dilation: int, out: int) -> Phases:
    return [(0, out, [(k * dilation - padding, k) for k in range(kernel)])]


def _transposed_axis(kernel: int, stride: int, padding: int, dilation: int, size: int) -> Phases:
    """Input pixel ``first + u * stride`` meets output pixel ``u + delta`` by cell k."""
    phases = []
    for first in range(min(stride, size)):
        offsets = [(first + padding - k * dilation, k) for k in range(kernel)]
        taps = sorted((offset // stride, k) for offset, k in offsets if offset % stride == 0)
        phases.append((first, -(-(size - first) // stride), taps))
    return phases


@functools.lru_cache(maxsize=1024)
def _tables(
    geometry: Geometry,
    size: Pair,
    channels: int,
    out_channels: int,
    groups: int,
    itemsize: int,
    transposed: bool,
) -> _Tables:
    """Tables of the forward pass, or of the gradient by the input of `size`."""
    kernel, stride, _, dilation, out = geometry
    axes: list[Phases]
    if transposed:
        source, target, read, written = out, size, out_channels, channels
        in_step, out_step = (1, 1), stride
        axes = [_transposed_axis(*options) for options in zip(*geometry[:4], size, strict=True)]
    else:
        source, target, read, written = size, out, channels, out_channels
        in_step, out_step = stride, (1, 1)
        axes = [_forward_axis(*options) for options in zip(*geometry, strict=True)]
    slides = stride[1] == dilation[1] == 1 and kernel[1] <= LONGEST_SPAN
    span = kernel[1] if slides else 1
    lanes, depth, each = cpu.lanes(itemsize), read // groups, written // groups
    pixels = kernels.grouped_tile.tile_pixels(span)

    phases, taps = [], []
    deltas: list[int] = []
    steps: list[Pair] = []
    masks: list[int] = []
    for i, rows, row_taps in axes[0]:
        for j, columns, column_taps in axes[1]:
            starts = []
            first = len(deltas)
            for row, r in row_taps:
                for begin in range(0, len(column_taps), span):
                    run = column_taps[begin : begin + span]
                    for d in range(depth):
                        deltas.append(row)
                        steps.append(((row * source[1] + run[0][0]) * read, d))
                        taps += [(r * kernel[1] + s, d) for _, s in run]
                        starts.append(run[0][0])
            last = len(deltas)
            phases.append((i, j, rows, columns, first, last, len(masks) - first))
            inputs = np.arange(pixels + span - 1)
            for t in range(0, columns, pixels):
                column = (t + inputs) * in_step[1] + np.array(starts, np.int64)[:, None]
                exists = (column >= 0) & (column < source[1]) & (inputs < columns - t + span - 1)
                masks += list(exists @ (1 << inputs))
    per_vector = min(lanes // depth, lanes // each, groups)
    words = itemsize // 4
    lane = np.arange(lanes)
    reads = np.where(lane < per_vector * each, lane // each * depth, 0)
    order = (reads + np.arange(depth)[:, None])[..., None] * words + np.arange(words)
    offset = 2 * len(deltas)
    table = np.array(phases, np.int64).reshape(-1, 7)
    table[:, 6] += offset
    return _Tables(
        ((0,) * span, () if depth == each == 1 else (0,)),
        (source, target, in_step, out_step),
        (read, written, groups, per_vector, lanes),
        table,
        np.array(deltas, np.int64),
        np.array([*np.ravel(steps), *masks], np.int64),
        np.ascontiguousarray(order.reshape(-1), np.int32),
        np.array(taps, np.int64).reshape(-1, 2),
    )


def suits(channels: int, out_channels: int, groups: int, itemsize: int) -> bool:
    """Whether this fills more lanes than a GEMM for each group, whose panels are half a vector."""
    lanes, depth, each = cpu.lanes(itemsize), channels // groups, out_channels // groups
    panel = lanes if 2 * each > lanes else lanes // 2
    per_vector = min(lanes // depth, lanes // each, groups)
    return per_vector * panel >= lanes


def _pack(weight: np.ndarray, tables: _Tables, transposed: bool) -> np.ndarray:
    packed = memory.empty(tables.packed_size, weight.dtype)
    cells = weight.reshape(*weight.shape[:2], -1)
    kernels.depthwise.pack_taps(cells, tables.taps, transposed, tables.channels, packed)
    return packed


def _correlate(
    x: np.ndarray,
    weight: np.ndarray,
    init: np.ndarray,
    least: float,
    tables: _Tables,
    transposed: bool,
) -> np.ndarray:
    images, written = x.shape[0], tables.channels[1]
    y = memory.empty((images, *tables.sizes[1], written), x.dtype)
    pieces = -(-CHUNKS // max(images, 1))
    piece = -(-max(int(tables.phases[0, 2]), 1) // (pieces * BAND)) * BAND
    work = y.size * weight.shape[1] * weight.shape[2] * weight.shape[3] / 8
    kernels.depthwise.correlate(
        tables.shape,
        x.reshape(-1),
        _pack(weight, tables, transposed),
        init,
        x.dtype.type(least),
        tables.sizes,
        tables.channels,
        tables.phases,
        tables.deltas,
        tables.steps,
        tables.order,
        (piece, BAND),
        tables.pixels,
        images,
        threads.workers_for(work),
        y.reshape(-1),
    )
    return y


def forward(
    x: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    geometry: Geometry,
    groups: int,
    relu: bool = False,
) -> np.ndarray:
    """Convolution, and ReLU where asked: x (N, H, W, C) gives (N, OH, OW, M)."""
    _, *size, channels = x.shape
    tables = _tables(
        geometry, (size[0], size[1]), channels, weight.shape[0], groups, x.itemsize, False
    )
    return _correlate(x, weight, bias, 0 if relu else -np.inf, tables, False)


def input_gradient(
    dy: np.ndarray, weight: np.ndarray, geometry: Geometry, size: Pair, groups: int
) -> np.ndarray:
    """Gradient (N, H, W, C) by the input of `size` (H, W) of dy (N, OH, OW, M)."""
    channels = weight.shape[1] * groups
    tables = _tables(geometry, size, channels, weight.shape[0], groups, dy.itemsize, True)
    return _correlate(dy, weight, memory.zeros(channels, dy.dtype), -np.inf, tables, True)


def weight_gradient(
    x: np.ndarray, dy: np.ndarray, geometry: Geometry, groups: int
) -> tuple[np.ndarray, np.ndarray]:
    """Gradients by weight (M, C/G, R, S) and bias (M,) of x (N, H, W, C) and dy (N, OH, OW, M)."""
    n, height, width, channels = x.shape
    m, depth = dy.shape[3], channels // groups
    tables = _tables(geometry, (height, width), channels, m, groups, x.itemsize, False)
    every = n * dy.shape[1]
    rows = max(1, -(-every // CHUNKS))
    chunks = max(1, -(-every // rows))
    dw, db = memory.empty((m, depth, *geometry[0]), x.dtype), memory.empty(m, x.dtype)
    size = tables.packed_size + tables.vectors * tables.channels[4]
    parts = memory.empty((chunks, size), x.dtype)
    work = dy.size * depth * geometry[0][0] * geometry[0][1] / 8
    kernels.depthwise.correlate_weight(
        tables.shape,
        x.reshape(-1),
        dy.reshape(-1),
        tables.taps,
        tables.sizes,
        tables.channels,
        tables.phases,
        tables.deltas,
        tables.steps,
        tables.order,
        rows,
        every,
        tables.pixels,
        threads.workers_for(work),
        parts,
        dw.reshape(m, depth, -1),
        db,
    )
    return dw, db


class Depthwise(Algorithm):
    """Convolution of few channels a group, whose lanes are groups."""

    name = "depthwise"

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        sizes = (shape.channels, shape.out_channels, shape.groups, shape.itemsize)
        return shape.groups > 1 and suits(*sizes)

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        shape = self.shape
        return forward(to_channels_last(x), weight, bias, shape.geometry, shape.groups, relu)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        size = (self.shape.images[1], self.shape.images[2])
        return input_gradient(dy, weight, self.shape.geometry, size, self.shape.groups)

    def backward_weight(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return weight_gradient(to_channels_last(x), dy, self.shape.geometry, self.shape.groups)
