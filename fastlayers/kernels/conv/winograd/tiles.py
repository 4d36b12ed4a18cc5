"""Runs of Winograd's tiles: their places in images, their matrices, and their transforms.

The stride is 1, and there are at least a vector's lanes of channels on either side. A convolution
of dilation d is d independent ones of every d-th row or column: a tile's pixels are d apart, and
tiles of the d phases begin side by side. A `geometry` is ``(size, out size, padding, dilation,
tiles)`` of an image, each for rows and columns; a padding may be negative. Tiles are numbered
through (N, tile row, tile column).
Points of the transform are numbered xi < (m + 2)^2; matrices of all xi lie one after the other,
each with one cache line behind it, since 36 streams at a multiple of 4 KiB would share the eight
lines of one set of L1.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic

from fastlayers.kernels.conv.winograd.transform import (
    transform_input,
    transform_output,
    untransform_output,
)
from fastlayers.kernels.gemm.gemm import panel_width
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.linkage import SharedKernel

__all__ = [
    "TRANSFORM_TILES",
    "matrix_stride",
    "patch_size",
    "prepare_gradients",
    "prepare_inputs",
    "prepare_outputs",
    "row_length",
    "transform_gradients",
    "transform_inputs",
    "transform_outputs",
    "transform_task",
]

# Tiles of a task that only transforms.
TRANSFORM_TILES = 8


@kernel(inner=True)
def row_length(channels, lanes):
    """Elements from one tile to the next in a transformed matrix: whole panels.

    Rows of a multiple of 1 KiB, of which a panel's 12 would share few sets of L1, get a vector
    more.
    """
    width = panel_width(channels, lanes)
    row = (channels + width - 1) // width * width
    return row + lanes if row % (16 * lanes) == 0 else row


@kernel
def matrix_stride(step, channels, lanes):
    """Elements from one xi to the next in a transformed block of `step` tiles."""
    return step * row_length(channels, lanes) + lanes


@kernel
def patch_size(tile, channels, filters):
    """Elements of a copy of a tile's pixels."""
    return (tile + 2) * (tile + 2) * max(channels, filters)


@kernel
def _first_tile(first, geometry):
    """Image, tile row and tile column of a tile."""
    down, across = geometry[4]
    n, rest = divmod(first, down * across)
    i, j = divmod(rest, across)
    return n, i, j


@kernel
def _start(index, tile, dilation):
    """First row of a row of tiles, or first column."""
    if dilation == 1:
        return index * tile
    return index + index // dilation * dilation * (tile - 1)


@kernel
def _corner(tile, i, j, dilation):
    """First row and column of a tile."""
    return _start(i, tile, dilation[0]), _start(j, tile, dilation[1])


@kernel
def _next_tile(n, i, j, geometry):
    """The tile at column j of tiles, or if there are not so many the first of the next row."""
    down, across = geometry[4]
    if j < across:
        return n, i, j
    if i + 1 < down:
        return n, i + 1, 0
    return n + 1, 0, 0


@kernel
def _run(tile, j, column, width, edge, count, geometry):
    """Tiles to be transformed together: those of a row that are whole but for `edge` columns."""
    fit = (width - column - edge) // tile
    if geometry[3][1] != 1 or fit < 1 or column + edge < 0:
        return 1
    return min(count, geometry[4][1] - j, fit)


@kernel
def inputs(tile, x, channels, geometry, first, count, zeros, patch, patch_at, v, v_at, v_row, v_xi):
    """The body of `transform_inputs`."""
    (height, width), _, padding, dilation, _ = geometry
    n, i, j = _first_tile(first, geometry)
    image = (height, width, channels, *dilation)
    t = 0
    while t < count:
        row, column = _corner(tile, i, j, dilation)
        corner = (n * height * width * channels, row - padding[0], column - padding[1])
        at, run = v_at + t * v_row, _run(tile, j, corner[2], width, 1, count - t, geometry)
        if tile == 4:
            transform_input(4, x, corner, image, zeros, patch, patch_at, v, at, v_xi, v_row, run)
        else:
            transform_input(2, x, corner, image, zeros, patch, patch_at, v, at, v_xi, v_row, run)
        t += run
        n, i, j = _next_tile(n, i, j + run, geometry)


@kernel
def outputs(
    tile,
    p,
    p_at,
    p_row,
    p_xi,
    bias,
    floor,
    y,
    filters,
    begin,
    columns,
    geometry,
    first,
    count,
    patch,
    stream,
):
    """The body of `transform_outputs`."""
    _, (height, width), _, dilation, _ = geometry
    n, i, j = _first_tile(first, geometry)
    image = (height, width, filters, *dilation)
    t = 0
    while t < count:
        corner = (n * height * width * filters + begin, *_corner(tile, i, j, dilation))
        run = 1
        if corner[1] + (tile - 1) * dilation[0] < height:
            run = _run(tile, j, corner[2], width, 0, count - t, geometry)
        added, at = (bias, begin, floor), p_at + t * p_row
        if tile == 4:
            transform_output(
                4, p, at, p_xi, added, y, corner, image, columns, p, patch, p_row, run, stream
            )
        else:
            transform_output(
                2, p, at, p_xi, added, y, corner, image, columns, p, patch, p_row, run, stream
            )
        t += run
        n, i, j = _next_tile(n, i, j + run, geometry)


