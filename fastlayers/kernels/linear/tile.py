"""Register tiles of the linear layers: dot products, rank updates, and streamed runs."""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.named import Elements
from fastlayers.kernels.ir.vectors import Vectors, element_pointer, literals, operand, prefetch
from fastlayers.runtime import cpu

__all__ = [
    "DOT_BATCH",
    "DOT_ROWS",
    "FEW",
    "FEW_ROWS",
    "STRIP",
    "Factors",
    "Rows",
    "Strip",
    "dot_tile",
    "move_run",
    "rank_update",
    "sum_lanes",
    "sum_strip",
]

_i32, _i64 = ir.IntType(32), ir.IntType(64)

FEW = 4  # batch rows of a dot tile for a few, rows and depth of a rank update
# Rows of the weight and of the batch in a tile of dot products: 4 x 4 sums and 5 operands fit 32
# registers, 4 x 3 and 4 fit 16: 78 of 98 GFLOP/s where 2 x 4 reach 61. A few rows have 2 x 4, as
# some of a second tile of 3 would be idle.
DOT_ROWS, DOT_BATCH, FEW_ROWS = (4, 4, 4) if cpu.tile_rows() == 12 else (4, 3, 2)
STRIP = 4  # vectors of a strip of column sums, as many as an addition has cycles of latency


class Rows(NamedTuple):
    """Rows of a matrix: the first element, and elements from one row to the next."""

    array: Elements
    offset: int
    row: int


class Factors(NamedTuple):
    """A of a product ``A @ B``, of any strides: each element is a factor for a row of B."""

    array: Elements
    offset: int
    row: int
    step: int


class Strip(NamedTuple):
    """Columns of flat matrices that are summed, from an element on."""

    offset: int
    rows: int
    row: int  # elements to the next
    columns: int


def _clamped(builder, count: int, valid) -> list[Any]:
    """Indices 0 to count - 1, of which those from `valid` on repeat the last valid one."""
    last = builder.sub(valid, _i64(1))
    below = [builder.icmp_signed("<", _i64(i), valid) for i in range(count)]
    return [builder.select(inside, _i64(i), last) for i, inside in enumerate(below)]


def sum_lanes(builder, vectors: list[Any], lanes: int) -> list[Any]:
    """Sums of each vector's lanes, as vectors in the order given.

    Two vectors are folded into the halves of one: 16 vectors of 16 lanes take 15 additions and
    30 shuffles instead of 64 each. The order of additions within a vector is that of a tree. Where
    vectors are missing to fold, sums of zeros are behind the others.
    """
    half, missing = lanes // 2, -len(vectors) % lanes
    vectors = vectors + [ir.Constant(vectors[0].type, None)] * missing
    while half:
        # Lane l comes from the first of two vectors where bit `half` of l is clear.
        low = [lane + (lanes - half if lane & half else 0) for lane in range(lanes)]
        high = [lane + (lanes if lane & half else half) for lane in range(lanes)]
        orders = [ir.Constant(ir.VectorType(_i32, lanes), order) for order in (low, high)]
        pairs = [(v, v + half) for v in range(len(vectors)) if not v & half]
        vectors = [
            builder.fadd(
                *(builder.shuffle_vector(vectors[a], vectors[b], order) for order in orders)
            )
            for a, b in pairs
        ]
        half //= 2
    return vectors


def _slices(builder, vectors: list[Any], lanes: int, size: int) -> list[Any]:
    """The elements of some vectors as vectors of `size`, which divides or is twice `lanes`."""
    if size > lanes:
        order = ir.Constant(ir.VectorType(_i32, size), list(range(size)))
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        return [builder.shuffle_vector(a, b, order) for a, b in pairs]
    orders = [
        ir.Constant(ir.VectorType(_i32, size), list(range(at, at + size)))
        for at in range(0, lanes, size)
    ]
    return [builder.shuffle_vector(v, v, order) for v in vectors for order in orders]


