"""Where the library's arrays come from: every output and workspace is allocated here."""

from __future__ import annotations

from typing import Any

import numpy as np

__all__ = ["ALIGNMENT", "empty", "like", "writable_view", "zeros"]

# One AVX-512 register, and a cache line on nearly every CPU.
ALIGNMENT = 64


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Uninitialised C-contiguous array whose first element is 64-byte aligned."""
    dtype = np.dtype(dtype)
    sizes = (shape,) if isinstance(shape, int) else shape
    count = 1
    for size in sizes:
        count *= size
    padding = ALIGNMENT // dtype.itemsize
    block = np.empty(count + padding, dtype)
    skip = (-block.ctypes.data % ALIGNMENT) // dtype.itemsize
    return block[skip : skip + count].reshape(sizes)


def zeros(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """As `empty`, filled with zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def channels_last(shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """Uninitialised array of an (N, C, ...) shape whose channels are adjacent in memory."""
    n, c, *spatial = shape
    array = empty((n, *spatial, c), dtype)
    return array.transpose(0, -1, *range(1, array.ndim - 1))


class _Interface:
    """Exposes an array's memory to NumPy as writable."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def writable_view(array: np.ndarray) -> np.ndarray:
    """View of a read-only array that kernels take: they would compile anew for the flag.

    Kernels never write to their inputs.
    """
    return array if array.flags.writeable else np.asarray(_Interface(array))
