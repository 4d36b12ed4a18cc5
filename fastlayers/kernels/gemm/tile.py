"""The micro-kernel generator: a tile of a batch-reduce GEMM that keeps its sums in registers.

Emitted as LLVM IR, since a loop compiled by Numba keeps no accumulators in registers over k. One
generator serves every tile height, vector count, lane count and element type.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Table, Vectors, literals, prefetch
from fastlayers.runtime import cpu

__all__ = ["FETCH", "STORE", "STREAM", "gemm_panel", "gemm_tile"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)

# How a tile of the GEMM is written.
STORE, FETCH, STREAM = 0, 1, 2


@intrinsic(prefer_literal=True)
def gemm_tile(
    typingctx: Any,
    rows: Any,
    vectors: Any,
    part: Any,
    first: Any,
    k: Any,
    a: Any,
    b: Any,
    init: Any,
    c: Any,
    columns: Any,
    floor: Any,
    add: Any,
    write: Any,
) -> Any:
    """``c[i, j] = max(floor, init[j] + sum over r, p of a[i, r, p] * b[r, p, j])``.

    One register tile of a batch-reduce GEMM: k is cut in runs r of equal length, of which
    ``k = (first run, last run + 1, length)`` are summed. `rows`, `vectors` and `part` are literal
    integers. A vector has the CPU's full count of lanes divided by `part`; the tile is
    ``vectors * lanes`` wide, of which the first `columns` (more than ``(vectors - 1) * lanes``)
    are stored. Operands are tuples of an array, the offset of the first element, strides in
    elements (that of A along k is not 0) and tables of offsets, an empty one for zeros::

        a = (array, offset, row stride, k stride, rows' table, runs' table)
        b = (array, offset, k stride, runs' table)
        init = (array, offset)
        c = (array, offset, row stride, rows' table)

    With `add` the sums begin with `c` instead of `init`. The rows of the tile are `first` and the
    following. The columns of `b` are contiguous and can be read up to the full width; `init` and
    `c` are touched in their first `columns` only. `write` is `STORE`, `FETCH` to ask for the
    lines of `c` before the sums, or `STREAM` to write a whole tile, at aligned addresses, past the
    caches. Each sum is one chain of fused multiply-adds in the order of r and p, whatever the
    tile, so an element has the same bits in every tile shape.
    """
    sizes = (rows, vectors, part)
    known = literals(*sizes)
    if known is None:
        return None
    height, width, divisor = known

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        emit_tile(cgctx, builder, (height, width, divisor), sig.args[3:], values[3:])
        return cgctx.get_dummy_value()

    element, i8 = c.types[0].dtype, types.int64
    return types.void(*sizes, i8, k, a, b, init, c, i8, element, i8, i8), codegen


@intrinsic(prefer_literal=True)
def gemm_panel(
    typingctx: Any,
    vectors: Any,
    part: Any,
    m: Any,
    k: Any,
    a: Any,
    b: Any,
    init: Any,
    c: Any,
    columns: Any,
    floor: Any,
    add: Any,
    write: Any,
) -> Any:
    """All `m` rows of a product in tiles of `gemm_tile`, the last of which are lower.

    A function of its own in its caller's module, as three tiles are more than a call.
    """
    sizes = (vectors, part)
    known = literals(*sizes)
    if known is None:
        return None
    width, divisor = known

    def codegen(cgctx: Any, caller: Any, sig: Any, values: Any) -> Any:
        values = values[2:]
        name = caller.module.get_unique_name(f"{caller.function.name}.panel")
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in values])
        function = ir.Function(caller.module, kind, name)
        function.linkage = "internal"
        caller.call(function, values)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        rows, *operands = function.args
        first: Any = _i64(0)
        for height in (cpu.tile_rows(), 4, 1):
            count = builder.udiv(builder.sub(rows, first), _i64(height))
            with cgutils.for_range(builder, count) as loop:
                at = builder.add(first, builder.mul(loop.index, _i64(height)))
                tile = (height, width, divisor)
                emit_tile(cgctx, builder, tile, sig.args[2:], [at, *operands])
            first = builder.add(first, builder.mul(count, _i64(height)))
        builder.ret_void()
        return cgctx.get_dummy_value()

    element, i8 = c.types[0].dtype, types.int64
    return types.void(*sizes, i8, k, a, b, init, c, i8, element, i8, i8), codegen


def emit_tile(
    cgctx: Any, builder: Any, size: tuple[int, int, int], kinds: Any, values: Any
) -> None:
    """Emit a tile of ``size = (rows, vectors, part)``; `values` are `first` and those after it."""
    height, width, divisor = size
    first, runs, _, _, _, _, columns, floor, add, write = values
    zero = cgutils.alloca_once_value(builder, _i64(0))

    def operand(index: int) -> list[Any]:
        """Pointer to the first element, then strides and tables."""
        parts = cgutils.unpack_tuple(builder, values[index])
        for i, kind in enumerate(kinds[index].types):
            if isinstance(kind, types.Array):
                parts[i] = cgctx.make_array(kind)(cgctx, builder, parts[i])
        tables = [Table(builder, part, zero) for part in parts[2:] if hasattr(part, "data")]
        strides = [part for part in parts[2:] if not hasattr(part, "data")]
        return [builder.gep(parts[0].data, [parts[1]]), *strides, *tables]

    (a_ptr, a_row, a_k, a_rows, a_runs), (b_ptr, b_k, b_runs) = operand(2), operand(3)
    element = a_ptr.type.pointee
    lanes = cpu.lanes(cgctx.get_abi_sizeof(element)) // divisor
    tile = _Tile(builder, height, width, lanes, element, columns)
    pointers = tile.row_pointers(first, a_ptr, a_row, a_rows)
    targets = tile.row_pointers(first, *operand(5))
    with builder.if_then(builder.icmp_signed("==", write, _i64(FETCH))):
        tile.prefetch(targets)
    sums = tile.start(add, operand(4)[0], targets)
    runs = cgutils.unpack_tuple(builder, runs)
    sums = tile.accumulate(runs, pointers, a_k, a_runs, b_ptr, b_k, b_runs, sums)
    sums = tile.at_least(floor, sums)
    if height < cpu.tile_rows():  # the last rows of a panel go through the caches
        tile.store(targets, sums)
        return
    past = builder.icmp_signed("==", write, _i64(STREAM))
    with builder.if_else(past) as (streamed, stored):
        with streamed:
            tile.stream(targets, sums)
        with stored:
            tile.store(targets, sums)


class _Tile(Vectors):
    """Emits the instructions of one tile; its sums are a list of `rows` lists of vectors."""

    def __init__(
        self, builder: Any, rows: int, vectors: int, lanes: int, element: ir.Type, columns: Any
    ) -> None:
        super().__init__(builder, element, lanes)
        self.rows, self.vectors = rows, vectors
        self.mask = self.first_lanes(builder.sub(columns, _i64((vectors - 1) * lanes)))

    def row_pointers(self, first: Any, pointer: Any, stride: Any, table: Table) -> list[Any]:
        """Pointers to the tile's rows, of which `first` is the first.

        A branch, since 12 loads and selects of zeros would cost as much as 4 steps of k.
        """
        builder = self.builder
        start = builder.gep(pointer, [builder.mul(first, stride)])
        plain = [start]
        for _ in range(1, self.rows):
            plain.append(builder.gep(plain[-1], [stride]))
        before = builder.block
        with builder.if_then(builder.not_(table.empty)):
            entries = builder.gep(table.data, [first])
            listed = [
                builder.gep(at, [builder.load(builder.gep(entries, [_i64(i)]))])
                for i, at in enumerate(plain)
            ]
            inside = builder.block
        return [
            self._join(at, before, other, inside) for at, other in zip(plain, listed, strict=True)
        ]

    def prefetch(self, pointers: list[Any]) -> None:
        """Fetch a tile's cache lines to be written: 10 % of a 1x1 convolution of 64 channels."""
        for at in pointers:
            for v in range(self.vectors):
                line = self.builder.gep(at, [_i64(v * self.lanes)])
                prefetch(self.builder, line, write=True, level=3)

    def start(self, add: Any, init: Any, pointers: list[Any]) -> list[list[Any]]:
        """The tile as it is, or one row for all; lanes outside the mask are zero, not touched.

        A branch, since 12 times the loads of the same row would be 5 % of a tile of 64 steps.
        """
        masks = [None] * (self.vectors - 1) + [self.mask]
        with self.builder.if_else(self.builder.icmp_signed("!=", add, _i64(0))) as (old, new):
            with old:
                tile = [
                    [self.load_vector(at, v, mask) for v, mask in enumerate(masks)]
                    for at in pointers
                ]
                old_block = self.builder.block
            with new:
                row = [self.load_vector(init, v, mask) for v, mask in enumerate(masks)]
                new_block = self.builder.block
        return [
            [self._join(x, old_block, y, new_block) for x, y in zip(parts, row, strict=True)]
            for parts in tile
        ]

    def at_least(self, floor: Any, tile: list[list[Any]]) -> list[list[Any]]:
        """Raise values below `floor` to it; a NaN stays."""
        builder = self.builder
        lowest = ir.Constant(floor.type, float("-inf"))
        before = builder.block
        with builder.if_then(builder.fcmp_ordered(">", floor, lowest)):
            low = self.splat(floor)
            raised = [
                [builder.select(builder.fcmp_ordered("<", x, low), low, x) for x in parts]
                for parts in tile
            ]
            inside = builder.block
        return [
            [self._join(x, before, y, inside) for x, y in zip(*parts, strict=True)]
            for parts in zip(tile, raised, strict=True)
        ]

    def _join(self, value: Any, block: Any, other: Any, other_block: Any) -> Any:
        """The value of whichever of two blocks was run."""
        phi = self.builder.phi(value.type)
        phi.add_incoming(value, block)
        phi.add_incoming(other, other_block)
        return phi

    def store(self, pointers: list[Any], tile: list[list[Any]]) -> None:
        """Write a tile; lanes outside the mask are not touched."""
        for at, parts in zip(pointers, tile, strict=True):
            for v, part in enumerate(parts[:-1]):
                self.store_vector(part, at, v)
            self.store_vector(parts[-1], at, self.vectors - 1, self.mask)

    def stream(self, pointers: list[Any], tile: list[list[Any]]) -> None:
        """Write a whole tile past the caches."""
        for at, parts in zip(pointers, tile, strict=True):
            for v, part in enumerate(parts):
                self.stream_vector(part, at, v)

    def accumulate(
        self,
        runs: list[Any],
        a: list[Any],
        a_k: Any,
        a_runs: Table,
        b: Any,
        b_k: Any,
        b_runs: Table,
        sums: list[list[Any]],
    ) -> list[list[Any]]:
        """Emit the loops over runs and k around the multiply-adds; return the sums after them.

        The rows' pointers stay as they are and one index moves: 12 pointers, the index, the
        pointer into B and the count fit the 15 general registers of x86.
        """
        builder, (first, last, length) = self.builder, runs
        before = builder.block
        names = ("tile.run", "tile.k", "tile.next", "tile.done")
        run, loop, after, done = (builder.append_basic_block(name) for name in names)
        flat = [part for parts in sums for part in parts]
        builder.cbranch(builder.icmp_signed("<", first, last), run, done)

        builder.position_at_end(run)
        outer = [builder.phi(value.type) for value in (first, *flat)]
        offset = a_runs[outer[0]]
        heads = [builder.gep(pointer, [offset]) for pointer in a]
        end = builder.gep(heads[0], [builder.mul(a_k, length)])
        entering = [builder.gep(b, [b_runs[outer[0]]]), *heads, *outer[1:]]
        builder.branch(loop)

        builder.position_at_end(loop)
        phis = [builder.phi(value.type) for value in entering]
        b_at, pointers = phis[0], phis[1 : 1 + self.rows]
        updated = self._multiply_add(pointers, b_at, phis[1 + self.rows :])
        following = [builder.gep(b_at, [b_k]), *(builder.gep(p, [a_k]) for p in pointers)]
        builder.cbranch(builder.icmp_unsigned("!=", following[1], end), loop, after)
        for phi, old, new in zip(phis, entering, [*following, *updated], strict=True):
            phi.add_incoming(old, run)
            phi.add_incoming(new, loop)

        builder.position_at_end(after)
        following = builder.add(outer[0], _i64(1))
        builder.cbranch(builder.icmp_signed("<", following, last), run, done)
        for phi, old, new in zip(outer, (first, *flat), (following, *updated), strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, after)

        builder.position_at_end(done)
        results = [
            self._join(old, before, new, after) for old, new in zip(flat, updated, strict=True)
        ]
        return [results[i : i + self.vectors] for i in range(0, len(results), self.vectors)]

    def _multiply_add(self, pointers: list[Any], b: Any, flat: list[Any]) -> list[Any]:
        """One step of k: ``sums[i][v] += splat(a[i]) * b[v]``."""
        columns = [self.load_vector(b, v) for v in range(self.vectors)]
        updated = []
        for i, pointer in enumerate(pointers):
            scalar = self.splat(self.builder.load(pointer))
            for v, column in enumerate(columns):
                old = flat[i * self.vectors + v]
                updated.append(self.fma(scalar, column, old))
        return updated
