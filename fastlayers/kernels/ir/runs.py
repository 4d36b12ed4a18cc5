"""Runs of contiguous elements: copied, added, cleared, rectified or transposed in vectors."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np.arrayobj import populate_array

from fastlayers.kernels.ir.vectors import LINE, Table, Vectors, element_pointer, prefetch
from fastlayers.runtime import cpu

__all__ = [
    "add_run",
    "clear_run",
    "copy_run",
    "flat",
    "keep_run",
    "prefetch_run",
    "relu_gradient_run",
    "relu_run",
    "scale_run",
    "sum_run",
    "transpose_block",
    "view",
    "write_vectors",
]

_i32, _i64 = ir.IntType(32), ir.IntType(64)
# Bytes from a vector that is read to the line that is prefetched.
AHEAD = 8192


@intrinsic
def flat(typingctx, array):
    """All elements of a contiguous array, which must outlive the view.

    A reshape compiles for 0.1 s, as it also serves other strides.
    """
    line = types.Array(array.dtype, 1, "C")

    def codegen(cgctx, builder, sig, values):
        source = cgctx.make_array(array)(cgctx, builder, values[0])
        out = cgctx.make_array(line)(cgctx, builder)
        populate_array(
            out,
            data=source.data,
            shape=[source.nitems],
            strides=[source.itemsize],
            itemsize=source.itemsize,
            meminfo=None,
        )
        return out._getvalue()

    return line(array), codegen


@intrinsic
def view(typingctx, array, start, count):
    """``array[start : start + count]`` of a flat array, which must outlive the view.

    A slice compiles for 0.1 s, as it also serves negative and missing bounds.
    """

    def codegen(cgctx, builder, sig, values):
        data = element_pointer(cgctx, builder, array, *values)
        out = cgctx.make_array(array)(cgctx, builder)
        itemsize = _i64(array.dtype.bitwidth // 8)
        populate_array(
            out,
            data=data,
            shape=[values[2]],
            strides=[itemsize],
            itemsize=itemsize,
            meminfo=None,
        )
        return out._getvalue()

    return array(array, types.int64, types.int64), codegen


@intrinsic
def no_table(typingctx):
    """An empty table of offsets, which stands for zeros."""
    table = types.Array(types.int64, 1, "C")

    def codegen(cgctx, builder, sig, values):
        return cgctx.get_constant_null(table)

    return table(), codegen


@intrinsic
def prefetch_run(typingctx, array, at, count):
    """Prefetch ``array[at : at + count]`` of a flat array into L2; the range need not exist."""

    def codegen(cgctx, builder, sig, values):
        start = element_pointer(cgctx, builder, array, values[0], values[1])
        step = _i64(8 * LINE // array.dtype.bitwidth)
        with cgutils.for_range_slice(builder, _i64(0), values[2], step, _i64) as (j, _):
            prefetch(builder, builder.gep(start, [j]))
        return cgctx.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


def _masked_loop(builder, lanes: int, count):
    """Loop over a run in vectors; gives the position of each."""
    return cgutils.for_range_slice(builder, _i64(0), count, _i64(lanes), _i64)


def _emit_run(builder, lanes: int, out, source: Any | None, count, add: bool) -> None:
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


def _run_of_two(add: bool, out, source):
    def codegen(cgctx, builder, sig, values):
        target = element_pointer(cgctx, builder, out, values[0], values[1], values[4])
        origin = element_pointer(cgctx, builder, source, values[2], values[3], values[4])
        lanes = cpu.lanes(out.dtype.bitwidth // 8)
        _emit_run(builder, lanes, target, origin, values[4], add)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(out, i8, source, i8, i8), codegen


@intrinsic
def copy_run(typingctx, out, out_at, source, source_at, count):
    """``out[out_at : out_at + count] = source[source_at : source_at + count]``, both flat."""
    return _run_of_two(False, out, source)


@intrinsic
def add_run(typingctx, out, out_at, source, source_at, count):
    """``out[out_at : out_at + count] += source[source_at : source_at + count]``, both flat."""
    return _run_of_two(True, out, source)


@intrinsic
def clear_run(typingctx, out, out_at, count):
    """``out[out_at : out_at + count] = 0`` for a flat array."""

    def codegen(cgctx, builder, sig, values):
        target = element_pointer(cgctx, builder, out, *values)
        _emit_run(builder, cpu.lanes(out.dtype.bitwidth // 8), target, None, values[2], False)
        return cgctx.get_dummy_value()

    return types.void(out, types.int64, types.int64), codegen


def write_vectors(builder, vectors: Vectors, target, count, streams, compute) -> None:
    """Emit ``target[at] = compute(at, load)`` for the vectors of a run.

    ``load(pointer)`` gives the vector at `at`. Whole ones go by fours, then come masked ones.
    Where `streams`, whole ones go by non-temporal stores, and what is read is prefetched.
    """
    step, lanes = _i64(4 * vectors.lanes), _i64(vectors.lanes)
    whole = builder.and_(count, _i64(-4 * vectors.lanes))

    def by_fours(load, store) -> None:
        with cgutils.for_range_slice(builder, _i64(0), whole, step, _i64) as (first, _):
            for v in range(4):
                at = builder.add(first, _i64(v * vectors.lanes))
                value = compute(at, lambda pointer, at=at: load(builder.gep(pointer, [at])))
                store(value, builder.gep(target, [at]))

    def load_early(pointer):
        ahead = builder.bitcast(pointer, ir.IntType(8).as_pointer())
        prefetch(builder, builder.gep(ahead, [_i64(AHEAD)]))
        return vectors.load_vector(pointer)

    if streams is None:
        by_fours(vectors.load_vector, vectors.store_vector)
    else:
        with builder.if_else(streams) as (streamed, stored):
            with streamed:
                by_fours(load_early, vectors.stream_vector)
            with stored:
                by_fours(vectors.load_vector, vectors.store_vector)
    with cgutils.for_range_slice(builder, whole, count, lanes, _i64) as (at, _):
        mask = vectors.first_lanes(builder.sub(count, at))

        def load_some(pointer):
            return vectors.load_vector(builder.gep(pointer, [at]), mask=mask)

        vectors.store_vector(compute(at, load_some), builder.gep(target, [at]), mask=mask)


def _outgrows_caches(cgctx, builder, kind, array, at, lanes: int, arrays: int):
    """Whether so many arrays are larger than the caches, and one is aligned for streaming."""
    array = cgctx.make_array(kind)(cgctx, builder, array)
    width = kind.dtype.bitwidth // 8
    address = builder.ptrtoint(builder.gep(array.data, [at]), _i64)
    aligned = builder.icmp_signed("==", builder.and_(address, _i64(lanes * width - 1)), _i64(0))
    limit = _i64(cpu.cache_bytes() // (arrays * width))
    return builder.and_(aligned, builder.icmp_signed(">", array.nitems, limit))


def _run_of_vectors(arrays: tuple[Any, ...], compute):
    """``arrays[0][at : at + count] = compute(builder, vectors, *arrays[1:])``, all flat."""

    def codegen(cgctx, builder, sig, values):
        *operands, at, count = values
        target, *sources = [
            element_pointer(cgctx, builder, kind, array, at, count)
            for kind, array in zip(arrays, operands, strict=True)
        ]
        lanes = cpu.lanes(arrays[0].dtype.bitwidth // 8)
        vectors = Vectors(builder, target.type.pointee, lanes)

        def value(at, load):
            return compute(builder, vectors, *map(load, sources))

        # Results of one array gain nothing: dropout of 25 MB went from 1.3 to 1.8 ms.
        streams = None
        if len(sources) > 1:
            streams = _outgrows_caches(
                cgctx, builder, arrays[0], operands[0], at, lanes, len(arrays)
            )
        write_vectors(builder, vectors, target, count, streams, value)
        return cgctx.get_dummy_value()

    return types.void(*arrays, types.int64, types.int64), codegen


def _where_positive(builder, vectors: Vectors, value, tested):
    """`value` where `tested` is above 0 or NaN, else 0."""
    zero = ir.Constant(vectors.vector, None)
    return builder.select(builder.fcmp_unordered("ugt", tested, zero), value, zero)


@intrinsic
def relu_run(typingctx, y, x, at, count):
    """``y = x`` where x is above 0 or NaN, else 0, from `at` on."""
    return _run_of_vectors((y, x), lambda b, v, x: _where_positive(b, v, x, x))


@intrinsic
def relu_gradient_run(typingctx, dx, dy, y, at, count):
    """``dx = dy`` where y is above 0 or NaN, else 0, from `at` on."""
    return _run_of_vectors((dx, dy, y), _where_positive)


@intrinsic
def keep_run(typingctx, y, x, bits, at, count, scale):
    """``y = x * scale`` where the element's bit is set, else 0, from `at`, a multiple of 16, on.

    Bit i of a flat uint8 array is bit ``i % 8`` of byte ``i // 8``. All its last 16 bits exist.
    """

    def codegen(cgctx, builder, sig, values):
        target = element_pointer(cgctx, builder, y, values[0], *values[3:5])
        source = element_pointer(cgctx, builder, x, values[1], *values[3:5])
        byte = builder.lshr(values[3], _i64(3))
        word = ir.IntType(16)
        words = element_pointer(cgctx, builder, bits, values[2], byte)
        words = builder.bitcast(words, word.as_pointer())
        vectors = Vectors(builder, target.type.pointee, 16)
        factor, zero = vectors.splat(values[5]), ir.Constant(vectors.vector, None)

        def value(at, load):
            kept = builder.load(builder.gep(words, [builder.lshr(at, _i64(4))]), align=1)
            kept = builder.bitcast(kept, ir.VectorType(ir.IntType(1), 16))
            value = load(source)
            return builder.select(kept, builder.fmul(value, factor), zero)

        write_vectors(builder, vectors, target, values[4], None, value)
        return cgctx.get_dummy_value()

    return types.void(y, x, bits, types.int64, types.int64, y.dtype), codegen


@intrinsic
def scale_run(typingctx, y, x, at, count, factors, first, period):
    """``y[i] = x[i] * factors[first + i % period]``, and 0 where the factor is 0, from `at` on."""

    def codegen(cgctx, builder, sig, values):
        target = element_pointer(cgctx, builder, y, values[0], *values[2:4])
        source = element_pointer(cgctx, builder, x, values[1], *values[2:4])
        pattern = element_pointer(cgctx, builder, factors, *values[4:])
        count, period = values[3], values[6]
        vectors = Vectors(builder, target.type.pointee, cpu.lanes(y.dtype.bitwidth // 8))
        zero = ir.Constant(vectors.vector, None)
        with cgutils.for_range_slice(builder, _i64(0), count, period, _i64) as (base, _):
            rest = builder.sub(count, base)
            rest = builder.select(builder.icmp_signed("<", rest, period), rest, period)
            from_, to = builder.gep(source, [base]), builder.gep(target, [base])

            def value(at, load):
                factor = load(pattern)
                value = load(from_)
                kept = builder.fcmp_unordered("!=", factor, zero)
                return builder.select(kept, builder.fmul(value, factor), zero)

            write_vectors(builder, vectors, to, rest, None, value)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(y, x, i8, i8, factors, i8, i8), codegen


@intrinsic
def sum_run(typingctx, out, a, b, at, count):
    """``out = a + b`` from `at` on."""
    return _run_of_vectors((out, a, b), lambda builder, _, a, b: builder.fadd(a, b))


@intrinsic
def transpose_block(typingctx, rows, columns, source, out):
    """``out[table[j], i] = source[i, j]``, for up to a vector of rows and columns, and up to 16.

    Operands are tuples of a flat array, the offset of the first element and the row stride::

        source = (array, offset, row stride)
        out = (array, offset, row stride, width, table)

    Where ``table[j]`` is negative nothing is written; an empty table stands for j. Columns
    ``rows <= i < width`` of `out` become zeros; those from `width` on are not touched, and nor is
    the source outside of `rows` x `columns`.
    """

    def codegen(cgctx, builder, sig, values):
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
        lines = [builder.select(inside.bits, line, zero) for line in vectors.transpose(lines)]

        mask, done = vectors.first_lanes(width), builder.append_basic_block("transpose.done")
        for j, line in enumerate(lines):
            write = builder.append_basic_block("transpose.write")
            builder.cbranch(builder.icmp_signed("<", _i64(j), columns), write, done)
            builder.position_at_end(write)
            row = builder.add(table[_i64(j)], builder.select(table.empty, _i64(j), _i64(0)))
            with builder.if_then(builder.icmp_signed(">=", row, _i64(0))):
                place = builder.gep(out_at, [builder.mul(row, stride)])
                vectors.store_vector(line, place, mask=mask)
        builder.branch(done)
        builder.position_at_end(done)
        return cgctx.get_dummy_value()

    return types.void(types.int64, types.int64, source, out), codegen
