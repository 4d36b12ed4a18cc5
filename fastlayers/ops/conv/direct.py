"""Direct convolution: the plans of a shape's three passes, and their allocations.

Internal to `ops.conv`, which checks arguments. Arrays are channels-last: x (N, H, W, C) and
y (N, OH, OW, M); weights are (M, C/G, R, S).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.gather import (
    Axis,
    Columns,
    Gather,
    WeightGather,
    backward_axis,
    forward_axis,
)
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.layout import kernel_ready
from fastlayers.runtime import cpu, memory, threads

__all__ = ["backward_input", "backward_weight", "forward"]


# What a ReLU and none hold an output above, by dtype: made anew each takes 0.2 us.
_FLOORS = {
    dtype: (dtype.type(-np.inf), dtype.type(0)) for dtype in map(np.dtype, (np.float32, np.float64))
}


class _Plan:
    """Cuts and tables of a shape's passes, each made when it is first asked for."""

    def __init__(self, shape: ConvShape) -> None:
        self.shape = shape

    def _axis(self, index: int, make: Callable[..., Axis]) -> Axis:
        kernel, stride, padding, dilation, out = (pair[index] for pair in self.shape.geometry)
        return make(self.shape.images[1 + index], out, kernel, stride, padding, dilation)

    @functools.cached_property
    def forward(self) -> Gather:
        shape, axes = self.shape, (self._axis(0, forward_axis), self._axis(1, forward_axis))
        return Gather(shape.images, *axes, shape.weight, shape.groups, shape.itemsize, False)

    @functools.cached_property
    def backward_input(self) -> Gather:
        shape, axes = self.shape, (self._axis(0, backward_axis), self._axis(1, backward_axis))
        source = (shape.images[0], *shape.out_size, shape.out_channels)
        return Gather(source, *axes, shape.weight, shape.groups, shape.itemsize, True)

    @functools.cached_property
    def columns(self) -> Columns | None:
        """Plan of the gradient by an input of few channels, by columns; None for others."""
        shape = self.shape
        if 2 * shape.weight[1] > cpu.lanes(shape.itemsize) or shape.kernel == (1, 1):
            return None
        return Columns(shape.weight, shape.groups, shape.pixels, shape.itemsize)

    @functools.cached_property
    def backward_weight(self) -> WeightGather:
        shape, axes = self.shape, (self._axis(0, forward_axis), self._axis(1, forward_axis))
        return WeightGather(shape.images, *axes, shape.weight, shape.groups, shape.itemsize)


@functools.lru_cache(maxsize=256)
def _plan(shape: ConvShape) -> _Plan:
    return _Plan(shape)


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, shape: ConvShape, relu: bool = False
) -> np.ndarray:
    """Convolution of x with the weight and bias (M,)."""
    return _gather(x, weight, bias, _plan(shape).forward, relu)


def backward_input(dy: np.ndarray, weight: np.ndarray, shape: ConvShape) -> np.ndarray:
    """Gradient of dy (N, OH, OW, M) by the input of `forward`."""
    plan = _plan(shape)
    columns = plan.columns
    if columns is None:
        return _gather(dy, weight, _zeros(shape.channels, dy.dtype), plan.backward_input)
    workers = threads.workers_for(columns.work)
    dx = memory.empty(shape.images, dy.dtype)
    sizes = (columns.packed_size, workers * columns.step * columns.k)
    packed, work = memory.scratch(sizes, dy.dtype)
    _pack(weight.transpose(0, 2, 3, 1), columns, packed)
    kernels.direct.conv2d_backward_input_columns(
        dy.reshape(-1),
        packed,
        _zeros(columns.k, dy.dtype),
        shape.geometry,
        shape.groups,
        columns.step,
        columns.lanes,
        workers,
        work,
        dx,
    )
    return dx


def backward_weight(x: np.ndarray, dy: np.ndarray, shape: ConvShape) -> np.ndarray:
    """Gradient of dy by the weight of `forward`."""
    plan, dtype = _plan(shape).backward_weight, dy.dtype
    workers = threads.workers_for(plan.work)
    dw = memory.empty(shape.weight, dtype)
    work, parts = memory.scratch((workers * plan.slabs.elements, plan.parts), dtype)
    kernels.direct.conv2d_backward_weight(
        plan.few,
        x.reshape(-1),
        dy.reshape(-1),
        _zeros(plan.zeros, dtype),
        plan.sizes,
        plan.layout,
        plan.cut,
        plan.runs,
        plan.tasks,
        plan.lanes,
        workers,
        work,
        parts,
        dw.reshape(-1),
    )
    return dw


def _gather(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, plan: Gather, relu: bool = False
) -> np.ndarray:
    """The convolution that `plan` describes, on channels-last arrays."""
    dtype, workers = x.dtype, threads.workers_for(plan.work)
    y = memory.empty(plan.out_shape, dtype)
    packed, work = memory.scratch((plan.packed_size, workers * plan.slabs.elements), dtype)
    _pack(weight, plan, packed)
    kernels.direct.conv2d(
        x.reshape(-1),
        packed,
        bias,
        _FLOORS[dtype][relu],
        plan.sizes,
        plan.layout,
        plan.phases,
        plan.tables,
        plan.tasks,
        plan.lanes,
        workers,
        work,
        y.reshape(-1),
    )
    return y


def _pack(weight: np.ndarray, plan: Gather | Columns, packed: np.ndarray) -> None:
    """Write the weight as the GEMM reads it."""
    kernels.direct.pack_weight(
        kernel_ready(weight).reshape(-1),
        plan.pack_shape,
        plan.pack_table,
        plan.lanes,
        threads.workers_for(plan.packed_size),
        packed,
    )


@functools.lru_cache(maxsize=256)
def _zeros(count: int, dtype: np.dtype) -> np.ndarray:
    """Zeros that nobody writes to."""
    return np.zeros(count, dtype)
