"""Changes of memory layout, and the edges of images."""

from __future__ import annotations

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["inside", "swap_axes"]

# A 16 x 16 tile of float32 is 16 cache lines on either side, so each is read and written once.
TILE = 16


@kernel
def _swap_axes_image(n, worker, x, out):
    _, rows, columns = x.shape
    source, target = x.reshape(x.size), out.reshape(out.size)
    base = n * rows * columns
    if (
        rows < TILE
    ):  # the few channels of a first layer: an inner loop of 3 would take 3.5x the time
        for i in range(rows):
            row, start = base + i * columns, base + i
            for j in range(columns):
                target[start + j * rows] = source[row + j]
        return
    for i0 in range(0, rows, TILE):
        for j0 in range(0, columns, TILE):
            for j in range(j0, min(j0 + TILE, columns)):
                for i in range(i0, min(i0 + TILE, rows)):
                    target[base + j * rows + i] = source[base + i * columns + j]


@kernel
def swap_axes(x, workers, out):
    """``out[n, j, i] = x[n, i, j]``: channels-first to channels-last memory, and back."""
    parallel_for(_swap_axes_image, x.shape[0], workers, (x, out))


@kernel
def inside(first, dilation, cells, size):
    """Range of a window's cells for which ``0 <= first + cell * dilation < size``."""
    low = min(max(0, -(first // dilation)), cells)
    high = min(max(low, (size - first + dilation - 1) // dilation), cells)
    return low, high
