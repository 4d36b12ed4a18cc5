"""Plans of direct convolutions and their input gradients: the cut, and tables of offsets."""

from __future__ import annotations

import itertools
import math

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.kernels import gemm
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.conv.slabs import LEAST_PIXELS, SLAB_PIXELS, SLAB_WORK, Axis, Cut
from fastlayers.ops.cuts import chunks
from fastlayers.runtime import cpu
from fastlayers.runtime.facts import plain

__all__ = ["Columns", "Gather"]

Pair = tuple[int, int]

# Larger images come from memory and go there. With AVX-512, where a vector is a line, an output is
# written by non-temporal stores, which saves reading what it replaces, and an input is copied, as a
# tile's 12 rows are more streams than hardware prefetches: 1x1, 256 -> 64 channels, 9.6 to 8.9 ms.
# With AVX2 both lose: 9.1 to 10.9 ms for 64 -> 256, 10.4 to 11.5 for 256 -> 64.
STREAM_BYTES = 16 * 1024 * 1024
LINE = 64  # bytes of a cache line


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
        self.work = pixels * work * groups
        wanted = chunks(self.work)  # slabs, or blocks of output channels where slabs are few
        least = min(least, max(LEAST_PIXELS, pixels // wanted))
        lines = cpu.vector_bytes() == LINE
        large = lines and math.prod(source) * itemsize > STREAM_BYTES
        copied = large or not (rows.inside and columns.inside)
        self.slabs = slabs = Cut.cut((source, itemsize), rows, columns, least, copied)
        panels = -(-n // width)
        self.blocks = max(1, min(panels, -(-wanted // max(1, slabs.count))))
        self.slab_count = slabs.count if rows.count and columns.count else 0
        self.out_shape = (source[0], rows.out_size, columns.out_size, channels)
        stream = lines and math.prod(self.out_shape) * itemsize > STREAM_BYTES
        stream = (
            stream and channels % lanes == 0 and n % lanes == 0 and rows.step * columns.step == 1
        )
        write = gemm.operands.STREAM if stream else gemm.operands.FETCH

        depths, places = _tap_places(rows, columns, (kh, kw), k)
        self.phases, tables = _phase_tables(slabs, rows, columns, (k, width, channels))
        facts = kernels.direct.GatherFacts(
            kernels.slabs.ImageSize(*source[1:]),
            kernels.slabs.ImageSize(*self.out_shape[1:]),
            slabs.facts,
            groups,
            self.blocks,
            rows.step,
            write,
            self.slab_count,
            self.phases,
            *tables,
        )
        self.facts = plain(facts)
        self.packed_size = groups * panels * depths * width
        packing = kernels.direct.Packing
        if transposed:
            facts = packing(groups, per_group, depth * taps, depth, taps, places)
        else:  # the input's channels and the taps are one contiguous run
            cells = np.add.outer(np.arange(depth), places).ravel()
            facts = packing(groups, 1, 0, per_group, depth * taps, cells)
        self.packing = plain(facts)


def _tap_places(rows: Axis, columns: Axis, kernel: Pair, k: int) -> tuple[int, np.ndarray]:
    """Depth of the packed weight, and where each tap begins in it; -1 for taps of no phase."""
    depth, places = 0, np.full(kernel[0] * kernel[1], -1, np.int64)
    for p, q in itertools.product(rows.phases, columns.phases):
        for r, s in itertools.product(p.taps, q.taps):
            places[r * kernel[1] + s] = depth
            depth += k
    return depth, places


def _phase_tables(
    slabs: Cut, rows: Axis, columns: Axis, sizes: tuple[int, int, int]
) -> tuple[np.ndarray, list[np.ndarray]]:
    """A row for each `kernels.direct.Phase`, and the tables of rows, targets and runs.

    ``sizes = (depth of a tap, width of a panel, output channels)``.
    """
    k, width, channels = sizes
    starts, targets, runs, phases = [], [], [], []
    row_at = run_at = packed_at = 0
    for p, q in itertools.product(rows.phases, columns.phases):
        height = min(p.count, slabs.band)
        target = np.arange(slabs.per)[:, None, None] * (rows.out_size * columns.out_size)
        target = target + (np.arange(height) * rows.step + p.start)[:, None] * columns.out_size
        target = target + np.arange(q.count) * columns.step + q.start
        offsets, length = slabs.runs(p, q, k)
        starts.append(slabs.starts(height, q.count).ravel())
        targets.append(target.ravel() * channels)
        runs += [offsets, np.arange(len(offsets)) * (length * width)]
        phases.append((row_at, p.count, q.count, run_at, len(offsets), length, packed_at))
        packed_at += len(p.taps) * len(q.taps) * k * width
        row_at += target.size
        run_at += 2 * len(offsets)
    tables = [np.concatenate(parts).astype(np.int64) for parts in (starts, targets, runs)]
    return np.array(phases, np.int64), tables


class Columns:
    """Plan of `kernels.direct.conv2d_backward_input_columns`, for a weight (M, C/G, R, S)."""

    def __init__(self, shape: ConvShape) -> None:
        m, depth, kh, kw = shape.weight
        per_group = m // shape.groups
        self.k = kh * kw * depth
        lanes = cpu.lanes(shape.itemsize)
        self.work = shape.pixels * m * -(-self.k // lanes)
        # Rows of columns that stay in L2, in whole tiles.
        self.step = max(12, cpu.l2_bytes() // 4 // (self.k * shape.itemsize)) // 12 * 12
        self.packed_size = shape.groups * gemm.gemm.packed_size(per_group, self.k, lanes)
        home, table = kernels.direct, np.zeros(1, np.int64)
        self.packing = plain(home.Packing(shape.groups, per_group, self.k, self.k, 1, table))
        facts = home.ColumnFacts(shape.kernel, shape.geometry, shape.groups, self.step)
        self.facts = plain(facts)
