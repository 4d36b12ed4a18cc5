"""Where the library's arrays come from: every output and workspace is allocated here.

A fresh large array costs a page fault for each 4 KiB that is first written, some 0.25 us or as
much as writing those 4 KiB ten times. So large blocks go back to a free list when the last view
of them dies, and are handed out again.
"""

from __future__ import annotations

import math
from collections import deque
from typing import Any

import numpy as np

__all__ = ["ALIGNMENT", "empty", "empty_cache", "memory_stats", "writable_view", "zeros"]

# One AVX-512 register, and a cache line on nearly every CPU.
ALIGNMENT = 64
# Below this NumPy's own allocation, 0.3 us and without page faults, is the faster one.
SMALLEST_BLOCK = 32 * 1024

# Free blocks by size. A deque's append and pop need no lock, which `__del__` could find held by
# its own thread.
_free: dict[int, deque[np.ndarray]] = {}


def _block_size(nbytes: int) -> int:
    """Size of the block for `nbytes`: a power of two or one of seven steps up to the next."""
    step = 1 << max(nbytes.bit_length() - 4, 6)
    return -(-nbytes // step) * step


class _Loan:
    """Owner of a block while arrays see it; NumPy keeps it alive as the base of every view."""

    __slots__ = ("__array_interface__", "_block")

    def __init__(self, block: np.ndarray, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._block = block
        address = block.__array_interface__["data"][0]
        self.__array_interface__ = {
            "version": 3,
            "shape": shape,
            "typestr": dtype.str,
            "data": (address + -address % ALIGNMENT, False),
        }

    def __del__(self) -> None:
        if _free is None:  # the interpreter is ending
            return
        blocks = _free.get(self._block.nbytes)
        if blocks is not None:
            blocks.append(self._block)


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Uninitialised C-contiguous array; a large one is 64-byte aligned."""
    dtype = np.dtype(dtype)
    nbytes = (shape if isinstance(shape, int) else math.prod(shape)) * dtype.itemsize
    if nbytes < SMALLEST_BLOCK:
        return np.empty(shape, dtype)
    sizes = (shape,) if isinstance(shape, int) else shape
    size = _block_size(nbytes + ALIGNMENT)
    blocks = _free.setdefault(size, deque())
    try:
        block = blocks.pop()
    except IndexError:
        block = _new_block(size)
    return np.asarray(_Loan(block, sizes, dtype))


def _new_block(size: int) -> np.ndarray:
    try:
        return np.empty(size, np.uint8)
    except MemoryError:
        empty_cache()  # what other sizes keep may be what is missing
        return np.empty(size, np.uint8)


def zeros(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """As `empty`, filled with zeros."""
    array = empty(shape, dtype)
    array.fill(0)
    return array


def empty_cache() -> None:
    """Give all free blocks back to the system."""
    for blocks in list(_free.values()):
        blocks.clear()


def memory_stats() -> dict[str, int]:
    """Number and bytes of the free blocks that are kept for reuse."""
    kept = {size: len(blocks) for size, blocks in list(_free.items())}
    return {
        "free_blocks": sum(kept.values()),
        "free_bytes": sum(size * count for size, count in kept.items()),
    }


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