def _k_loop(builder, vectors: Vectors, k, count: int, step) -> list[Any]:
    """Emit ``sums = step(at, sums, mask)`` for the vectors of ``range(k)``; the last is masked."""
    whole = builder.and_(k, _i64(-vectors.lanes))
    zero = ir.Constant(vectors.vector, None)
    before = builder.block
    names = ("dot.k", "dot.rest", "dot.tail", "dot.done")
    loop, rest, tail, done = (builder.append_basic_block(name) for name in names)
    builder.cbranch(builder.icmp_signed(">", whole, _i64(0)), loop, rest)

    builder.position_at_end(loop)
    at, sums = builder.phi(_i64), [builder.phi(vectors.vector) for _ in range(count)]
    updated, following = step(at, sums, None), builder.add(at, _i64(vectors.lanes))
    builder.cbranch(builder.icmp_signed("<", following, whole), loop, rest)

    builder.position_at_end(rest)
    results = [builder.phi(vectors.vector) for _ in range(count)]
    builder.cbranch(builder.icmp_signed("<", whole, k), tail, done)

    builder.position_at_end(tail)
    last = step(whole, results, vectors.first_lanes(builder.sub(k, whole)))
    tail = builder.block  # which loads may have left
    builder.branch(done)

    builder.position_at_end(done)
    final = [builder.phi(vectors.vector) for _ in range(count)]
    at.add_incoming(_i64(0), before)
    at.add_incoming(following, loop)
    for phi, result, value in zip(sums, results, updated, strict=True):
        for merged in (phi, result):
            merged.add_incoming(zero, before)
            merged.add_incoming(value, loop)
    for phi, result, value in zip(final, results, last, strict=True):
        phi.add_incoming(result, rest)
        phi.add_incoming(value, tail)
    return final


