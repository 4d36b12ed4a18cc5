"""Two-dimensional convolution."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.reduce import column_sums
from fastlayers.runtime import cpu, memory, threads

__all__ = ["conv2d", "conv2d_backward"]

Padding = int | Sequence[int] | str
Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]

# A block of im2col rows: 256 KiB stay in the L2 cache of every CPU with vectors worth using.
BLOCK_BYTES = 256 * 1024
# The weight gradient reads and writes all of dW once a block, so a block has at least 256 pixels
# (the GEMM's own depth of k), up to 4 MiB a thread.
DEEP_BLOCK_BYTES = 4 * 1024 * 1024
# Partial sums of the weight gradient: at most 16, and 64 MiB in all, for a given shape.
CHUNKS = 16
CHUNK_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True)
class _Plan:
    """All that follows from the shapes and options of a call; kept for the next such call."""

    images: tuple[int, int, int, int]  # N, H, W, C
    out_channels: int
    groups: int
    geometry: tuple[tuple[int, int], ...]  # kernel, stride, padding, dilation, output size
    itemsize: int

    @functools.cached_property
    def out_size(self) -> tuple[int, int]:
        return self.geometry[4]

    @functools.cached_property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.images[0], self.out_channels, *self.out_size)

    @functools.cached_property
    def pixels(self) -> int:
        return self.images[0] * self.out_size[0] * self.out_size[1]

    @functools.cached_property
    def k(self) -> int:
        """Length of an im2col row."""
        return self.geometry[0][0] * self.geometry[0][1] * self.images[3] // self.groups

    @functools.cached_property
    def lanes(self) -> int:
        return cpu.lanes(self.itemsize)

    @functools.cached_property
    def step(self) -> int:
        """Pixels of a block, a multiple of the tile's 12 rows; small work is cut in 8 or more."""
        fits = max(BLOCK_BYTES // (self.k * self.itemsize), 12)
        share = max(-(-self.pixels // 8), 12)
        return min(fits, share) // 12 * 12

    @functools.cached_property
    def deep_step(self) -> int:
        """Pixels of a block of the weight gradient."""
        fits = max(DEEP_BLOCK_BYTES // (self.k * self.itemsize), 12)
        return min(max(self.step, 252), fits) // 12 * 12

    @functools.cached_property
    def span(self) -> int:
        """Pixels whose weight gradient is added up before the sum over chunks."""
        one = self.out_channels * self.k * self.itemsize
        chunks = max(1, min(CHUNKS, CHUNK_BYTES // one, self.pixels // self.deep_step))
        return max(1, -(-self.pixels // chunks))

    @functools.cached_property
    def work(self) -> float:
        """Vector operations of a pass."""
        return self.pixels * self.k * self.out_channels / 8

    @property
    def workers(self) -> int:
        return threads.workers_for(self.work)


@functools.lru_cache(maxsize=1024)
def _plan(
    op: str,
    images: tuple[int, int, int, int],
    weight: tuple[int, int, int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
    itemsize: int,
) -> _Plan:
    """Check shapes against each other and derive the output's; images are (N, C, H, W)."""
    n, channels, *size = images
    m, depth, *kernel = weight
    if min(weight) < 1 or channels < 1:
        raise ValueError(f"{op}: weight must have no empty dimension, got shape {weight}")
    if channels % groups or m % groups:
        raise ValueError(
            f"{op}: groups must divide the {channels} input and {m} output channels, got {groups}"
        )
    if depth * groups != channels:
        raise ValueError(
            f"{op}: weight of shape {weight} with groups={groups} expects {depth * groups} "
            f"input channels, got input with {channels} channels"
        )
    before, out = [], []
    for axis in range(2):
        extent = dilation[axis] * (kernel[axis] - 1) + 1
        total = 0 if padding == "valid" else extent - 1
        if not isinstance(padding, str):
            total = 2 * padding[axis]
        if size[axis] + total < extent:
            raise ValueError(
                f"{op}: weight's kernel of {kernel[axis]} with dilation {dilation[axis]} spans "
                f"{extent} pixels, more than the padded input's {size[axis] + total}, "
                f"got input of shape {images}"
            )
        before.append(total // 2)
        out.append((size[axis] + total - extent) // stride[axis] + 1)
    geometry = tuple(
        (int(a), int(b)) for a, b in (kernel, stride, tuple(before), dilation, tuple(out))
    )
    return _Plan((n, size[0], size[1], channels), m, groups, geometry, itemsize)


def _prepare(
    op: str,
    input: Any,
    weight: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    groups: Any,
) -> tuple[np.ndarray, np.ndarray, _Plan, bool]:
    """Check a call's arguments: batched input, weight, plan, whether a batch axis was added."""
    input = _check.array(op, "input", input, (3, 4))
    weight = _check.array(op, "weight", weight, (4,))
    _check.same_dtype(op, "weight", weight, input.dtype)
    stride = _check.pair(op, "stride", stride, 1)
    dilation = _check.pair(op, "dilation", dilation, 1)
    groups = _check.integer(op, "groups", groups, 1)
    if isinstance(padding, str):
        _check.one_of(op, "padding", padding, ("same", "valid"))
        if padding == "same" and stride != (1, 1):
            raise ValueError(f"{op}: padding 'same' needs a stride of 1, got stride {stride}")
    else:
        padding = _check.pair(op, "padding", padding, 0)
    unbatched = input.ndim == 3
    if unbatched:
        input = input[None]
    sizes = (op, input.shape, weight.shape, stride, padding, dilation, groups, input.itemsize)
    return input, weight, _plan(*sizes), unbatched


def conv2d(
    input: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray | None = None,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> np.ndarray:
    """Cross-correlate images with a set of kernels.

    ``y[n, m, i, j] = bias[m] + sum over c, r, s of weight[m, c, r, s]
    * input[n, c, i * stride + r * dilation - padding, j * stride + s * dilation - padding]``

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    weight : ndarray
        (M, C / groups, R, S), of the input's dtype.
    bias : ndarray, optional
        (M,).
    stride, dilation : int or (int, int)
        For height and width.
    padding : int, (int, int), "same" or "valid"
        Zeros added on both sides; "same" keeps the size at stride 1, with the odd zero behind.
    groups : int
        Blocks of channels that are convolved apart; ``groups == C`` is depthwise.

    Returns
    -------
    ndarray
        (N, M, OH, OW) or (M, OH, OW), ``OH = (H + 2 * padding - dilation * (R - 1) - 1) // stride
        + 1``.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype, channel count or option, or a kernel larger than the padded input.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.conv2d.html
    """
    input, weight, plan, unbatched = _prepare(
        "conv2d", input, weight, stride, padding, dilation, groups
    )
    m = plan.out_channels
    if bias is None:
        bias = memory.zeros(m, input.dtype)
    else:
        bias = memory.writable_view(_check.vector("conv2d", "bias", bias, m, input.dtype))
    y = memory.empty((plan.images[0], *plan.out_size, m), input.dtype)
    workers, step = plan.workers, plan.step
    kernels.conv.conv2d(
        to_channels_last(input),
        _packed(weight, plan, transposed=False),
        bias,
        plan.geometry,
        plan.groups,
        step,
        plan.lanes,
        workers,
        memory.empty(workers * step * plan.k, input.dtype),
        y.reshape(plan.pixels, m),
    )
    y = from_channels_last(y)
    return y[0] if unbatched else y


def conv2d_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray,
    stride: int | Sequence[int] = 1,
    padding: Padding = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Grads:
    """Gradients of `conv2d` by input, weight and bias, each only where `needs` asks for it.

    Parameters
    ----------
    grad_output : ndarray
        Of the shape that `conv2d` returns.
    input, weight, stride, padding, dilation, groups
        As they were given to `conv2d`.
    needs : (bool, bool, bool)
        Which of the three gradients to compute; the others are None.

    Returns
    -------
    (ndarray or None, ndarray or None, ndarray or None)
        Of the shapes of input, weight and bias.

    Raises
    ------
    TypeError, ValueError
        As `conv2d`, and for a `grad_output` of another shape or dtype than the output's.
    """
    op = "conv2d_backward"
    input, weight, plan, unbatched = _prepare(op, input, weight, stride, padding, dilation, groups)
    shape = plan.out_shape[1:] if unbatched else plan.out_shape
    grad_output = _check.gradient(op, grad_output, shape, input.dtype)
    dy = to_channels_last(grad_output[None] if unbatched else grad_output)
    dy = dy.reshape(plan.pixels, plan.out_channels)
    dx = _input_gradient(dy, weight, plan) if needs[0] else None
    if dx is not None and unbatched:
        dx = dx[0]
    dw = _weight_gradient(dy, to_channels_last(input), weight, plan) if needs[1] else None
    return dx, dw, column_sums(dy) if needs[2] else None


def _packed(weight: np.ndarray, plan: _Plan, transposed: bool) -> np.ndarray:
    """The weight as the GEMM reads it."""
    per_group, k = plan.out_channels // plan.groups, plan.k
    sizes = (per_group, k) if transposed else (k, per_group)
    size = kernels.gemm.packed_size(*sizes, plan.lanes)
    packed = memory.empty(plan.groups * size, weight.dtype)
    kernels.conv.pack_weight(kernel_ready(weight), plan.groups, transposed, plan.lanes, packed)
    return packed


def _input_gradient(dy: np.ndarray, weight: np.ndarray, plan: _Plan) -> np.ndarray:
    dx = memory.empty(plan.images, dy.dtype)
    workers, step = plan.workers, plan.step
    kernels.conv.conv2d_backward_input(
        dy,
        _packed(weight, plan, transposed=True),
        plan.geometry,
        plan.groups,
        step,
        plan.lanes,
        memory.zeros(plan.k, dy.dtype),
        workers,
        memory.empty(workers * step * plan.k, dy.dtype),
        dx,
    )
    return from_channels_last(dx)


def _weight_gradient(dy: np.ndarray, x: np.ndarray, weight: np.ndarray, plan: _Plan) -> np.ndarray:
    workers, step, span = plan.workers, plan.deep_step, plan.span
    chunks = max(1, -(-plan.pixels // span))
    row = kernels.conv.padded_row(plan.k, plan.lanes)
    dw = memory.empty(weight.shape, weight.dtype)
    kernels.conv.conv2d_backward_weight(
        x,
        dy,
        plan.geometry,
        plan.groups,
        step,
        span,
        plan.lanes,
        workers,
        memory.empty(workers * step * row, dy.dtype),
        memory.empty((chunks, plan.out_channels * plan.k), dy.dtype),
        dw,
    )
    return dw
