"""Two-dimensional convolution."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check
from fastlayers.ops.conv_plan import (
    Axis,
    Columns,
    Gather,
    WeightGather,
    backward_axis,
    forward_axis,
)
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.reduce import column_sums
from fastlayers.runtime import cpu, memory, threads

__all__ = ["conv2d", "conv2d_backward"]

Padding = int | Sequence[int] | str
Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]

@dataclass(frozen=True)
class _Plan:
    """All that follows from the shapes and options of a call; kept for the next such call."""

    images: tuple[int, int, int, int]  # N, H, W, C
    weight: tuple[int, int, int, int]
    groups: int
    geometry: tuple[tuple[int, int], ...]  # kernel, stride, padding, dilation, output size
    itemsize: int

    @property
    def out_channels(self) -> int:
        return self.weight[0]

    @functools.cached_property
    def out_size(self) -> tuple[int, int]:
        return self.geometry[4]

    @functools.cached_property
    def out_shape(self) -> tuple[int, int, int, int]:
        return (self.images[0], self.out_channels, *self.out_size)

    @property
    def pixels(self) -> int:
        return self.images[0] * self.out_size[0] * self.out_size[1]

    def _axis(self, index: int, make: Callable[..., Axis]) -> Axis:
        kernel, stride, padding, dilation, out = (pair[index] for pair in self.geometry)
        return make(self.images[1 + index], out, kernel, stride, padding, dilation)

    @functools.cached_property
    def forward(self) -> Gather:
        axes = self._axis(0, forward_axis), self._axis(1, forward_axis)
        return Gather(self.images, *axes, self.weight, self.groups, self.itemsize, False)

    @functools.cached_property
    def backward_input(self) -> Gather:
        axes = self._axis(0, backward_axis), self._axis(1, backward_axis)
        source = (self.images[0], *self.out_size, self.out_channels)
        return Gather(source, *axes, self.weight, self.groups, self.itemsize, True)

    @functools.cached_property
    def columns(self) -> Columns | None:
        """Plan of the gradient by an input of few channels, by columns; None for others."""
        m, depth, *_ = self.weight
        if 2 * depth > cpu.lanes(self.itemsize) or self.geometry[0] == (1, 1):
            return None
        return Columns(self.weight, self.groups, self.pixels, self.itemsize)

    @functools.cached_property
    def backward_weight(self) -> WeightGather:
        axes = self._axis(0, forward_axis), self._axis(1, forward_axis)
        return WeightGather(self.images, *axes, self.weight, self.groups, self.itemsize)


@functools.lru_cache(maxsize=256)
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
    return _Plan((n, size[0], size[1], channels), weight, groups, geometry, itemsize)


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
    y = from_channels_last(_gather(to_channels_last(input), weight, bias, plan.forward))
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
    dx = dw = db = None
    if needs[0]:
        dx = from_channels_last(_input_gradient(dy, weight, plan))
        dx = dx[0] if unbatched else dx
    if needs[1]:
        dw = _weight_gradient(dy, to_channels_last(input), plan.backward_weight, weight.shape)
    if needs[2]:
        db = column_sums(dy.reshape(plan.pixels, plan.out_channels))
    return dx, dw, db


def _gather(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, plan: Gather, floor: float = -np.inf
) -> np.ndarray:
    """The convolution that `plan` describes, on channels-last arrays."""
    dtype, workers = x.dtype, threads.workers_for(plan.work)
    packed = _packed(weight, plan)
    y = memory.empty(plan.out_shape, dtype)
    kernels.conv.conv2d(
        x.reshape(-1),
        packed,
        bias,
        dtype.type(floor),
        plan.sizes,
        plan.layout,
        plan.phases,
        plan.tables,
        plan.tasks,
        plan.lanes,
        workers,
        memory.empty(workers * plan.slabs.elements, dtype),
        y.reshape(-1),
    )
    return y


def _packed(weight: np.ndarray, plan: Gather | Columns) -> np.ndarray:
    """The weight as the GEMM reads it."""
    packed = memory.empty(plan.packed_size, weight.dtype)
    kernels.conv.pack_weight(
        kernel_ready(weight).reshape(-1),
        plan.pack_shape,
        plan.taps,
        plan.weights,
        plan.lanes,
        threads.workers_for(plan.packed_size),
        packed,
    )
    return packed


def _input_gradient(dy: np.ndarray, weight: np.ndarray, plan: _Plan) -> np.ndarray:
    columns = plan.columns
    if columns is None:
        return _gather(dy, weight, memory.zeros(plan.images[3], dy.dtype), plan.backward_input)
    workers = threads.workers_for(columns.work)
    dx = memory.empty(plan.images, dy.dtype)
    kernels.conv.conv2d_backward_input_columns(
        dy.reshape(-1),
        _packed(weight.transpose(0, 2, 3, 1), columns),
        memory.zeros(columns.k, dy.dtype),
        plan.geometry,
        plan.groups,
        columns.step,
        columns.lanes,
        workers,
        memory.empty(workers * columns.step * columns.k, dy.dtype),
        dx,
    )
    return dx


def _weight_gradient(
    dy: np.ndarray, x: np.ndarray, plan: WeightGather, shape: tuple[int, ...]
) -> np.ndarray:
    dtype, workers = dy.dtype, threads.workers_for(plan.work)
    if not plan.slabs.count:
        return memory.zeros(shape, dtype)
    dw = memory.empty(shape, dtype)
    kernels.conv.conv2d_backward_weight(
        plan.few,
        x.reshape(-1),
        dy.reshape(-1),
        memory.zeros(plan.zeros, dtype),
        plan.sizes,
        plan.layout,
        plan.cut,
        plan.runs,
        plan.tasks,
        plan.lanes,
        workers,
        memory.empty(workers * plan.slabs.elements, dtype),
        memory.empty(plan.parts, dtype),
        dw.reshape(-1),
    )
    return dw
