"""Memory layouts: channels-first shapes on channels-last memory.

Arrays have PyTorch's shapes (N, C, ...). Kernels see C-contiguous (N, ..., C) memory, which is
what every op returns, as a transposed view; other layouts are converted once, at the door.
"""

from __future__ import annotations

import functools

import numpy as np

from fastlayers import kernels
from fastlayers.ops.cuts import LEAST_BYTES, MOST_CHUNKS, chunks
from fastlayers.runtime import memory, threads

__all__ = [
    "FIRST",
    "LAST",
    "contiguous",
    "from_channels_last",
    "kernel_ready",
    "like",
    "ordered",
    "raveled",
    "swapped",
    "to_channels_last",
]

# Orders of axes that put the channels last, and back, by the number of axes (NumPy has 64 at most).
LAST = [(0, *range(2, ndim), 1) for ndim in range(65)]
FIRST = [(0, ndim - 1, *range(1, ndim - 1)) for ndim in range(65)]


def kernel_ready(x: np.ndarray) -> np.ndarray:
    """C-contiguous, aligned and of a writable type, copying only where it must."""
    if x.flags.carray:
        return x
    if not (x.flags.c_contiguous and x.flags.aligned):
        x = np.require(x, requirements=("C", "A"))
    return memory.writable_view(x)


@functools.lru_cache(1024)
def _pieces(number: int, nbytes: int) -> int:
    """Pieces of each of a number of images of so many bytes."""
    return chunks(2 * nbytes, LEAST_BYTES, max(1, MOST_CHUNKS // max(number, 1)))


def swapped(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Exchange the last two axes of a contiguous (N, A, B) array, giving it the final `shape`."""
    n, rows, columns = x.shape
    out, pieces = memory.empty((n, columns, rows), x.dtype), _pieces(n, rows * columns * x.itemsize)
    kernels.layout.swap_axes(x, pieces, threads.workers_for(x.size), out)
    return out.reshape(shape)


def to_channels_last(x: np.ndarray) -> np.ndarray:
    """The C-contiguous (N, ..., C) array of an (N, C, ...) one; a view where that is its memory."""
    last = x.transpose(LAST[x.ndim])
    flags = last.flags
    if flags.carray:  # all that `kernel_ready` asks for
        return last
    if flags.c_contiguous or not x.flags.c_contiguous:
        return kernel_ready(last)
    n, c, *spatial = x.shape
    size = x.size // (n * c) if n * c else 0
    return swapped((x if x.flags.carray else kernel_ready(x)).reshape(n, c, size), (n, *spatial, c))


def from_channels_last(last: np.ndarray) -> np.ndarray:
    """The (N, C, ...) view of an (N, ..., C) array."""
    return last.transpose(FIRST[last.ndim])


def contiguous(x: np.ndarray) -> np.ndarray:
    """`x` in C order; channels-last images are transposed by a kernel."""
    if x.flags.c_contiguous or x.ndim < 3:
        return np.ascontiguousarray(x)
    last = x.transpose(LAST[x.ndim])
    if not last.flags.c_contiguous or x.dtype.char not in "fd" or not x.dtype.isnative:
        return np.ascontiguousarray(x)
    n, c = x.shape[:2]
    size = x.size // (n * c) if n * c else 0
    return swapped(kernel_ready(last).reshape(n, size, c), x.shape)


def raveled(x: np.ndarray) -> np.ndarray:
    """Flat array of the elements in `like`'s order: the array's own where it is dense."""
    return (to_channels_last(x) if x.ndim > 2 else kernel_ready(x)).reshape(-1)


def ordered(x: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An uninitialised array of a shape, with its axes in memory in the order of those of `x`.

    From the pool, as page faults of new memory took 0.4 s of a step of DenseNet-121 at batch 32.
    """
    if x.flags.c_contiguous:
        return memory.empty(shape, dtype)
    order = sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]))
    inverse = sorted(range(x.ndim), key=order.__getitem__)
    return memory.empty(tuple(shape[axis] for axis in order), dtype).transpose(inverse)


def like(x: np.ndarray, dtype: np.dtype | type | None = None) -> tuple[np.ndarray, np.ndarray]:
    """An uninitialised array of the shape of `x`, and its memory as a flat array."""
    shape, dtype = x.shape, x.dtype if dtype is None else dtype
    if len(shape) < 3:
        out = memory.empty(shape, dtype)
        return out, out.reshape(-1)
    last = memory.empty((shape[0], *shape[2:], shape[1]), dtype)
    return from_channels_last(last), last.reshape(-1)
