"""The micro-kernel generator: masked runs of vectors, windows, and a GEMM tile in registers.

Emitted as LLVM IR with explicit vector types: Numba's auto-vectorised loops stay at 256 bits on
AVX-512 and keep no accumulators in registers across the k-loop. One generator serves every tile
height, vector count, lane count and element type.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.runtime import cpu

__all__ = ["add_run", "add_where_run", "clear_run", "copy_run", "gemm_tile", "max_window"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)


@intrinsic(prefer_literal=True)
def gemm_tile(
    typingctx: Any,
    rows: Any,
    vectors: Any,
    part: Any,
    k: Any,
    a: Any,
    b: Any,
    init: Any,
    c: Any,
    columns: Any,
) -> Any:
    """``c[i, j] = init[i, j] + sum_p a[i, p] * b[p, j]`` for one register tile.

    `rows`, `vectors` and `part` are literal integers. A vector has the CPU's full count of lanes
    divided by `part`; the tile is ``vectors * lanes`` wide, of which the first `columns` (more
    than ``(vectors - 1) * lanes``) are stored.
    Operands are tuples of an array, the offset of their first element and strides, in elements:
    ``a = (array, offset, row stride, k stride)``, ``b = (array, offset, k stride)``,
    ``init`` and ``c = (array, offset, row stride)``. The columns of `b` are contiguous and can be
    read up to the full width. `init` and `c` are touched in their first `columns` only, and may
    be the same tile. Each sum is one chain of fused multiply-adds in the order of p, whatever
    the tile, so an element has the same bits in every tile shape.
    """
    sizes = (rows, vectors, part)
    if not all(isinstance(size, types.IntegerLiteral) for size in sizes):
        return None
    height, width, divisor = (size.literal_value for size in sizes)
    lanes = cpu.lanes(c.types[0].dtype.bitwidth // 8) // divisor

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        def operand(index: int) -> list[Any]:
            """Pointer to the first element, then the strides."""
            array_type = sig.args[index].types[0]
            parts = [builder.extract_value(values[index], i) for i in range(len(sig.args[index]))]
            data = cgctx.make_array(array_type)(cgctx, builder, parts[0]).data
            return [builder.gep(data, [parts[1]]), *parts[2:]]

        (a_ptr, *a_strides), (b_ptr, b_k), (init_ptr, init_row), (c_ptr, c_row) = map(
            operand, range(4, 8)
        )
        tile = _Tile(builder, height, width, lanes, a_ptr.type.pointee, values[8])
        sums = tile.load(init_ptr, init_row)
        sums = tile.accumulate(values[3], a_ptr, a_strides, b_ptr, b_k, sums)
        tile.store(c_ptr, c_row, sums)
        return cgctx.get_dummy_value()

    return types.void(*sizes, types.int64, a, b, init, c, types.int64), codegen


class _Vectors:
    """Emits operations on vectors of one type, the masked ones included."""

    def __init__(self, builder: Any, element: ir.Type, lanes: int) -> None:
        self.builder, self.element, self.lanes = builder, element, lanes
        self.vector = ir.VectorType(element, lanes)
        self._bits = ir.VectorType(ir.IntType(1), lanes)
        if isinstance(element, ir.IntType):
            self._name, self._align = f"v{lanes}i{element.width}", element.width // 8
        else:
            self._align = 4 if isinstance(element, ir.FloatType) else 8
            self._name = f"v{lanes}f{8 * self._align}"

    def declare(self, name: str, returns: ir.Type, arguments: list[ir.Type]) -> Any:
        # Not module.declare_intrinsic, which refuses vector types.
        signature = ir.FunctionType(returns, arguments)
        return cgutils.get_or_insert_function(
            self.builder.module, signature, name.format(self._name)
        )

    def splat(self, scalar: Any) -> Any:
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, _i32(0))
        zeros = ir.Constant(ir.VectorType(_i32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def first_lanes(self, count: Any) -> Any:
        """Mask of the lanes below `count`, a 64-bit integer."""
        count = self.builder.trunc(count, _i32)
        index = ir.Constant(ir.VectorType(_i32, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", index, self.splat(count))

    def _at(self, pointer: Any, v: int) -> Any:
        at = self.builder.gep(pointer, [_i64(v * self.lanes)])
        return self.builder.bitcast(at, self.vector.as_pointer())

    def load_vector(self, pointer: Any, v: int = 0, mask: Any = None) -> Any:
        """Read vector `v`; lanes outside the mask are zero and not touched."""
        at = self._at(pointer, v)
        if mask is None:
            return self.builder.load(at, align=self._align)
        arguments = [at.type, _i32, self._bits, self.vector]
        masked = self.declare("llvm.masked.load.{}.p0", self.vector, arguments)
        zero = ir.Constant(self.vector, None)
        return self.builder.call(masked, [at, _i32(self._align), mask, zero])

    def store_vector(self, value: Any, pointer: Any, v: int = 0, mask: Any = None) -> None:
        """Write vector `v`; lanes outside the mask are not touched."""
        at = self._at(pointer, v)
        if mask is None:
            self.builder.store(value, at, align=self._align)
            return
        arguments = [self.vector, at.type, _i32, self._bits]
        masked = self.declare("llvm.masked.store.{}.p0", ir.VoidType(), arguments)
        self.builder.call(masked, [value, at, _i32(self._align), mask])


class _Tile(_Vectors):
    """Emits the instructions of one tile; its sums are a list of `rows` lists of vectors."""

    # A base pointer for every third row: rows 1 and 2 after it are reached as base + stride and
    # base + 2 * stride in one x86 address, so 14 rows need 5 moving pointers instead of 14.
    ROWS_PER_POINTER = 3

    def __init__(
        self, builder: Any, rows: int, vectors: int, lanes: int, element: ir.Type, columns: Any
    ) -> None:
        super().__init__(builder, element, lanes)
        self.rows, self.vectors = rows, vectors
        self.mask = self.first_lanes(builder.sub(columns, _i64((vectors - 1) * lanes)))

    def _row_pointers(self, pointer: Any, row: Any) -> list[Any]:
        return [
            self.builder.gep(pointer, [self.builder.mul(row, _i64(i))]) for i in range(self.rows)
        ]

    def load(self, pointer: Any, row: Any) -> list[list[Any]]:
        """Read a tile; lanes outside the mask are zero and not touched."""
        tile = []
        for at in self._row_pointers(pointer, row):
            parts = [self.load_vector(at, v) for v in range(self.vectors - 1)]
            tile.append([*parts, self.load_vector(at, self.vectors - 1, self.mask)])
        return tile

    def store(self, pointer: Any, row: Any, tile: list[list[Any]]) -> None:
        """Write a tile; lanes outside the mask are not touched."""
        for at, parts in zip(self._row_pointers(pointer, row), tile, strict=True):
            for v, part in enumerate(parts[:-1]):
                self.store_vector(part, at, v)
            self.store_vector(parts[-1], at, self.vectors - 1, self.mask)

    def accumulate(
        self, k: Any, a: Any, a_strides: list[Any], b: Any, b_k: Any, sums: list[list[Any]]
    ) -> list[list[Any]]:
        """Emit the k-loop around the fused multiply-adds; return the sums after it."""
        builder, (a_row, a_k) = self.builder, a_strides
        heads = [
            builder.gep(a, [builder.mul(a_row, _i64(i))])
            for i in range(0, self.rows, self.ROWS_PER_POINTER)
        ]
        before = builder.block
        loop, done = (builder.append_basic_block(name) for name in ("tile.k", "tile.done"))
        flat = [part for parts in sums for part in parts]
        builder.cbranch(builder.icmp_signed(">", k, _i64(0)), loop, done)

        builder.position_at_end(loop)
        entering = [_i64(0), b, *heads, *flat]
        phis = [builder.phi(value.type) for value in entering]
        at, b_at, pointers = phis[0], phis[1], phis[2 : 2 + len(heads)]
        updated = self._multiply_add(pointers, a_row, b_at, phis[2 + len(heads) :])
        following = [
            builder.add(at, _i64(1)),
            builder.gep(b_at, [b_k]),
            *(builder.gep(p, [a_k]) for p in pointers),
            *updated,
        ]
        builder.cbranch(builder.icmp_signed("<", following[0], k), loop, done)
        for phi, first, after in zip(phis, entering, following, strict=True):
            phi.add_incoming(first, before)
            phi.add_incoming(after, loop)

        builder.position_at_end(done)
        results = []
        for first, after in zip(flat, updated, strict=True):
            phi = builder.phi(self.vector)
            phi.add_incoming(first, before)
            phi.add_incoming(after, loop)
            results.append(phi)
        return [results[i : i + self.vectors] for i in range(0, len(results), self.vectors)]

    def _multiply_add(self, pointers: list[Any], a_row: Any, b: Any, flat: list[Any]) -> list[Any]:
        """One step of k: ``sums[i][v] += splat(a[i]) * b[v]``."""
        fma = self.declare("llvm.fma.{}", self.vector, [self.vector] * 3)
        columns = [self.load_vector(b, v) for v in range(self.vectors)]
        updated = []
        for i in range(self.rows):
            head, step = divmod(i, self.ROWS_PER_POINTER)
            at = self.builder.gep(pointers[head], [self.builder.mul(a_row, _i64(step))])
            scalar = self.splat(self.builder.load(at))
            for v, column in enumerate(columns):
                old = flat[i * self.vectors + v]
                updated.append(self.builder.call(fma, [scalar, column, old]))
        return updated


def _element_pointer(cgctx: Any, builder: Any, array_type: Any, array: Any, at: Any) -> Any:
    return builder.gep(cgctx.make_array(array_type)(cgctx, builder, array).data, [at])


def _masked_loop(builder: Any, lanes: int, count: Any) -> Any:
    """Loop over a run in vectors; gives the position of each."""
    return cgutils.for_range_slice(builder, _i64(0), count, _i64(lanes), _i64)


def _emit_run(
    builder: Any, lanes: int, out: Any, source: Any | None, count: Any, add: bool
) -> None:
    """Emit ``out[:count] = source[:count]``, added if asked, in masked vectors.

    Runs of an im2col are short: 15 elements for a 5 x 5 kernel on 3 channels, which Numba's loop
    copies in 24 ns and one masked vector in 3 ns.
    """
    vectors = _Vectors(builder, out.type.pointee, lanes)
    with _masked_loop(builder, lanes, count) as (at, _):
        mask = vectors.first_lanes(builder.sub(count, at))
        target = builder.gep(out, [at])
        value = ir.Constant(vectors.vector, None)
        if source is not None:
            value = vectors.load_vector(builder.gep(source, [at]), mask=mask)
        if add:
            value = builder.fadd(vectors.load_vector(target, mask=mask), value)
        vectors.store_vector(value, target, mask=mask)


def _run_of_two(add: bool, out: Any, source: Any) -> Any:
    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target = _element_pointer(cgctx, builder, out, values[0], values[1])
        origin = _element_pointer(cgctx, builder, source, values[2], values[3])
        lanes = cpu.lanes(out.dtype.bitwidth // 8)
        _emit_run(builder, lanes, target, origin, values[4], add)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(out, i8, source, i8, i8), codegen


@intrinsic
def copy_run(typingctx: Any, out: Any, out_at: Any, source: Any, source_at: Any, count: Any) -> Any:
    """``out[out_at : out_at + count] = source[source_at : source_at + count]``, both flat."""
    return _run_of_two(False, out, source)


@intrinsic
def add_run(typingctx: Any, out: Any, out_at: Any, source: Any, source_at: Any, count: Any) -> Any:
    """``out[out_at : out_at + count] += source[source_at : source_at + count]``, both flat."""
    return _run_of_two(True, out, source)


@intrinsic
def clear_run(typingctx: Any, out: Any, out_at: Any, count: Any) -> Any:
    """``out[out_at : out_at + count] = 0`` for a flat array."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target = _element_pointer(cgctx, builder, out, values[0], values[1])
        _emit_run(builder, cpu.lanes(out.dtype.bitwidth // 8), target, None, values[2], False)
        return cgctx.get_dummy_value()

    return types.void(out, types.int64, types.int64), codegen


@intrinsic
def max_window(
    typingctx: Any,
    y: Any,
    y_at: Any,
    cells: Any,
    x: Any,
    x_at: Any,
    rows: Any,
    columns: Any,
    count: Any,
) -> Any:
    """Maximum over a window for a run of channels, and the cell of the window that holds it.

    ``y[i] = max over r, s of x[x_at + r * row_step + s * column_step + i]`` for
    ``rows = (first r, last r + 1, row_step)`` and ``columns`` alike;
    ``cells[i] = r * cells_per_row + s`` with ``columns = (first, last + 1, step, cells_per_row)``.
    y and cells start at `y_at`, all are flat. The first of equal cells is kept, and the first NaN
    before everything; an empty window gives minus infinity and cell 0. The maxima stay in
    registers: masked stores are not forwarded to the loads of the next cell.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        best_at = _element_pointer(cgctx, builder, y, values[0], values[1])
        cells_at = _element_pointer(cgctx, builder, cells, values[2], values[1])
        source = _element_pointer(cgctx, builder, x, values[3], values[4])
        r_first, r_last, r_step = cgutils.unpack_tuple(builder, values[5])
        s_first, s_last, s_step, per_row = cgutils.unpack_tuple(builder, values[6])
        lanes = cpu.lanes(y.dtype.bitwidth // 8)
        floats = _Vectors(builder, best_at.type.pointee, lanes)
        numbers = _Vectors(builder, cells_at.type.pointee, lanes)
        best = cgutils.alloca_once(builder, floats.vector)
        holder = cgutils.alloca_once(builder, numbers.vector)
        lowest = floats.splat(ir.Constant(floats.element, float("-inf")))
        with _masked_loop(builder, lanes, values[7]) as (at, _):
            mask = floats.first_lanes(builder.sub(values[7], at))
            builder.store(lowest, best)
            builder.store(ir.Constant(numbers.vector, None), holder)
            # The first cell is taken as it is: minus infinity is no greater than the start.
            fresh = cgutils.alloca_once_value(builder, ir.IntType(1)(1))
            builder.store(ir.IntType(1)(1), fresh)
            with (
                cgutils.for_range_slice(builder, r_first, r_last, _i64(1), _i64) as (r, _),
                cgutils.for_range_slice(builder, s_first, s_last, _i64(1), _i64) as (s, _),
            ):
                offset = builder.add(builder.mul(r, r_step), builder.mul(s, s_step))
                cell = builder.gep(source, [builder.add(offset, at)])
                new, old = floats.load_vector(cell, mask=mask), builder.load(best)
                # Greater, or a NaN against a number: a NaN stays against all that follows.
                better = builder.and_(
                    builder.fcmp_unordered("ugt", new, old), builder.fcmp_ordered("ord", old, old)
                )
                better = builder.or_(better, floats.splat(builder.load(fresh)))
                number = builder.trunc(builder.add(builder.mul(r, per_row), s), numbers.element)
                builder.store(builder.select(better, new, old), best)
                builder.store(
                    builder.select(better, numbers.splat(number), builder.load(holder)), holder
                )
                builder.store(ir.IntType(1)(0), fresh)
            floats.store_vector(builder.load(best), builder.gep(best_at, [at]), mask=mask)
            numbers.store_vector(builder.load(holder), builder.gep(cells_at, [at]), mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(y, i8, cells, x, i8, rows, columns, i8), codegen


@intrinsic
def add_where_run(
    typingctx: Any,
    out: Any,
    out_at: Any,
    source: Any,
    cells: Any,
    source_at: Any,
    cell: Any,
    count: Any,
) -> Any:
    """``out[i] += source[i]`` where ``cells[i] == cell``, for a run of flat arrays."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target = _element_pointer(cgctx, builder, out, values[0], values[1])
        origin = _element_pointer(cgctx, builder, source, values[2], values[4])
        holder = _element_pointer(cgctx, builder, cells, values[3], values[4])
        lanes = cpu.lanes(out.dtype.bitwidth // 8)
        floats = _Vectors(builder, target.type.pointee, lanes)
        numbers = _Vectors(builder, holder.type.pointee, lanes)
        number = numbers.splat(builder.trunc(values[5], numbers.element))
        with _masked_loop(builder, lanes, values[6]) as (at, _):
            mask = floats.first_lanes(builder.sub(values[6], at))
            here = numbers.load_vector(builder.gep(holder, [at]), mask=mask)
            mask = builder.and_(mask, builder.icmp_unsigned("==", here, number))
            spot = builder.gep(target, [at])
            total = builder.fadd(
                floats.load_vector(spot, mask=mask),
                floats.load_vector(builder.gep(origin, [at]), mask=mask),
            )
            floats.store_vector(total, spot, mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(out, i8, source, cells, i8, i8, i8), codegen
