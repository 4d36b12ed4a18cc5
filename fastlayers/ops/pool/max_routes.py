"""Algorithms of maximum pooling: one ordered table for each pass.

The first algorithm of `FORWARD` and of `BACKWARD` that serves a shape computes the pass. A new one
is a class, and a row of a table.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.kernels import pool as kernels
from fastlayers.ops.pool.algorithm import PAIR, Algorithm, Route, algorithm, reasons
from fastlayers.ops.pool.reference import MaxBackward, MaxForward
from fastlayers.ops.pool.window import TASK_ELEMENTS, Sizes, Window
from fastlayers.runtime import memory, threads
from fastlayers.runtime.facts import plain

__all__ = ["BACKWARD", "FORWARD", "MaxShape"]

# Sides of square windows whose loop over the cells is unrolled.
UNROLLED = (2, 3)


@dataclass(frozen=True)
class MaxShape:
    """Checked shapes, channels-last, and options of a maximum pooling."""

    images: Sizes
    out_shape: Sizes
    window: Window

    @property
    def cell_type(self) -> type:
        """Smallest type of the cells' numbers, whose largest number stands for no cell."""
        return np.uint8 if self.window.cells < 256 else np.uint32

    @functools.cached_property
    def work(self) -> int:
        """Cells that are compared."""
        n, oh, ow, depth = self.out_shape
        return n * oh * ow * depth * self.window.cells

    @functools.cached_property
    def forward(self) -> Windows | MaxForward:
        """How the maxima are computed."""
        found: Windows | MaxForward = algorithm(FORWARD, self)
        return found

    @functools.cached_property
    def backward(self) -> _Backward | MaxBackward:
        """How the input gradient is computed."""
        found: _Backward | MaxBackward = algorithm(BACKWARD, self)
        return found

    def task_rows(self, input_rows: int) -> int:
        """Rows of a task, of which each is for so many rows of the input."""
        _, _, width, depth = self.images
        return max(1, TASK_ELEMENTS // (input_rows * width * depth))

    def reasons(self) -> list[tuple[str, str, str]]:
        """Each pass, what computes it, and why."""
        return reasons(self, FORWARD, BACKWARD)

    def describe(self) -> str:
        """The windows, in words."""
        return self.window.describe()


class Windows(Algorithm):
    """Maxima over windows of any size, in a loop over their cells."""

    name = "a loop over the cells"
    _unrolled: tuple[int, ...] = ()

    def __init__(self, shape: MaxShape) -> None:
        super().__init__(shape)
        window, (runs, self.table, rows_alike) = shape.window, _window_table(shape)
        geometry = itertools.chain(*window.geometry)
        rows = shape.task_rows(window.stride[0])
        plan = kernels.max_pool.WindowPlan(*geometry, rows, runs, rows_alike)
        self._plan, self._work = np.array(plan, np.int64), shape.work
        self._out_shape, self._cell_type = shape.out_shape, shape.cell_type
        self._kernel = kernels.max_pool.max_pool2d

    def run(self, x: np.ndarray, floor: float) -> tuple[np.ndarray, np.ndarray]:
        """The maxima, at least the floor, and the cells that hold them."""
        y = memory.empty(self._out_shape, x.dtype)
        cells = memory.empty(self._out_shape, self._cell_type)
        workers = threads.workers_for(self._work)
        self._kernel(x, self._unrolled, self._plan, self.table, floor, workers, y, cells)
        return y, cells


class UnrolledWindows(Windows):
    """Maxima over small square windows, whose cells are compared in registers without a loop."""

    name = "unrolled cells"

    def __init__(self, shape: MaxShape) -> None:
        self._unrolled = (0,) * shape.window.kernel[0]
        super().__init__(shape)

    @classmethod
    def serves(cls, shape: MaxShape) -> bool:
        """Square windows of 2x2 and 3x3."""
        height, width = shape.window.kernel
        return height == width and height in UNROLLED


FORWARD = (
    Route(MaxForward, "there is no Numba"),
    Route(UnrolledWindows, "2x2 and 3x3 windows: their maxima stay in registers"),
    Route(Windows, "any windows, however many cells they have"),
)


def _clipped_cells(
    window: Window, axis: int, i: int, size: int, distance: int, number: int
) -> tuple[bool, list[int]]:
    """Whether any cells of window i are in the image, and their distances and then numbers.

    Those outside are replaced by the nearest inside: the maximum and its number stay the same.
    """
    first = i * window.stride[axis] - window.padding[axis]
    cells = range(window.kernel[axis])
    at = [first + k * window.dilation[axis] for k in cells]
    inside = [k for k in cells if 0 <= at[k] < size]
    if not inside:
        return False, [0] * (2 * len(at))
    nearest = [min(max(k, inside[0]), inside[-1]) for k in cells]
    return True, [at[k] * distance for k in nearest] + [k * number for k in nearest]


def _window_table(shape: MaxShape) -> tuple[int, np.ndarray, bool]:
    """Number of runs of columns, the table of `max_pool2d`'s kernel, and whether rows lie alike."""
    _, height, width, depth = shape.images
    _, oh, ow, _ = shape.out_shape
    window, (kh, kw) = shape.window, shape.window.kernel
    table, shifted_rows = list[int](), set[tuple[int, ...]]()
    for i in range(oh):
        some, entries = _clipped_cells(window, 0, i, height, width * depth, kw)
        table += [int(some), *entries]
        shift = i * window.stride[0] * width * depth
        shifted_rows.add((some, *(distance - shift for distance in entries[:kh]), *entries[kh:]))
    runs: list[list[int]] = []
    for j in range(ow):
        some, entries = _clipped_cells(window, 1, j, width, depth, 1)
        shift = j * window.stride[1] * depth
        entries = [int(some), *(distance - shift for distance in entries[:kw]), *entries[kw:]]
        if not runs or runs[-1][1:] != entries:
            runs.append([j, *entries])
        runs[-1][0] = j + 1
    rows_alike = len(shifted_rows) == len(runs) == 1 and min(table[0], runs[0][1]) == 1
    table += itertools.chain(*runs)
    return len(runs), np.array(table, np.int64), rows_alike


class _Backward(Algorithm):
    """A way to the input gradient."""

    _kernel: Any
    _facts: tuple[Any, ...]  # what it takes of the shape

    def __init__(self, shape: MaxShape) -> None:
        super().__init__(shape)
        self._images, self._work = shape.images, shape.work

    def run(
        self, dy: np.ndarray, cells: np.ndarray, y: np.ndarray | None, floor: float
    ) -> np.ndarray:
        """The input gradient; where the flat output y is not above the floor dy counts as 0."""
        dx = memory.empty(self._images, dy.dtype)
        workers = threads.workers_for(self._work)
        self._kernel(dy, cells, y, *self._facts, floor, workers, dx)
        return dx


class Tiles(_Backward):
    """Windows that lie side by side: each input pixel belongs to one, and is written once."""

    name = "tiles"

    def __init__(self, shape: MaxShape) -> None:
        super().__init__(shape)
        self._kernel = kernels.max_pool.max_pool2d_tiles
        (height, width), unrolled = shape.window.kernel, PAIR if shape.window.kernel[1] == 2 else ()
        table = [value for cell in range(shape.window.cells) for value in (0, cell)]
        facts = (height, width, unrolled, shape.task_rows(height), np.array(table, np.int64))
        self._facts = (plain(kernels.max_pool.TileFacts(*facts)),)

    @classmethod
    def serves(cls, shape: MaxShape) -> bool:
        """Windows at a stride of their size within the image, without padding and dilation."""
        window = shape.window
        return (
            (window.kernel, window.padding, window.dilation) == (window.stride, (0, 0), (1, 1))
            and shape.out_shape[1] * window.kernel[0] <= shape.images[1]
            and shape.out_shape[2] * window.kernel[1] <= shape.images[2]
        )


class Pairs(_Backward):
    """Windows of 3x3 at a stride of 2: pixels by two rows and columns, of up to four windows."""

    name = "pairs of rows"

    def __init__(self, shape: MaxShape) -> None:
        super().__init__(shape)
        self._kernel = kernels.max_pool.max_pool2d_pairs
        self._facts = (shape.task_rows(2),)

    @classmethod
    def serves(cls, shape: MaxShape) -> bool:
        """Windows of 3x3 at a stride of 2 with a padding of 1, as many as begin in the image."""
        _, height, width, _ = shape.images
        halves = (height + 1) // 2, (width + 1) // 2
        paired = Window((3, 3), (2, 2), (1, 1), (1, 1))
        return shape.window == paired and shape.out_shape[1:3] == halves


class Gather(_Backward):
    """Any windows: each input pixel adds what the windows give that see it."""

    name = "gather"

    def __init__(self, shape: MaxShape) -> None:
        super().__init__(shape)
        self._kernel = kernels.max_pool.max_pool2d_gather
        _, height, width, depth = shape.images
        _, oh, ow, _ = shape.out_shape
        rows = _seen_from(shape.window, 0, height, oh, ow * depth, shape.window.kernel[1])
        columns = _seen_from(shape.window, 1, width, ow, depth, 1)
        starts = _starts(height + width + 2, rows)
        starts += _starts(starts[-1], columns)
        table = [*starts, *itertools.chain(*rows, *columns)]
        self._facts = (shape.task_rows(1), np.array(table, np.int64))


BACKWARD = (
    Route(MaxBackward, "there is no Numba"),
    Route(Tiles, "windows side by side: each writes its own pixels, once"),
    Route(Pairs, "3x3 windows at stride 2: each writes two rows and columns of pixels"),
    Route(Gather, "any windows: each pixel adds what the windows that hold it give"),
)


def _seen_from(
    window: Window, axis: int, size: int, out_size: int, distance: int, number: int
) -> list[list[int]]:
    """For each position, pairs of the distance of an output that sees it and the cell's number."""
    found: list[list[int]] = [[] for _ in range(size)]
    for i in range(out_size):
        for cell in range(window.kernel[axis]):
            at = i * window.stride[axis] - window.padding[axis] + cell * window.dilation[axis]
            if 0 <= at < size:
                found[at] += [i * distance, cell * number]
    return found


def _starts(first: int, entries: list[list[int]]) -> list[int]:
    """Where each position's entries start in a table, and after them where the last one's end."""
    return list(itertools.accumulate(map(len, entries), initial=first))
