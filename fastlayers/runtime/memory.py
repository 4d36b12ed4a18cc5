"""The library's arrays: every output and work array is allocated here.

A new large array costs a page fault for each 4 KiB that is first written, about 0.25 us, or as much
as writing those 4 KiB ten times. So a large array is lent from a pool: its block goes back to a
list of free ones when the last view of it dies, and is reused.

There are eight block sizes per power of two. A request takes the block of its size that was freed
last, or one of up to twice the size. So a training step with the same requests as the step before
finds all of its blocks free. If sizes change, the blocks unused for the longest time go back to the
system (`_trim`).
"""

from __future__ import annotations

import contextlib
import functools
import math
import mmap
import os
import sys
import threading
import weakref
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

__all__ = [
    "ALIGNMENT",
    "empty",
    "empty_cache",
    "largest",
    "memory_stats",
    "scratch",
    "writable_view",
    "zeros",
]

# One AVX-512 register, and a cache line on nearly every CPU.
ALIGNMENT = 64
# Below this NumPy's own allocation, 0.2 us and without page faults, is faster.
SMALLEST_BLOCK = 32 * 1024
# Memory that is kept in any case.
KEPT = 64 << 20
# Bytes of a `scratch`; larger ones are lent by the pool.
SCRATCH = 8 << 20
# On x86-64, and on most of ARM, a page of the second level, which saves 511 of 512 faults.
HUGE_PAGE = 2 << 20


# Looked up once: each access to a module costs 20 ns of the 0.7 us of `empty`.
_dtype, _ndarray, _numpy_empty, _prod = np.dtype, np.ndarray, np.empty, math.prod
_references = sys.getrefcount


class _Block(mmap.mmap):
    """Memory from the system; arrays begin at `offset`, on a huge page if there is one."""

    __slots__ = ("home", "offset")

    home: _Free
    offset: int


