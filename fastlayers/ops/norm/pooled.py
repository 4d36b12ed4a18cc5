"""Batch normalisation, ReLU and max pooling in one."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.kernels import norm as kernels
from fastlayers.ops import check
from fastlayers.ops.cuts import LEAST_BYTES, chunks
from fastlayers.ops.layout import from_channels_last, to_channels_last
from fastlayers.ops.norm.layout import EMPTY, STREAMED, Layout, flat_elements, layout_of
from fastlayers.ops.norm.normalisation import Grads, Normalisation, prepare_with
from fastlayers.ops.pool.max_pool import max_pool2d_backward, max_pool2d_forward
from fastlayers.ops.pool.window import Window
from fastlayers.ops.pool.window import window as checked_window
from fastlayers.runtime import backend, memory, threads
from fastlayers.runtime.facts import plain

__all__ = ["batch_norm_max_pool2d", "batch_norm_max_pool2d_backward", "pooled_backward"]

IntPair = int | Sequence[int]


def _images(op: str, input: Any) -> tuple[np.ndarray, Layout]:
    x = check.array(op, "input", input, (4,))
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: input must have pixels and channels, got shape {x.shape}")
    return x, layout_of(x.shape, x.itemsize)


@dataclass(frozen=True)
class _Tiles:
    """How kernels go over images in windows that touch."""

    facts: Any  # see `fastlayers.kernels.norm.window_loops.Facts`
    chunks: int


def _tiles(x: np.ndarray, window: Window, size: tuple[int, ...]) -> _Tiles | None:
    """The tiles of whole windows that touch; None for all other windows."""
    kh, kw = window.kernel
    touching = (window.stride, window.padding, window.dilation) == (window.kernel, (0, 0), (1, 1))
    whole = size == (x.shape[2] // kh, x.shape[3] // kw) and kh * kw <= 256
    if backend.NUMPY or not (touching and whole):
        return None
    return _tiles_of(x.shape, x.itemsize, kh, kw)


@functools.lru_cache(maxsize=1024)
def _tiles_of(shape: tuple[int, ...], itemsize: int, rows: int, columns: int) -> _Tiles:
    n, channels, height, width = shape
    size, all_rows = math.prod(shape), n * (height // rows)
    span = max(1, -(-all_rows // chunks(2 * size * itemsize, LEAST_BYTES)))
    facts = kernels.pooled.Facts(
        images=n,
        height=height,
        width=width,
        channels=channels,
        window_rows=rows,
        window_columns=columns,
        span=span,
        chunks=-(-all_rows // span),
        stream_gradient=(
            size * itemsize >= STREAMED and channels * itemsize % memory.ALIGNMENT == 0
        ),
    )
    return _Tiles(plain(facts), facts.chunks)


def batch_norm_max_pool2d(
    input: np.ndarray,
    mean: np.ndarray,
    invstd: np.ndarray,
    weight: np.ndarray | None,
    bias: np.ndarray | None,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    ceil_mode: bool = False,
    *,
    activation: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """`max_pool2d_forward` of `batch_norm_apply`; windows that tile the image need one pass.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W), float32 or float64.
    mean, invstd, weight, bias, activation
        As for `batch_norm_apply`.
    kernel_size, stride, padding, dilation, ceil_mode
        As for `max_pool2d`.

    Returns
    -------
    y, offsets : ndarray
        The maxima, and the cell ``r * KW + s`` of each window that holds it; (N, C, OH, OW).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype, size or option, or a window larger than the padded input.
    """
    op = "batch_norm_max_pool2d"
    x, layout = _images(op, input)
    window = checked_window(op, kernel_size, stride, padding, dilation)
    size = window.out_size(op, x.shape[2:], ceil_mode)
    norm = prepare_with(op, x, mean, invstd, weight, bias, False)
    relu = check.is_relu(op, activation)
    tiles = _tiles(x, window, size)
    if tiles is None:
        y = norm.forward(None, relu)
        return max_pool2d_forward(y, kernel_size, stride, padding, dilation, ceil_mode)
    y = memory.empty((len(x), *size, layout.channels), x.dtype)
    offsets = memory.empty(y.shape, np.uint8)
    kernels.pooled.batch_norm_max_pool2d(
        norm.elements(),
        norm.channels,
        (tiles.facts, relu, threads.workers_for(layout.size)),
        memory.scratch((3 * layout.channels,), x.dtype)[0],
        y.reshape(-1),
        offsets.reshape(-1),
    )
    return from_channels_last(y), from_channels_last(offsets)


def batch_norm_max_pool2d_backward(
    grad_output: np.ndarray,
    output: np.ndarray,
    offsets: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    invstd: np.ndarray,
    training: bool,
    needs: tuple[bool, bool, bool],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    dilation: IntPair = 1,
    *,
    activation: str | None = None,
) -> Grads:
    """Input, weight and bias gradient of `batch_norm_max_pool2d`, None where not needed.

    What the pooling dropped takes no part in the weight's, also where it is NaN or infinite.

    Parameters
    ----------
    grad_output, output, offsets : ndarray
        (N, C, OH, OW); the last two are what `batch_norm_max_pool2d` gave.
    input, weight, mean, invstd, kernel_size, stride, padding, dilation, activation
        As they were given to `batch_norm_max_pool2d`.
    training : bool
        Whether the statistics are the batch's.
    needs : (bool, bool, bool)
        Which of the three gradients to compute.

    Returns
    -------
    (ndarray or None, ndarray or None, ndarray or None)
        (N, C, H, W), (C,) and (C,).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size.
    """
    op = "batch_norm_max_pool2d_backward"
    x, _ = _images(op, input)
    y = check.array(op, "output", output, (4,))
    check.same_dtype(op, "output", y, x.dtype)
    if y.shape[:2] != x.shape[:2]:
        raise ValueError(
            f"{op}: output must have shape {x.shape[:2]} and pixels, got {check.describe(y)}"
        )
    dy = check.gradient(op, grad_output, y.shape, y.dtype)
    offsets = check.offsets(op, offsets, y.shape)
    relu, needs = check.is_relu(op, activation), check.needs(op, needs, 3)
    norm = prepare_with(op, x, mean, invstd, weight, None, bool(training))
    options = (kernel_size, stride, padding, dilation)
    return pooled_backward(norm, dy, y, offsets, options, needs, relu)


def pooled_backward(
    norm: Normalisation,
    dy: np.ndarray,
    y: np.ndarray,
    offsets: np.ndarray,
    options: tuple[Any, ...],
    needs: tuple[bool, bool, bool],
    relu: bool,
) -> Grads:
    """`batch_norm_max_pool2d_backward` of a normalisation and checked arrays."""
    op = "batch_norm_max_pool2d_backward"
    tiles = _tiles(norm.x, checked_window(op, *options), y.shape[2:])
    if tiles is None or not norm.of_batch:  # the kernel's gradient passes through the statistics
        output = y if relu else None
        spread = max_pool2d_backward(dy, offsets, norm.x.shape, *options, output=output)
        return norm.backward(norm.layout.flat(spread), needs)[:3]
    if not any(needs):
        return None, None, None
    layout = layout_of(y.shape, y.itemsize)
    flat_dy = flat_elements(op, "grad_output", dy, layout, y)
    pooled = layout.flat(y), to_channels_last(offsets).reshape(-1)
    run = functools.partial(_run_backward, norm, flat_dy, pooled, tiles, relu)
    return norm.pooled_backward(run, needs)


def _run_backward(
    norm: Normalisation,
    dy: np.ndarray,
    pooled: tuple[np.ndarray, np.ndarray],
    tiles: _Tiles,
    relu: bool,
    needs: tuple[bool, ...],
    means: np.ndarray | None = None,
) -> Grads:
    """The gradients by the kernel; with `means` of a larger batch, the input's alone."""
    layout, dtype = norm.layout, norm.x.dtype
    dx, flat = layout.empty(dtype) if needs[0] else (None, EMPTY[dtype])
    grads = np.empty((2, layout.channels), dtype) if means is None else means
    kernels.pooled.batch_norm_max_pool2d_backward(
        dy,
        pooled,
        norm.elements(),
        norm.channels,
        (tiles.facts, relu, means is not None, threads.workers_for(layout.size)),
        memory.scratch(((5 + 2 * max(tiles.chunks, 1)) * layout.channels,), dtype)[0],
        flat,
        grads,
    )
    return dx, grads[0] if needs[1] else None, grads[1] if needs[2] else None
