"""Convolution of few channels a group: facts, workspace and chunks for `kernels.depthwise`."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable

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

# Row, offset in a row of the ring or in x, and elements of the kernel and its channels.
_Step = tuple[int, int, list[tuple[int, int]]]

# Tasks to cut a pass into at most, where images are fewer, and partial sums of the weight gradient:
# with 64, 128 images of 128 x 16 x 16 take 1.1 times as long.
MOST_TASKS, MOST_CHUNKS = 64, 32
FEW_TAPS = 9  # of a kernel that reads x in place
LINE, PAGE = 64, 4096  # bytes of a cache line, and of a way of L1


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
        # Taps that read nothing, as the image is small, are not written where x is read in place.
        dw, db = memory.zeros(shape.weight, dtype), memory.empty(shape.out_channels, dtype)
        workers = threads.workers_for(plan.work)
        work, parts = memory.scratch((workers * plan.rings, math.prod(plan.parts)), dtype)
        flat = to_channels_last(x).reshape(-1)
        kernels.depthwise.correlate_weight(
            flat,
            dy.reshape(-1),
            plan.facts,
            workers,
            work if plan.rings else flat,
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
    call, flat = (x.dtype.type(floor), workers), x.reshape(-1)
    rows = work if plan.rings else flat
    kernels.depthwise.correlate(
        flat, weight.reshape(-1), bias, plan.facts, call, packed, rows, y.reshape(-1)
    )
    return y


class _Plan:
    """Facts of the forward pass and weight gradient, or of the input gradient if `transposed`."""

    def __init__(self, shape: ConvShape, transposed: bool) -> None:
        n, itemsize = shape.images[0], shape.itemsize
        (depth, each), make = _group(shape), backward_axis if transposed else forward_axis
        rows, columns = (
            make(shape.images[1 + i], out, kernel, stride, padding, dilation)
            for i, (kernel, stride, padding, dilation, out) in enumerate(
                zip(*shape.geometry, strict=True)
            )
        )
        if transposed:
            depth, each = each, depth
        groups = _groups(shape.groups, depth, each, cpu.lanes(itemsize))
        read, written = depth * shape.groups, each * shape.groups
        oh, ow = rows.out_size, columns.out_size
        sizes = kernels.depthwise.Sizes(
            *(n, rows.size, columns.size, oh, ow),
            *(rows.stride, columns.stride, rows.step, columns.step, read, written),
        )
        # Multiply-adds, by 8 lanes, or elements that are moved.
        products = n * oh * ow * written * shape.weight[1] * math.prod(shape.kernel)
        self.work = max(products / 8, n * (rows.size * columns.size * read + oh * ow * written))
        tasks = chunks(self.work, most=MOST_TASKS)
        chunk = max(1, -(-n * oh // min(tasks, MOST_CHUNKS)))  # rows of a partial sum
        piece = -(-rows.count // -(-tasks // max(1, n)))
        ring = _ring(rows, columns, groups, itemsize)
        block = _block(groups, ring.elements * itemsize)
        phases, *tables, elements = _tables(shape, rows, columns, groups, ring)
        facts = kernels.depthwise.Facts(
            () if depth == each == 1 else (0,),
            sizes,
            groups,
            ring,
            int(transposed),
            math.prod(shape.kernel),
            block,
            max(1, piece),
            chunk,
            phases,
            *tables,
            _order(groups, itemsize),
            elements,
        )
        self.facts = plain(facts)
        self.out_shape = (n, oh, ow, written)
        lanes, taps = cpu.lanes(itemsize), len(elements)
        self.packed = groups.vectors * taps * lanes
        self.parts = (max(1, -(-n * oh // chunk)), groups.vectors * (taps + 1) * lanes)
        self.rings = block * ring.elements


def _groups(groups: int, depth: int, each: int, lanes: int) -> kernels.depthwise.Groups:
    """How many groups of `depth` channels that are read, and `each` written, fill a vector."""
    per_vector = min(lanes // depth, lanes // each, groups)
    return kernels.depthwise.Groups(groups, per_vector, -(-groups // per_vector), depth, each)


def _block(groups: kernels.depthwise.Groups, ring: int) -> int:
    """Vectors of channels whose rings, of so many bytes, are used together.

    All, if they fit in a quarter of L2, where memory decides: images are then read in order, and
    what comes next can be prefetched. 32 images of 32 x 112 x 112 take 7.5 ms so, and 10.9 by two
    vectors at a time. Several channels a group leave memory the time; 16 images of 128 x 28 x 28 in
    groups of 4 take 2.9 ms, and 2.4 with all rings in half of L1.
    """
    vectors: int = groups.vectors
    if groups.depth == 1 and vectors * ring <= cpu.l2_bytes() // 4:
        return vectors
    line = max(1, LINE // cpu.vector_bytes())
    fit = max(1, cpu.l1_bytes() // 2 // max(1, ring * line)) * line
    even = -(-vectors // -(-vectors // fit))
    return min(vectors, -(-even // line) * line)


def _in_place(rows: Axis, columns: Axis, groups: kernels.depthwise.Groups, itemsize: int) -> bool:
    """Whether taps read x itself, with what is missing at the edges left out.

    Where pixels are skipped and taps are few, each pixel is read about twice, so that packing is
    half of the work: 32 images of 128 x 16 x 16 take 0.44 ms at a stride of 2, and 0.28 in place;
    with 5 x 5 taps 0.58 and 0.68. At a stride of 1 in place takes 1.1 times as long. The pixels'
    lines must fit in twice L1, of which a page and each multiple of it share the sets: 16 images of
    512 x 14 x 14 take 0.74 and 0.90.
    """
    if groups.depth * groups.each > 1 or groups.per_vector < cpu.lanes(itemsize):
        return False
    taps = len(rows.phases[0].taps) * len(columns.phases[0].taps)
    apart = max(LINE, math.gcd(groups.groups * itemsize, PAGE))
    near = rows.reach * columns.size * apart <= 2 * cpu.l1_bytes()
    return columns.stride > 1 and taps <= FEW_TAPS and near


def _ring(
    rows: Axis, columns: Axis, groups: kernels.depthwise.Groups, itemsize: int
) -> kernels.depthwise.Ring:
    """The packed rows that an output row reads, and the copies that fill one of them."""
    if _in_place(rows, columns, groups, itemsize):
        pixel, none = columns.stride * groups.groups, np.empty((0, 4), np.int64)
        return kernels.depthwise.Ring(rows.first, rows.reach, 0, 0, pixel, 0, none)
    lanes, read = cpu.lanes(itemsize), groups.depth * groups.groups
    extent, left, step = columns.extent(columns.count), -columns.first, columns.stride
    plane = -(-extent // step) * lanes
    end = min(columns.size + left, extent)
    copies = []
    for d in range(groups.depth):
        for i in range(step):
            pixel = -(-max(0, left - i) // step)  # the first that exists
            column = pixel * step + i
            count = max(0, -(-(end - column) // step))
            target = (d * step + i) * plane + pixel * lanes
            copies.append((d * cpu.vector_bytes() // 4, (column - left) * read, count, target))
    row, table = groups.depth * step * plane, np.array(copies, np.int64)
    return kernels.depthwise.Ring(
        rows.first, rows.reach, row, rows.reach * row, lanes, len(copies), table
    )


def _tables(
    shape: ConvShape,
    rows: Axis,
    columns: Axis,
    groups: kernels.depthwise.Groups,
    ring: kernels.depthwise.Ring,
) -> list[np.ndarray]:
    """Phases, rows and offsets of runs of taps and of single taps, and their elements."""
    place = _places(columns, groups, ring, shape.itemsize)
    phases: list[tuple[int, ...]] = []
    runs: list[_Step] = []
    singles: list[_Step] = []
    for down, across in itertools.product(rows.phases, columns.phases):
        for start, count, inside in _classes(across, columns, ring):
            first = len(runs), len(singles)
            for (r, row), taps in itertools.product(
                zip(down.taps, down.offsets, strict=True),
                _runs(inside, across.offsets, columns.stride),
            ):
                kind = singles if len(taps) == 1 else runs
                for d in range(groups.depth):
                    found = [(r * shape.kernel[1] + across.taps[k], d) for k in taps]
                    kind.append((row, place(row, across.offsets[taps[0]], d), found))
            spans = first[0], len(runs), first[1], len(singles)
            begin = across.start + start * columns.step
            phases.append((down.start, begin, down.count, count, *spans))
    tables = [np.array(phases, np.int64).reshape(-1, 8)]
    for steps in (runs, singles):
        places = [
            (start + row - ring.top) % ring.rows * ring.row + offset
            for start in range(ring.rows if ring.copies else 1)
            for row, offset, _ in steps
        ]
        tables += [np.array([row for row, *_ in steps], np.int64), np.array(places, np.int64)]
    pairs = [pair for *_, found in (*runs, *singles) for pair in found]
    first_of: dict[tuple[int, int], int] = {}
    elements = [(*pair, first_of.setdefault(pair, k)) for k, pair in enumerate(pairs)]
    return [*tables, np.array(elements, np.int64).reshape(-1, 3)]


def _places(
    columns: Axis,
    groups: kernels.depthwise.Groups,
    ring: kernels.depthwise.Ring,
    itemsize: int,
) -> Callable[[int, int, int], int]:
    """Where row, column and channel of a group lie: in a packed row, or from a row of x on."""
    if not ring.copies:
        return lambda row, column, _: (row * columns.size + column) * groups.groups
    lanes, step = cpu.lanes(itemsize), columns.stride
    channel: int = ring.row // groups.depth

    def packed(_: int, column: int, depth: int) -> int:
        pixel, plane = divmod(column - columns.first, step)
        return depth * channel + plane * (channel // step) + pixel * lanes

    return packed


def _classes(
    across: Phase, columns: Axis, ring: kernels.depthwise.Ring
) -> list[tuple[int, int, list[int]]]:
    """Columns of a phase: the first, how many, and the taps that read something there.

    That is all taps, if a ring has zeros on both sides. The largest class comes first.
    """
    every = list(range(len(across.taps)))
    if ring.copies:
        return [(0, across.count, every)]
    inside = [
        [k for k in every if 0 <= column * columns.stride + across.offsets[k] < columns.size]
        for column in range(across.count)
    ]
    classes, start = [], 0
    for taps, same in itertools.groupby(inside):
        count = len(list(same))
        classes.append((start, count, taps))
        start += count
    return sorted(classes, key=lambda one: -one[1])


def _runs(taps: list[int], offsets: tuple[int, ...], stride: int) -> list[list[int]]:
    """Taps of a row in as many runs of neighbours as there are, and singles."""
    run = kernels.grouped_tile.RUN
    steps: list[list[int]] = []
    k = 0
    while k < len(taps):
        near = taps[k : k + run]
        row = stride == 1 and len(near) == run and offsets[near[-1]] - offsets[near[0]] == run - 1
        steps.append(near if row else near[:1])
        k += len(steps[-1])
    return steps


def _order(groups: kernels.depthwise.Groups, itemsize: int) -> np.ndarray:
    """Of each channel of a group: 32-bit words of the input that a vector's lanes read."""
    words, lane = itemsize // 4, np.arange(cpu.lanes(itemsize))
    exists = lane < groups.per_vector * groups.each
    reads = np.where(exists, lane // groups.each * groups.depth, 0)
    order = (reads + np.arange(groups.depth)[:, None])[..., None] * words + np.arange(words)
    return np.ascontiguousarray(order.reshape(-1), np.int32)
