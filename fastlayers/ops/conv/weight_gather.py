"""Plan of the weight gradient of direct convolutions."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.kernels import gemm
from fastlayers.ops.conv.slabs import SLAB_PIXELS, SLAB_WORK, Axis, Cut
from fastlayers.ops.cuts import chunks
from fastlayers.runtime import cpu
from fastlayers.runtime.facts import plain

__all__ = ["WeightGather"]

# Rows of dW in a task: three of the tallest tiles for 3x3 kernels, and more for smaller ones, whose
# inputs each task reads or copies: 1x1, 64 -> 128 channels, takes 1.17 times as long in two blocks.
WEIGHT_ROWS = 36
# Tasks of the weight gradient: 64 where each chunk has as many pixels as this, and for 1x1 kernels
# half as many more, else 16. Chunks have sums of their own: 1x1, 64 -> 128 channels, takes 1.05
# times as long with 392 pixels as with 784, with 196 1.12 times.
MOST_TASKS, FEW_TASKS = 64, 16
CHUNK_PIXELS = 256
# Pixels this far apart in the weight gradient's operand share few sets of L1 and L2, of which a
# copy needs fewer lines: 1x1, 256 -> 64 channels, 13.0 to 9.5 ms.
PIXEL_BYTES = 1024
# Partial sums of the weight gradient.
PARTS_BYTES = 64 * 1024 * 1024


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
        self.work = pixels * k * -(-m // lanes)
        self.length = depth * kw if groups == 1 and columns.reach == kw else depth
        # Few channels: cells of the receptive field are rows, in whole tiles, and lanes run over
        # the output's channels, which must fill whole panels since dy is read in place.
        cells = -(-k // 4) * 4
        vectors = kh * kw * depth // self.length * -(-self.length // lanes)
        whole = groups == 1 and m % gemm.gemm.panel_width(m, lanes) == 0
        self.few = whole and cells * -(-m // lanes) < 0.9 * vectors * m

        inside = rows.inside and columns.inside
        if not self.few:  # the last panel of the input's last run is read to its full width
            inside = inside and self.length % gemm.gemm.panel_width(self.length, lanes) == 0
            inside = inside and columns.stride * source[3] * itemsize < PIXEL_BYTES
        block = max(WEIGHT_ROWS, WEIGHT_ROWS * 9 // (kh * kw))
        tasks = chunks(self.work, most=MOST_TASKS)
        blocks = 1 if self.few else min(tasks, -(-per_group // block))
        enough = CHUNK_PIXELS if kh * kw > 1 else 3 * CHUNK_PIXELS // 2
        wanted = max(min(FEW_TASKS // blocks, tasks), chunks(pixels, enough, tasks // blocks))
        most = max(1, PARTS_BYTES // (m * cells * itemsize))
        wanted = max(1, min(wanted, most))
        least = min(max(SLAB_PIXELS, SLAB_WORK * 16 // k), max(SLAB_PIXELS, pixels // wanted))
        self.slabs = slabs = Cut.cut((source, itemsize), rows, columns, least, not inside)
        each = max(1, round(slabs.count / wanted), -(-slabs.count // most))  # slabs of a chunk
        self.chunks = max(1, -(-slabs.count // each))
        offsets, _ = slabs.runs(rows.phases[0], columns.phases[0], 0 if self.few else depth)
        if self.few:
            offsets = np.add.outer(offsets, np.arange(depth)).ravel()
            offsets = np.append(offsets, np.full(cells - k, offsets[-1]))
            self.tasks, block, self.parts = self.chunks, cells, self.chunks * cells * m
        else:
            block = -(-per_group // (blocks * cpu.tile_rows())) * cpu.tile_rows()
            self.tasks, self.parts = self.chunks * -(-per_group // block), self.chunks * m * k
        self.zeros = max(self.length, m)
        self.facts = self._facts(source, (rows, columns), weight, groups, (block, offsets))

    def _facts(
        self,
        source: tuple[int, int, int, int],
        axes: tuple[Axis, Axis],
        weight: tuple[int, int, int, int],
        groups: int,
        blocks: tuple[int, np.ndarray],
    ) -> Any:
        (rows, columns), (block_rows, offsets) = axes, blocks
        m, depth, kh, kw = weight
        slabs, taps = self.slabs, kh * kw
        outputs = np.arange(slabs.per)[:, None] * rows.out_size + np.arange(slabs.band)
        outputs = outputs.ravel() * columns.out_size * m
        tables = (offsets, slabs.starts(slabs.band, 1).ravel(), outputs)
        facts = kernels.direct_weight.WeightFacts(
            kernels.slabs.ImageSize(*source[1:]),
            kernels.slabs.ImageSize(rows.out_size, columns.out_size, m),
            slabs.facts,
            groups,
            columns.stride,
            taps,
            len(offsets),
            taps * depth // self.length,
            self.length,
            slabs.count,
            self.chunks,
            block_rows,
            self.tasks,
            self.few,
            np.concatenate(tables).astype(np.int64),
        )
        return plain(facts)
