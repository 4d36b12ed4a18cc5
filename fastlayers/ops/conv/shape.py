"""What a convolution's shapes and options are, checked against each other."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from fastlayers.ops import check

__all__ = ["ConvShape", "conv_shape"]

Pair = tuple[int, int]


@dataclass(frozen=True, eq=False)
class ConvShape:
    """Sizes and options of a call; one object for all such calls, by which plans are kept."""

    images: tuple[int, int, int, int]  # N, H, W, C
    weight: tuple[int, int, int, int]  # M, C/G, R, S
    groups: int
    kernel: Pair
    stride: Pair
    padding: Pair  # before the first row and column
    given_padding: Pair | str  # as the caller gave it, such as "same"
    dilation: Pair
    out_size: Pair
    itemsize: int

    @property
    def channels(self) -> int:
        """Of the input."""
        return self.images[3]

    @property
    def out_channels(self) -> int:
        """Of the output."""
        return self.weight[0]

    @functools.cached_property
    def out_shape(self) -> tuple[int, int, int, int]:
        """The output's, (N, M, OH, OW)."""
        return (self.images[0], self.weight[0], *self.out_size)

    @functools.cached_property
    def pixels(self) -> int:
        """Of all images of the output."""
        return self.images[0] * self.out_size[0] * self.out_size[1]

    @functools.cached_property
    def fewest(self) -> tuple[int, int, int]:
        """Terms, not counting padding, of the shortest sums of output, input and weight gradient.

        0 where an output sees padding alone, for example.
        """
        counts = [self.weight[1], self.weight[0] // self.groups, self.images[0]]
        for axis, out in enumerate(self.out_size):
            size, kernel = self.images[1 + axis], self.kernel[axis]
            step, start = self.stride[axis], -self.padding[axis]
            taps = np.arange(kernel) * self.dilation[axis]
            places = np.arange(start, start + out * step, step)[:, None] + taps
            inside = (places >= 0) & (places < size)
            reached = np.bincount(places[inside], minlength=size)
            for i, found in enumerate((inside.sum(1), reached, inside.sum(0))):
                counts[i] *= int(found.min(initial=out * kernel))
        return counts[0], counts[1], counts[2]

    @functools.cached_property
    def geometry(self) -> tuple[Pair, Pair, Pair, Pair, Pair]:
        """All of the window, as kernels take it."""
        return (self.kernel, self.stride, self.padding, self.dilation, self.out_size)


@functools.lru_cache(maxsize=256)
def conv_shape(
    op: str,
    images: tuple[int, int, int, int],
    weight: tuple[int, int, int, int],
    stride: tuple[int, int],
    padding: tuple[int, int] | str,
    dilation: tuple[int, int],
    groups: int,
    itemsize: int,
) -> ConvShape:
    """Check shapes against each other and derive the output's; images are (N, C, H, W)."""
    n, channels, *size = images
    m, depth, *kernel = weight
    if min(weight) < 1:
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
    before, out, padded = [], [], []
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
        padded.append(size[axis] + total)
        out.append((padded[axis] - extent) // stride[axis] + 1)
    if n and 0 in size:
        raise ValueError(f"{op}: input must have pixels, got shape {images}")
    check.possible(op, "the padded input", (channels, *padded), itemsize)
    check.possible(op, "the output", (n, m, *out), itemsize)
    return ConvShape(
        (n, size[0], size[1], channels),
        weight,
        groups,
        (kernel[0], kernel[1]),
        stride,
        (before[0], before[1]),
        padding,
        dilation,
        (out[0], out[1]),
        itemsize,
    )
