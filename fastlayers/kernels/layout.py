"""Changes of memory layout, and the edges of images."""

from __future__ import annotations

from fastlayers.kernels.ir.runs import flat, no_table, transpose_block
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["inside", "square_side", "swap_axes", "swap_axes_image"]

VECTOR_BYTES = cpu.vector_bytes()


@kernel(inner=True)
def square_side(x):
    """Side of the square that `transpose_block` takes."""
    return min(16, VECTOR_BYTES // x.itemsize)


@kernel
def _swap_axes_part(n, x, shape, side, first, last, out):
    """Exchange the axes of the rows and columns of an image from `first` to `last`, pairs."""
    rows, columns = shape
    base = n * rows * columns
    for j in range(first[1], last[1], side):
        for i in range(first[0], last[0], side):
            source = (x, base + i * columns + j, columns)
            target = (out, base + j * rows + i, rows, rows - i, no_table())
            transpose_block(min(side, rows - i), min(side, columns - j), source, target)


@kernel(inner=True)
def swap_axes_image(n, worker, x, shape, side, out):
    _swap_axes_part(n, x, shape, side, (0, 0), shape, out)


@kernel
def _swap_axes_piece(task, worker, x, shape, pieces, side, out):
    rows, columns = shape
    n, piece = task // pieces, task % pieces
    # Whole squares of the longer axis.
    squares = (max(rows, columns) + side - 1) // side
    first, last = squares * piece // pieces * side, squares * (piece + 1) // pieces * side
    if rows > columns:
        _swap_axes_part(n, x, shape, side, (first, 0), (min(last, rows), columns), out)
    else:
        _swap_axes_part(n, x, shape, side, (0, first), (rows, min(last, columns)), out)


@kernel
def swap_axes(x, pieces, workers, out):
    """``out[n, j, i] = x[n, i, j]``: channels-first to channels-last memory, and back.

    Each image is cut into so many `pieces`.
    """
    arguments = (flat(x), x.shape[1:], pieces, square_side(x), flat(out))
    parallel_for(_swap_axes_piece, x.shape[0] * pieces, workers, arguments)


@kernel(inner=True)
def inside(first, dilation, cells, size):
    """Range of a window's cells for which ``0 <= first + cell * dilation < size``."""
    low = min(max(0, -(first // dilation)), cells)
    high = min(max(low, (size - first + dilation - 1) // dilation), cells)
    return low, high
