"""The limits of this machine: multiply-adds per second in registers, bytes per second in copies.

Measured with kernels, on a given number of threads, and kept for the process.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable

import numpy as np

from fastlayers.runtime import cpu, memory
from fastlayers.runtime.threads import SERIAL_WORK

__all__ = ["copy_rate", "copy_size", "multiply_adds", "peak"]

# Repetitions and seconds, of which the fastest counts: the machine's best, not a busy moment's.
ROUNDS, SECONDS = 5, 0.1
# Bytes that a measured copy reads and writes: at least and at most. Smaller ones mostly measure the
# call, and larger ones are no slower than this.
LEAST, MOST = 1 << 16, 1 << 28
_peaks: dict[tuple[int, np.dtype], float] = {}


def multiply_adds(
    threads: int, dtype: type | np.dtype = np.float32
) -> tuple[Callable[[], None], int]:
    """A function of nothing but fused multiply-adds in registers, and how many operations it does.

    A multiply-add is two operations; a call takes about a millisecond.
    """
    from fastlayers.kernels import speed  # loads Numba

    width = 2 * cpu.lanes(np.dtype(dtype).itemsize)
    factors = np.full(max(speed.DEPTH, width), 0.5, dtype)
    none = np.empty(0, np.int64)
    sums = np.zeros(threads * speed.ROWS * width, dtype)
    count = 2 * speed.ROWS * width * speed.DEPTH * speed.TILES * speed.CHUNKS * threads
    return lambda: speed.multiply_adds(threads, factors, none, width, sums), count


def peak(threads: int, dtype: type | np.dtype = np.float32) -> float:
    """Floating point operations per second of fused multiply-adds in registers.

    A later call measures again, for a millisecond, and returns the best so far: on a busy machine
    most calls wait for a thread that has lost its core.
    """
    work, operations = multiply_adds(threads, dtype)
    key = threads, np.dtype(dtype)
    if key not in _peaks:
        _peaks[key] = operations / _fastest(work)
    begin = time.perf_counter()
    work()
    _peaks[key] = max(_peaks[key], operations / (time.perf_counter() - begin))
    return _peaks[key]


def copy_size(nbytes: int) -> int:
    """Bytes of the copy to compare with: the next power of two, from 64 KiB to 256 MiB."""
    return min(max(1 << (max(nbytes, 1) - 1).bit_length(), LEAST), MOST)


@functools.cache
def copy_rate(nbytes: int, threads: int) -> float:
    """Bytes per second, read and written, of a copy that moves so many, half of them each way.

    Within the caches this is several times the rate in memory. Small copies run on one thread, as
    ops of that size do.
    """
    from fastlayers.kernels import speed

    source, out = (memory.empty(nbytes // 8, np.float32) for _ in range(2))
    source.fill(1)  # of pages that nobody has touched, all reads are of one
    workers = 1 if out.size < SERIAL_WORK else threads
    return nbytes / _fastest(lambda: speed.copy(source, workers, out))


def _fastest(work: Callable[[], None]) -> float:
    """Seconds of the fastest of several calls, after two that compile and warm up."""
    times: list[float] = []
    end = time.perf_counter() + SECONDS
    while len(times) < ROUNDS + 2 or time.perf_counter() < end:
        begin = time.perf_counter()
        work()
        times.append(time.perf_counter() - begin)
    return min(times[2:])
