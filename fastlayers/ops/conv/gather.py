"""How a convolution is cut into slabs, and the tables of offsets by which kernels read them.

All of it follows from shapes and options, is made once for a shape and kept. A convolution is
described as a gather: an output pixel is a sum over taps, of which each reads an input pixel at a
fixed distance. The input gradient is a gather too: for a stride of (s, t) the input's
pixels fall into s * t phases, each of which has some of the kernel's taps, at a stride of 1.
"""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.kernels import gemm
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.runtime import cpu
from fastlayers.runtime.facts import plain

__all__ = ["Axis", "Columns", "Gather", "WeightGather", "backward_axis", "forward_axis"]

Shape = tuple[tuple[int, int, int, int], int]

# A slab stays in L2 beside the weight's panel: 384 KiB of 1 MiB (512 KiB on small CPUs).
SLAB_BYTES = 384 * 1024
# Pixels of a slab: enough for each panel of the weight, read from L3, to be used 8 times.
SLAB_PIXELS = 96
# Vector multiply-adds of a slab below which taking it costs more than 1 % (0.3 us).
SLAB_WORK = 32768
# Slabs, or blocks of output channels where there are few slabs, that make up for uneven threads.
TASKS = 8
# Tasks of the weight gradient, and rows of dW in one: three of the tallest tiles for 3x3 kernels,
# more for smaller ones, since each task copies its inputs.
WEIGHT_TASKS = 16
WEIGHT_ROWS = 36
# Larger images come from memory and go there. An output is written by non-temporal stores, which
# saves reading what it replaces, and an input is copied, since a tile's 12 rows are more streams
# than hardware prefetches: 1x1, 256 -> 64 channels, 9.6 to 8.9 ms.
STREAM_BYTES = 16 * 1024 * 1024
# Pixels this far apart in the weight gradient's operand share few sets of L1 and L2, of which a
# copy needs fewer lines: 1x1, 256 -> 64 channels, 13.0 to 9.5 ms.
PIXEL_BYTES = 1024
# A block of receptive fields' gradients, for inputs of few channels.
COLUMN_BYTES = 256 * 1024
# Partial sums of the weight gradient.
PARTS_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class Phase:
    """Output pixels of one axis that have the same taps: ``start, start + step, ...``."""

    start: int
    count: int
    taps: tuple[int, ...]  # indices in the kernel, by the input's position
    offsets: tuple[int, ...]  # their input positions, from that of the output pixel


@dataclass(frozen=True)
class Axis:
    """One axis of a gather: output pixel i of a phase reads input ``i * stride + offset``."""

    size: int  # of the input
    out_size: int
    stride: int  # of the input
    step: int  # of the output: number of phases
    phases: tuple[Phase, ...]

    @functools.cached_property
    def first(self) -> int:
        """Lowest input position that output pixel 0 reads."""
        return min((p.offsets[0] for p in self.phases if p.taps), default=0)

    @functools.cached_property
    def reach(self) -> int:
        """Input positions that one pixel's taps span."""
        last = max((p.offsets[-1] for p in self.phases if p.taps), default=0)
        return last - self.first + 1

    @property
    def count(self) -> int:
        """Output pixels of the largest phase."""
        return max(p.count for p in self.phases)

    def extent(self, count: int) -> int:
        """Input positions that `count` successive output pixels read."""
        return (count - 1) * self.stride + self.reach if count else 0

    @property
    def inside(self) -> bool:
        """Whether nothing outside of the input is read."""
        return self.first >= 0 and self.first + self.extent(self.count) <= self.size


