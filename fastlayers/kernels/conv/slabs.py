"""Images in slabs: in place, or copied with the padding to memory that stays in L2."""

from __future__ import annotations

from typing import NamedTuple

from fastlayers.kernels.ir.runs import clear_run, copy_run
from fastlayers.kernels.layout import inside
from fastlayers.runtime.cache import kernel

__all__ = ["ImageSize", "Slab", "Slabs", "open_slab", "slab_at"]


class ImageSize(NamedTuple):
    """Of images."""

    height: int
    width: int
    channels: int


class Slabs(NamedTuple):
    """The cut of images into slabs: each is some images, or a band of output rows of one.

    The slab with output row i begins at input row ``i * row_step + top``; a slab of one output row
    reads `reach` input rows. With 0 `elements` it is read in place.
    """

    images: int
    images_each: int
    bands: int
    rows: int  # of the output, or of one phase of it
    rows_each: int
    row_step: int
    top: int
    reach: int
    left: int
    columns: int
    elements: int


class Slab(NamedTuple):
    """One of them."""

    image: int
    images: int
    row: int
    rows: int


@kernel(inner=True)
def slab_at(number, slabs):
    """Which images and output rows a slab is of."""
    image, row = number // slabs.bands * slabs.images_each, number % slabs.bands * slabs.rows_each
    images = min(slabs.images_each, slabs.images - image)
    return Slab(image, images, row, min(slabs.rows_each, slabs.rows - row))


@kernel
def _copy_slab(source, size, slab, slabs, out, at):
    """Copy a slab's rows and columns of the images, with zeros outside of them."""
    channels = size.channels
    top = slab.row * slabs.row_step + slabs.top
    rows = (slab.rows - 1) * slabs.row_step + slabs.reach
    low, high = inside(slabs.left, 1, slabs.columns, size.width)
    for image in range(slab.image, slab.image + slab.images):
        for y in range(top, top + rows):
            if y < 0 or y >= size.height:
                clear_run(out, at, slabs.columns * channels)
            else:
                cell = ((image * size.height + y) * size.width + slabs.left) * channels
                clear_run(out, at, low * channels)
                run = (high - low) * channels
                copy_run(out, at + low * channels, source, cell + low * channels, run)
                clear_run(out, at + high * channels, (slabs.columns - high) * channels)
            at += slabs.columns * channels


@kernel(inner=True)
def open_slab(slab, at, x, size, slabs, work):
    """The memory that a slab's offsets refer to, and its first element: `at` where it is copied."""
    if slabs.elements == 0:  # nothing is padded: in place
        row = slab.image * size.height + slab.row * slabs.row_step + slabs.top
        return x, (row * size.width + slabs.left) * size.channels
    _copy_slab(x, size, slab, slabs, work, at)
    return work, at
