"""Convolution to few output channels: plan and allocations of `kernels.planar`.

`ops.conv.pooled` runs it with the max pooling that follows.
"""

from __future__ import annotations

import functools

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.kernels import gemm
from fastlayers.ops.conv.algorithm import Algorithm, Pass
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.layout import kernel_ready, to_channels_last
from fastlayers.runtime import cpu, memory, threads
from fastlayers.runtime.facts import plain

__all__ = ["Planar", "Planes", "forward", "planes", "raw_images"]

# Outputs of a band, of all channels, which stay in L1 beside the inputs.
BAND_BYTES = 16 * 1024
# Of the input: an image, which stays in L2, and the rows of it that a row of the output reads.
IMAGE_BYTES = 256 * 1024
ROWS_BYTES = 24 * 1024
_NO_CELLS = np.empty(0, np.uint8)


class Planes:
    """How a convolution at a stride of 1 is cut into bands, pooled by 2 or by 1."""

    def __init__(self, shape: ConvShape, pooled: int) -> None:
        n, height, width, c = shape.images
        m, _, kh, kw = shape.weight
        (oh, ow), (down, across) = shape.out_size, shape.dilation
        oh, ow = oh // pooled * pooled, ow // pooled * pooled
        top, left = shape.padding
        lanes = cpu.lanes(shape.itemsize)
        tile = kernels.planar.VECTORS * lanes
        rows = max(height + top, shape.out_size[0] + (kh - 1) * down)
        pitch = max(width + left, shape.out_size[1] + (kw - 1) * across)

        def waste(step: int) -> float:
            return float(-(-step * pitch // tile) * tile / (step * ow))

        most = max(pooled, min(oh, BAND_BYTES // (m * pitch * shape.itemsize)))
        step = min(range(pooled, most + 1, pooled), key=waste)
        padded = -(-m // kernels.planar.ROWS) * kernels.planar.ROWS
        plane = -(-step * pitch // tile) * tile
        beyond = (kh - 1) * down * pitch + (kw - 1) * across + tile
        image = c * rows * pitch + beyond
        per_worker = image + padded * plane + 2 * lanes
        k = c * kh * kw
        runs = np.add.outer(np.arange(c) * (rows * pitch), np.arange(kh) * (down * pitch))
        tables = (np.minimum(np.arange(padded), m - 1) * k, np.arange(c * kh) * kw, runs.ravel())
        facts = kernels.planar.Facts(
            kernels.planar.Images(height, width, c, top, left, rows, pitch, image),
            n,
            oh,
            ow,
            m,
            pooled,
            step,
            plane,
            per_worker,
            kw,
            across,
            *(table.astype(np.int64) for table in tables),
        )
        self.facts, self.pooled, self.worker_elements = plain(facts), pooled, per_worker
        self.out_shape = (n, oh // pooled, ow // pooled, m)
        self.work = 2 * n * oh * ow * k * m / lanes  # loads and multiply-adds
        # Rates as measured: half a vector of channels 0.6, a vector 0.9 of the peak, pixels 0.85.
        panel = gemm.gemm.panel_width(m, lanes)
        channels = m / (-(-m // panel) * panel) * (0.6 if panel < lanes else 0.9)
        self.serves = (
            (shape.groups, shape.stride) == (1, (1, 1))
            and image * shape.itemsize <= IMAGE_BYTES
            and c * kh * pitch * shape.itemsize <= ROWS_BYTES
            and 0.85 * m / padded / waste(step) > channels
        )


class Planar(Algorithm):
    """Convolution to few output channels, whose lanes are pixels."""

    name = "planar"
    any_layout = True

    @classmethod
    def serves(cls, shape: ConvShape, which: Pass) -> bool:
        """Forward, where lanes over pixels are better filled than those over channels."""
        return which is Pass.FORWARD and planes(shape, 1) is not None

    def describe(self, which: Pass) -> str:
        """Its name and the output channels."""
        return f"planar, {self.shape.out_channels} output channels"

    @functools.cached_property
    def _planes(self) -> Planes:
        return Planes(self.shape, 1)

    def forward(
        self, x: np.ndarray, weight: np.ndarray, bias: np.ndarray, relu: bool
    ) -> np.ndarray:
        """Output (N, OH, OW, M)."""
        return forward(x, weight, bias, self._planes, relu)[0]


@functools.lru_cache(maxsize=256)
def planes(shape: ConvShape, pooled: int) -> Planes | None:
    """Plan of a convolution, where lanes over pixels are better filled than those over channels."""
    if min(shape.out_size) < pooled or shape.out_channels > 4 * cpu.lanes(shape.itemsize):
        return None
    plan = Planes(shape, pooled)
    return plan if plan.serves else None


def raw_images(x: np.ndarray) -> tuple[np.ndarray, int]:
    """Flat memory of images (N, C, H, W), and whether it is channels-first."""
    if x.flags.c_contiguous and x.shape[1] > 1:
        return kernel_ready(x).reshape(-1), 1
    return to_channels_last(x).reshape(-1), 0


def forward(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, plan: Planes, relu: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Outputs (N, OH, OW, M) of images (N, C, H, W), and the cells of what was pooled."""
    dtype, workers = x.dtype, threads.workers_for(plan.work)
    flat, channels_first = raw_images(x)
    y = memory.empty(plan.out_shape, dtype)
    cells = memory.empty(plan.out_shape, np.uint8) if plan.pooled == 2 else _NO_CELLS
    (work,) = memory.scratch((workers * plan.worker_elements,), dtype)
    call = (channels_first, dtype.type(0.0 if relu else -np.inf), workers)
    out, out_cells = y.reshape(-1), cells.reshape(-1)
    kernels.planar.conv2d_planar(
        flat, weight.reshape(-1), bias, plan.facts, call, work, out, out_cells
    )
    return y, cells
