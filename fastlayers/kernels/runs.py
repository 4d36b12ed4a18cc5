"""Runs of contiguous elements: copied, added, cleared, compared or transposed in masked vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastlayers.kernels.vectors import LINE, Table, Vectors, element_pointer, prefetch
from fastlayers.runtime import cpu

__all__ = [
    "add_run",
    "add_where_run",
    "clear_run",
    "copy_run",
    "max_window",
    "prefetch_run",
    "transpose_block",
    "view",
]

_i32, _i64 = ir.IntType(32), ir.IntType(64)


@intrinsic
def view(typingctx: Any, array: Any, start: Any, count: Any) -> Any:
    """``array[start : start + count]`` of a flat array, without counting references.

    A slice counts them with atomic operations that threads contend for: 44 ms instead of 5.9 for
    a convolution of the CIFAR CNN. The array must outlive the view.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = cgctx.make_array(array)(cgctx, builder, values[0])
        out = cgctx.make_array(array)(cgctx, builder)
        populate_array(
            out,
            data=builder.gep(source.data, [values[1]]),
            shape=[values[2]],
            strides=[source.itemsize],
            itemsize=source.itemsize,
            meminfo=None,
        )
        return out._getvalue()

    return array(array, types.int64, types.int64), codegen


@intrinsic
def prefetch_run(typingctx: Any, array: Any, at: Any, count: Any) -> Any:
    """Ask for ``array[at : at + count]`` of a flat array in L2; the range need not exist."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        start = element_pointer(cgctx, builder, array, values[0], values[1])
        step = _i64(8 * LINE // array.dtype.bitwidth)
        with cgutils.for_range_slice(builder, _i64(0), values[2], step, _i64) as (j, _):
            prefetch(builder, builder.gep(start, [j]))
        return cgctx.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


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
    vectors = Vectors(builder, out.type.pointee, lanes)
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
        target = element_pointer(cgctx, builder, out, values[0], values[1])
        origin = element_pointer(cgctx, builder, source, values[2], values[3])
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
        target = element_pointer(cgctx, builder, out, values[0], values[1])
        _emit_run(builder, cpu.lanes(out.dtype.bitwidth // 8), target, None, values[2], False)
        return cgctx.get_dummy_value()

    return types.void(out, types.int64, types.int64), codegen


@intrinsic
def transpose_block(typingctx: Any, rows: Any, columns: Any, source: Any, out: Any) -> Any:
    """``out[table[j], i] = source[i, j]``, for up to a vector of rows and columns, and up to 16.

    Operands are tuples of a flat array, the offset of the first element and the row stride::

        source = (array, offset, row stride)
        out = (array, offset, row stride, width, table)

    Where ``table[j]`` is negative nothing is written; an empty table stands for j. Columns
    ``rows <= i < width`` of `out` become zeros; those from `width` on are not touched, and nor is
    the source outside of `rows` x `columns`.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        rows, columns = values[:2]
        (array, *origin), (target, *place) = (cgutils.unpack_tuple(builder, v) for v in values[2:])
        at = element_pointer(cgctx, builder, source[0], array, origin[0])
        out_at = element_pointer(cgctx, builder, out[0], target, place[0])
        stride, width = place[1:3]
        table = cgctx.make_array(out[4])(cgctx, builder, place[3])
        table = Table(builder, table, cgutils.alloca_once_value(builder, _i64(0)))
        element = at.type.pointee
        lanes = min(16, cpu.lanes(cgctx.get_abi_sizeof(element)))
        vectors = Vectors(builder, element, lanes)

        # Rows that are missing repeat the last one, as a pointer costs less than a mask.
        some = builder.icmp_signed(">", rows, _i64(0))
        mask = vectors.first_lanes(builder.select(some, columns, _i64(0)))
        lines = []
        for i in range(vectors.lanes):
            if i:
                more = builder.icmp_signed("<", _i64(i), rows)
                at = builder.gep(at, [builder.select(more, origin[1], _i64(0))])
            lines.append(vectors.load_vector(at, mask=mask))
        inside, zero = vectors.first_lanes(rows), ir.Constant(vectors.vector, None)
        lines = [builder.select(inside, line, zero) for line in vectors.transpose(lines)]

        def store(mask: Any = None) -> None:
            done = builder.append_basic_block("transpose.done")
            for j, line in enumerate(lines):
                write = builder.append_basic_block("transpose.write")
                builder.cbranch(builder.icmp_signed("<", _i64(j), columns), write, done)
                builder.position_at_end(write)
                row = builder.add(table[_i64(j)], builder.select(table.empty, _i64(j), _i64(0)))
                with builder.if_then(builder.icmp_signed(">=", row, _i64(0))):
                    vectors.store_vector(
                        line, builder.gep(out_at, [builder.mul(row, stride)]), mask=mask
                    )
            builder.branch(done)
            builder.position_at_end(done)

        whole = builder.icmp_signed(">=", width, _i64(vectors.lanes))
        with builder.if_else(whole) as (plain, masked):
            with plain:
                store()
            with masked:
                store(vectors.first_lanes(width))
        return cgctx.get_dummy_value()

    return types.void(types.int64, types.int64, source, out), codegen


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
        best_at = element_pointer(cgctx, builder, y, values[0], values[1])
        cells_at = element_pointer(cgctx, builder, cells, values[2], values[1])
        source = element_pointer(cgctx, builder, x, values[3], values[4])
        r_first, r_last, r_step = cgutils.unpack_tuple(builder, values[5])
        s_first, s_last, s_step, per_row = cgutils.unpack_tuple(builder, values[6])
        lanes = cpu.lanes(y.dtype.bitwidth // 8)
        floats = Vectors(builder, best_at.type.pointee, lanes)
        numbers = Vectors(builder, cells_at.type.pointee, lanes)
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
        target = element_pointer(cgctx, builder, out, values[0], values[1])
        origin = element_pointer(cgctx, builder, source, values[2], values[4])
        holder = element_pointer(cgctx, builder, cells, values[3], values[4])
        lanes = cpu.lanes(out.dtype.bitwidth // 8)
        floats = Vectors(builder, target.type.pointee, lanes)
        numbers = Vectors(builder, holder.type.pointee, lanes)
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
