"""Windows of pooling: their options, checked once for a shape, and the images that they see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.layout import from_channels_last, to_channels_last

__all__ = [
    "TASK_ELEMENTS",
    "IntPair",
    "Sizes",
    "Window",
    "cached",
    "channels_last_gradient",
    "channels_last_images",
    "check_entries",
    "input_shape_of",
    "restored",
    "window",
]

IntPair = int | Sequence[int]
Sizes = tuple[int, int, int, int]
# Input elements of a task, 64 KiB in float32: both threads have work from 0.1 ms on.
TASK_ELEMENTS = 16384
# At most, of the tables of a shape; so many take some 20 s to make.
ENTRIES = 1 << 26


@dataclass(frozen=True)
class Window:
    """Checked options of a pooling window, pairs of (height, width)."""

    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]
    dilation: tuple[int, int]

    @property
    def geometry(self) -> tuple[tuple[int, int], ...]:
        """All four."""
        return self.kernel, self.stride, self.padding, self.dilation

    @property
    def cells(self) -> int:
        """Number of cells."""
        return self.kernel[0] * self.kernel[1]

    def describe(self) -> str:
        """Its size and how far apart windows are, in words."""
        (height, width), (down, across) = self.kernel, self.stride
        if self.stride == self.kernel:
            return f"{height}x{width} windows side by side"
        stride = str(down) if down == across else f"{down}x{across}"
        return f"{height}x{width} windows at stride {stride}"

    def windows(self, size: tuple[int, int], ceil_mode: bool) -> tuple[int, int]:
        """How many fit images of `size`; below 1 there is no output."""
        found = []
        for axis, given in enumerate(size):
            stride = self.stride[axis]
            extent = self.dilation[axis] * (self.kernel[axis] - 1) + 1
            room = given + 2 * self.padding[axis] - extent
            out = (room + (stride - 1 if ceil_mode else 0)) // stride + 1
            # A last window that would start after the image and its padding is left out.
            if ceil_mode and (out - 1) * stride >= given + self.padding[axis]:
                out -= 1
            found.append(out)
        return found[0], found[1]

    def out_size(self, op: str, size: tuple[int, int], ceil_mode: bool) -> tuple[int, int]:
        """Height and width of the output for images of `size`, which must have one."""
        found = self.windows(size, ceil_mode)
        if min(found) < 1:
            raise ValueError(
                f"{op}: kernel_size {self.kernel} with dilation {self.dilation} must fit "
                f"the padded input, got images of {size[0]} x {size[1]} pixels"
            )
        cells = found[0] * self.kernel[0] + found[1] * self.kernel[1]
        check_entries(op, "kernel_size", self.kernel, size[0] + size[1] + cells)
        return found


def window(op: str, kernel_size: Any, stride: Any, padding: Any, dilation: Any) -> Window:
    """Check the options; a stride of None is the kernel's size."""
    kernel = check.pair(op, "kernel_size", kernel_size, 1)
    step = kernel if stride is None else check.pair(op, "stride", stride, 1)
    pad = check.pair(op, "padding", padding, 0)
    gap = check.pair(op, "dilation", dilation, 1)
    if any(2 * p > k for p, k in zip(pad, kernel, strict=True)):
        raise ValueError(f"{op}: padding must be at most half of kernel_size {kernel}, got {pad}")
    if kernel[0] * kernel[1] >= 1 << 32:  # offsets have 32 bits
        raise ValueError(f"{op}: kernel_size must have fewer than 2**32 cells, got {kernel}")
    return Window(kernel, step, pad, gap)


def check_entries(op: str, name: str, given: tuple[int, int], entries: int) -> None:
    """Refuse to make tables of too many entries."""
    if entries > ENTRIES:
        raise MemoryError(
            f"{op}: {name} must be small enough for tables of {ENTRIES} entries, "
            f"got {given}, which takes {entries} for images of this size"
        )


def channels_last_images(op: str, input: Any) -> np.ndarray:
    """The input as an (N, H, W, C) array."""
    x = check.array(op, "input", input, (3, 4))
    if 0 in x.shape[-3:]:
        raise ValueError(f"{op}: input must have pixels and channels, got shape {x.shape}")
    return to_channels_last(x if x.ndim == 4 else x[None])


def input_shape_of(op: str, shape: Any) -> Sizes:
    """The shape (N, H, W, C) of an input of shape (N, C, H, W) or (C, H, W)."""
    sizes = check.shape(op, shape)
    if len(sizes) not in (3, 4):
        raise ValueError(f"{op}: input_shape must have 3 or 4 entries, got {sizes}")
    n, c, h, w = (1, *sizes) if len(sizes) == 3 else sizes
    return n, h, w, c


def channels_last_gradient(op: str, grad_output: Any, ndim: int) -> np.ndarray:
    """The output's gradient as an (N, OH, OW, C) array."""
    dy = check.array(op, "grad_output", grad_output, (ndim,))
    if 0 in dy.shape[-3:]:
        raise ValueError(
            f"{op}: grad_output must have pixels and channels, got {check.describe(dy)}"
        )
    return to_channels_last(dy if ndim == 4 else dy[None])


def restored(last: np.ndarray, ndim: int) -> np.ndarray:
    """PyTorch's shape of an (N, H, W, C) result, without the batch axis for 3 dimensions."""
    return from_channels_last(last) if ndim == 4 else from_channels_last(last)[0]


def cached(function: Any, *arguments: Any) -> Any:
    """What a function under `functools.lru_cache` returns, also for arguments without a hash."""
    try:
        return function(*arguments)
    except TypeError:  # a list cannot be hashed; or an error of the options, raised again
        return function.__wrapped__(*arguments)
