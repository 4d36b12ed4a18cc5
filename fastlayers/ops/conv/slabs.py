"""How images are cut into slabs, and the offsets by which kernels read them.

All of it follows from shapes and options, is made once for a shape and kept. A convolution is
described as a gather: an output pixel is a sum over taps, of which each reads an input pixel at a
fixed distance. The input gradient is a gather too: for a stride of (s, t) the input's
pixels fall into s * t phases, each of which has some of the kernel's taps, at a stride of 1.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.kernels import conv as kernels
from fastlayers.runtime import cpu

__all__ = [
    "LEAST_PIXELS",
    "SLAB_PIXELS",
    "SLAB_WORK",
    "Axis",
    "Cut",
    "Phase",
    "Shape",
    "backward_axis",
    "forward_axis",
]

Shape = tuple[tuple[int, int, int, int], int]

# Pixels of a slab, as a panel of the weight, read from L3, should serve many: at most 192, and at
# least 96 even if they do not fit an L2. With 49, 512 x 7 x 7 takes 1.06 times as long, with 28 1.2
# times, and 4x512x14x14 1.05; from 96 on all of nine layers are within 3 %, however large a slab.
SLAB_PIXELS, LEAST_PIXELS = 192, 96
# Vector multiply-adds of a slab below which taking it costs more than 1 % (0.3 us).
SLAB_WORK = 32768


@dataclass(frozen=True)
class Phase:
    """Output pixels of one axis that have the same taps: ``start, start + step, ...``."""

    start: int
    count: int
    taps: tuple[int, ...]  # indices in the kernel, by the input's position
    offsets: tuple[int, ...]  # their input positions, from that of the output pixel


@dataclass(frozen=True)
class Axis:
    """One axis of a gather: output pixel i of a phase reads input ``i * stride + offset``."""

    size: int  # of the input
    out_size: int
    stride: int  # of the input
    step: int  # of the output: number of phases
    phases: tuple[Phase, ...]

    @functools.cached_property
    def first(self) -> int:
        """Lowest input position that output pixel 0 reads."""
        return min((p.offsets[0] for p in self.phases if p.taps), default=0)

    @functools.cached_property
    def reach(self) -> int:
        """Input positions that one pixel's taps span."""
        last = max((p.offsets[-1] for p in self.phases if p.taps), default=0)
        return last - self.first + 1

    @property
    def count(self) -> int:
        """Output pixels of the largest phase."""
        return max(p.count for p in self.phases)

    def extent(self, count: int) -> int:
        """Input positions that `count` successive output pixels read."""
        return (count - 1) * self.stride + self.reach if count else 0

    @property
    def inside(self) -> bool:
        """Whether nothing outside of the input is read."""
        return self.first >= 0 and self.first + self.extent(self.count) <= self.size


def forward_axis(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> Axis:
    """The axis of a convolution."""
    offsets = tuple(r * dilation - pad for r in range(kernel))
    return Axis(size, out, stride, 1, (Phase(0, out, tuple(range(kernel)), offsets),))


def backward_axis(size: int, out: int, kernel: int, stride: int, pad: int, dilation: int) -> Axis:
    """The axis of the input gradient: from `out` gradients to `size` pixels."""
    phases = []
    for start in range(min(stride, size)):
        taps = [r for r in reversed(range(kernel)) if (start + pad - r * dilation) % stride == 0]
        offsets = tuple((start + pad - r * dilation) // stride for r in taps)
        phases.append(Phase(start, -(-(size - start) // stride), tuple(taps), offsets))
    return Axis(out, size, 1, stride, tuple(phases))


@dataclass(frozen=True)
class Cut:
    """The cut of images into slabs, each of a few whole images or of a band of rows of one."""

    images: int
    channels: int
    rows: Axis
    columns: Axis
    copied: bool  # into memory with the zeros around, or read in place
    per: int  # images
    band: int  # output rows, of each phase

    @classmethod
    def cut(
        cls,
        shape: Shape,
        rows: Axis,
        columns: Axis,
        least: int,
        copied: bool,
        nbytes: int | None = None,
    ) -> Cut:
        """Slabs of about `least` output pixels and at most `nbytes`, where these are 96 pixels.

        The shape is (N, H, W, C), itemsize.
        """
        (images, _, _, channels), itemsize = shape
        across, down = max(1, columns.count), max(1, rows.count)
        line = max(1, columns.extent(columns.count) * channels * itemsize)
        few = min(least, LEAST_PIXELS)
        fits = (cpu.slab_bytes() if nbytes is None else nbytes) // line  # input rows
        fits = max(fits, rows.extent(min(down, -(-few // across))))
        whole = max(1, rows.extent(down))
        per = max(-(-few // (across * down)), min(fits // whole, -(-least // (across * down))))
        per = max(1, min(per, images))
        band = min((fits - rows.reach) // rows.stride + 1, -(-least // across), down)
        band = down if per > 1 else -(-down // -(-down // max(1, band)))  # of even size
        return cls(images, channels, rows, columns, copied, per, band)

    @functools.cached_property
    def bands(self) -> int:
        """Bands of an image."""
        return -(-max(1, self.rows.count) // self.band)

    @functools.cached_property
    def count(self) -> int:
        """Slabs."""
        return -(-self.images // self.per) * self.bands

    @functools.cached_property
    def pitch(self) -> int:
        """Pixels from one input row to the next."""
        return self.columns.extent(self.columns.count) if self.copied else self.columns.size

    @functools.cached_property
    def image(self) -> int:
        """Elements from one image to the next."""
        height = self.rows.extent(self.band) if self.copied else self.rows.size
        return height * self.pitch * self.channels

    @functools.cached_property
    def elements(self) -> int:
        """Elements of a slab, with what the last panel of a row reads beyond it; 0 in place."""
        return self.per * self.image + 2 * cpu.lanes(4) if self.copied else 0

    @property
    def facts(self) -> Any:
        """What kernels know of them."""
        rows, columns = self.rows, self.columns
        return kernels.slabs.Slabs(
            self.images,
            self.per,
            self.bands,
            rows.count,
            self.band,
            rows.stride,
            rows.first,
            rows.reach,
            columns.first,
            columns.extent(columns.count),
            self.elements,
        )

    def starts(self, rows: int, columns: int) -> np.ndarray:
        """Offsets (image, row, column) of the pixels' first inputs in a slab."""
        image = np.arange(self.per) * self.image
        row = np.arange(rows) * (self.rows.stride * self.pitch * self.channels)
        column = np.arange(columns) * (self.columns.stride * self.channels)
        return image[:, None, None] + row[:, None] + column

    def runs(self, rows: Phase, columns: Phase, depth: int) -> tuple[np.ndarray, int]:
        """Offsets of a pixel's runs of contiguous inputs, and the length of each."""
        row = np.array(rows.offsets, np.int64) - self.rows.first
        column = np.array(columns.offsets, np.int64) - self.columns.first
        length = depth
        if depth == self.channels and np.all(np.diff(column) == 1):
            length, column = depth * len(column), column[:1]
        return ((row[:, None] * self.pitch + column) * self.channels).ravel(), length
