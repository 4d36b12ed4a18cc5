"""What the CPU can do at most: the GEMM's micro-kernel on operands that never leave L1."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np

import fastlayers as fl
from fastlayers.kernels.micro import STORE, gemm_tile
from fastlayers.runtime import cpu
from fastlayers.runtime.parallel import parallel_for

__all__ = ["prepare"]

ROWS = cpu.tile_rows()
DEPTH = 256
TILES = 256  # of a chunk, about 0.5 ms
CHUNKS = 8  # of a thread


@numba.njit(nogil=True, error_model="numpy")
def _chunk(i, worker, factors, width, sums):
    first = worker * ROWS * width
    none = np.empty(0, np.int64)
    a = (factors, 0, 0, 1, none, none)
    b = (factors, 0, 0, none)  # every step of k reads the same row of B
    c = (sums, first, width, none)
    for _ in range(TILES):
        gemm_tile(ROWS, 2, 1, 0, (0, 1, DEPTH), a, b, (sums, first), c, width, -np.inf, 0, STORE)


@numba.njit(nogil=True, error_model="numpy")
def _multiply(workers, factors, width, sums):
    parallel_for(_chunk, workers * CHUNKS, workers, (factors, width, sums))


def prepare(threads: int) -> tuple[Callable[[], None], int]:
    """A function of nothing but fused multiply-adds, and how many operations it does."""
    fl.set_num_threads(threads)
    width = 2 * cpu.lanes(4)
    factors = np.full(DEPTH, 0.5, np.float32)
    sums = np.zeros(threads * ROWS * width, np.float32)

    def work() -> None:
        _multiply(threads, factors, width, sums)

    work()  # compiles
    return work, 2 * ROWS * width * DEPTH * TILES * CHUNKS * threads
