"""The micro-kernel generator: a tile of a batch-reduce GEMM that keeps its sums in registers.

Emitted as LLVM IR, since a loop compiled by Numba keeps no accumulators in registers over k. One
generator serves every tile height, vector count, lane count and element type.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.gemm.operands import (
    FETCH,
    STREAM,
    Bias,
    Block,
    Epilogue,
    Left,
    Right,
    Target,
)
from fastlayers.kernels.ir.named import convert, fields, type_of
from fastlayers.kernels.ir.vectors import Table, Vectors, literals, prefetch
from fastlayers.runtime import cpu

__all__ = ["gemm_panel", "gemm_tile"]

_i64 = ir.IntType(64)


@intrinsic(prefer_literal=True)
def gemm_tile(typingctx, shape, block, left, right, bias, target, epilogue):
    """One register tile of a product: the rows from ``block.row``, the columns of one panel.

    ``shape = (rows, vectors, part)`` are literal integers. A vector has the CPU's full count of
    lanes divided by `part`; the tile is ``vectors * lanes`` wide, of which the first
    ``block.columns`` (more than ``(vectors - 1) * lanes``) are stored. B can be read up to the
    full width; bias and C are touched in their first columns only, and C is streamed only if all
    are stored. Each sum is one chain of fused multiply-adds in the order of runs and k, whatever
    the tile, so an element has the same bits in every tile shape.
    """
    size = literals(*shape.types)
    if size is None:
        return None
    given, kinds = (block, left, right, bias, target, epilogue), _operand_types(target)

    def codegen(cgctx, builder, sig, values):
        operands = convert(cgctx, builder, given, kinds, values[1:])
        _emit_tile(builder, size, *fields(cgctx, builder, kinds, operands))
        return cgctx.get_dummy_value()

    return types.void(shape, *given), codegen


@intrinsic(prefer_literal=True)
def gemm_panel(typingctx, shape, rows, block, left, right, bias, target, epilogue):
    """`rows` rows of a product, in tiles of ``shape = (vectors, part)`` that get lower at the end.

    A function of its own in its caller's module, as three tiles are more than a call.
    """
    size = literals(*shape.types)
    if size is None:
        return None
    given, kinds = (block, left, right, bias, target, epilogue), _operand_types(target)

    def codegen(cgctx, caller, sig, values):
        operands = [values[1], *convert(cgctx, caller, given, kinds, values[2:])]
        name = caller.module.get_unique_name(f"{caller.function.name}.panel")
        kind = ir.FunctionType(ir.VoidType(), [value.type for value in operands])
        function = ir.Function(caller.module, kind, name)
        function.linkage = "internal"
        caller.call(function, operands)
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        rows, *operands = function.args
        part, *others = fields(cgctx, builder, kinds, operands)
        first = part.row
        for height in (cpu.tile_rows(), 4, 1):
            left = builder.sub(rows, first)
            count = builder.udiv(left, _i64(height))
            if height == 6:
                count = builder.sub(count, _spared(builder, left, count))
            with cgutils.for_range(builder, count) as loop:
                at = builder.add(first, builder.mul(loop.index, _i64(height)))
                _emit_tile(builder, (height, *size), part._replace(row=at), *others)
            first = builder.add(first, builder.mul(count, _i64(height)))
        builder.ret_void()
        return cgctx.get_dummy_value()

    return types.void(shape, types.int64, *given), codegen


def _spared(builder, rows, count):
    """1 where 8 or 9 rows are left for tiles of 4 and 1, which beat 6 and two or three of 1.

    A tile of one row takes as long as one of 4: of 98 rows 89 to 94 % of the peak.
    """
    rest = builder.sub(rows, builder.mul(count, _i64(6)))
    some = builder.icmp_unsigned("<=", builder.sub(rest, _i64(2)), _i64(1))
    some = builder.and_(some, builder.icmp_signed(">", count, _i64(0)))
    return builder.zext(some, _i64)


def _operand_types(target) -> list[Any]:
    """Types of a tile's operands, where C is `target`."""
    element = target.types[0].dtype
    return [type_of(kind, element) for kind in (Block, Left, Right, Bias, Target, Epilogue)]


def _emit_tile(
    builder,
    shape: Sequence[int],
    block: Block,
    left: Left,
    right: Right,
    bias: Bias,
    target: Target,
    epilogue: Epilogue,
) -> None:
    """Emit a tile of ``shape = (rows, vectors, part)``; the operands are of LLVM values."""
    a, b, start, c = (
        builder.gep(operand.array.data, [operand.offset]) for operand in (left, right, bias, target)
    )
    zero = cgutils.alloca_once_value(builder, _i64(0))
    a_rows, a_runs, b_runs, c_rows = (
        Table(builder, table, zero) for table in (left.rows, left.runs, right.runs, target.rows)
    )
    element = a.type.pointee
    tile = _Tile(builder, shape, element, block.columns)
    pointers = tile.row_pointers(block.row, a, left.row, a_rows)
    targets = tile.row_pointers(block.row, c, target.row, c_rows)
    with builder.if_then(builder.icmp_signed("==", epilogue.write, _i64(FETCH))):
        tile.prefetch(targets)
    sums = tile.start(epilogue.add, start, targets)
    runs = (block.run, block.end_run, block.length)
    sums = tile.accumulate(runs, (pointers, left.step, a_runs), (b, right.step, b_runs), sums)
    sums = tile.at_least(epilogue.floor, sums)
    if shape[0] < cpu.tile_rows():  # the last rows of a panel go through the caches
        tile.store(targets, sums)
        return
    streams = builder.icmp_signed("==", epilogue.write, _i64(STREAM))
    with builder.if_else(streams) as (streamed, stored):
        with streamed:
            tile.stream(targets, sums)
        with stored:
            tile.store(targets, sums)


