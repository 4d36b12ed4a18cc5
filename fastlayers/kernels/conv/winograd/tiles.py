"""Runs of Winograd's tiles: their places in images, their matrices, and their transforms.

Fourth of the folder's files: walks over all tiles of a block or of the images, of which `transform`
does one run after the other. The stride is 1, and there are at least a vector's lanes of channels
on either side. A convolution of dilation d is d independent ones of every d-th row or column: a
tile's pixels are d apart, and tiles of the d phases begin side by side. Tiles are numbered through
(N, tile row, tile column).
Points of the transform are numbered xi < (m + 2)^2; matrices of all xi lie one after the other,
each with one cache line behind it, since 36 streams at a multiple of 4 KiB would share the eight
lines of one set of L1.
"""

from __future__ import annotations

from typing import NamedTuple

from fastlayers.kernels.conv.winograd.pixels import Square
from fastlayers.kernels.conv.winograd.transform import (
    Output,
    Transformed,
    transform_input,
    transform_output,
    untransform_output,
)
from fastlayers.kernels.gemm.gemm import panel_width
from fastlayers.kernels.ir.named import Elements
from fastlayers.kernels.ir.shared import shared_kernel
from fastlayers.runtime.cache import kernel

__all__ = [
    "TRANSFORM_TILES",
    "Tiles",
    "is_shared",
    "matrix_stride",
    "patch_elements",
    "points",
    "prepare_gradients",
    "prepare_inputs",
    "prepare_outputs",
    "row_length",
    "share_size",
    "transform_gradients",
    "transform_inputs",
    "transform_outputs",
    "transform_task",
]

# Tiles of a task that only transforms.
TRANSFORM_TILES = 8


class Tiles(NamedTuple):
    """The images and the window of a pass, and how its output is cut into tiles."""

    tile: int  # outputs on a side: 4 or 2
    channels: int  # of x
    filters: int  # of y
    height: int
    width: int
    out_height: int
    out_width: int
    top: int  # padding; the input gradient's may be negative
    left: int
    down: int  # dilation
    across: int
    rows: int  # of tiles in an image
    columns: int
    total: int  # of all images
    lanes: int


@kernel(inner=True)
def points(tiles):
    """Points of a tile's transform."""
    return (tiles.tile + 2) * (tiles.tile + 2)


@kernel(inner=True)
def row_length(channels, lanes):
    """Elements from one tile to the next in a transformed matrix: whole panels.

    Rows of a multiple of 1 KiB, of which a panel's 12 would share few sets of L1, get a vector
    more.
    """
    width = panel_width(channels, lanes)
    row = (channels + width - 1) // width * width
    return row + lanes if row % (16 * lanes) == 0 else row


@kernel(inner=True)
def matrix_stride(step, channels, lanes):
    """Elements from one xi to the next in a transformed block of `step` tiles."""
    return step * row_length(channels, lanes) + lanes


@kernel(inner=True)
def is_shared(blocks, workers):
    """Whether workers share blocks, instead of taking one each.

    Transformed inputs then go from one core to another, and there are two parallel regions for as
    many blocks as there are workers. So they do where half of their time would be lost otherwise:
    by `benchmarks.compare.regions`, 8 blocks on 16 threads grow 10.6 times instead of 7.4, and 50
    blocks 7.1 times instead of 9.6.
    """
    rounds = (blocks + workers - 1) // workers
    return workers > 2 and 2 * blocks <= rounds * workers


@kernel(inner=True)
def share_size(blocks, workers):
    """Blocks that are shared at a time: each has its place in the buffer of one worker."""
    rounds = (blocks + workers - 1) // workers
    return (blocks + rounds - 1) // rounds


def patch_elements(tiles: Tiles) -> int:
    """Elements of a copy of a tile's pixels."""
    return (tiles.tile + 2) ** 2 * max(tiles.channels, tiles.filters)


@kernel
def _first_tile(first, tiles):
    """Image, tile row and tile column of a tile."""
    n, rest = divmod(first, tiles.rows * tiles.columns)
    i, j = divmod(rest, tiles.columns)
    return n, i, j


@kernel
def _start(index, tile, dilation):
    """First row of a row of tiles, or first column."""
    if dilation == 1:
        return index * tile
    return index + index // dilation * dilation * (tile - 1)


@kernel
def _corner(i, j, tiles):
    """First row and column of a tile of outputs."""
    return _start(i, tiles.tile, tiles.down), _start(j, tiles.tile, tiles.across)


