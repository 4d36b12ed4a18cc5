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


@kernel(inner=True)
def swap_axes_image(n, worker, x, shape, side, out):
    rows, columns = shape
    base = n * rows * columns
    for j in range(0, columns, side):
        for i in range(0, rows, side):
            source = (x, base + i * columns + j, columns)
            target = (out, base + j * rows + i, rows, rows - i, no_table())
            transpose_block(min(side, rows - i), min(side, columns - j), source, target)


@kernel
def swap_axes(x, workers, out):
    """``out[n, j, i] = x[n, i, j]``: channels-first to channels-last memory, and back."""
    arguments = (flat(x), x.shape[1:], square_side(x), flat(out))
    parallel_for(swap_axes_image, x.shape[0], workers, arguments)


@kernel(inner=True)
def inside(first, dilation, cells, size):
    """Range of a window's cells for which ``0 <= first + cell * dilation < size``."""
    low = min(max(0, -(first // dilation)), cells)
    high = min(max(low, (size - first + dilation - 1) // dilation), cells)
    return low, high
