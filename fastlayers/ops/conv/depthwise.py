"""Convolution of few channels a group: facts, workspace and chunks for `kernels.depthwise`."""

from __future__ import annotations

import functools
import math

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.cuts import chunks
from fastlayers.ops.layout import to_channels_last
from fastlayers.runtime import cpu, memory, threads
from fastlayers.runtime.facts import plain

__all__ = ["Depthwise"]

# Output pixels along an axis with the same taps: the first, how many, and of each tap the offset of
# the input pixel that it reads and its place in the kernel.
Axis = tuple[int, int, list[tuple[int, int]]]

# The longest kernel row that slides over its inputs; longer ones load each tap's.
LONGEST_SPAN = 7
# Tasks to cut a pass into at most, where images are fewer, and partial sums of the weight gradient:
# with 64, 128 images of 128 x 16 x 16 take 1.1 times as long.
MOST_TASKS, MOST_CHUNKS = 64, 32
# Rows of a band: down its rows a tile finds most of its inputs in L1, 10-15 % against one row.
BAND = 8


class Depthwise(Algorithm):
    """Convolution of few channels a group, whose lanes are channels of several groups."""

    name = "depthwise"

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        """Where more lanes work than in a GEMM for each group, whose panels are half a vector."""
        if shape.groups == 1:
            return False
        lanes, (depth, each) = cpu.lanes(shape.itemsize), _group(shape)
        panel = lanes if 2 * each > lanes else lanes // 2
        return min(lanes // depth, lanes // each, shape.groups) * panel >= lanes

    def describe(self, which: Pass) -> str:
        """Its name, the number of groups and their channels."""
        depth, each = _group(self.shape)
        channels = f"{depth} channel{'s' * (depth > 1)}"
        to = f" to {each}" if each != depth else ""
        return f"{self.name}, lanes over the groups, {self.shape.groups} groups of {channels}{to}"

    @functools.cached_property
    def _plan(self) -> _Plan:
        return _Plan(self.shape, transposed=False)

    @functools.cached_property
    def _transposed(self) -> _Plan:
        return _Plan(self.shape, transposed=True)

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output (N, OH, OW, M)."""
        return _correlate(to_channels_last(x), weight, bias, 0.0 if relu else -np.inf, self._plan)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (N, H, W, C)."""
        zeros = memory.zeros(self.shape.channels, dy.dtype)
        return _correlate(dy, weight, zeros, -np.inf, self._transposed)

    def backward_weight(
        self, x: np.ndarray, dy: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Weight gradient, and bias gradient, which is a vector more of each tile's sums."""
        plan, shape, dtype = self._plan, self.shape, dy.dtype
        dw, db = memory.empty(shape.weight, dtype), memory.empty(shape.out_channels, dtype)
        kernels.depthwise.correlate_weight(
            to_channels_last(x).reshape(-1),
            dy.reshape(-1),
            plan.facts,
            threads.workers_for(plan.work),
            memory.empty(plan.parts, dtype),
            dw.reshape(-1),
            db,
        )
        return dw, db


def _group(shape: ConvShape) -> tuple[int, int]:
    """Input and output channels of a group."""
    return shape.weight[1], shape.out_channels // shape.groups


def _correlate(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, floor: float, plan: _Plan
) -> np.ndarray:
    y, packed = memory.empty(plan.out_shape, x.dtype), memory.empty(plan.packed, x.dtype)
    call = (x.dtype.type(floor), threads.workers_for(plan.work))
    kernels.depthwise.correlate(
        x.reshape(-1), weight.reshape(-1), bias, plan.facts, call, packed, y.reshape(-1)
    )
    return y


class _Plan:
    """Facts of the forward pass and weight gradient, or of the input gradient if `transposed`."""

    def __init__(self, shape: ConvShape, transposed: bool) -> None:
        n, height, width, _ = shape.images
        depth, each = _group(shape)
        (oh, ow), steps = shape.out_size, (shape.stride, (1, 1))
        if transposed:
            (height, width), (oh, ow) = (oh, ow), (height, width)
            depth, each, steps = each, depth, steps[::-1]
        lanes = cpu.lanes(shape.itemsize)
        per_vector = min(lanes // depth, lanes // each, shape.groups)
        read, written = depth * shape.groups, each * shape.groups
        sizes = kernels.depthwise.Sizes(
            n, height, width, oh, ow, *steps[0], *steps[1], read, written, shape.groups, per_vector
        )
        slides = shape.stride[1] == shape.dilation[1] == 1 and shape.kernel[1] <= LONGEST_SPAN
        span = shape.kernel[1] if slides else 1
        tables = _Tables(shape, sizes, transposed, span)
        # Multiply-adds, by 8 lanes.
        self.work = n * oh * ow * written * shape.weight[1] * math.prod(shape.kernel) / 8
        tasks = chunks(self.work, most=MOST_TASKS)
        rows = max(1, -(-n * oh // min(tasks, MOST_CHUNKS)))  # of a partial sum
        piece = -(-int(tables.phases[0, 2]) // (-(-tasks // max(1, n)) * BAND)) * BAND
        shuffled = () if depth == each == 1 else (0,)
        facts = kernels.depthwise.Facts(
            kernels.depthwise.Tile((0,) * span, shuffled),
            sizes,
            int(transposed),
            shape.kernel[0] * shape.kernel[1],
            kernels.grouped_tile.tile_pixels(span),
            BAND,
            piece,
            rows,
            tables.deltas[-1] + 1 if tables.deltas else 0,
            tables.phases,
            np.array(tables.deltas, np.int64),
            np.array([*np.ravel(tables.steps), *tables.masks], np.int64),
            _order(depth, each, per_vector, shape.itemsize),
            np.array(tables.taps, np.int64).reshape(-1, 2),
        )
        self.facts = plain(facts)
        self.out_shape = (n, oh, ow, written)
        vectors, taps = -(-shape.groups // per_vector), len(tables.taps)
        self.packed = vectors * taps * lanes
        self.parts = (max(1, -(-n * oh // rows)), vectors * (taps + 1) * lanes)


def _forward_axis(kernel: int, stride: int, padding: int, dilation: int, out: int) -> list[Axis]:
    return [(0, out, [(k * dilation - padding, k) for k in range(kernel)])]


def _transposed_axis(
    kernel: int, stride: int, padding: int, dilation: int, size: int
) -> list[Axis]:
    """Input pixel ``first + u * stride`` meets output pixel ``u + offset`` by element k."""
    phases = []
    for first in range(min(stride, size)):
        offsets = [(first + padding - k * dilation, k) for k in range(kernel)]
        taps = sorted((offset // stride, k) for offset, k in offsets if offset % stride == 0)
        phases.append((first, -(-(size - first) // stride), taps))
    return phases


class _Tables:
    """Tables of the phases and of their steps, each of which is `span` taps of a kernel's row."""

    def __init__(
        self, shape: ConvShape, sizes: kernels.depthwise.Sizes, transposed: bool, span: int
    ) -> None:
        self.deltas: list[int] = []
        self.steps: list[tuple[int, int]] = []
        self.masks: list[int] = []
        self.taps: list[tuple[int, int]] = []
        self._sizes, self._span = sizes, span
        self._depth = sizes.read // sizes.groups
        axis = _transposed_axis if transposed else _forward_axis
        out = (sizes.out_height, sizes.out_width)
        rows, columns = (axis(*options) for options in zip(*shape.geometry[:4], out, strict=True))
        phases = []
        for i, row_count, row_taps in rows:
            for j, column_count, column_taps in columns:
                first = len(self.deltas)
                masks = len(self.masks) - first  # added to the number of a step
                starts = self._add_steps(shape.kernel[1], row_taps, column_taps)
                self._add_masks(column_count, starts)
                phases.append((i, j, row_count, column_count, first, len(self.deltas), masks))
        self.phases = np.array(phases, np.int64).reshape(-1, 7)
        self.phases[:, 6] += 2 * len(self.deltas)

    def _add_steps(
        self, kernel: int, row_taps: list[tuple[int, int]], column_taps: list[tuple[int, int]]
    ) -> list[int]:
        """Add the steps of a phase; the column of each step's first tap."""
        starts = []
        for row, r in row_taps:
            for begin in range(0, len(column_taps), self._span):
                run = column_taps[begin : begin + self._span]
                column = run[0][0]
                for d in range(self._depth):
                    self.deltas.append(row)
                    self.steps.append(((row * self._sizes.width + column) * self._sizes.read, d))
                    self.taps += [(r * kernel + s, d) for _, s in run]
                    starts.append(column)
        return starts

    def _add_masks(self, columns: int, starts: list[int]) -> None:
        """Add the masks of a phase: which pixels of the input exist, for each tile and step."""
        sizes, beyond = self._sizes, self._span - 1
        pixels = kernels.grouped_tile.tile_pixels(self._span)
        inputs = np.arange(pixels + beyond)
        for t in range(0, columns, pixels):
            column = (t + inputs) * sizes.column_in + np.array(starts, np.int64)[:, None]
            exists = (column >= 0) & (column < sizes.width) & (inputs < columns - t + beyond)
            self.masks += list(exists @ (1 << inputs))


def _order(depth: int, each: int, per_vector: int, itemsize: int) -> np.ndarray:
    """Of each channel of a group: 32-bit words of the input that a vector's lanes read."""
    words, lane = itemsize // 4, np.arange(cpu.lanes(itemsize))
    reads = np.where(lane < per_vector * each, lane // each * depth, 0)
    order = (reads + np.arange(depth)[:, None])[..., None] * words + np.arange(words)
    return np.ascontiguousarray(order.reshape(-1), np.int32)
