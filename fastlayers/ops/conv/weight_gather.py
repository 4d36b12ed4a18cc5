"""Plan of the weight gradient of direct convolutions."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.kernels import gemm
from fastlayers.ops.conv.slabs import LEAST_PIXELS, Axis, Cut, Shape
from fastlayers.ops.cuts import chunks
from fastlayers.runtime import cpu
from fastlayers.runtime.facts import plain

__all__ = ["WeightGather"]

# Tasks of the weight gradient, fewer where their chunks would have fewer pixels than this. Chunks
# have sums of their own: 16x256x14x14, 3x3 at stride 2, takes 1.15 times as long with 98 pixels.
MOST_TASKS, FEW_TASKS = 64, 16
CHUNK_PIXELS = 256
# Pixels of a slab of few channels.
FEW_PIXELS = 512
LINE = 64  # bytes of a cache line
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
        lanes, taps = cpu.lanes(itemsize), kh * kw
        k, per_group = taps * depth, m // groups
        pixels = source[0] * rows.count * columns.count
        self.work = pixels * k * -(-m // lanes)
        # Few channels: cells of the receptive field are rows, in whole tiles, and lanes run over
        # the output's channels.
        cells = -(-k // 4) * 4
        vectors = taps * -(-depth // lanes)
        self.few = groups == 1 and cells * -(-m // lanes) < 0.9 * vectors * m
        blocks, wanted = 1, chunks(self.work, most=MOST_TASKS)
        if not self.few:
            packed = max(1, rows.stride * columns.stride * pixels) / (m * taps)
            blocks, wanted = _tasks(wanted, pixels, packed, -(-per_group // cpu.tile_rows()))
        wanted = max(1, min(wanted, pixels // LEAST_PIXELS, PARTS_BYTES // (m * cells * itemsize)))
        self.slabs = slabs = self._cut((source, itemsize), rows, columns, pixels // wanted)
        each = max(1, round(slabs.count / wanted))  # slabs of a chunk
        self.chunks = max(1, -(-slabs.count // each))
        if self.few:
            self.tasks, block, self.parts = self.chunks, cells, self.chunks * cells * m
        else:
            block = -(-per_group // (blocks * cpu.tile_rows())) * cpu.tile_rows()
            self.tasks, self.parts = self.chunks * -(-per_group // block), self.chunks * m * k
        self.zeros = max(depth, m)
        self.facts = self._facts(source, (rows, columns), weight, groups, (block, itemsize))

    def _cut(self, shape: Shape, rows: Axis, columns: Axis, most: int) -> Cut:
        """Slabs of about `most` pixels, of which a panel of the input has its size in the cache."""
        (*images, channels), itemsize = shape
        if self.few:
            least = min(FEW_PIXELS, max(LEAST_PIXELS, most))
            return Cut.cut(shape, rows, columns, least, not (rows.inside and columns.inside))
        width = gemm.gemm.panel_width(channels, cpu.lanes(itemsize))
        panel = (*images, width), itemsize
        return Cut.cut(panel, rows, columns, max(LEAST_PIXELS, most), True, cpu.panel_bytes())

    def _facts(
        self,
        source: tuple[int, int, int, int],
        axes: tuple[Axis, Axis],
        weight: tuple[int, int, int, int],
        groups: int,
        sizes: tuple[int, int],
    ) -> Any:
        (rows, columns), (block_rows, itemsize) = axes, sizes
        m, depth, kh, kw = weight
        slabs, lanes = self.slabs, cpu.lanes(itemsize)
        pixels = slabs.per * slabs.band * columns.out_size
        if self.few:
            width = gemm.gemm.panel_width(m, lanes)
            layout = _few_channels(slabs, depth, block_rows)
        else:
            width = cpu.tile_rows()
            layout = _panels(slabs, gemm.gemm.panel_width(depth, lanes), depth, itemsize)
        dy_panel = _odd_lines(pixels * width + lanes, itemsize)  # the last pixel is whole vectors
        line = np.arange(block_rows)
        lines = line // width * dy_panel + line % width
        panels = -(-(m if self.few else block_rows) // width)
        self.elements = layout.elements + dy_panel * panels + 2 * lanes
        outputs = np.arange(slabs.per * slabs.band) * (columns.out_size * width)
        tables = (layout.offsets, layout.starts, outputs, lines)
        rows_at, outputs_at, lines_at, _ = np.cumsum([len(table) for table in tables]).tolist()
        facts = kernels.direct_weight.WeightFacts(
            kernels.slabs.ImageSize(*source[1:]),
            kernels.slabs.ImageSize(rows.out_size, columns.out_size, m),
            slabs.facts,
            layout.region,
            groups,
            kh * kw,
            slabs.count,
            self.chunks,
            block_rows,
            self.tasks,
            self.few,
            layout.joined,
            layout.step,
            layout.columns,
            layout.panel,
            dy_panel,
            self.elements,
            layout.elements,
            rows_at,
            outputs_at,
            lines_at,
            np.concatenate(tables).astype(np.int64),
        )
        return plain(facts)


def _tasks(tasks: int, pixels: int, packed: float, most_blocks: int) -> tuple[int, int]:
    """Blocks of rows and chunks of slabs, that give about so many tasks.

    Each block packs the pixels of its chunk once more, in the time of ``packed`` additions for each
    element of the weight, and each chunk has sums that are added, one for each: ``blocks * packed +
    chunks`` is least where both are the same. Within 3 % of the best of a sweep, for 13 layers.
    """
    while True:
        blocks = max(1, min(round((tasks / packed) ** 0.5), most_blocks))
        wanted = -(-tasks // blocks)
        if tasks <= FEW_TASKS or pixels >= wanted * CHUNK_PIXELS:
            return blocks, wanted
        tasks //= 2


def _odd_lines(elements: int, itemsize: int) -> int:
    """At least so many elements, an odd number of cache lines: panels then share no set of L1."""
    return (-(-elements * itemsize // LINE) | 1) * LINE // itemsize


class _Layout(NamedTuple):
    """Where a slab's inputs lie for the GEMM."""

    region: Any
    offsets: np.ndarray  # of the taps, or the cells of a receptive field
    starts: np.ndarray  # of each output row's inputs
    joined: bool
    step: int
    columns: int
    panel: int
    elements: int


