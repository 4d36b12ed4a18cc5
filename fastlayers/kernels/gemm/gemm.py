"""Matrix multiplication from packed panels and register tiles.

Every convolution and linear pass is a call of `gemm`. The loops around the micro-kernel are
numbered as in BLIS (Van Zee and van de Geijn, 2015), outermost first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from fastlayers.kernels.gemm.tile import STORE, STREAM, gemm_panel
from fastlayers.kernels.ir.runs import no_table
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.linkage import SharedKernel

__all__ = [
    "gemm",
    "gemm_batch",
    "gemm_runs",
    "packed_size",
    "panel_width",
    "prepare_gemm",
]

# Rows of B in one block: 1024 x 32 float32 are 128 KiB of L2; a tile reads them at 5 bytes a cycle,
# and its sums go to memory and back only once in 1024 steps (2 % faster than 256, which L1 holds).
BLOCK_K = 1024


@kernel(inner=True)
def panel_width(columns, lanes):
    """Columns of one packed panel: two vectors, or one or half a one for a narrow matrix."""
    if columns > lanes:
        return 2 * lanes
    if 2 * columns > lanes:
        return lanes
    return lanes // 2


@kernel(inner=True)
def packed_size(k, columns, lanes):
    """Elements of a packed `k` x `columns` matrix."""
    width = panel_width(columns, lanes)
    return (columns + width - 1) // width * width * k


@kernel(opt=1, shared=True)
def shared_gemm(m, n, k, a, b, init, c, floor, add, write, lanes, batch):
    """The body of `gemm_runs` and `gemm_batch`."""
    length = k[1]
    runs = k[0] if length else 0
    a_array, a_first, a_row, a_k, a_rows, a_runs = a
    b_array, b_first, b_panel, b_k, b_runs = b
    width = panel_width(n, lanes)
    per = max(1, BLOCK_K // max(length, 1))
    # Loop 5: products of a batch.
    for product in range(batch[0]):
        a_at, b_at = a_first + product * batch[1], b_first + product * batch[2]
        c_at = c[1] + product * batch[3]
        # Loop 4: blocks of k, so that a panel of B stays in L1. Later blocks add to C. A block is
        # several short runs or a piece of a long one.
        for run in range(0, max(runs, 1), per):
            for p in range(0, max(length, 1), BLOCK_K):
                last = run + per >= runs and p + BLOCK_K >= length
                low = floor if last else -np.inf
                block = (run, min(run + per, runs), min(BLOCK_K, length - p))
                a_p = (a_array, a_at + p * a_k, a_row, a_k, a_rows, a_runs)
                follows = add if run + p == 0 else 1
                # Loop 3: panels of B. Loops 2 and 1 are those of `gemm_panel`.
                for j in range(0, n, width):
                    b_j = (b_array, b_at + j // width * b_panel + p * b_k, b_k, b_runs)
                    init_j = (init[0], init[1] + j)
                    c_j = (c[0], c_at + j, c[2], c[3])
                    n_j = min(width, n - j)
                    how = STORE if write == STREAM and not (last and n_j == width) else write
                    if n_j > lanes:
                        gemm_panel(2, 1, m, block, a_p, b_j, init_j, c_j, n_j, low, follows, how)
                    elif 2 * n_j > lanes:
                        gemm_panel(1, 1, m, block, a_p, b_j, init_j, c_j, n_j, low, follows, how)
                    else:
                        gemm_panel(1, 2, m, block, a_p, b_j, init_j, c_j, n_j, low, follows, how)


def _signature(element: Any) -> tuple[Any, ...]:
    array, table, i8 = types.Array(element, 1, "C"), types.Array(types.int64, 1, "C"), types.int64
    a = types.Tuple((array, i8, i8, i8, table, table))
    b = types.Tuple((array, i8, i8, i8, table))
    c = types.Tuple((array, i8, i8, table))
    one = (i8, i8, types.UniTuple(i8, 2), a, b, types.Tuple((array, i8)), c, element, i8, i8, i8)
    return (*one, types.UniTuple(i8, 4))


_shared = {
    element: SharedKernel(f"fastlayers_gemm_{element}", shared_gemm, _signature(element))
    for element in (types.float32, types.float64)
}


@intrinsic
def gemm_runs(
    typingctx: Any,
    m: Any,
    n: Any,
    k: Any,
    a: Any,
    b: Any,
    init: Any,
    c: Any,
    floor: Any,
    add: Any,
    write: Any,
    lanes: Any,
) -> Any:
    """``C = max(floor, init + sum over r of A[r] @ B[r])``, on the calling thread.

    A batch-reduce GEMM with tables of offsets: convolution without an im2col matrix.
    ``k = (runs, length)``: every A[r] is (m, length), B[r] is (length, n). Element (i, p) of A[r]
    is at ``offset + i * row stride + rows[i] + runs[r] + p * k stride`` for
    ``a = (array, offset, row stride, k stride, rows, runs)``; likewise
    ``b = (array, offset, panel stride, k stride, runs)``, in panels of `panel_width` columns that
    can be read up to their full width, ``init = (array, offset)``, one row that is added to all,
    and ``c = (array, offset, row stride, rows)``. Tables are int64, empty ones stand for zeros.
    With `add`, not 0, C itself takes the place of init. A floor of minus infinity changes nothing;
    `write` is `micro.STORE`, `FETCH` or `STREAM`, for which rows of C are aligned to vectors.
    Arrays are flat, numbers count elements, `lanes` is `cpu.lanes` of the type. `prepare_gemm`
    must have run in the process.

    References
    ----------
    Georganas et al., High-Performance Deep Learning via a Single Building Block, 2019.
    """
    shared = _shared[c.types[0].dtype]

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        one = ir.Constant(ir.ArrayType(ir.IntType(64), 4), [1, 0, 0, 0])
        shared.emit_call(cgctx, builder, [*values, one])
        return cgctx.get_dummy_value()

    return types.void(*shared.args[:-1]), codegen


@intrinsic
def _gemm_batch(
    typingctx: Any,
    m: Any,
    n: Any,
    k: Any,
    a: Any,
    b: Any,
    init: Any,
    c: Any,
    floor: Any,
    add: Any,
    write: Any,
    lanes: Any,
    batch: Any,
) -> Any:
    shared = _shared[c.types[0].dtype]

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        shared.emit_call(cgctx, builder, list(values))
        return cgctx.get_dummy_value()

    return types.void(*shared.args), codegen


@kernel
def gemm_batch(count, steps, m, n, k, a, b, init, c, lanes):
    """`gemm` for `count` products, ``steps = (of a, of b, of c)`` elements from one to the next.

    A call of its own for each costs 200 cycles, and 12 x 16 x 16 are 192 multiply-adds.
    """
    none = no_table()
    a_all, b_all, c_all = (*a, none, none), (*b, none), (*c, none)
    row, add = (init[0], init[1]), int(init[2] != 0)
    batch = (count, steps[0], steps[1], steps[2])
    _gemm_batch(m, n, (1, k), a_all, b_all, row, c_all, -np.inf, add, STORE, lanes, batch)


@kernel
def gemm(m, n, k, a, b, init, c, lanes):
    """``C = init + A @ B`` with A (m, k), B (k, n) and C (m, n), on the calling thread.

    ``a = (array, offset, row stride, k stride)``;
    ``b = (array, offset, panel stride, k stride)``: panels of `panel_width` columns, readable up
    to their full width; ``c = (array, offset, row stride)``; init is C itself, or a row that is
    added to all: ``(array, offset, 0)``. Otherwise as `gemm_runs`.
    """
    none = no_table()
    a_all, b_all, c_all = (*a, none, none), (*b, none), (*c, none)
    row, add = (init[0], init[1]), int(init[2] != 0)
    gemm_runs(m, n, (1, k), a_all, b_all, row, c_all, -np.inf, add, STORE, lanes)


@intrinsic
def prepare_gemm(typingctx: Any, array: Any) -> Any:
    """Compile or load `gemm` for the type of `array`; to be called before a parallel region."""
    shared = _shared[array.dtype]

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        shared.emit_prepare(cgctx, builder)
        return cgctx.get_dummy_value()

    return types.void(array), codegen
