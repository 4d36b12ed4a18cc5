"""Maximum pooling of images."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any, Literal, overload

import numpy as np

from fastlayers.kernels import pool as kernels
from fastlayers.ops import check
from fastlayers.ops.layout import from_channels_last, to_channels_last
from fastlayers.ops.pool.window import (
    SPAN,
    IntPair,
    Window,
    gradient,
    images,
    input_shape_of,
    planned,
    restored,
)
from fastlayers.ops.pool.window import window as checked_window
from fastlayers.runtime import backend, memory, threads

__all__ = [
    "max_pool2d",
    "max_pool2d_backward",
    "max_pool2d_forward",
    "max_pool2d_indices",
    "max_pool2d_shape",
]

# Nothing is below it, neither of the maxima nor of the outputs whose gradients pass.
NO_FLOOR = math.nan
# Sides of square windows whose loop over the cells is unrolled.
UNROLLED = (2, 3)
# Tells a kernel that rows of a window are two cells long.
PAIR = (0, 0)


@dataclass(frozen=True, slots=True)
class _Forward:
    """What `kernels.max_pool.max_pool2d` needs to know of shapes and options."""

    out_shape: tuple[int, int, int, int]
    cell_type: type
    square: tuple[int, ...]
    sizes: np.ndarray
    table: np.ndarray
    work: int


def _cut(
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
    found = [min(max(k, inside[0]), inside[-1]) for k in cells]
    return True, [at[k] * distance for k in found] + [k * number for k in found]


@functools.lru_cache(maxsize=256, typed=True)
def _forward_plan(
    op: str, shape: tuple[int, int, int, int], ceil_mode: bool, *options: Any
) -> _Forward:
    n, height, width, depth = check.shape(op, shape)
    window = checked_window(op, *options)
    oh, ow = window.out_size(op, (height, width), ceil_mode)
    (kh, kw), (sh, _) = window.kernel, window.stride
    check.possible(op, "the output", (n, depth, oh, ow), 4)
    table, moved = list[int](), set[tuple[int, ...]]()
    for i in range(oh):
        some, entries = _cut(window, 0, i, height, width * depth, kw)
        table += [int(some), *entries]
        shift = i * sh * width * depth
        moved.add((some, *(distance - shift for distance in entries[:kh]), *entries[kh:]))
    runs: list[list[int]] = []
    for j in range(ow):
        some, entries = _cut(window, 1, j, width, depth, 1)
        shift = j * window.stride[1] * depth
        entries = [int(some), *(d - shift for d in entries[:kw]), *entries[kw:]]
        if not runs or runs[-1][1:] != entries:
            runs.append([j, *entries])
        runs[-1][0] = j + 1
    span = max(1, SPAN // (sh * width * depth))
    alike = len(moved) == len(runs) == 1 and min(table[0], runs[0][1]) == 1
    geometry = (*window.kernel, *window.stride, *window.padding, *window.dilation)
    return _Forward(
        (n, oh, ow, depth),
        # The largest number stands for none of the cells.
        np.uint8 if window.cells < 256 else np.uint32,
        (0,) * kh if kh == kw and kh in UNROLLED else (),
        np.array([*geometry, span, len(runs), alike], np.int64),
        np.array(table + [value for run in runs for value in run], np.int64),
        n * oh * ow * depth * window.cells,
    )


def _floor(op: str, activation: str | None) -> float:
    return 0.0 if check.is_relu(op, activation) else NO_FLOOR


def max_pool2d_shape(
    input_shape: tuple[int, int, int, int],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
) -> tuple[int, int, int, int]:
    """Shape (N, C, OH, OW) of `max_pool2d` of an input of shape (N, C, H, W); checks the options.

    Raises
    ------
    TypeError, ValueError
        As `max_pool2d`.
    """
    if not isinstance(input_shape, (tuple, list)) or len(input_shape) != 4:
        given = check.describe(input_shape)
        raise ValueError(f"max_pool2d_shape: input_shape must be (N, C, H, W), got {given}")
    n, c, h, w = input_shape
    options = (kernel_size, stride, padding, dilation)
    n, h, w, c = planned(_forward_plan, "max_pool2d", (n, h, w, c), ceil_mode, *options).out_shape
    return n, c, h, w


def max_pool2d_forward(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    *,
    activation: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`max_pool2d` that also returns what its gradient needs, and takes a ReLU along.

    Parameters
    ----------
    input, kernel_size, stride, padding, dilation, ceil_mode
        As in `max_pool2d`.
    activation : {None, "relu"}
        "relu": the output is at least 0, which is the pooled ReLU of the input, as it is the ReLU
        of the pooled input.

    Returns
    -------
    y : ndarray
        The maxima.
    offsets : ndarray
        Of the shape of y and the smallest unsigned type that serves: the cell ``r * KW + s`` of
        each window that holds the maximum. Where a ReLU made the output 0 it is the type's largest
        number, which is no cell, so that the gradient is that of both.
    """
    op = "max_pool2d"
    x = images(op, input)
    options = (kernel_size, stride, padding, dilation)
    plan = planned(_forward_plan, op, x.shape, ceil_mode, *options)
    floor = _floor(op, activation)
    if backend.NUMPY:
        arguments = (from_channels_last(x), *options, ceil_mode, activation)
        y, cells = backend.reference(op + "_forward", *arguments)
        return (y, cells) if input.ndim == 4 else (y[0], cells[0])
    y = memory.empty(plan.out_shape, x.dtype)
    cells = memory.empty(plan.out_shape, plan.cell_type)
    workers = threads.workers_for(plan.work)
    kernels.max_pool.max_pool2d(x, plan.square, plan.sizes, plan.table, floor, workers, y, cells)
    return restored(y, input.ndim), restored(cells, input.ndim)


