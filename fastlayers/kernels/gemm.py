"""Matrix multiplication from packed panels and register tiles.

Every convolution and linear pass is a call of `gemm`. The loops around the micro-kernel are
numbered as in BLIS (Van Zee and van de Geijn, 2015), outermost first.
"""

from __future__ import annotations

from typing import Any

from numba import types
from numba.extending import intrinsic, overload

from fastlayers.kernels.micro import gemm_tile
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.linkage import SharedKernel

__all__ = ["gemm", "pack", "packed_size", "panel_width", "prepare_gemm"]

ROWS = cpu.tile_rows()
# Rows of B in one block: 256 x 32 float32 are 32 KiB, what the smallest L1 of the field holds.
BLOCK_K = 256


@kernel
def panel_width(columns, lanes):
    """Columns of one packed panel: two vectors, or one or half a one for a narrow matrix."""
    if columns > lanes:
        return 2 * lanes
    if 2 * columns > lanes:
        return lanes
    return lanes // 2


@kernel
def packed_size(k, columns, lanes):
    """Elements of a packed `k` x `columns` matrix."""
    width = panel_width(columns, lanes)
    return (columns + width - 1) // width * width * k


@kernel
def pack_panel(panel, source, k, columns, lanes, packed, packed_at):
    """Copy one panel of a matrix to ``[k][width]``, padded with zeros to the width.

    `source` is ``(array, offset, k stride, column stride)`` in elements.
    """
    array, at, k_stride, column_stride = source
    width = panel_width(columns, lanes)
    first = panel * width
    valid = min(width, columns - first)
    for p in range(k):
        row = packed_at + first * k + p * width
        start = at + p * k_stride + first * column_stride
        for j in range(valid):
            packed[row + j] = array[start + j * column_stride]
        for j in range(valid, width):
            packed[row + j] = 0


@kernel
def pack(source, k, columns, lanes, packed, packed_at):
    """Copy a matrix into panels ``[panel][k][width]``; see `pack_panel`."""
    width = panel_width(columns, lanes)
    for panel in range((columns + width - 1) // width):
        pack_panel(panel, source, k, columns, lanes, packed, packed_at)


def _panel(vectors: int, part: int, m: int, k: int, a: Any, b: Any, init: Any, c: Any, n: int):
    """Multiply all rows of A by one panel of B: loops 2 and 1 of `gemm`."""
    raise NotImplementedError("compiled code only")


@overload(_panel, prefer_literal=True, jit_options={"fastmath": {"contract"}})
def _panel_overload(vectors, part, m, k, a, b, init, c, n):
    width, fraction = vectors.literal_value, part.literal_value

    def panel(vectors, part, m, k, a, b, init, c, n):
        a_array, a_at, a_row, a_k = a
        init_array, init_at, init_row = init
        c_array, c_at, c_row = c
        i = 0
        # Loop 2: tiles of rows; the last ones are lower, and no element sees the difference.
        while i < m:
            a_i = (a_array, a_at + i * a_row, a_row, a_k)
            init_i = (init_array, init_at + i * init_row, init_row)
            c_i = (c_array, c_at + i * c_row, c_row)
            if m - i >= ROWS:  # Loop 1 is the k-loop inside the tile.
                gemm_tile(ROWS, width, fraction, k, a_i, b, init_i, c_i, n)
                i += ROWS
            elif m - i >= 4:
                gemm_tile(4, width, fraction, k, a_i, b, init_i, c_i, n)
                i += 4
            else:
                gemm_tile(1, width, fraction, k, a_i, b, init_i, c_i, n)
                i += 1

    return panel


@kernel
def _gemm(m, n, k, a, b, init, c, lanes):
    """The body of `gemm`."""
    a_array, a_at, a_row, a_k = a
    b_array, b_at, b_panel, b_k = b
    width = panel_width(n, lanes)
    # Loop 4: blocks of k, so that a panel of B stays in L1. Later blocks add to C.
    for p in range(0, max(k, 1), BLOCK_K):
        depth = min(BLOCK_K, k - p)
        a_p = (a_array, a_at + p * a_k, a_row, a_k)
        start = init if p == 0 else c
        # Loop 3: panels of B.
        for j in range(0, n, width):
            panel = (b_array, b_at + j // width * b_panel + p * b_k, b_k)
            init_j = (start[0], start[1] + j, start[2])
            c_j = (c[0], c[1] + j, c[2])
            columns = min(width, n - j)
            if columns > lanes:
                _panel(2, 1, m, depth, a_p, panel, init_j, c_j, columns)
            elif 2 * columns > lanes:
                _panel(1, 1, m, depth, a_p, panel, init_j, c_j, columns)
            else:
                _panel(1, 2, m, depth, a_p, panel, init_j, c_j, columns)


def _signature(element: Any) -> tuple[Any, ...]:
    array, i8 = types.Array(element, 1, "C"), types.int64
    strides = [types.Tuple((array, *(i8,) * count)) for count in (3, 3, 2, 2)]
    return (i8, i8, i8, *strides, i8)


_shared = {
    element: SharedKernel(f"fastlayers_gemm_{element}", _gemm, _signature(element))
    for element in (types.float32, types.float64)
}


@intrinsic
def gemm(
    typingctx: Any, m: Any, n: Any, k: Any, a: Any, b: Any, init: Any, c: Any, lanes: Any
) -> Any:
    """``C = init + A @ B`` with A (m, k), B (k, n) and C (m, n), on the calling thread.

    ``a = (array, offset, row stride, k stride)``;
    ``b = (array, offset, panel stride, k stride)``: panels of `panel_width` columns, readable up
    to their full width; ``init = (array, offset, row stride)``, stride 0 for a bias;
    ``c = (array, offset, row stride)``. Arrays are flat, numbers count elements, `lanes` is
    `cpu.lanes` of the type. `prepare_gemm` must have run in the process.
    """
    shared = _shared[c.types[0].dtype]

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        shared.emit_call(cgctx, builder, list(values))
        return cgctx.get_dummy_value()

    return types.void(*shared.args), codegen


@intrinsic
def prepare_gemm(typingctx: Any, array: Any) -> Any:
    """Compile or load `gemm` for the type of `array`; to be called before a parallel region."""
    shared = _shared[array.dtype]

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        shared.emit_prepare(cgctx, builder)
        return cgctx.get_dummy_value()

    return types.void(array), codegen