@kernel
def gradients(
    tile, dy, filters, geometry, first, count, zeros, patch, patch_at, w, w_at, w_row, w_xi
):
    """The body of `transform_gradients`."""
    _, (height, width), _, dilation, _ = geometry
    n, i, j = _first_tile(first, geometry)
    image = (height, width, filters, *dilation)
    t = 0
    while t < count:
        corner = (n * height * width * filters, *_corner(tile, i, j, dilation))
        at, run = w_at + t * w_row, _run(tile, j, corner[2], width, 0, count - t, geometry)
        if tile == 4:
            untransform_output(
                4, dy, corner, image, zeros, patch, patch_at, w, at, w_xi, w_row, run
            )
        else:
            untransform_output(
                2, dy, corner, image, zeros, patch, patch_at, w, at, w_xi, w_row, run
            )
        t += run
        n, i, j = _next_tile(n, i, j + run, geometry)


_geometry = types.UniTuple(types.UniTuple(types.int64, 2), 5)


def _share(function: Any, kinds: str) -> dict[Any, SharedKernel]:
    """Kernels by address for arrays (a), elements (e), integers (i) and a geometry (g)."""
    shared = {}
    for element in (types.float32, types.float64):
        array = types.Array(element, 1, "C")
        by_kind = {"a": array, "e": element, "i": types.int64, "g": _geometry}
        args = tuple(by_kind[kind] for kind in kinds)
        shared[element] = SharedKernel(
            f"fastlayers_winograd_{function.__name__}_{element}", function, args
        )
    return shared


# Each is called once in a block of tiles, from several tasks: compiled into each of them, all
# kernels take 11.2 s to compile instead of 8.8.
_shared_inputs = _share(inputs, "iaigiiaaiaiii")
_shared_outputs = _share(outputs, "iaiiiaeaiiigiiii")
_shared_gradients = _share(gradients, "iaigiiaaiaiii")


def _call(shared: SharedKernel) -> Any:
    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        shared.emit_call(cgctx, builder, list(values))
        return cgctx.get_dummy_value()

    return types.void(*shared.args), codegen


def _prepare(shared: SharedKernel, array: Any) -> Any:
    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        shared.emit_prepare(cgctx, builder)
        return cgctx.get_dummy_value()

    return types.void(array), codegen


@intrinsic
def transform_inputs(
    typingctx: Any,
    tile: Any,
    x: Any,
    channels: Any,
    geometry: Any,
    first: Any,
    count: Any,
    zeros: Any,
    patch: Any,
    patch_at: Any,
    v: Any,
    v_at: Any,
    v_row: Any,
    v_xi: Any,
) -> Any:
    """Input transform of tiles ``[first, first + count)`` to rows of `v`.

    `zeros` and `patch` are those of `transform.transform_input`.
    """
    return _call(_shared_inputs[x.dtype])


@intrinsic
def transform_outputs(
    typingctx: Any,
    tile: Any,
    p: Any,
    p_at: Any,
    p_row: Any,
    p_xi: Any,
    bias: Any,
    floor: Any,
    y: Any,
    filters: Any,
    begin: Any,
    columns: Any,
    geometry: Any,
    first: Any,
    count: Any,
    patch: Any,
    stream: Any,
) -> Any:
    """Output transform of tiles ``[first, first + count)`` from rows of `p`.

    p holds `columns` of the filters, from `begin`, and has room for a tile of them at `patch`;
    `stream` is that of `transform.transform_output`.
    """
    return _call(_shared_outputs[p.dtype])


@intrinsic
def transform_gradients(
    typingctx: Any,
    tile: Any,
    dy: Any,
    filters: Any,
    geometry: Any,
    first: Any,
    count: Any,
    zeros: Any,
    patch: Any,
    patch_at: Any,
    w: Any,
    w_at: Any,
    w_row: Any,
    w_xi: Any,
) -> Any:
    """Adjoint of `transform_outputs`, from dy to rows of `w`."""
    return _call(_shared_gradients[dy.dtype])


@intrinsic
def prepare_inputs(typingctx: Any, array: Any) -> Any:
    """Compile or load `transform_inputs`, as `prepare_gemm` does for `gemm`."""
    return _prepare(_shared_inputs[array.dtype], array)


@intrinsic
def prepare_outputs(typingctx: Any, array: Any) -> Any:
    """Compile or load `transform_outputs`, as `prepare_gemm` does for `gemm`."""
    return _prepare(_shared_outputs[array.dtype], array)


@intrinsic
def prepare_gradients(typingctx: Any, array: Any) -> Any:
    """Compile or load `transform_gradients`, as `prepare_gemm` does for `gemm`."""
    return _prepare(_shared_gradients[array.dtype], array)


@kernel(inner=True)
def transform_task(
    task, worker, tile, x, dy, sizes, geometry, tiles, lanes, zeros, work, share, v, w
):
    """Transform a few tiles of x, and of dy if it is not empty, to the matrices of all tiles.

    `work` has `share` elements for each worker: room for a patch.
    """
    channels, filters = sizes
    first = task * TRANSFORM_TILES
    count = min(TRANSFORM_TILES, tiles - first)
    patch = worker * share
    row, xi = row_length(channels, lanes), matrix_stride(tiles, channels, lanes)
    at = first * row
    transform_inputs(tile, x, channels, geometry, first, count, zeros, work, patch, v, at, row, xi)
    if dy.size > 0:
        row, xi = row_length(filters, lanes), matrix_stride(tiles, filters, lanes)
        at = first * row
        transform_gradients(
            tile, dy, filters, geometry, first, count, zeros, work, patch, w, at, row, xi
        )