class _Tile(Vectors):
    """Emits the instructions of one tile; its sums are a list of `rows` lists of vectors."""

    def __init__(self, builder, shape: Sequence[int], element, columns) -> None:
        rows, vectors, part = shape
        lanes = cpu.lanes(4 if isinstance(element, ir.FloatType) else 8) // part
        super().__init__(builder, element, lanes)
        self.rows, self.vectors = rows, vectors
        self.mask = self.first_lanes(builder.sub(columns, _i64((vectors - 1) * lanes)))

    def row_pointers(self, first, pointer, stride, table: Table) -> list[Any]:
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

    def start(self, add, init, pointers: list[Any]) -> list[list[Any]]:
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

    def at_least(self, floor, tile: list[list[Any]]) -> list[list[Any]]:
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

    def _join(self, value, block, other, other_block):
        """The value of whichever of two blocks was run."""
        phi = self.builder.phi(value.type)
        phi.add_incoming(value, block)
        phi.add_incoming(other, other_block)
        return phi

    def store(self, pointers: list[Any], tile: list[list[Any]]) -> None:
        """Write a tile; lanes outside the mask are not touched."""
        *whole, last = zip(*tile, strict=True)
        for v, values in enumerate(whole):
            self.store_vectors(values, pointers, v)
        self.store_vectors(last, pointers, self.vectors - 1, self.mask)

    def stream(self, pointers: list[Any], tile: list[list[Any]]) -> None:
        """Write a whole tile by non-temporal stores."""
        for at, parts in zip(pointers, tile, strict=True):
            for v, part in enumerate(parts):
                self.stream_vector(part, at, v)

    def accumulate(
        self,
        runs: tuple[Any, Any, Any],
        left: tuple[list[Any], Any, Table],
        right: tuple[Any, Any, Table],
        sums: list[list[Any]],
    ) -> list[list[Any]]:
        """Emit the loops over runs and k around the multiply-adds; return the sums after them.

        ``runs = (first, end, length)``; operands are where they begin, a step of k and the
        table of runs.

        The rows' pointers stay as they are and one index moves: 12 pointers, the index, the
        pointer into B and the count fit the 15 general registers of x86.
        """
        builder, (first, end, length) = self.builder, runs
        (a, a_k, a_runs), (b, b_k, b_runs) = left, right
        before = builder.block
        names = ("tile.run", "tile.k", "tile.next", "tile.done")
        run, loop, after, done = (builder.append_basic_block(name) for name in names)
        flat = [part for parts in sums for part in parts]
        builder.cbranch(builder.icmp_signed("<", first, end), run, done)

        builder.position_at_end(run)
        outer = [builder.phi(value.type) for value in (first, *flat)]
        offset = a_runs[outer[0]]
        heads = [builder.gep(pointer, [offset]) for pointer in a]
        stop = builder.gep(heads[0], [builder.mul(a_k, length)])
        entering = [builder.gep(b, [b_runs[outer[0]]]), *heads, *outer[1:]]
        builder.branch(loop)

        builder.position_at_end(loop)
        phis = [builder.phi(value.type) for value in entering]
        b_at, pointers = phis[0], phis[1 : 1 + self.rows]
        updated = self._multiply_add(pointers, b_at, phis[1 + self.rows :])
        following = [builder.gep(b_at, [b_k]), *(builder.gep(p, [a_k]) for p in pointers)]
        builder.cbranch(builder.icmp_unsigned("!=", following[1], stop), loop, after)
        for phi, old, new in zip(phis, entering, [*following, *updated], strict=True):
            phi.add_incoming(old, run)
            phi.add_incoming(new, loop)

        builder.position_at_end(after)
        following = builder.add(outer[0], _i64(1))
        builder.cbranch(builder.icmp_signed("<", following, end), run, done)
        for phi, old, new in zip(outer, (first, *flat), (following, *updated), strict=True):
            phi.add_incoming(old, before)
            phi.add_incoming(new, after)

        builder.position_at_end(done)
        results = [
            self._join(old, before, new, after) for old, new in zip(flat, updated, strict=True)
        ]
        return [results[i : i + self.vectors] for i in range(0, len(results), self.vectors)]

    def _multiply_add(self, pointers: list[Any], b, flat: list[Any]) -> list[Any]:
        """One step of k: ``sums[i][v] += splat(a[i]) * b[v]``."""
        columns = [self.load_vector(b, v) for v in range(self.vectors)]
        updated = []
        for i, pointer in enumerate(pointers):
            scalar = self.splat(self.builder.load(pointer))
            for v, column in enumerate(columns):
                old = flat[i * self.vectors + v]
                updated.append(self.fma(scalar, column, old))
        return updated