@intrinsic(prefer_literal=True)
def dot_tile(typingctx, shape, k, a, b, start, floor, c, valid):
    """``c[j, i] = max(floor, start[j, i] + sum_p a[i, p] * b[j, p])``, vectorised over p.

    Operands are `Rows`; `start` may be c. ``shape = (rows of a, rows of b)`` are literal integers,
    `valid` how many of them exist, at least one. Lane l sums the p that are l modulo the lanes in
    one chain of fused multiply-adds, then the lanes are summed as a tree: an element has the same
    bits in every tile. A NaN stays.
    """
    size = literals(*shape.types)
    if size is None:
        return None
    height, width = size

    def codegen(cgctx, builder, sig, values):
        (a_ptr, a_row), (b_ptr, b_row), (start_ptr, start_row), (c_ptr, c_row) = (
            operand(cgctx, builder, sig.args[i], values[i]) for i in (2, 3, 4, 6)
        )
        lanes = cpu.lanes(c.types[0].dtype.bitwidth // 8)
        vectors = Vectors(builder, a_ptr.type.pointee, lanes)
        valid_rows, valid_columns = cgutils.unpack_tuple(builder, values[7])
        i_at, j_at = _clamped(builder, height, valid_rows), _clamped(builder, width, valid_columns)
        a_rows = [builder.gep(a_ptr, [builder.mul(i, a_row)]) for i in i_at]
        b_rows = [builder.gep(b_ptr, [builder.mul(j, b_row)]) for j in j_at]

        def step(at, sums: list[Any], mask) -> list[Any]:
            # In the order in which registers are needed: one for all of the longer side's.
            longer, shorter = (b_rows, a_rows) if width > height else (a_rows, b_rows)
            held = [vectors.load_vector(builder.gep(row, [at]), mask=mask) for row in shorter]
            updated = list(sums)
            for i, row in enumerate(longer):
                value = vectors.load_vector(builder.gep(row, [at]), mask=mask)
                for j, other in enumerate(held):
                    place = j * height + i if longer is a_rows else i * height + j
                    updated[place] = vectors.fma(value, other, sums[place])
            return updated

        sums = _k_loop(builder, vectors, values[1], height * width, step)
        totals = _slices(builder, sum_lanes(builder, sums, lanes), lanes, height)[:width]
        line = Vectors(builder, vectors.element, height)
        low = line.splat(values[5])
        before = [builder.gep(start_ptr, [builder.mul(j, start_row)]) for j in j_at]
        after = [builder.gep(c_ptr, [builder.mul(j, c_row)]) for j in j_at]

        def finish(mask) -> None:
            olds = [line.load_vector(at, mask=mask) for at in before]
            for at, old, total in zip(after, olds, totals, strict=True):
                value = builder.fadd(old, total)
                below = builder.fcmp_ordered("<", value, low)
                line.store_vector(builder.select(below, low, value), at, mask=mask)

        whole = builder.icmp_signed("==", valid_rows, _i64(height))
        with builder.if_else(whole) as (full, part):
            with full:
                finish(None)
            with part:
                finish(line.first_lanes(valid_rows))
        return cgctx.get_dummy_value()

    return types.void(shape, types.int64, a, b, start, c.types[0].dtype, c, valid), codegen


@intrinsic(prefer_literal=True)
def move_run(typingctx, stream, out, out_at, source, source_at, count):
    """``out[out_at : out_at + count] = source[source_at : source_at + count]``, both flat.

    For long runs: whole vectors are not masked. With the literal `stream` 1 they bypass the
    caches, and `out_at` must be aligned to a vector.
    """

    def codegen(cgctx, builder, sig, values):
        target = element_pointer(cgctx, builder, out, values[1], values[2])
        origin = element_pointer(cgctx, builder, source, values[3], values[4])
        vectors = Vectors(builder, target.type.pointee, cpu.lanes(out.dtype.bitwidth // 8))
        whole = builder.and_(values[5], _i64(-vectors.lanes))
        with cgutils.for_range_slice(builder, _i64(0), whole, _i64(vectors.lanes), _i64) as (j, _):
            value = vectors.load_vector(builder.gep(origin, [j]))
            if stream.literal_value:
                vectors.stream_vector(value, builder.gep(target, [j]))
            else:
                vectors.store_vector(value, builder.gep(target, [j]))
        with builder.if_then(builder.icmp_signed("<", whole, values[5])):
            mask = vectors.first_lanes(builder.sub(values[5], whole))
            value = vectors.load_vector(builder.gep(origin, [whole]), mask=mask)
            vectors.store_vector(value, builder.gep(target, [whole]), mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(stream, out, i8, source, i8, i8), codegen


@intrinsic(prefer_literal=True)
def rank_update(typingctx, add, stream, n, s, b, c, valid):
    """``c[i, j] = sum_p s[i, p] * b[p, j]`` for `FEW` rows i and p, and j in ``range(n)``.

    With the literal `add` 1 the sum is added to c; with `stream` 1 whole vectors bypass the
    caches, and the rows of c must be aligned. `s` are `Factors`, whose 16 values stay in
    registers, b and c `Rows`; ``valid = (rows, depth)`` of them exist, at least one each.
    """

    def codegen(cgctx, builder, sig, values):
        (s_ptr, s_row, s_p), (b_ptr, b_row), (c_ptr, c_row) = (
            operand(cgctx, builder, sig.args[i], values[i]) for i in range(3, 6)
        )
        vectors = Vectors(builder, c_ptr.type.pointee, cpu.lanes(c.types[0].dtype.bitwidth // 8))
        valid_rows, depth = cgutils.unpack_tuple(builder, values[6])
        i_at, p_at = _clamped(builder, FEW, valid_rows), _clamped(builder, FEW, depth)
        exists = [builder.icmp_signed("<", _i64(p), depth) for p in range(FEW)]
        b_rows = [builder.gep(b_ptr, [builder.mul(p, b_row)]) for p in p_at]
        c_rows = [builder.gep(c_ptr, [builder.mul(i, c_row)]) for i in i_at]
        starts = [builder.gep(s_ptr, [builder.mul(i, s_row)]) for i in i_at]
        # Factor and term are both 0 where there is no row p: 0 times an infinity would be NaN.
        nothing = ir.Constant(vectors.element, 0)
        scales = []
        for start in starts:
            cells = [builder.gep(start, [builder.mul(p, s_p)]) for p in p_at]
            factors = [
                builder.select(e, builder.load(at), nothing)
                for e, at in zip(exists, cells, strict=True)
            ]
            scales.append([vectors.splat(factor) for factor in factors])
        zero = ir.Constant(vectors.vector, None)

        ahead = builder.mul(b_row, _i64(FEW))

        def update(j, mask) -> None:
            for row in b_rows if add.literal_value else ():
                prefetch(builder, builder.gep(row, [builder.add(j, ahead)]))
            terms = [vectors.load_vector(builder.gep(row, [j]), mask=mask) for row in b_rows]
            terms = [builder.select(e, term, zero) for e, term in zip(exists, terms, strict=True)]
            cells = [builder.gep(row, [j]) for row in c_rows]
            sums = [
                vectors.load_vector(cell, mask=mask) if add.literal_value else zero
                for cell in cells
            ]
            for p, term in enumerate(terms):
                sums = [
                    vectors.fma(scale[p], term, old)
                    for scale, old in zip(scales, sums, strict=True)
                ]
            for cell, value in zip(cells, sums, strict=True):
                if stream.literal_value and mask is None:
                    vectors.stream_vector(value, cell)
                else:
                    vectors.store_vector(value, cell, mask=mask)

        lanes = vectors.lanes
        whole = builder.and_(values[2], _i64(-lanes))
        with cgutils.for_range_slice(builder, _i64(0), whole, _i64(lanes), _i64) as (j, _):
            update(j, None)
        with builder.if_then(builder.icmp_signed("<", whole, values[2])):
            update(whole, vectors.first_lanes(builder.sub(values[2], whole)))
        return cgctx.get_dummy_value()

    return types.void(add, stream, types.int64, s, b, c, valid), codegen


@intrinsic(prefer_literal=True)
def sum_strip(typingctx, shape, x, y, masked, strip, sums, sums_at):
    """``sums[sums_at + j] = sum_i x[offset + i * row + j]``, rows i and columns j of a `Strip`.

    All are flat. ``shape = (vectors, relu)`` is literal; a strip of several vectors is whole, one
    may have fewer columns than lanes. With `relu` 1 elements whose y is 0 or less count as zeros,
    and `masked` gets what was summed. The sums stay in registers, in a chain of additions each.
    """
    size = literals(*shape.types)
    if size is None:
        return None
    count, relu = size

    def codegen(cgctx, builder, sig, values):
        at, rows, stride, columns = cgutils.unpack_tuple(builder, values[4])
        x_ptr, y_ptr, masked_ptr = (
            element_pointer(cgctx, builder, array, values[i], at)
            for i, array in enumerate((x, y, masked), 1)
        )
        target = element_pointer(cgctx, builder, sums, values[5], values[6])
        lines = Vectors(builder, x_ptr.type.pointee, cpu.lanes(x.dtype.bitwidth // 8))
        zero = ir.Constant(lines.vector, None)

        def strip(mask) -> None:
            places = [cgutils.alloca_once(builder, lines.vector) for _ in range(count)]
            for place in places:
                builder.store(zero, place)
            with cgutils.for_range(builder, rows) as loop:
                row = builder.mul(loop.index, stride)
                for v, place in enumerate(places):
                    value = lines.load_vector(builder.gep(x_ptr, [row]), v, mask)
                    if relu:
                        output = lines.load_vector(builder.gep(y_ptr, [row]), v, mask)
                        passes = builder.fcmp_unordered(">", output, zero)
                        value = builder.select(passes, value, zero)
                        lines.store_vector(value, builder.gep(masked_ptr, [row]), v, mask)
                    builder.store(builder.fadd(builder.load(place), value), place)
            for v, place in enumerate(places):
                lines.store_vector(builder.load(place), target, v, mask)

        if count > 1:
            strip(None)
        else:
            whole = builder.icmp_signed("==", columns, _i64(lines.lanes))
            with builder.if_else(whole) as (full, part):
                with full:
                    strip(None)
                with part:
                    strip(lines.first_lanes(columns))
        return cgctx.get_dummy_value()

    return types.void(shape, x, y, masked, strip, sums, types.int64), codegen