class _Free(deque[_Block]):
    """Free blocks of one size, in the order in which they were freed.

    A deque's append and pop need no lock; `_Loan.__del__` could find a lock held by the thread that
    it interrupts, or by one that was stopped at interpreter exit.
    """

    __slots__ = ("blocks", "last_use", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.blocks = 0  # that exist, lent or free
        self.last_use = 0  # number of the last block made before it


class _Pool:
    """Counts of the whole pool, changed only when a block is made or dropped."""

    __slots__ = ("made", "peak", "used")

    def __init__(self) -> None:
        self.made = 0  # blocks, ever
        self.peak = 0  # bytes of all blocks at a time
        self.used = 0  # bytes lent at a time, as seen when a block was made


_pool = _Pool()
_frees: dict[int, _Free] = {}  # by size of the block
_frees_of: dict[int, _Free] = {}  # by bytes of the array


class _Loan(np.ndarray):
    """Owner of a lent block: the base of the array that is handed out, and so of all its views.

    NumPy shortens a chain of bases only within the view's own class.
    """

    __slots__ = ()

    def __del__(self) -> None:
        # By attributes alone: at interpreter exit there may be no globals.
        block = self.base
        try:
            home = block.home  # type: ignore[union-attr]
        except AttributeError:  # a copy, or a view obtained by slicing `array.base`
            return
        home.append(block)


class _NewLoan(_Loan):
    """Owner of a block that nobody had before: zeros, in pages that nobody has touched."""

    __slots__ = ()


def empty(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """Uninitialised C-contiguous array; a large one is 64-byte aligned."""
    if not isinstance(dtype, _dtype):
        dtype = _dtype(dtype)
    nbytes = (shape if isinstance(shape, int) else _prod(shape)) * dtype.itemsize
    if nbytes < SMALLEST_BLOCK:
        return _numpy_empty(shape, dtype)
    try:
        free = _frees_of[nbytes]
    except KeyError:
        free = _free_of(nbytes)
    kind = _Loan
    try:
        block = free.pop()
    except IndexError:
        found = _larger_block(free.size)
        if found is None:
            found, kind = _new_block(free, nbytes), _NewLoan
        block = found
    free.last_use = _pool.made
    return kind(shape, dtype, block, block.offset).view(_ndarray)


def _free_of(nbytes: int) -> _Free:
    """The list of blocks for `nbytes`: a power of two, or one of seven sizes up to the next."""
    step = 1 << max(nbytes.bit_length() - 4, 12)
    size = -(-nbytes // step) * step
    if len(_frees_of) >= 4096:
        _frees_of.clear()
    free = _frees_of[nbytes] = _frees.setdefault(size, _Free(size))
    return free


def _larger_block(size: int) -> _Block | None:
    """The smallest free block of up to twice the size.

    Work arrays and activations of a step are not all needed at the same time: VGG-16 takes 2.2 GB
    with this, 2.4 GB without.
    """
    for free in sorted(_frees.values(), key=lambda free: free.size):
        if size < free.size <= 2 * size:
            with contextlib.suppress(IndexError):
                return free.pop()
    return None


def _new_block(free: _Free, nbytes: int) -> _Block:
    """A block for an array of `nbytes`, after checking how much is kept."""
    used = _total(lambda f: f.blocks - len(f)) + free.size
    _pool.used = max(_pool.used, used)
    _trim(max(_pool.used, KEPT))
    try:
        block = _map(free.size, nbytes)
    except (OSError, OverflowError):
        empty_cache()  # other sizes may keep the memory that is missing
        try:
            block = _map(free.size, nbytes)
        except (OSError, OverflowError) as error:
            raise MemoryError(f"no memory for an array of {nbytes} bytes: {error}") from None
    block.home = free
    free.blocks += 1
    _pool.made += 1
    _pool.peak = max(_pool.peak, _total(lambda f: f.blocks))
    return block


def _total(count: Callable[[_Free], int]) -> int:
    """Bytes of a number of blocks of each size."""
    return sum(count(free) * free.size for free in list(_frees.values()))


def _map(size: int, nbytes: int) -> _Block:
    """New memory, in huge pages as far as `nbytes` fill them."""
    huge = nbytes // HUGE_PAGE * HUGE_PAGE if hasattr(mmap, "MADV_HUGEPAGE") else 0
    length = size + HUGE_PAGE if huge else size  # of addresses; what is not touched takes no memory
    if sys.platform == "win32":
        block = _Block(-1, length)
    else:  # private: a forked child writes to a copy
        block = _Block(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.offset = 0
    if huge:
        address = np.frombuffer(block, np.uint8).__array_interface__["data"][0]
        block.offset = -address % HUGE_PAGE
        with contextlib.suppress(OSError):  # a kernel without them
            block.madvise(mmap.MADV_HUGEPAGE, block.offset, huge)
    return block


def _trim(limit: int) -> None:
    """Free the sizes unused for the longest time until at most `limit` bytes are kept.

    With the peak of memory in use as the limit, fixed shapes never reach it, since their free
    blocks were part of the peak; constantly changing shapes take at most twice what they need.
    """
    frees = sorted(_frees.values(), key=lambda free: free.last_use)
    kept = sum(len(free) * free.size for free in frees)
    for free in frees:
        while kept > limit and _drop(free):
            kept -= free.size


def _drop(free: _Free) -> bool:
    """Return the block that was free the longest to the system, if there is one."""
    try:
        free.popleft()
    except IndexError:
        return False
    free.blocks -= 1
    return True


@functools.cache
def largest() -> int:
    """Bytes that no array on this machine can have: four times its memory, including swap space."""
    try:
        return 4 * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, OSError, ValueError):  # Windows
        return 1 << 47  # of addresses


def zeros(shape: int | tuple[int, ...], dtype: Any) -> np.ndarray:
    """As `empty`, filled with zeros.

    Memory that is new from the system is left alone: the threads that use it touch its pages first,
    and on a machine with several sockets get them in their own memory.
    """
    array = empty(shape, dtype)
    if type(array.base) is not _NewLoan:
        array.fill(0)
    return array


class _Arena:
    """A thread's memory for `scratch`: the arrays handed out so far, and under None their block.

    `last` is never the empty tuple, which is one object for all.
    """

    __slots__ = ("__weakref__", "arrays", "last")

    def __init__(self) -> None:
        self.arrays: dict[Any, Any] = {}
        self.last: tuple[np.ndarray, ...] = ()
        self.clear()
        _arenas[self] = None

    def holders(self) -> int:
        """References to the arrays that were handed out last, and to their tuple."""
        last = self.last
        return sum(map(_references, last)) + _references(last)

    def clear(self) -> None:
        """Drop the memory. In this order: what is alive must not be found in `arrays` again.

        Another thread may ask for it, in `empty_cache`. If this one has taken new memory after the
        first line, that is what may be alive; no thread comes between the last two.
        """
        last, idle = self.last, (np.empty(0),)
        self.arrays.clear()
        if self.last is last:
            self.arrays[()] = self.last = idle


class _Local(threading.local):
    def __init__(self) -> None:
        self.arena = _Arena()


def _holders_when_idle() -> list[int]:
    """`_Arena.holders` of so many arrays without other references; Python 3.14 counts fewer."""
    counts, arena = [], _Arena()
    for n in range(1, 17):
        arena.arrays[n] = arena.last = tuple([np.empty(1) for _ in range(n)])
        counts.append(arena.holders())
    return [0, *counts]


# Not a WeakSet, which must not be iterated while another thread starts.
_arenas: weakref.WeakKeyDictionary[_Arena, None] = weakref.WeakKeyDictionary()
_local = _Local()
_IDLE = _holders_when_idle()


def scratch(counts: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, ...]:
    """Flat uninitialised arrays with these numbers of elements, for the duration of one call.

    The arrays are 64-byte aligned. The thread's next `scratch` reuses the memory, unless these
    arrays or views of them are still alive: then it takes its arrays from the pool, as it does for
    more than 8 MiB. Three arrays cost 0.5 us, and 1.5 to 2 us with `empty`.
    """
    arena = _local.arena
    last = arena.last
    if sum(map(_references, last)) + _references(last) != _IDLE[len(last)]:  # `holders`
        return tuple([empty(count, dtype) for count in counts])
    try:
        arena.last = arrays = arena.arrays[counts, dtype]
    except KeyError:
        return _new_scratch(arena, counts, np.dtype(dtype))
    return arrays  # type: ignore[no-any-return]


def _new_scratch(arena: _Arena, counts: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, ...]:
    ends = [0]
    for count in counts:
        ends.append(ends[-1] - -count * dtype.itemsize // ALIGNMENT * ALIGNMENT)
    if not 0 < len(counts) < len(_IDLE) or ends[-1] > SCRATCH:
        return tuple([empty(count, dtype) for count in counts])
    block = arena.arrays.get(None)
    if block is None or block.size < ends[-1] or len(arena.arrays) > 1000:
        arena.clear()
        # Not the array, since NumPy would look through it from a view of one of the arrays.
        block = arena.arrays[None] = empty(max(ends[-1], SMALLEST_BLOCK), np.uint8).base
    arrays = tuple([np.ndarray(n, dtype, block, at) for n, at in zip(counts, ends, strict=False)])
    arena.arrays[counts, dtype] = arena.last = arrays
    return arrays


def empty_cache() -> None:
    """Return all free blocks to the system, and those of `scratch`."""
    for reference in _arenas.keyrefs():
        if (arena := reference()) is not None:
            arena.clear()
    for free in list(_frees.values()):
        while _drop(free):
            pass


def memory_stats() -> dict[str, int]:
    """Blocks of the pool, and their bytes.

    Returns
    -------
    dict
        ``used_blocks`` and ``used_bytes`` in use by arrays, ``free_blocks`` and ``free_bytes`` kept
        for reuse, ``peak_bytes``, the peak of their sum, and ``new_blocks``, the number taken from
        the system so far. Arrays below 32 KiB are NumPy's and not counted.
    """
    return {
        "used_blocks": sum(free.blocks - len(free) for free in list(_frees.values())),
        "used_bytes": _total(lambda free: free.blocks - len(free)),
        "free_blocks": sum(len(free) for free in list(_frees.values())),
        "free_bytes": _total(len),
        "peak_bytes": _pool.peak,
        "new_blocks": _pool.made,
    }


class _Interface:
    """Exposes an array's memory to NumPy as writable."""

    def __init__(self, array: np.ndarray) -> None:
        self._array = array
        interface = array.__array_interface__
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}


def writable_view(array: np.ndarray) -> np.ndarray:
    """Writable view of a read-only array: kernels would be compiled again for the flag.

    Kernels never write to their inputs.
    """
    return array if array.flags.writeable else np.asarray(_Interface(array))
