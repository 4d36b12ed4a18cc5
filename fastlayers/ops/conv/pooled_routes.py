"""Which algorithm computes a convolution with its max pooling, or the gradients of both."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.ops.conv import planar, winograd_rows
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.convolution import Convolution, Grads
from fastlayers.ops.conv.pooled_plan import ImagePlan, SparsePlan
from fastlayers.ops.conv.reference import Reference
from fastlayers.ops.conv.winograd import Winograd
from fastlayers.ops.conv.winograd_rows import WinogradRows
from fastlayers.ops.layout import from_channels_last, kernel_ready, to_channels_last
from fastlayers.ops.pool.max_pool import max_pool2d_backward, max_pool2d_forward
from fastlayers.ops.pool.window import Window
from fastlayers.ops.routes import Route
from fastlayers.runtime import memory, threads

__all__ = ["ROUTES", "Choice", "Pool", "PooledAlgorithm", "Route", "Separate", "Setting", "choose"]

# Kernel size, stride, padding, dilation and ceil_mode.
Pool = tuple[Any, Any, Any, Any, bool]
Pair = tuple[np.ndarray, np.ndarray]


class Setting(NamedTuple):
    """A convolution and the pooling that follows, of which the sizes were checked."""

    convolution: Convolution
    pool: Pool
    window: Window
    out_size: tuple[int, int]

    @property
    def halves(self) -> bool:
        """Whether windows are 2x2 side by side, and an odd last row or column is left out."""
        height, width = self.convolution.shape.out_size
        plain = self.window.geometry == ((2, 2), (2, 2), (0, 0), (1, 1))
        return plain and self.out_size == (height // 2, width // 2)


class PooledAlgorithm(ABC):
    """A way to compute the outputs, or the gradients, of one setting.

    Images x are (N, C, H, W) or (C, H, W) and outputs and their cells (N, M, PH, PW) or (M, PH, PW)
    in any layout, weights (M, C / groups, R, S). There are images with pixels, and nothing is
    checked here. `which` is `Pass.FORWARD`, or any other, as all gradients are of one algorithm.
    What an algorithm has no way of its own for is here the two ops one after the other.
    """

    name: ClassVar[str]

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def serves(self, which: Pass) -> bool:
        """Whether it can compute the pass, and should be faster than those after it."""

    @abstractmethod
    def describe(self, which: Pass) -> str:
        """How it computes the pass, in words: its name and variant."""

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool) -> Pair:
        """Outputs of the pooling, and the cells of the maxima."""
        z = self.setting.convolution.forward(x, weight, bias, relu)
        return max_pool2d_forward(z, *self.setting.pool)

    def backward(
        self,
        dy: np.ndarray,
        y: np.ndarray,
        cells: np.ndarray,
        x: np.ndarray,
        weight: np.ndarray,
        relu: bool,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """Gradients by x, weight and bias, where they are needed.

        An algorithm of its own takes cells of uint8 only, as windows of 256 cells or fewer have.
        """
        convolution, pool = self.setting.convolution, self.setting.pool[:4]
        output = y if relu else None
        dz = max_pool2d_backward(dy, cells, convolution.out_shape, *pool, output=output)
        return convolution.backward(dz, x, weight, needs)


class _Fused(PooledAlgorithm):
    """A forward pass by a kernel, of images (N, C, H, W) to outputs (N, PH, PW, M)."""

    def forward(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool) -> Pair:
        """Outputs and cells by the kernel."""
        images = x if x.ndim == 4 else x[None]
        y, cells = map(from_channels_last, self._run(images, kernel_ready(weight), bias, relu))
        return (y, cells) if x.ndim == 4 else (y[0], cells[0])

    @abstractmethod
    def _run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool) -> Pair:
        """Call the kernel."""


class Separate(PooledAlgorithm):
    """The two ops one after the other."""

    name = "separate"

    def serves(self, which: Pass) -> bool:
        """Any."""
        return True

    def describe(self, which: Pass) -> str:
        """The convolution's algorithm, and the pooling behind or before it."""
        words = {served: how for served, how, _ in self.setting.convolution.reasons()}
        ops = [words[which], "max_pool2d"]
        first, second = ops if which is Pass.FORWARD else ops[::-1]
        return f"{self.name}, {first}, then {second}"


class BehindReference(Separate):
    """As `Separate`, where there is no Numba."""

    def serves(self, which: Pass) -> bool:
        """Convolutions that NumPy computes."""
        return isinstance(self.setting.convolution.algorithm(which), Reference)


class BehindWinograd(Separate):
    """As `Separate`, behind Winograd's tiles."""

    def serves(self, which: Pass) -> bool:
        """Convolutions that have a forward pass in tiles."""
        return isinstance(self.setting.convolution.algorithm(Pass.FORWARD), Winograd)


class PooledRows(_Fused):
    """Winograd's transform of rows, whose inverse is pooled before it is written."""

    name = "winograd rows"

    def serves(self, which: Pass) -> bool:
        """Forward, for windows of 2x2."""
        if which is not Pass.FORWARD or not self.setting.halves:
            return False
        behind = self.setting.convolution.algorithm(Pass.FORWARD)
        return isinstance(behind, WinogradRows) and self._plan is not None

    def describe(self, which: Pass) -> str:
        """Its name and window."""
        return f"{self.name}, 2x2 windows pooled before they are written"

    @functools.cached_property
    def _plan(self) -> Any:
        return winograd_rows.plan(self.setting.convolution.shape, pooled=2)

    def _run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool) -> Pair:
        return winograd_rows.forward(x, weight, bias, self._plan, relu)


