"""Algorithms of average pooling: one ordered table for each pass.

The first algorithm of `FORWARD` and of `BACKWARD` that serves a shape computes the pass. A new one
is a class, and a row of a table.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.kernels import pool as kernels
from fastlayers.ops.pool.algorithm import PAIR, Algorithm, Route, algorithm, reasons
from fastlayers.ops.pool.reference import MeanBackward, MeanForward
from fastlayers.ops.pool.window import TASK_ELEMENTS, Sizes
from fastlayers.runtime import memory, threads

__all__ = ["BACKWARD", "FORWARD", "Bounds", "MeanShape"]

# Where windows begin and end along an axis, within the image.
Bounds = list[tuple[int, int]]


@dataclass(frozen=True, eq=False)
class MeanShape:
    """Checked images (N, H, W, C), windows and divisors (OH, OW) of an average pooling."""

    images: Sizes
    rows: Bounds
    columns: Bounds
    divisors: np.ndarray
    dtype: str
    # Those of `avg_pool2d` after its input; None if an output size gave the windows.
    options: tuple[Any, ...] | None = None

    @functools.cached_property
    def out_shape(self) -> Sizes:
        """Shape (N, OH, OW, C) of the means."""
        return self.images[0], len(self.rows), len(self.columns), self.images[3]

    @functools.cached_property
    def divisor(self) -> float | None:
        """The divisor of all windows, if they have the same."""
        divisors = np.unique(self.divisors)
        return float(divisors[0]) if divisors.size == 1 else None

    @functools.cached_property
    def tile(self) -> tuple[int, int] | None:
        """Size of windows that lie side by side from the first pixel on and have one divisor."""
        height, width = self.rows[0][1], self.columns[0][1]
        tiled = _tiled(self.rows, height) and _tiled(self.columns, width)
        return (height, width) if tiled and self.divisor is not None else None

    @property
    def is_whole(self) -> bool:
        """Whether the window is the image."""
        return self.tile == self.images[1:3]

    @functools.cached_property
    def work(self) -> int:
        """Elements that are added or written."""
        n, height, width, depth = self.images
        return n * depth * max(height * width, len(self.rows) * len(self.columns))

    @functools.cached_property
    def task_rows(self) -> int:
        """Output rows of a task."""
        _, height, width, depth = self.images
        return max(1, TASK_ELEMENTS // (max(1, height // len(self.rows)) * width * depth))

    @functools.cached_property
    def forward(self) -> _Forward | MeanForward:
        """How the means are computed."""
        found: _Forward | MeanForward = algorithm(FORWARD, self)
        return found

    @functools.cached_property
    def backward(self) -> _Backward | MeanBackward:
        """How the input gradient is computed."""
        found: _Backward | MeanBackward = algorithm(BACKWARD, self)
        return found

    def reasons(self) -> list[tuple[str, str, str]]:
        """Each pass, what computes it, and why."""
        return reasons(self, FORWARD, BACKWARD)

    def describe(self) -> str:
        """The windows, in words."""
        if self.is_whole:
            return "windows of whole images"
        if self.tile is not None:
            return f"{self.tile[0]}x{self.tile[1]} windows side by side"
        return f"{len(self.rows)}x{len(self.columns)} windows of an image"

    def rounded_divisors(self) -> np.ndarray:
        """The divisors in the images' type."""
        return np.array(self.divisors, self.dtype)


def _tiled(bounds: Bounds, extent: int) -> bool:
    """Whether windows of that extent lie side by side from the first position on."""
    return bounds == [(i * extent, (i + 1) * extent) for i in range(len(bounds))]


class _Forward(Algorithm):
    """A way to the means."""

    def __init__(self, shape: MeanShape) -> None:
        super().__init__(shape)
        self._out_shape, self._work = shape.out_shape, shape.work
        self._divisor, self._task_rows = shape.divisor, shape.task_rows

    @abstractmethod
    def run(self, x: np.ndarray) -> np.ndarray:
        """The means of images."""


class WholeImage(_Forward):
    """One window that is the image: long runs of elements, added in whole vectors."""

    name = "sums of rows of vectors"

    def __init__(self, shape: MeanShape) -> None:
        super().__init__(shape)
        self._kernel = kernels.avg_pool.image_mean
        self._width = math.lcm(shape.images[3], kernels.loops.COLUMNS)

    @classmethod
    def serves(cls, shape: MeanShape) -> bool:
        """Windows of whole images."""
        return shape.is_whole

    def run(self, x: np.ndarray) -> np.ndarray:
        """The means of images."""
        y, workers = memory.empty(self._out_shape, x.dtype), threads.workers_for(self._work)
        sums = memory.empty(workers * self._width, x.dtype)
        self._kernel(x, self._divisor, self._width, workers, sums, y)
        return y


