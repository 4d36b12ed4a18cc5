"""Batch normalisation, ReLU and max pooling in one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.kernels import norm as kernels
from fastlayers.ops import check
from fastlayers.ops.layout import from_channels_last, to_channels_last
from fastlayers.ops.norm.batchnorm import Grads, Normalisation, batch_norm_apply, given
from fastlayers.ops.norm.form import NOTHING, Form, elements, form_of, optional, vector
from fastlayers.ops.pool.max_pool import max_pool2d_backward, max_pool2d_forward
from fastlayers.ops.pool.window import Window
from fastlayers.ops.pool.window import window as checked_window
from fastlayers.runtime import backend, memory, threads

__all__ = ["batch_norm_max_pool2d", "batch_norm_max_pool2d_backward"]

IntPair = int | Sequence[int]
# Elements of a chunk of images, and chunks at most: the order of additions is fixed by the shape.
SPAN, CHUNKS = 32768, 32


def _images(op: str, input: Any) -> tuple[np.ndarray, Form]:
    x = check.array(op, "input", input, (4,))
    if 0 in x.shape[1:]:
        raise ValueError(f"{op}: input must have pixels and channels, got shape {x.shape}")
    return x, form_of(x.shape, x.itemsize)


def _tiles(shape: tuple[int, ...], window: Window, size: tuple[int, int]) -> tuple[int, ...] | None:
    """The kernels' form of an image in whole windows that touch; None for all other windows."""
    if backend.NUMPY:
        return None
    n, channels, height, width = shape
    (kh, kw), touching = window.kernel, (window.kernel, (0, 0), (1, 1))
    whole = size == (height // kh, width // kw) and kh * kw <= 256
    if (window.stride, window.padding, window.dilation) != touching or not whole:
        return None
    per_image = height * width * channels
    span = max(-(-n // CHUNKS), -(-SPAN // per_image))
    return height, width, channels, kh, kw, span


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
    x, form = _images(op, input)
    window = checked_window(op, kernel_size, stride, padding, dilation)
    size = window.out_size(op, x.shape[2:], ceil_mode)
    vectors = (
        vector(op, "mean", mean, form, x.dtype),
        vector(op, "invstd", invstd, form, x.dtype),
        optional(op, "weight", weight, form, x.dtype),
        optional(op, "bias", bias, form, x.dtype),
    )
    relu = check.is_relu(op, activation)
    tiles = _tiles(x.shape, window, size)
    if tiles is None:
        y = batch_norm_apply(x, mean, invstd, weight, bias, activation=activation)
        return max_pool2d_forward(y, kernel_size, stride, padding, dilation, ceil_mode)
    n, channels = x.shape[:2]
    y = memory.empty((n, *size, channels), x.dtype)
    offsets = memory.empty(y.shape, np.uint8)
    kernels.pooled.batch_norm_max_pool2d(
        form.flat(x),
        tiles,
        n,
        *vectors,
        relu,
        threads.workers_for(form.size),
        memory.empty(3 * channels, x.dtype),
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
    """Gradients of `batch_norm_max_pool2d` by input, weight and bias, None where not needed.

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
    norm = given(op, x, mean, invstd, weight, None, bool(training))
    return pooled_backward(
        norm, dy, y, offsets, (kernel_size, stride, padding, dilation), needs, relu
    )


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
    x, form, dtype = norm.x, norm.form, norm.x.dtype
    window = checked_window(op, *options)
    tiles = _tiles(x.shape, window, y.shape[2:])
    if tiles is None or not norm.of_batch:  # the kernel's gradient is by the batch's statistics too
        spread = max_pool2d_backward(dy, offsets, x.shape, *options, output=y if relu else None)
        return norm.backward(form.flat(spread), needs)[:3]
    if not any(needs):
        return None, None, None
    small, n = form_of(y.shape, y.itemsize), x.shape[0]
    nothing = NOTHING[dtype]
    dx, flat = form.empty(dtype) if needs[0] else (None, nothing)
    chunks = -(-n // tiles[-1])
    grads = memory.empty((2, tiles[2]), dtype)
    arguments = (
        elements(op, "grad_output", dy, small, y),
        small.flat(y),
        to_channels_last(offsets).reshape(-1),
        form.flat(x),
        tiles,
        n,
        norm.mean,
        norm.invstd,
        norm.weight,
        int(relu),
    )
    rest = (
        int(form.stream_back and tiles[2] * x.itemsize % memory.ALIGNMENT == 0),
        threads.workers_for(form.size),
        memory.empty((5 + 2 * max(chunks, 1)) * tiles[2], dtype),
    )
    run = kernels.pooled.batch_norm_max_pool2d_backward
    if norm.exchange is None or dx is None:
        run(*arguments, False, *rest, flat, grads)
    else:
        run(*arguments, False, *rest, nothing, grads)
        run(*arguments, True, *rest, flat, norm.exchange(*grads))
    return dx, grads[0] if needs[1] else None, grads[1] if needs[2] else None
