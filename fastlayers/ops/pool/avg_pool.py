"""Average pooling of images, over windows of a given size or to an output of a given size."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.kernels import pool as kernels
from fastlayers.ops import check
from fastlayers.ops.layout import from_channels_last
from fastlayers.ops.pool.window import (
    SPAN,
    IntPair,
    gradient,
    images,
    input_shape_of,
    planned,
    restored,
    tabled,
    window,
)
from fastlayers.runtime import backend, memory, threads

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
]

# Windows whose loop over the cells is unrolled: as many numbers as a side has.
PAIR = (2, 2)
Bounds = list[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Plan:
    """What the kernels need to know of shapes and options."""

    shape: tuple[int, int, int, int]
    out_shape: tuple[int, int, int, int]
    rows: np.ndarray
    columns: np.ndarray
    counts: np.ndarray
    span: int
    table: np.ndarray
    work: int
    divisor: float | None  # of all windows
    window: tuple[int, int] | None  # of windows that lie side by side and have one divisor
    whole: int  # elements to sum at a time where a window is the whole image, else 0


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


def _tiled(bounds: Bounds, extent: int) -> bool:
    """Whether windows of that extent lie side by side from the first position on."""
    return bounds == [(i * extent, (i + 1) * extent) for i in range(len(bounds))]


def _gradient_table(shape: tuple[int, int, int, int], rows: Bounds, columns: Bounds) -> np.ndarray:
    """The table of `kernels.avg_pool.window_mean_backward`."""
    _, height, width, depth = shape
    runs = _runs(rows, height, len(columns) * depth), _runs(columns, width, depth)
    heads, entries = [len(runs[0]), len(runs[1])], list[int]()
    start = 2 + 4 * sum(heads)
    for first, length, windows in (*runs[0], *runs[1]):
        begin = start + len(entries)
        entries += [value for distance in windows for value in (distance, 0)]
        heads += [first, length, begin, start + len(entries)]
    return np.array(heads + entries, np.int64)


def _plan(
    shape: tuple[int, int, int, int], rows: Bounds, columns: Bounds, counts: Any, dtype: str
) -> _Plan:
    n, height, width, depth = shape
    out_shape = (n, len(rows), len(columns), depth)
    line = max(1, height // len(rows)) * width * depth  # of inputs for a row of outputs
    divisors = np.unique(counts)
    divisor = float(divisors[0]) if divisors.size == 1 else None
    (kh, kw), window = (rows[0][1], columns[0][1]), None
    if divisor is not None and _tiled(rows, kh) and _tiled(columns, kw):
        window = kh, kw
    whole = window == (height, width)
    return _Plan(
        shape,
        out_shape,
        np.array(rows, np.int64),
        np.array(columns, np.int64),
        np.array(counts, dtype),
        max(1, SPAN // line),
        _gradient_table(shape, rows, columns),
        n * depth * max(height * width, len(rows) * len(columns)),
        divisor,
        window,
        math.lcm(depth, kernels.loops.COLUMNS) if whole and not backend.NUMPY else 0,
    )


def _possible(op: str, shape: tuple[int, int, int, int], out_size: tuple[int, int]) -> None:
    """Refuse an output for which neither tables nor memory are large enough."""
    n, height, width, depth = shape
    tabled(op, "output_size", out_size, height + width + out_size[0] + out_size[1])
    check.possible(op, "the output", (n, depth, *out_size), 4)


def _mean(op: str, x: np.ndarray, plan: _Plan, ndim: int, *options: Any) -> np.ndarray:
    if backend.NUMPY:
        y = np.asarray(backend.reference(op, from_channels_last(x), *options), x.dtype)
        return y if ndim == 4 else y[0]
    y = memory.empty(plan.out_shape, x.dtype)
    workers = threads.workers_for(plan.work)
    if plan.whole:
        sums = memory.empty(workers * plan.whole, x.dtype)
        kernels.avg_pool.image_mean(x, plan.divisor, plan.whole, workers, sums, y)
        return restored(y, ndim)
    if plan.window == PAIR:
        square, span = PAIR, plan.span
        kernels.avg_pool.tile_mean(x, square, plan.divisor, span, workers, y)
        return restored(y, ndim)
    kernels.avg_pool.window_mean(x, plan.rows, plan.columns, plan.counts, plan.span, workers, y)
    return restored(y, ndim)


def _mean_backward(op: str, dy: np.ndarray, plan: _Plan, ndim: int, *options: Any) -> np.ndarray:
    if dy.shape != plan.out_shape:
        n, h, w, c = plan.out_shape
        raise ValueError(
            f"{op}: grad_output must have shape {(n, c, h, w)[4 - ndim :]}, "
            f"got {restored(dy, ndim).shape}"
        )
    if backend.NUMPY:
        n, h, w, c = plan.shape
        arguments = (from_channels_last(dy), (n, c, h, w), *options)
        dx = np.asarray(backend.reference(op, *arguments), dy.dtype)
        return dx if ndim == 4 else dx[0]
    dx = memory.empty(plan.shape, dy.dtype)
    workers = threads.workers_for(plan.work)
    if plan.window is not None and not plan.whole:
        known, divisor = PAIR if plan.window[1] == 2 else (), plan.divisor
        kernels.avg_pool.tiled_mean_backward(
            known, dy, plan.window, divisor, plan.span, workers, dx
        )
        return restored(dx, ndim)
    share = memory.empty(dy.size, dy.dtype)
    kernels.avg_pool.window_mean_backward(dy, plan.counts, plan.table, workers, share, dx)
    return restored(dx, ndim)


@functools.lru_cache(maxsize=256, typed=True)
def _avg_plan(
    op: str,
    shape: tuple[int, int, int, int],
    dtype: str,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: Any,
) -> _Plan:
    """Windows cut off at the image's edge, and the count that each is divided by."""
    if divisor is not None and (
        isinstance(divisor, bool) or not isinstance(divisor, (int, np.integer)) or divisor == 0
    ):
        raise ValueError(f"{op}: divisor_override must be an integer other than 0, got {divisor!r}")
    options = window(op, kernel_size, stride, padding, 1)
    size = shape[1:3]
    out_size = options.out_size(op, size, ceil_mode)
    _possible(op, shape, out_size)
    bounds, counts = [], []
    for axis in range(2):
        pad, extent = options.padding[axis], options.kernel[axis]
        starts = [i * options.stride[axis] - pad for i in range(out_size[axis])]
        stops = [min(start + extent, size[axis] + pad) for start in starts]
        whole = list(zip(starts, stops, strict=True))
        cut = [(max(start, 0), min(stop, size[axis])) for start, stop in whole]
        bounds.append(cut)
        counts.append([stop - start for start, stop in (whole if count_include_pad else cut)])
    area = np.multiply.outer(*counts) if divisor is None else np.full(out_size, divisor)
    return _plan(shape, bounds[0], bounds[1], area, dtype)