def forward_axis(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> Axis:
    """The axis of a convolution."""
    offsets = tuple(r * dilation - pad for r in range(kernel))
    return Axis(size, out, stride, 1, (Phase(0, out, tuple(range(kernel)), offsets),))


def backward_axis(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> Axis:
    """The axis of the input gradient: from `out` gradients to `size` pixels."""
    phases = []
    for start in range(min(stride, size)):
        taps = [r for r in reversed(range(kernel)) if (start + pad - r * dilation) % stride == 0]
        offsets = tuple((start + pad - r * dilation) // stride for r in taps)
        phases.append(Phase(start, -(-(size - start) // stride), tuple(taps), offsets))
    return Axis(out, size, 1, stride, tuple(phases))


@dataclass(frozen=True)
class _Slabs:
    """The cut of images into slabs, each of a few whole images or of a band of rows of one."""

    images: int
    channels: int
    rows: Axis
    columns: Axis
    copied: bool  # into memory with the zeros around, or read in place
    per: int  # images
    band: int  # output rows, of each phase

    @classmethod
    def cut(cls, shape: Shape, rows: Axis, columns: Axis, least: int, copied: bool) -> _Slabs:
        """Slabs of about `least` output pixels that stay in L2; shape is (N, H, W, C), itemsize."""
        (images, _, _, channels), itemsize = shape
        across, down = max(1, columns.count), max(1, rows.count)
        line = max(1, columns.extent(columns.count) * channels * itemsize)
        fits = max(rows.reach, SLAB_BYTES // line)  # input rows
        whole = max(1, rows.extent(down))
        per = max(1, min(fits // whole, -(-least // (across * down)), images))
        band = min((fits - rows.reach) // rows.stride + 1, -(-least // across), down)
        band = down if per > 1 else -(-down // -(-down // max(1, band)))  # of even size
        return cls(images, channels, rows, columns, copied, per, band)

    @functools.cached_property
    def bands(self) -> int:
        return -(-max(1, self.rows.count) // self.band)

    @functools.cached_property
    def count(self) -> int:
        return -(-self.images // self.per) * self.bands

    @functools.cached_property
    def pitch(self) -> int:
        """Pixels from one input row to the next."""
        return self.columns.extent(self.columns.count) if self.copied else self.columns.size

    @functools.cached_property
    def image(self) -> int:
        """Elements from one image to the next."""
        height = self.rows.extent(self.band) if self.copied else self.rows.size
        return height * self.pitch * self.channels

    @functools.cached_property
    def elements(self) -> int:
        """Elements of a slab, with what the last panel of a row reads beyond it; 0 in place."""
        return self.per * self.image + 2 * cpu.lanes(4) if self.copied else 0

    @property
    def facts(self) -> Any:
        """What kernels know of them."""
        rows, columns = self.rows, self.columns
        return kernels.slabs.Slabs(
            self.images,
            self.per,
            self.bands,
            rows.count,
            self.band,
            rows.stride,
            rows.first,
            rows.reach,
            columns.first,
            columns.extent(columns.count),
            self.elements,
        )

    def starts(self, rows: int, columns: int) -> np.ndarray:
        """Offsets (image, row, column) of the pixels' first inputs in a slab."""
        image = np.arange(self.per) * self.image
        row = np.arange(rows) * (self.rows.stride * self.pitch * self.channels)
        column = np.arange(columns) * (self.columns.stride * self.channels)
        return image[:, None, None] + row[:, None] + column

    def runs(self, rows: Phase, columns: Phase, depth: int) -> tuple[np.ndarray, int]:
        """Offsets of a pixel's runs of contiguous inputs, and the length of each."""
        row = np.array(rows.offsets, np.int64) - self.rows.first
        column = np.array(columns.offsets, np.int64) - self.columns.first
        length = depth
        if depth == self.channels and np.all(np.diff(column) == 1):
            length, column = depth * len(column), column[:1]
        return ((row[:, None] * self.pitch + column) * self.channels).ravel(), length


class Gather:
    """Plan of `kernels.direct.conv2d`: a convolution, or its input gradient.

    `source` is (N, H, W, C), `out_channels` the output's; `weight` is (M, C/G, R, S).
    """

    def __init__(
        self,
        source: tuple[int, int, int, int],
        rows: Axis,
        columns: Axis,
        weight: tuple[int, int, int, int],
        groups: int,
        itemsize: int,
        transposed: bool,
    ) -> None:
        m, depth, kh, kw = weight
        taps, per_group = kh * kw, m // groups
        channels = groups * depth if transposed else m
        k, n = (per_group, depth) if transposed else (depth, per_group)
        lanes = cpu.lanes(itemsize)
        width = gemm.gemm.panel_width(n, lanes)
        work = max(1, taps // (rows.step * columns.step)) * k * -(-n // lanes)
        least = max(SLAB_PIXELS, SLAB_WORK // work)
        pixels = source[0] * rows.count * columns.count
        least = min(least, max(SLAB_PIXELS, pixels // (2 * TASKS)))
        large = math.prod(source) * itemsize > STREAM_BYTES
        copied = large or not (rows.inside and columns.inside)
        self.slabs = slabs = _Slabs.cut((source, itemsize), rows, columns, least, copied)
        panels = -(-n // width)
        self.blocks = min(panels, -(-TASKS // max(1, slabs.count)))
        self.tasks = slabs.count * self.blocks if rows.count and columns.count else 0
        self.work = pixels * work * groups
        self.out_shape = (source[0], rows.out_size, columns.out_size, channels)
        stream = math.prod(self.out_shape) * itemsize > STREAM_BYTES and channels % lanes == 0
        stream = stream and n % lanes == 0 and rows.step * columns.step == 1
        write = gemm.tile.STREAM if stream else gemm.tile.FETCH

        tables: list[list[np.ndarray]] = [[], [], []]
        phases, table = [], np.full(taps, -1, np.int64)
        row_at = run_at = depth_at = 0
        pieces = [(p, q) for p in rows.phases for q in columns.phases]
        for p, q in pieces:
            height = min(p.count, slabs.band)
            target = np.arange(slabs.per)[:, None, None] * (rows.out_size * columns.out_size)
            target = target + (np.arange(height) * rows.step + p.start)[:, None] * columns.out_size
            target = target + np.arange(q.count) * columns.step + q.start
            offsets, length = slabs.runs(p, q, k)
            weights = np.arange(len(offsets)) * (length * width)
            tables[0].append(slabs.starts(height, q.count).ravel())
            tables[1].append(target.ravel() * channels)
            tables[2] += [offsets, weights]
            packed_at = depth_at * width
            phases.append((row_at, p.count, q.count, run_at, len(offsets), length, packed_at))
            for r, s in itertools.product(p.taps, q.taps):
                table[r * kw + s] = depth_at
                depth_at += k
            row_at += target.size
            run_at += 2 * len(offsets)
        self.phases = np.array(phases, np.int64)
        facts = kernels.direct.GatherFacts(
            kernels.slabs.Size(*source[1:]),
            kernels.slabs.Size(*self.out_shape[1:]),
            slabs.facts,
            groups,
            self.blocks,
            rows.step,
            write,
            self.tasks,
            self.phases,
            *(np.concatenate(found).astype(np.int64) for found in tables),
        )
        self.facts = plain(facts)
        self.packed_size = groups * panels * depth_at * width
        packing = kernels.direct.Packing
        if transposed:
            facts = packing(groups, per_group, depth * taps, depth, taps, table)
        else:  # the input's channels and the taps are one contiguous run
            cells = np.add.outer(np.arange(depth), table).ravel()
            facts = packing(groups, 1, 0, per_group, depth * taps, cells)
        self.packing = plain(facts)


class Columns:
    """Plan of `kernels.direct.conv2d_backward_input_columns`, for a weight (M, C/G, R, S)."""

    def __init__(self, shape: ConvShape) -> None:
        m, depth, kh, kw = shape.weight
        per_group = m // shape.groups
        self.k = kh * kw * depth
        lanes = cpu.lanes(shape.itemsize)
        self.work = shape.pixels * m * -(-self.k // lanes)
        # Rows of columns that stay in L2, in whole tiles.
        self.step = max(12, COLUMN_BYTES // (self.k * shape.itemsize)) // 12 * 12
        self.packed_size = shape.groups * gemm.gemm.packed_size(per_group, self.k, lanes)
        home, table = kernels.direct, np.zeros(1, np.int64)
        self.packing = plain(home.Packing(shape.groups, per_group, self.k, self.k, 1, table))
        facts = home.ColumnFacts(shape.kernel, shape.geometry, shape.groups, self.step)
        self.facts = plain(facts)


class WeightGather:
    """Plan of `kernels.direct_weight.conv2d_backward_weight`, for images (N, H, W, C)."""

    def __init__(
        self,
        source: tuple[int, int, int, int],
        rows: Axis,
        columns: Axis,
        weight: tuple[int, int, int, int],
        groups: int,
        itemsize: int,
    ) -> None:
        m, depth, kh, kw = weight
        lanes = cpu.lanes(itemsize)
        k, per_group = kh * kw * depth, m // groups
        pixels = source[0] * rows.count * columns.count
        p, q = rows.phases[0], columns.phases[0]
        self.work = pixels * k * -(-m // lanes)
        self.length = depth * kw if groups == 1 and columns.reach == kw else depth
        # Few channels: cells of the receptive field are rows, in whole tiles, and lanes run over
        # the output's channels, which must fill whole panels since dy is read in place.
        cells = -(-k // 4) * 4
        vectors = kh * kw * depth // self.length * -(-self.length // lanes)
        whole = groups == 1 and m % gemm.gemm.panel_width(m, lanes) == 0
        self.few = whole and cells * -(-m // lanes) < 0.9 * vectors * m

        block = max(WEIGHT_ROWS, WEIGHT_ROWS * 9 // (kh * kw))
        blocks = 1 if self.few else -(-per_group // block)
        most = max(1, PARTS_BYTES // (m * cells * itemsize))
        wanted = max(1, min(WEIGHT_TASKS // blocks, most))
        least = min(max(SLAB_PIXELS, SLAB_WORK * 16 // k), max(SLAB_PIXELS, pixels // wanted))
        inside = rows.inside and columns.inside
        if not self.few:  # the last panel of the input's last run is read to its full width
            inside = inside and self.length % gemm.gemm.panel_width(self.length, lanes) == 0
            inside = inside and columns.stride * source[3] * itemsize < PIXEL_BYTES
        self.slabs = slabs = _Slabs.cut((source, itemsize), rows, columns, least, not inside)
        self.chunks = max(1, min(wanted, slabs.count))
        if self.few:
            offsets = np.add.outer(slabs.runs(p, q, 0)[0], np.arange(depth)).ravel()
            offsets = np.append(offsets, np.full(cells - k, offsets[-1]))
            self.tasks, block, self.parts = self.chunks, cells, self.chunks * cells * m
        else:
            offsets, _ = slabs.runs(p, q, depth)
            block = -(-per_group // (blocks * cpu.tile_rows())) * cpu.tile_rows()
            self.tasks, self.parts = self.chunks * -(-per_group // block), self.chunks * m * k
        self.zeros = max(self.length, m)
        outputs = np.arange(slabs.per)[:, None] * rows.out_size + np.arange(slabs.band)
        outputs = outputs.ravel() * columns.out_size * m
        tables = (offsets, slabs.starts(slabs.band, 1).ravel(), outputs)
        facts = kernels.direct_weight.WeightFacts(
            kernels.slabs.Size(*source[1:]),
            kernels.slabs.Size(rows.out_size, columns.out_size, m),
            slabs.facts,
            groups,
            columns.stride,
            kh * kw,
            len(offsets),
            k // self.length,
            self.length,
            slabs.count,
            self.chunks,
            block,
            self.tasks,
            self.few,
            np.concatenate(tables).astype(np.int64),
        )
        self.facts = plain(facts)
