"""Images that are copied, one at a time, to memory that stays in L1 or L2, with their padding."""

from __future__ import annotations

from typing import NamedTuple

from fastlayers.kernels.ir.runs import clear_run, copy_run, view
from fastlayers.runtime.cache import kernel

__all__ = ["Images", "load_image", "load_planes"]


class Images(NamedTuple):
    """Images, and the memory of one of them with zeros around it."""

    height: int
    width: int
    channels: int
    top: int  # zeros before the first row and column
    left: int
    rows: int  # with all zeros
    pitch: int  # pixels of such a row
    elements: int  # of an image, or more


@kernel(inner=True)
def load_image(x, n, channels_first, images, out, at):
    """Copy image n, of either memory layout, to channels-last memory with zeros around it."""
    height, width, channels = images.height, images.width, images.channels
    rows, pitch = images.rows, images.pitch
    if rows > height or pitch > width:
        clear_run(out, at, rows * pitch * channels)
    lines, length = (height, width) if pitch > width else (1, height * width)
    for line in range(lines):
        target = at + ((images.top + line) * pitch + images.left) * channels
        if not channels_first:
            source = (n * height * width + line * length) * channels
            copy_run(out, target, x, source, length * channels)
            continue
        for c in range(channels):
            plane = view(x, (n * channels + c) * height * width + line * length, length)
            for j in range(length):
                out[target + j * channels + c] = plane[j]


@kernel(inner=True)
def load_planes(x, n, channels_first, images, out, at):
    """Copy image n, of either memory layout, to channels-first memory with zeros around it."""
    height, width, channels = images.height, images.width, images.channels
    rows, pitch = images.rows, images.pitch
    if rows > height or pitch > width:
        clear_run(out, at, channels * rows * pitch)
    lines, length = (height, width) if pitch > width else (1, height * width)
    for line in range(lines):
        source = (n * height * width + line * length) * channels
        target = at + (images.top + line) * pitch + images.left
        if channels_first:
            for c in range(channels):
                cell = (n * channels + c) * height * width + line * length
                copy_run(out, target + c * rows * pitch, x, cell, length)
            continue
        for c in range(channels):
            plane = view(out, target + c * rows * pitch, length)
            for j in range(length):
                plane[j] = x[source + j * channels + c]