def avg_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Mean of each window: ``y[i, j] = sum over r, s of input[...] / cells``.

    NaN or infinity reaches the means of the windows that hold it, and no others.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    kernel_size, stride, padding : int or (int, int)
        As in `max_pool2d`; padding counts as 0.
    ceil_mode : bool
        Round the output's size up.
    count_include_pad : bool
        Count the padding's cells in the divisor.
    divisor_override : int, optional
        Divide by this instead of the number of cells.

    Returns
    -------
    ndarray
        (N, C, OH, OW) or (C, OH, OW).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or option, or a window larger than the padded input.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.avg_pool2d.html
    """
    op = "avg_pool2d"
    x = images(op, input)
    options = (kernel_size, stride, padding, bool(ceil_mode), bool(count_include_pad))
    plan = planned(_avg_plan, op, x.shape, x.dtype.char, *options, divisor_override)
    return _mean(op, x, plan, input.ndim, *options, divisor_override)


def avg_pool2d_backward(
    grad_output: np.ndarray,
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Gradient of `avg_pool2d` by its input, of shape `input_shape`.

    Every cell of a window gets the output's gradient divided by the window's divisor; the other
    arguments are those of `avg_pool2d`.
    """
    op = "avg_pool2d_backward"
    shape, ndim = input_shape_of(op, input_shape), len(input_shape)
    dy = gradient(op, grad_output, ndim)
    options = (kernel_size, stride, padding, bool(ceil_mode), bool(count_include_pad))
    plan = planned(_avg_plan, op, shape, dy.dtype.char, *options, divisor_override)
    return _mean_backward(op, dy, plan, ndim, *options, divisor_override)


@functools.lru_cache(maxsize=256, typed=True)
def _adaptive_plan(
    op: str, shape: tuple[int, int, int, int], dtype: str, output_size: Any
) -> _Plan:
    """Windows that give an output size: those of row i go from floor(i * H / OH) on."""
    given = shape[1:3]
    if output_size is None:
        output_size = given
    elif isinstance(output_size, Sequence) and len(output_size) == 2:
        pairs = zip(output_size, given, strict=True)
        output_size = tuple(size if wanted is None else wanted for wanted, size in pairs)
    wanted = check.pair(op, "output_size", output_size, 1)
    _possible(op, shape, wanted)
    bounds = [
        [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
        for size, out in zip(given, wanted, strict=True)
    ]
    counts = np.multiply.outer(*([stop - start for start, stop in axis] for axis in bounds))
    return _plan(shape, bounds[0], bounds[1], counts, dtype)


def adaptive_avg_pool2d(
    input: np.ndarray, output_size: int | Sequence[int | None] | None
) -> np.ndarray:
    """Means over windows that are chosen so that the output has a given size.

    Row i averages the input's rows ``floor(i * H / OH)`` to ``ceil((i + 1) * H / OH) - 1``. NaN or
    infinity reaches the means of the windows that hold it, and no others.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    output_size : int or (int or None, int or None)
        Height and width; None keeps the input's.

    Returns
    -------
    ndarray
        (N, C, OH, OW) or (C, OH, OW).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html
    """
    op = "adaptive_avg_pool2d"
    x = images(op, input)
    plan = planned(_adaptive_plan, op, x.shape, x.dtype.char, output_size)
    return _mean(op, x, plan, input.ndim, output_size)


def adaptive_avg_pool2d_backward(
    grad_output: np.ndarray, input_shape: tuple[int, ...]
) -> np.ndarray:
    """Gradient of `adaptive_avg_pool2d` by its input, of shape `input_shape`."""
    op = "adaptive_avg_pool2d_backward"
    shape, ndim = input_shape_of(op, input_shape), len(input_shape)
    dy = gradient(op, grad_output, ndim)
    plan = planned(_adaptive_plan, op, shape, dy.dtype.char, dy.shape[1:3])
    return _mean_backward(op, dy, plan, ndim)