class PooledPlanes(_Fused):
    """Convolution to few output channels, pooled in bands."""

    name = "planar"

    def serves(self, which: Pass) -> bool:
        """Forward, for windows of 2x2."""
        return which is Pass.FORWARD and self.setting.halves and self._plan is not None

    def describe(self, which: Pass) -> str:
        """Its name, output channels and window."""
        channels = self.setting.convolution.shape.out_channels
        return f"{self.name}, {channels} output channels, 2x2 windows pooled from L1"

    @functools.cached_property
    def _plan(self) -> Any:
        return planar.planes(self.setting.convolution.shape, 2)

    def _run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool) -> Pair:
        return planar.forward(x, weight, bias, self._plan, relu)


class PooledImages(_Fused):
    """Direct convolution, image by image."""

    name = "direct by image"

    def serves(self, which: Pass) -> bool:
        """Forward, where an image, its output and the weight stay in L2."""
        return which is Pass.FORWARD and self._plan.serves

    def describe(self, which: Pass) -> str:
        """Its name and window."""
        rows, columns = self.setting.window.kernel
        return f"{self.name}, {rows}x{columns} windows pooled from L2"

    @functools.cached_property
    def _plan(self) -> ImagePlan:
        convolution, _, window, out_size = self.setting
        return ImagePlan(convolution.shape, window, out_size)

    def _run(self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool) -> Pair:
        plan, dtype = self._plan, x.dtype
        workers = threads.workers_for(plan.work)
        flat, channels_first = planar.raw_images(x)
        y, cells = memory.empty(plan.out_shape, dtype), memory.empty(plan.out_shape, np.uint8)
        (work,) = memory.scratch((plan.packed + workers * plan.worker_elements,), dtype)
        call = (channels_first, dtype.type(0.0 if relu else -np.inf), workers)
        out, out_cells = y.reshape(-1), cells.reshape(-1)
        kernels.pooled.conv2d_max_pool2d(
            flat, weight.reshape(-1), bias, plan.facts, call, work, out, out_cells
        )
        return y, cells


class SparseGradients(PooledAlgorithm):
    """Sums over the pooled outputs, as one pixel of each window has a gradient."""

    name = "sparse"

    def serves(self, which: Pass) -> bool:
        """The gradients, where they are fewer products than dense ones are at their speed."""
        return which is not Pass.FORWARD and self._plan.serves

    def describe(self, which: Pass) -> str:
        """Its name and window."""
        rows, columns = self.setting.window.kernel
        return f"{self.name}, {rows}x{columns} windows"

    @functools.cached_property
    def _plan(self) -> SparsePlan:
        convolution, _, window, out_size = self.setting
        return SparsePlan(convolution.shape, window, out_size)

    def backward(
        self,
        dy: np.ndarray,
        y: np.ndarray,
        cells: np.ndarray,
        x: np.ndarray,
        weight: np.ndarray,
        relu: bool,
        needs: tuple[bool, bool, bool],
    ) -> Grads:
        """Gradients by one kernel."""
        plan, shape, dtype = self._plan, self.setting.convolution.shape, x.dtype
        batched = x.ndim == 4
        if not batched:
            dy, y, cells, x = dy[None], y[None], cells[None], x[None]
        grad = to_channels_last(dy).reshape(-1)
        output = to_channels_last(y).reshape(-1) if relu else grad
        outputs = (grad, output, to_channels_last(cells).reshape(-1))
        flat, channels_first = planar.raw_images(x)
        workers = threads.workers_for(plan.work)
        dx = memory.empty(shape.images, dtype) if needs[0] else None
        dw, db = memory.empty(shape.weight, dtype), memory.empty(shape.out_channels, dtype)
        (work,) = memory.scratch((plan.workers_at + workers * plan.worker_elements,), dtype)
        kernels.pooled.conv2d_max_pool2d_backward(
            outputs,
            flat,
            kernel_ready(weight).reshape(-1),
            plan.facts,
            (channels_first, relu, bool(needs[0]), bool(needs[1] or needs[2]), workers),
            work,
            flat if dx is None else dx.reshape(-1),
            (dw.reshape(-1), db),
        )
        if dx is not None:
            dx = from_channels_last(dx) if batched else from_channels_last(dx)[0]
        return dx, dw if needs[1] else None, db if needs[2] else None


class Choice(NamedTuple):
    """An algorithm that was made for a setting, and the reason."""

    algorithm: PooledAlgorithm
    reason: str


# The first that serves a pass computes it.
ROUTES: tuple[Route[PooledAlgorithm], ...] = (
    Route(BehindReference, "there is no Numba"),
    Route(BehindWinograd, "3x3 kernels at stride 1: Winograd's tiles save more than fusion would"),
    Route(PooledRows, "2x2 windows behind kernels 5 wide and few channels: lanes are images"),
    Route(PooledPlanes, "2x2 windows and few output channels: lanes are pixels"),
    Route(PooledImages, "an image's output fits in L2 and is pooled from there"),
    Route(SparseGradients, "one pixel of a window has a gradient: fewer products than dense ones"),
    Route(Separate, "any shape: the two ops one after the other"),
)


def choose(setting: Setting, which: Pass) -> Choice:
    """The algorithm that computes a pass."""
    choices = (Choice(row.algorithm(setting), row.reason) for row in ROUTES)
    return next(choice for choice in choices if choice.algorithm.serves(which))
