"""Convolution of few channels a group: facts, workspace and chunks for `kernels.depthwise`."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.conv.slabs import Axis, Phase, backward_axis, forward_axis
from fastlayers.ops.cuts import chunks
from fastlayers.ops.layout import to_channels_last
from fastlayers.runtime import cpu, memory, threads
from fastlayers.runtime.facts import plain

__all__ = ["Depthwise"]

# Tasks to cut a pass into at most, where images are fewer, and partial sums of the weight gradient:
# with 64, 128 images of 128 x 16 x 16 take 1.1 times as long.
MOST_TASKS, MOST_CHUNKS = 64, 32
SHARE = float(__import__("os").environ.get("DWSHARE", "0.5"))


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
        workers = threads.workers_for(plan.work)
        work, parts = memory.scratch((workers * plan.rings, math.prod(plan.parts)), dtype)
        kernels.depthwise.correlate_weight(
            to_channels_last(x).reshape(-1),
            dy.reshape(-1),
            plan.facts,
            workers,
            work,
            parts.reshape(plan.parts),
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
    y, workers = memory.empty(plan.out_shape, x.dtype), threads.workers_for(plan.work)
    packed, work = memory.scratch((plan.packed, workers * plan.rings), x.dtype)
    call = (x.dtype.type(floor), workers)
    kernels.depthwise.correlate(
        x.reshape(-1), weight.reshape(-1), bias, plan.facts, call, packed, work, y.reshape(-1)
    )
    return y


class _Plan:
    """Facts of the forward pass and weight gradient, or of the input gradient if `transposed`."""

    def __init__(self, shape: ConvShape, transposed: bool) -> None:
        n, lanes = shape.images[0], cpu.lanes(shape.itemsize)
        (depth, each), make = _group(shape), backward_axis if transposed else forward_axis
        rows, columns = (
            make(shape.images[1 + i], out, kernel, stride, padding, dilation)
            for i, (kernel, stride, padding, dilation, out) in enumerate(
                zip(*shape.geometry, strict=True)
            )
        )
        if transposed:
            depth, each = each, depth
        per_vector = min(lanes // depth, lanes // each, shape.groups)
        read, written = depth * shape.groups, each * shape.groups
        oh, ow = rows.out_size, columns.out_size
        sizes = kernels.depthwise.Sizes(
            *(n, rows.size, columns.size, oh, ow),
            *(rows.stride, columns.stride, rows.step, columns.step, read, written),
        )
        vectors = -(-shape.groups // per_vector)
        groups = kernels.depthwise.Groups(shape.groups, per_vector, vectors, depth, each)
        # Multiply-adds, by 8 lanes.
        self.work = n * oh * ow * written * shape.weight[1] * math.prod(shape.kernel) / 8
        tasks = chunks(self.work, most=MOST_TASKS)
        chunk = max(1, -(-n * oh // min(tasks, MOST_CHUNKS)))  # rows of a partial sum
        piece = max(1, -(-rows.count // -(-tasks // max(1, n))))
        ring = _ring(rows, columns, read, depth, lanes * shape.itemsize, lanes)
        fit = max(1, int(SHARE * cpu.l1_bytes()) // max(1, ring.elements * shape.itemsize))
        line = max(1, 64 // cpu.vector_bytes())
        fit = max(line, fit // line * line)
        block = -(-vectors // -(-vectors // fit))
        block = -(-block // line) * line
        tables = _tables(shape, rows, columns, depth, ring, lanes)
        taps = len(tables[-1])
        facts = kernels.depthwise.Facts(
            () if depth == each == 1 else (0,),
            sizes,
            groups,
            ring,
            int(transposed),
            math.prod(shape.kernel),
            block,
            piece,
            chunk,
            *tables[:-1],
            _order(depth, each, per_vector, shape.itemsize),
            tables[-1],
        )
        self.facts = plain(facts)
        self.out_shape = (n, oh, ow, written)
        self.packed = vectors * taps * lanes
        self.parts = (max(1, -(-n * oh // chunk)), vectors * (taps + 1) * lanes)
        self.rings = block * ring.elements


def _ring(
    rows: Axis, columns: Axis, channels: int, depth: int, nbytes: int, lanes: int
) -> kernels.depthwise.Ring:
    """The packed rows that an output row reads."""
    extent, left, step = columns.extent(columns.count), -columns.first, columns.stride
    plane = -(-extent // step) * lanes
    end = min(columns.size + left, extent)
    copies = []
    for d in range(depth):
        for i in range(step):
            pixel = -(-max(0, left - i) // step)  # the first that exists
            column = pixel * step + i
            count = max(0, -(-(end - column) // step))
            target = (d * step + i) * plane + pixel * lanes
            copies.append((d * nbytes // 4, (column - left) * channels, count, target))
    row = depth * step * plane
    return kernels.depthwise.Ring(
        rows.first,
        rows.reach,
        row,
        rows.reach * row,
        len(copies),
        np.array(copies, np.int64),
    )


def _tables(
    shape: ConvShape,
    rows: Axis,
    columns: Axis,
    depth: int,
    ring: kernels.depthwise.Ring,
    lanes: int,
) -> list[np.ndarray]:
    """Phases, rows and offsets of runs of taps and of single taps, and their elements."""
    run, step, left = kernels.grouped_tile.RUN, columns.stride, -columns.first
    plane = ring.row // (depth * step)
    phases, runs, singles = [], [], []
    for down in rows.phases:
        for across in columns.phases:
            first = len(runs), len(singles)
            for r, row in zip(down.taps, down.offsets, strict=True):
                begin = row - ring.top
                for taps in _runs(across, step, run):
                    pixel, i = divmod(across.offsets[taps[0]] + left, step)
                    place = i * plane + pixel * lanes
                    kernel = [r * shape.kernel[1] + across.taps[i] for i in taps]
                    for d in range(depth):
                        found = row, (begin, place + d * step * plane), [(element, d) for element in kernel]
                        (singles if len(taps) < run else runs).append(found)
            spans = first[0], len(runs), first[1], len(singles)
            phases.append((down.start, across.start, down.count, across.count, *spans))
    tables: list[Any] = []
    for steps in (runs, singles):
        tables.append([step[0] for step in steps])
        tables.append(
            [
                (first + step[1][0]) % ring.rows * ring.row + step[1][1]
                for first in range(ring.rows)
                for step in steps
            ]
        )
    elements = [pair for step in (*runs, *singles) for pair in step[2]]
    shapes: tuple[tuple[int, ...], ...] = ((-1, 8), (-1,), (-1,), (-1,), (-1,), (-1, 2))
    return [
        np.array(table, np.int64).reshape(shape)
        for table, shape in zip((phases, *tables, elements), shapes, strict=True)
    ]


def _runs(across: Phase, stride: int, run: int) -> list[list[int]]:
    """The taps of a row, by their number: as many runs of neighbours as there are, and singles."""
    steps, k = [], 0
    while k < len(across.taps):
        end = k + run
        near = end <= len(across.taps) and stride == 1
        slides = near and across.offsets[end - 1] - across.offsets[k] == run - 1
        steps.append(list(range(k, end if slides else k + 1)))
        k += len(steps[-1])
    return steps


def _order(depth: int, each: int, per_vector: int, itemsize: int) -> np.ndarray:
    """Of each channel of a group: 32-bit words of the input that a vector's lanes read."""
    words, lane = itemsize // 4, np.arange(cpu.lanes(itemsize))
    reads = np.where(lane < per_vector * each, lane // each * depth, 0)
    order = (reads + np.arange(depth)[:, None])[..., None] * words + np.arange(words)
    return np.ascontiguousarray(order.reshape(-1), np.int32)
