"""Direct convolution, which serves every shape: the sums of products as they stand.

A batch-reduce GEMM reads the images themselves (`kernels.direct`), cut into slabs by `gather`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.gather import Columns, Gather
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.conv.slabs import Axis, backward_axis, forward_axis
from fastlayers.ops.conv.weight_gather import WeightGather
from fastlayers.ops.layout import kernel_ready, to_channels_last
from fastlayers.runtime import cpu, memory, threads

__all__ = ["Direct"]


# The floor of an output without and with a ReLU, by dtype: making one takes 0.2 us.
_FLOORS = {
    dtype: (dtype.type(-np.inf), dtype.type(0)) for dtype in map(np.dtype, (np.float32, np.float64))
}


class Direct(Algorithm):
    """Convolution by GEMM; its cuts and tables are made when a pass is first computed."""

    name = "direct"

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        """Everything."""
        return True

    def describe(self, which: Pass) -> str:
        """Its name, and what it does with few channels."""
        if which is Pass.BACKWARD_INPUT and self.columns is not None:
            return "direct, receptive fields as columns"
        if which is Pass.BACKWARD_WEIGHT and self.weight_gather.few:
            return "direct, transposed for few channels"
        return f"direct, {self.shape.weight[1]} channels a sum"

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output (N, OH, OW, M)."""
        return _gather(to_channels_last(x), weight, bias, self.forward_gather, relu)

    def backward_input(self, dy: np.ndarray, weight: np.ndarray) -> np.ndarray:
        """Input gradient (N, H, W, C)."""
        shape, columns = self.shape, self.columns
        if columns is None:
            return _gather(dy, weight, _zeros(shape.channels, dy.dtype), self.input_gather, False)
        workers = threads.workers_for(columns.work)
        dx = memory.empty(shape.images, dy.dtype)
        sizes = (columns.packed_size, workers * columns.step * columns.k)
        packed, work = memory.scratch(sizes, dy.dtype)
        _pack(kernel_ready(weight.transpose(0, 2, 3, 1)), columns, packed)
        zeros = _zeros(columns.k, dy.dtype)
        kernels.direct.conv2d_backward_input_columns(
            dy.reshape(-1), packed, zeros, columns.facts, workers, work, dx
        )
        return dx

    def backward_weight(self, x: np.ndarray, dy: np.ndarray) -> tuple[np.ndarray, None]:
        """Weight gradient (M, C / groups, R, S)."""
        plan, dtype = self.weight_gather, dy.dtype
        workers = threads.workers_for(plan.work)
        dw = memory.empty(self.shape.weight, dtype)
        work, parts = memory.scratch((workers * plan.elements, plan.parts), dtype)
        x, zeros = to_channels_last(x).reshape(-1), _zeros(plan.zeros, dtype)
        kernels.direct_weight.conv2d_backward_weight(
            x, dy.reshape(-1), zeros, plan.facts, workers, work, parts, dw.reshape(-1)
        )
        return dw, None

    def _axis(self, index: int, make: Callable[..., Axis]) -> Axis:
        kernel, stride, padding, dilation, out = (pair[index] for pair in self.shape.geometry)
        return make(self.shape.images[1 + index], out, kernel, stride, padding, dilation)

    @functools.cached_property
    def forward_gather(self) -> Gather:
        """Plan of the forward pass."""
        shape, axes = self.shape, (self._axis(0, forward_axis), self._axis(1, forward_axis))
        return Gather(shape.images, *axes, shape.weight, shape.groups, shape.itemsize, False)

    @functools.cached_property
    def input_gather(self) -> Gather:
        """Plan of the input gradient."""
        shape, axes = self.shape, (self._axis(0, backward_axis), self._axis(1, backward_axis))
        source = (shape.images[0], *shape.out_size, shape.out_channels)
        return Gather(source, *axes, shape.weight, shape.groups, shape.itemsize, True)

    @functools.cached_property
    def columns(self) -> Columns | None:
        """Plan of the input gradient by columns, for few channels; None for others."""
        shape = self.shape
        if 2 * shape.weight[1] > cpu.lanes(shape.itemsize) or shape.kernel == (1, 1):
            return None
        return Columns(shape)

    @functools.cached_property
    def weight_gather(self) -> WeightGather:
        """Plan of the weight gradient."""
        shape, axes = self.shape, (self._axis(0, forward_axis), self._axis(1, forward_axis))
        return WeightGather(shape.images, *axes, shape.weight, shape.groups, shape.itemsize)


def _gather(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, plan: Gather, relu: bool
) -> np.ndarray:
    """The convolution that `plan` describes, on channels-last arrays."""
    dtype, workers = x.dtype, threads.workers_for(plan.work)
    y = memory.empty(plan.out_shape, dtype)
    packed, work = memory.scratch((plan.packed_size, workers * plan.slabs.elements), dtype)
    _pack(weight, plan, packed)
    floor = _FLOORS[dtype][relu]
    kernels.direct.conv2d(
        x.reshape(-1), packed, bias, plan.facts, floor, workers, work, y.reshape(-1)
    )
    return y


def _pack(weight: np.ndarray, plan: Gather | Columns, packed: np.ndarray) -> None:
    """Write the weight as the GEMM reads it."""
    workers = threads.workers_for(plan.packed_size)
    kernels.direct.pack_weight(weight.reshape(-1), plan.packing, workers, packed)


@functools.lru_cache(maxsize=256)
def _zeros(count: int, dtype: np.dtype) -> np.ndarray:
    """Zeros that nobody writes to."""
    return np.zeros(count, dtype)