@overload
def max_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = ...,
    padding: IntPair = ...,
    dilation: IntPair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[False] = ...,
) -> np.ndarray: ...


@overload
def max_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = ...,
    padding: IntPair = ...,
    dilation: IntPair = ...,
    ceil_mode: bool = ...,
    return_indices: Literal[True] = ...,
) -> tuple[np.ndarray, np.ndarray]: ...


def max_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    return_indices: bool = False,
) -> np.ndarray | tuple[np.ndarray, np.ndarray]:
    """Maximum of each window: ``y[i, j] = max over r, s of input[i * stride + r * dilation, ...]``.

    Padding counts as minus infinity, NaN wins over numbers and infinity, and ties go to the first
    cell, also those of several NaNs, where PyTorch takes the last.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    kernel_size : int or (int, int)
    stride : int or (int, int), optional
        `kernel_size` by default.
    padding : int or (int, int)
        At most half of `kernel_size`.
    dilation : int or (int, int)
    ceil_mode : bool
        Round the output's size up, so that windows may reach over the edge.
    return_indices : bool
        Also return the position ``h * W + w`` of each maximum, int64.

    Returns
    -------
    ndarray or (ndarray, ndarray)
        (N, C, OH, OW) or (C, OH, OW), ``OH = (H + 2 * padding - dilation * (KH - 1) - 1) // stride
        + 1``.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or option, or a window larger than the padded input.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.max_pool2d.html
    """
    options = (kernel_size, stride, padding, dilation, ceil_mode)
    y, offsets = max_pool2d_forward(input, *options)
    if not return_indices:
        return y
    return y, max_pool2d_indices(offsets, input.shape, kernel_size, stride, padding, dilation)


def max_pool2d_indices(
    offsets: np.ndarray,
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
) -> np.ndarray:
    """PyTorch's indices ``h * W + w`` (int64) of the maxima from `max_pool2d_forward`'s offsets."""
    op = "max_pool2d_indices"
    window = checked_window(op, kernel_size, stride, padding, dilation)
    offsets = check.offsets(op, offsets, getattr(offsets, "shape", ()))
    (sh, sw), (ph, pw), (dh, dw) = window.stride, window.padding, window.dilation
    r, s = np.divmod(offsets.astype(np.int64), window.kernel[1])
    width = input_shape_of(op, input_shape)[2]
    rows = np.arange(offsets.shape[-2])[:, None] * sh - ph + r * dh
    columns = np.arange(offsets.shape[-1]) * sw - pw + s * dw
    return np.asarray(rows * width + columns)


@dataclass(frozen=True, slots=True)
class _Backward:
    """What the kernels of the gradient need to know of shapes and options."""

    shape: tuple[int, int, int, int]
    out_shape: tuple[int, ...]
    window: tuple[int, int] | None  # of windows that lie side by side
    span: int
    table: np.ndarray | None  # None for 3 x 3 in steps of 2 with a padding of 1
    work: int