class Tiles(_Forward):
    """Windows of 2x2 side by side, with the loop over their cells unrolled."""

    name = "unrolled cells"

    def __init__(self, shape: MeanShape) -> None:
        super().__init__(shape)
        self._kernel = kernels.avg_pool.tile_mean

    @classmethod
    def serves(cls, shape: MeanShape) -> bool:
        """Windows of 2x2 side by side."""
        return shape.tile == (2, 2)

    def run(self, x: np.ndarray) -> np.ndarray:
        """The means of images."""
        y, workers = memory.empty(self._out_shape, x.dtype), threads.workers_for(self._work)
        self._kernel(x, PAIR, self._divisor, self._task_rows, workers, y)
        return y


class Windows(_Forward):
    """Any windows, in a loop over their cells."""

    name = "a loop over the cells"

    def __init__(self, shape: MeanShape) -> None:
        super().__init__(shape)
        self._kernel = kernels.avg_pool.window_mean
        rows, columns = (np.array(axis, np.int64) for axis in (shape.rows, shape.columns))
        self._windows = rows, columns, shape.rounded_divisors()

    def run(self, x: np.ndarray) -> np.ndarray:
        """The means of images."""
        y, workers = memory.empty(self._out_shape, x.dtype), threads.workers_for(self._work)
        self._kernel(x, *self._windows, self._task_rows, workers, y)
        return y


FORWARD = (
    Route(MeanForward, "there is no Numba"),
    Route(WholeImage, "windows of whole images: long sums, in whole vectors"),
    Route(Tiles, "2x2 windows side by side: their sums stay in registers"),
    Route(Windows, "any windows, however many cells they have"),
)


class _Backward(Algorithm):
    """A way to the input gradient."""

    def __init__(self, shape: MeanShape) -> None:
        super().__init__(shape)
        self._images, self._work = shape.images, shape.work

    @abstractmethod
    def run(self, dy: np.ndarray) -> np.ndarray:
        """The input gradient of that of the means."""


class SpreadTiles(_Backward):
    """Windows that lie side by side: each input pixel belongs to one, and is written once."""

    name = "tiles"

    def __init__(self, shape: MeanShape) -> None:
        super().__init__(shape)
        self._kernel = kernels.avg_pool.tiled_mean_backward
        tile: Any = shape.tile
        self._unrolled = PAIR if tile[1] == 2 else ()
        self._tiles = tile, shape.divisor, shape.task_rows

    @classmethod
    def serves(cls, shape: MeanShape) -> bool:
        """Windows of one divisor side by side, but not of whole images."""
        return shape.tile is not None and not shape.is_whole

    def run(self, dy: np.ndarray) -> np.ndarray:
        """The input gradient of that of the means."""
        dx, workers = memory.empty(self._images, dy.dtype), threads.workers_for(self._work)
        self._kernel(self._unrolled, dy, *self._tiles, workers, dx)
        return dx


class Gather(_Backward):
    """Any windows: the gradient is computed once for pixels through which the same windows go."""

    name = "gather"

    def __init__(self, shape: MeanShape) -> None:
        super().__init__(shape)
        self._kernel = kernels.avg_pool.window_mean_backward
        _, _, width, depth = shape.images
        rows = (max(1, TASK_ELEMENTS // (n * depth)) for n in (shape.out_shape[2], width))
        self._windows = shape.rounded_divisors(), _run_table(shape), tuple(rows)

    def run(self, dy: np.ndarray) -> np.ndarray:
        """The input gradient of that of the means."""
        dx, quotients = memory.empty(self._images, dy.dtype), memory.empty(dy.size, dy.dtype)
        workers = threads.workers_for(dy.size), threads.workers_for(self._work)
        self._kernel(dy, *self._windows, workers, quotients, dx)
        return dx


BACKWARD = (
    Route(MeanBackward, "there is no Numba"),
    Route(SpreadTiles, "windows side by side: each writes its own pixels, once"),
    Route(Gather, "any windows: pixels in the same windows share a sum"),
)


def _runs(bounds: Bounds, size: int, distance: int) -> list[tuple[int, int, list[int]]]:
    """First, length and windows of each run of positions through which the same windows go."""
    found: list[tuple[int, int, list[int]]] = []
    for at in range(size):
        windows = [i * distance for i, (start, stop) in enumerate(bounds) if start <= at < stop]
        if found and found[-1][2] == windows:
            found[-1] = (found[-1][0], found[-1][1] + 1, windows)
        else:
            found.append((at, 1, windows))
    return found


def _run_table(shape: MeanShape) -> np.ndarray:
    """The table of `kernels.pool.avg_pool.window_mean_backward`."""
    _, height, width, depth = shape.images
    rows = _runs(shape.rows, height, len(shape.columns) * depth)
    columns = _runs(shape.columns, width, depth)
    heads, entries = [len(rows), len(columns)], list[int]()
    start = 2 + 4 * sum(heads)
    for first, length, windows in (*rows, *columns):
        begin = start + len(entries)
        entries += [value for distance in windows for value in (distance, 0)]
        heads += [first, length, begin, start + len(entries)]
    return np.array(heads + entries, np.int64)
