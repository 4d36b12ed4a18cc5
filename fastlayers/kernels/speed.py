"""What the CPU can do at most: multiply-adds on operands that never leave L1, and plain copies."""

from __future__ import annotations

from fastlayers.kernels.gemm.operands import PLAIN, Bias, Block, Left, Right, Target
from fastlayers.kernels.gemm.tile import gemm_tile
from fastlayers.kernels.ir.runs import copy_run
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["copy", "multiply_adds"]

ROWS = cpu.tile_rows()
DEPTH = 256
TILES = 64  # of a chunk, about 0.1 ms
CHUNKS = 8  # of a thread
# Elements of a copy that a thread takes at a time.
SPAN = 16384


@kernel
def _multiply_adds_chunk(i, worker, factors, none, width, sums):
    first = worker * ROWS * width
    block, a = Block(0, width, 0, 1, DEPTH), Left(factors, 0, 0, 1, none, none)
    b = Right(factors, 0, 0, 0, none)  # every step of k reads the same row of B
    bias, c = Bias(sums, first), Target(sums, first, width, none)
    for _ in range(TILES):
        gemm_tile((ROWS, 2, 1), block, a, b, bias, c, PLAIN)


@kernel
def multiply_adds(workers, factors, none, width, sums):
    """Do ``workers * CHUNKS * TILES * ROWS * width * DEPTH`` fused multiply-adds.

    `factors` has `DEPTH` elements and at least `width`, which is two vectors; `none` is an empty
    table of offsets, and `sums` has ``workers * ROWS * width`` elements.
    """
    parallel_for(_multiply_adds_chunk, workers * CHUNKS, workers, (factors, none, width, sums))


@kernel
def _copy_chunk(chunk, worker, source, out):
    first = chunk * SPAN
    copy_run(out, first, source, first, min(SPAN, out.size - first))


@kernel
def copy(source, workers, out):
    """``out[...] = source``, both flat and of the same length."""
    parallel_for(_copy_chunk, (out.size + SPAN - 1) // SPAN, workers, (source, out))