@kernel
def _next_tile(n, i, j, tiles):
    """The tile at column j of tiles, or if there are not so many the first of the next row."""
    if j < tiles.columns:
        return n, i, j
    if i + 1 < tiles.rows:
        return n, i + 1, 0
    return n + 1, 0, 0


@kernel
def _run(tiles, j, column, width, edge, count):
    """Tiles to be transformed together: those of a row that are whole but for `edge` columns."""
    fit = (width - column - edge) // tiles.tile
    if tiles.across != 1 or fit < 1 or column + edge < 0:
        return 1
    return min(count, tiles.columns - j, fit)


# Each of the three is called once in a block of tiles, from several tasks: compiled into each of
# them, all kernels take 11.2 s to compile instead of 8.8.
@shared_kernel
def transform_inputs(
    tiles: Tiles,
    x: Elements,
    first: int,
    count: int,
    zeros: Elements,
    patch: Elements,
    patch_at: int,
    v: Transformed,
) -> None:
    """Input transform of tiles ``[first, first + count)`` to rows of v.

    `zeros` and `patch` are those of `transform.transform_input`.
    """
    height, width, channels = tiles.height, tiles.width, tiles.channels
    n, i, j = _first_tile(first, tiles)
    t = 0
    while t < count:
        row, column = _corner(i, j, tiles)
        row, column, image = row - tiles.top, column - tiles.left, n * height * width * channels
        square = Square(image, row, column, height, width, channels, tiles.down, tiles.across)
        out = Transformed(v.array, v.at + t * v.row, v.row, v.point)
        run = _run(tiles, j, column, width, 1, count - t)
        if tiles.tile == 4:
            transform_input(4, x, square, zeros, patch, patch_at, out, run)
        else:
            transform_input(2, x, square, zeros, patch, patch_at, out, run)
        t += run
        n, i, j = _next_tile(n, i, j + run, tiles)


@shared_kernel
def transform_outputs(
    tiles: Tiles,
    p: Transformed,
    out: Output,
    begin: int,
    columns: int,
    first: int,
    count: int,
    patch_at: int,
) -> None:
    """Output transform of tiles ``[first, first + count)`` from rows of p.

    p holds `columns` of the filters, from `begin`, and has room for a tile of them at `patch_at`.
    """
    height, width, filters = tiles.out_height, tiles.out_width, tiles.filters
    n, i, j = _first_tile(first, tiles)
    t = 0
    while t < count:
        row, column = _corner(i, j, tiles)
        image = n * height * width * filters + begin
        square = Square(image, row, column, height, width, filters, tiles.down, tiles.across)
        products = Transformed(p.array, p.at + t * p.row, p.row, p.point)
        run = 1
        if row + (tiles.tile - 1) * tiles.down < height:
            run = _run(tiles, j, column, width, 0, count - t)
        if tiles.tile == 4:
            transform_output(4, products, out, (begin, columns), square, patch_at, run)
        else:
            transform_output(2, products, out, (begin, columns), square, patch_at, run)
        t += run
        n, i, j = _next_tile(n, i, j + run, tiles)


@shared_kernel
def transform_gradients(
    tiles: Tiles,
    dy: Elements,
    first: int,
    count: int,
    zeros: Elements,
    patch: Elements,
    patch_at: int,
    w: Transformed,
) -> None:
    """Adjoint of `transform_outputs`, from dy to rows of w."""
    height, width, filters = tiles.out_height, tiles.out_width, tiles.filters
    n, i, j = _first_tile(first, tiles)
    t = 0
    while t < count:
        row, column = _corner(i, j, tiles)
        image = n * height * width * filters
        square = Square(image, row, column, height, width, filters, tiles.down, tiles.across)
        out = Transformed(w.array, w.at + t * w.row, w.row, w.point)
        run = _run(tiles, j, column, width, 0, count - t)
        if tiles.tile == 4:
            untransform_output(4, dy, square, zeros, patch, patch_at, out, run)
        else:
            untransform_output(2, dy, square, zeros, patch, patch_at, out, run)
        t += run
        n, i, j = _next_tile(n, i, j + run, tiles)


prepare_inputs = transform_inputs.prepare
prepare_outputs = transform_outputs.prepare
prepare_gradients = transform_gradients.prepare


@kernel(inner=True)
def transform_task(task, worker, x, tiles, zeros, work, share, v):
    """Transform a few tiles of x to their rows of v, the matrices of all tiles.

    `work` has `share` elements for each worker: room for a patch.
    """
    first = task * TRANSFORM_TILES
    count = min(TRANSFORM_TILES, tiles.total - first)
    out = Transformed(v.array, v.at + first * v.row, v.row, v.point)
    transform_inputs(tiles, x, first, count, zeros, work, worker * share, out)