def _axis_entries(
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


def _listed(start: int, entries: list[list[int]]) -> list[int]:
    """Where each position's entries start in a table, and after them where the last one's end."""
    return list(itertools.accumulate(map(len, entries), initial=start))


@functools.lru_cache(maxsize=256, typed=True)
def _backward_plan(
    op: str, given: tuple[int, ...], out_shape: tuple[int, ...], *options: Any
) -> _Backward:
    shape = input_shape_of(op, given)
    n, height, width, depth = shape
    window = checked_window(op, *options)
    sizes = [window.windows((height, width), False), window.out_size(op, (height, width), True)]
    sizes = [size for size in sizes if min(size) > 0]  # of images smaller than a window the latter
    expected = (*given[:-2], *sizes[0])
    if out_shape[:-2] != expected[:-2] or out_shape[-2:] not in sizes:
        raise ValueError(
            f"{op}: grad_output must have shape {expected} for input_shape {given}, got {out_shape}"
        )
    oh, ow = out_shape[-2:]
    check.possible(op, "the gradient", given, 4)
    (kh, kw), work = window.kernel, n * oh * ow * depth * window.cells
    tiled = window.kernel == window.stride and max(window.padding) == 0
    if tiled and max(window.dilation) == 1 and oh * kh <= height and ow * kw <= width:
        table = [value for cell in range(window.cells) for value in (0, cell)]
        span = max(1, SPAN // (kh * width * depth))
        return _Backward(shape, out_shape, (kh, kw), span, np.array(table, np.int64), work)
    paired = (3, 3), (2, 2), (1, 1), (1, 1)
    if window.geometry == paired and (oh, ow) == ((height + 1) // 2, (width + 1) // 2):
        span = max(1, SPAN // (2 * width * depth))
        return _Backward(shape, out_shape, None, span, None, work)
    rows = _axis_entries(window, 0, height, oh, ow * depth, kw)
    columns = _axis_entries(window, 1, width, ow, depth, 1)
    starts = _listed(height + width + 2, rows)
    starts += _listed(starts[-1], columns)
    table = [*starts, *itertools.chain(*rows, *columns)]
    span = max(1, SPAN // (width * depth))
    return _Backward(shape, out_shape, None, span, np.array(table, np.int64), work)


def max_pool2d_backward(
    grad_output: np.ndarray,
    offsets: np.ndarray,
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    output: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `max_pool2d` by its input: each output's goes to the cell of its maximum.

    Parameters
    ----------
    grad_output, offsets : ndarray
        Of the shape of `max_pool2d_forward`'s results.
    input_shape : tuple of int
        Shape of the input.
    kernel_size, stride, padding, dilation
        As they were given to `max_pool2d_forward`.
    output : ndarray, optional
        The output, if a ReLU came before the pooling whose gradient shall be taken along: only
        where the output is above 0 does a gradient pass. Offsets of `max_pool2d_forward` with an
        activation say so themselves.

    Returns
    -------
    ndarray
        Of shape `input_shape`.
    """
    op = "max_pool2d_backward"
    given = input_shape if type(input_shape) is tuple else check.shape(op, input_shape)
    ndim = len(given)
    dy = gradient(op, grad_output, ndim)
    offsets = check.offsets(op, offsets, grad_output.shape)
    options = (kernel_size, stride, padding, dilation)
    plan = planned(_backward_plan, op, given, offsets.shape, *options)
    cells = to_channels_last(offsets if ndim == 4 else offsets[None])
    y, floor = None, NO_FLOOR
    if output is not None:
        y = check.array(op, "output", output, (ndim,))
        check.same_shape(op, "output", y, grad_output.shape)
        check.same_dtype(op, "output", y, dy.dtype)
        y, floor = to_channels_last(y if ndim == 4 else y[None]).reshape(-1), 0.0
    if backend.NUMPY:
        dy = dy if y is None else backend.reference("relu_backward", dy, y.reshape(dy.shape))
        places = (from_channels_last(dy), from_channels_last(cells))
        n, h, w, c = plan.shape
        dx = backend.reference(op, *places, (n, c, h, w), *options)
        return np.asarray(dx if ndim == 4 else dx[0])
    dx = memory.empty(plan.shape, dy.dtype)
    workers = threads.workers_for(plan.work)
    if plan.table is None:
        kernels.max_pool.max_pool2d_pairs(dy, cells, y, plan.span, floor, workers, dx)
        return restored(dx, ndim)
    arguments = (plan.span, plan.table, floor, workers, dx)
    if plan.window is not None:
        known = PAIR if plan.window[1] == 2 else ()
        kernels.max_pool.max_pool2d_backward(known, dy, cells, y, plan.window, *arguments)
    else:
        kernels.max_pool.max_pool2d_gather(dy, cells, y, *arguments)
    return restored(dx, ndim)