def _few_channels(slabs: Cut, depth: int, cells: int) -> _Layout:
    """Rows are the cells of a receptive field in the slab."""
    rows, columns = slabs.rows, slabs.columns
    offsets, _ = slabs.runs(rows.phases[0], columns.phases[0], 0)
    offsets = np.add.outer(offsets, np.arange(depth)).ravel()
    offsets = np.append(offsets, np.full(cells - len(offsets), offsets[-1]))
    starts = slabs.starts(slabs.band, 1).ravel()
    region = kernels.panels.Region(1, 1, 1, 1, 1, 1)
    return _Layout(region, offsets, starts, False, columns.stride * depth, 0, 0, slabs.elements)


def _panels(slabs: Cut, width: int, depth: int, itemsize: int) -> _Layout:
    """Rows are output channels; panels of the input are packed, for all taps."""
    rows, columns = slabs.rows, slabs.columns
    kept_rows, kept_columns = (min(axis.reach, axis.stride) for axis in (rows, columns))
    down = np.arange(rows.reach)
    down = down // rows.stride * kept_rows + down % rows.stride
    reach, row = int(down[-1]) + 1, columns.count - 1 + -(-columns.reach // columns.stride)
    image, line = (slabs.band - 1) * kept_rows + reach, kept_columns * row
    region = kernels.panels.Region(rows.stride, columns.stride, kept_rows, kept_columns, reach, row)
    place = _places(columns)
    across = place % columns.stride * row + place // columns.stride
    taps = np.add.outer(down[_places(rows)] * line, across).ravel() * width
    starts = np.add.outer(np.arange(slabs.per) * image, np.arange(slabs.band) * kept_rows)
    starts = starts.ravel() * (line * width)
    joined = (line, kept_rows, image) == (columns.out_size, 1, slabs.band)
    panel = _odd_lines(slabs.per * image * line * width, itemsize)
    # As many as an L2 has at once: 1x1, 256 -> 64 channels, 12.2 to 10.9 ms, against a quarter.
    panels = max(1, min(-(-depth // width), cpu.l2_bytes() // (panel * itemsize)))
    return _Layout(region, taps, starts, joined, width, panels * width, panel, panels * panel)


def _places(axis: Axis) -> np.ndarray:
    """Input positions of the taps, from the first one's."""
    return np.array(axis.phases[0].offsets, np.int64) - axis.first
