"""Linear layers: three products of matrices, of which one is large and moves once.

The weight, or its gradient, is far larger than the batch, so each pass is built around one stream
through it. Forward both operands are contiguous in k: registers hold k, nothing is transposed.
Backward the columns are contiguous: rank updates for a few rows, `gemm` for many.
Chunks depend on the shape alone. Arrays are flat, ``size`` is always (batch, in, out).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.gemm import gemm, prepare_gemm
from fastlayers.kernels.micro import _element_pointer, _Vectors
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = [
    "FEW",
    "blocked_size",
    "dot_tile",
    "linear",
    "linear_backward_input_few",
    "linear_backward_weight",
    "linear_backward_weight_few",
    "matmul",
    "move_run",
    "prefetch_run",
    "rank_update",
]

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_LINE = 64  # bytes of a cache line

# Rows of the weight in a tile of dot products: 4 x 4 sums, 4 + 4 operands fit 32 registers.
DOT_ROWS = 4 if cpu.tile_rows() == 12 else 2
FEW = 4  # batch rows of a dot tile, rows and depth of a rank update


def _operand(cgctx: Any, builder: Any, tuple_type: Any, value: Any) -> list[Any]:
    """Pointer to the first element of ``(array, offset, strides...)``, then the strides."""
    parts = [builder.extract_value(value, i) for i in range(len(tuple_type))]
    pointer = _element_pointer(cgctx, builder, tuple_type.types[0], parts[0], parts[1])
    return [pointer, *parts[2:]]


def _clamped(builder: Any, count: int, valid: Any) -> list[Any]:
    """Indices 0 to count - 1, of which those from `valid` on repeat the last valid one."""
    last = builder.sub(valid, _i64(1))
    below = [builder.icmp_signed("<", _i64(i), valid) for i in range(count)]
    return [builder.select(inside, _i64(i), last) for i, inside in enumerate(below)]


def _sum_lanes(builder: Any, vectors: list[Any], lanes: int) -> list[Any]:
    """Sum of each vector's lanes, as scalars, halving all vectors at once.

    Two vectors are folded into the halves of one: 16 vectors of 16 lanes take 15 additions and
    30 shuffles instead of 64 each. The order of additions within a vector is that of a tree.
    """
    owners = [[i] * lanes for i in range(len(vectors))]
    shuffle = ir.VectorType(_i32, lanes)
    half = lanes // 2
    while half:
        upper = [lane for lane in range(lanes) if lane & half]
        lower = [lane ^ half for lane in upper]
        middle = len(vectors) // 2
        if len(vectors) == 2 * middle:
            pairs = list(zip(vectors[:middle], vectors[middle:], strict=True))
            both = [a + b for a, b in zip(owners[:middle], owners[middle:], strict=True)]
        else:
            pairs, both = [(v, v) for v in vectors], [o + o for o in owners]
        # Lane l of the result comes from the first vector where bit `half` of l is clear.
        low, high = [0] * lanes, [0] * lanes
        for lo, hi in zip(lower, upper, strict=True):
            low[lo], high[lo], low[hi], high[hi] = lo, hi, lanes + lo, lanes + hi
        parts = [
            [builder.shuffle_vector(a, b, ir.Constant(shuffle, order)) for order in (low, high)]
            for a, b in pairs
        ]
        vectors = [builder.fadd(*part) for part in parts]
        owners = [[o[i] for i in low] for o in both]
        half //= 2
    where = {
        owner: (v, lane)
        for v, own in zip(vectors, owners, strict=True)
        for lane, owner in enumerate(own)
    }
    order = [where[owner] for owner in sorted(where)]
    return [builder.extract_element(vector, _i32(lane)) for vector, lane in order]


def _k_loop(builder: Any, vectors: _Vectors, k: Any, count: int, step: Any) -> list[Any]:
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
def dot_tile(
    typingctx: Any,
    rows: Any,
    columns: Any,
    k: Any,
    a: Any,
    b: Any,
    init: Any,
    c: Any,
    valid: Any,
) -> Any:
    """``c[i, j] = init[i, j] + sum_p a[i, p] * b[j, p]``, vectorised over p.

    `rows` and `columns` are literal integers, ``valid = (rows, columns)`` how many of them exist,
    at least one. ``a`` and ``b = (array, offset, row stride)``, ``init`` and
    ``c = (array, offset, row stride, column stride)``; `init` may be `c`. Lane l sums the p that
    are l modulo the lanes in one chain of fused multiply-adds, then the lanes are summed as a
    tree: an element has the same bits in every tile.
    """
    height, width = rows.literal_value, columns.literal_value

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        (a_ptr, a_row), (b_ptr, b_row), init_at, c_at = (
            _operand(cgctx, builder, sig.args[i], values[i]) for i in range(3, 7)
        )
        lanes = cpu.lanes(c.types[0].dtype.bitwidth // 8)
        vectors = _Vectors(builder, a_ptr.type.pointee, lanes)
        fma = vectors.declare("llvm.fma.{}", vectors.vector, [vectors.vector] * 3)
        valid_rows, valid_columns = cgutils.unpack_tuple(builder, values[7])
        i_at, j_at = _clamped(builder, height, valid_rows), _clamped(builder, width, valid_columns)
        a_rows = [builder.gep(a_ptr, [builder.mul(i, a_row)]) for i in i_at]
        b_rows = [builder.gep(b_ptr, [builder.mul(j, b_row)]) for j in j_at]

        def step(at: Any, sums: list[Any], mask: Any) -> list[Any]:
            left = [vectors.load_vector(builder.gep(row, [at]), mask=mask) for row in a_rows]
            right = [vectors.load_vector(builder.gep(row, [at]), mask=mask) for row in b_rows]
            pairs = [(x, y) for x in left for y in right]
            return [builder.call(fma, [*pair, old]) for pair, old in zip(pairs, sums, strict=True)]

        sums = _k_loop(builder, vectors, values[2], height * width, step)
        totals = _sum_lanes(builder, sums, lanes)

        def cells(pointer: Any, row: Any, column: Any) -> list[Any]:
            starts = [builder.gep(pointer, [builder.mul(i, row)]) for i in i_at]
            steps = [builder.mul(j, column) for j in j_at]
            return [builder.gep(start, [step]) for start in starts for step in steps]

        before = [builder.load(cell) for cell in cells(*init_at)]
        for cell, old, total in zip(cells(*c_at), before, totals, strict=True):
            builder.store(builder.fadd(old, total), cell)
        return cgctx.get_dummy_value()

    return types.void(rows, columns, types.int64, a, b, init, c, valid), codegen


def _prefetch(builder: Any, pointer: Any) -> None:
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, _i32, _i32, _i32])
    prefetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(prefetch, [pointer, _i32(0), _i32(2), _i32(1)])  # read, into L2, data


@intrinsic
def prefetch_run(typingctx: Any, array: Any, at: Any, count: Any) -> Any:
    """Ask for ``array[at : at + count]`` of a flat array in L2; the range need not exist."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        start = _element_pointer(cgctx, builder, array, values[0], values[1])
        step = _i64(8 * _LINE // array.dtype.bitwidth)
        with cgutils.for_range_slice(builder, _i64(0), values[2], step, _i64) as (j, _):
            _prefetch(builder, builder.gep(start, [j]))
        return cgctx.get_dummy_value()

    return types.void(array, types.int64, types.int64), codegen


@intrinsic(prefer_literal=True)
def move_run(
    typingctx: Any, stream: Any, out: Any, out_at: Any, source: Any, source_at: Any, count: Any
) -> Any:
    """``out[out_at : out_at + count] = source[source_at : source_at + count]``, both flat.

    For long runs: whole vectors are not masked. With the literal `stream` 1 they bypass the
    caches, and `out_at` must be aligned to a vector.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        target = _element_pointer(cgctx, builder, out, values[1], values[2])
        origin = _element_pointer(cgctx, builder, source, values[3], values[4])
        vectors = _Vectors(builder, target.type.pointee, cpu.lanes(out.dtype.bitwidth // 8))
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
def rank_update(
    typingctx: Any, add: Any, stream: Any, n: Any, s: Any, b: Any, c: Any, valid: Any
) -> Any:
    """``c[i, j] = sum_p s[i, p] * b[p, j]`` for `FEW` rows i and p, and j in ``range(n)``.

    With the literal `add` 1 the sum is added to c; with `stream` 1 whole vectors bypass the
    caches, and the rows of c must be aligned. ``s = (array, offset, row stride, p stride)``, whose
    16 values stay in registers; ``b`` and ``c = (array, offset, row stride)``;
    ``valid = (rows, depth)`` of them exist, at least one each.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        (s_ptr, s_row, s_p), (b_ptr, b_row), (c_ptr, c_row) = (
            _operand(cgctx, builder, sig.args[i], values[i]) for i in range(3, 6)
        )
        vectors = _Vectors(builder, c_ptr.type.pointee, cpu.lanes(c.types[0].dtype.bitwidth // 8))
        fma = vectors.declare("llvm.fma.{}", vectors.vector, [vectors.vector] * 3)
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

        def update(j: Any, mask: Any) -> None:
            for row in b_rows if add.literal_value else ():
                _prefetch(builder, builder.gep(row, [builder.add(j, ahead)]))
            terms = [vectors.load_vector(builder.gep(row, [j]), mask=mask) for row in b_rows]
            terms = [builder.select(e, term, zero) for e, term in zip(exists, terms, strict=True)]
            cells = [builder.gep(row, [j]) for row in c_rows]
            sums = [
                vectors.load_vector(cell, mask=mask) if add.literal_value else zero
                for cell in cells
            ]
            for p, term in enumerate(terms):
                sums = [
                    builder.call(fma, [scale[p], term, old])
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


# Elements of k in one block of a dot product, in vectors: 4 rows of 64 are 16 KiB, half an L1.
DOT_VECTORS = 64
# Batch rows of a task: 128 blocks of x are 512 KiB, half the L2 that the field has at least.
DOT_BATCH = 128
# Packed rows are this much longer than their block, so that the rows of a tile do not fall into
# one set of the L1: at a distance of 16 KiB, 12 rows evict each other.
PAD = 16


@kernel
def dot_block(k, lanes):
    """Elements of k in a block: equal blocks of at most `DOT_VECTORS`, in whole vectors."""
    blocks = max(1, (k + DOT_VECTORS * lanes - 1) // (DOT_VECTORS * lanes))
    return max(1, ((k + blocks - 1) // blocks + lanes - 1) // lanes) * lanes


@kernel
def blocked_size(rows, k, block):
    """Elements of a matrix packed by blocks of columns; 0 where it is read as it is."""
    return (k + block - 1) // block * rows * (block + PAD) if k > block and rows > FEW else 0


@kernel
def _pack_block(i, worker, x, rows, k, block, packed):
    for row in range(rows):
        at = (i * rows + row) * (block + PAD)
        move_run(0, packed, at, x, row * k + i * block, min(block, k - i * block))


@kernel
def _blocked(x, rows, k, block, workers, packed):
    """Pack a matrix to ``[block][row][block + PAD]`` if `packed` has room for it.

    Returns (array, distance of blocks, distance of rows).
    """
    if packed.size == 0:
        return x, block, k
    parallel_for(_pack_block, (k + block - 1) // block, workers, (x, rows, k, block, packed))
    return packed, rows * (block + PAD), block + PAD


@kernel
def _linear_task(task, worker, x, weight, bias, size, steps, y):
    """Some rows of the weight by some of the batch, block after block of k."""
    batch, k, n = size
    x_array, x_block, x_row = x
    block, step, batch_step = steps
    across = (batch + batch_step - 1) // batch_step
    first, j0 = task // across * step, task % across * batch_step
    last, j1 = min(first + step, n), min(j0 + batch_step, batch)
    # Each tile fetches its part of the weight's next rows while it multiplies the present ones.
    # A single tile would only wait for them earlier.
    tiles = (j1 - j0 + FEW - 1) // FEW
    part = (block + tiles - 1) // tiles
    for p in range(max(1, (k + block - 1) // block)):  # once without k, for the bias
        at = p * block
        depth = min(block, k - at)
        for i in range(first, last, DOT_ROWS):
            following = (i + DOT_ROWS) * k + at
            if i + DOT_ROWS >= last:
                following = first * k + at + block
            for j in range(j0, j1, FEW):
                if tiles > 1:
                    column = following + (j - j0) // FEW * part
                    for row in range(DOT_ROWS):
                        prefetch_run(weight, column + row * k, part)
                a = (weight, i * k + at, k)
                b = (x_array, p * x_block + j * x_row, x_row)
                c = (y, j * n + i, 1, n)
                init = (bias, i, 1, 0) if p == 0 else c
                valid = (min(DOT_ROWS, last - i), min(FEW, j1 - j))
                dot_tile(DOT_ROWS, FEW, depth, a, b, init, c, valid)


@kernel
def linear(x, weight, bias, size, lanes, workers, packed, y):
    """``y = x @ weight.T + bias``: x (batch, in), weight (out, in), y (batch, out).

    `packed` holds ``blocked_size(batch, in, dot_block(in, lanes))`` elements.
    """
    batch, k, n = size
    block = dot_block(k, lanes)
    operand = _blocked(x, batch, k, block, workers, packed)
    across = max(1, (batch + DOT_BATCH - 1) // DOT_BATCH)
    batch_step = max(1, (batch + across * FEW - 1) // (across * FEW)) * FEW
    step = _share(n, across, DOT_ROWS, 48)
    tasks = (n + step - 1) // step * across
    arguments = (operand, weight, bias, size, (block, step, batch_step), y)
    parallel_for(_linear_task, tasks, workers, arguments)


@kernel
def _share(count, across, unit, most):
    """Rows of a task: a multiple of `unit` that makes 16 tasks where there are enough rows."""
    units = (count * across + 16 * unit - 1) // (16 * unit)
    return max(1, min(units, most // unit)) * unit


# Block of `matmul`: 256 x 128 float32 of B are packed to 128 KiB in L2, and used by all rows.
DEPTH = 256
SPAN = 128
STEP = 384  # rows of a task, so that packing B is at most a 384th of the work
MATMUL_WORK = DEPTH * (SPAN + 2 * PAD)  # elements of a worker
GROUP = 12  # rows between two prefetches, a multiple of every tile


@kernel
def _matmul_task(task, worker, a, b, init, c, size, lanes, work):
    """Up to `STEP` rows of C in `SPAN` columns, block after block of k."""
    m, k, n = size
    a_array, a_block, a_row = a
    across = (n + SPAN - 1) // SPAN
    i0, j0 = task // across * STEP, task % across * SPAN
    rows, columns = min(STEP, m - i0), min(SPAN, n - j0)
    row, panel = SPAN + 2 * PAD, 2 * lanes
    here = worker * MATMUL_WORK
    part = DEPTH * GROUP // max(rows, GROUP) + 1
    for p in range(max(1, (k + DEPTH - 1) // DEPTH)):
        at = p * DEPTH
        depth = min(DEPTH, k - at)
        for q in range(depth):
            move_run(0, work, here + q * row, b, (at + q) * n + j0, columns)
        for i in range(0, rows, GROUP):
            for q in range(part):
                prefetch_run(b, (at + DEPTH + i // GROUP * part + q) * n + j0, columns)
            left = (a_array, p * a_block + (i0 + i) * a_row, a_row, 1)
            target = (c, (i0 + i) * n + j0, n)
            start = (init, j0, 0) if p == 0 else target
            count = min(GROUP, rows - i)
            gemm(count, columns, depth, left, (work, here, panel, row), start, target, lanes)


@kernel
def matmul(a, b, init, size, lanes, workers, packed, work, c):
    """``C = init + A @ B``: A (m, k), B (k, n), init (n,), C (m, n), ``size = (m, k, n)``.

    `packed` holds ``blocked_size(m, k, DEPTH)`` elements, `work`
    ``workers * MATMUL_WORK``.
    """
    prepare_gemm(c)
    m, k, n = size
    block = np.int64(DEPTH)  # a literal would be a second signature, 0.35 s to compile
    operand = _blocked(a, m, k, block, workers, packed)
    tasks = (m + STEP - 1) // STEP * ((n + SPAN - 1) // SPAN)
    parallel_for(_matmul_task, tasks, workers, (operand, b, init, c, size, lanes, work))


# Columns of a rank update: 4 rows of 1024 float32 are 16 KiB, half an L1.
COLUMNS = 1024


@kernel
def _backward_input_few_task(task, worker, dy, weight, size, dx):
    batch, k, n = size
    first = task * COLUMNS
    columns = min(COLUMNS, k - first)
    for i in range(batch):
        for j in range(columns):
            dx[i * k + first + j] = 0
    for p in range(0, n, FEW):
        rows = (weight, p * k + first, k)
        for i in range(0, batch, FEW):
            factors, target = (dy, i * n + p, n, 1), (dx, i * k + first, k)
            valid = (min(FEW, batch - i), min(FEW, n - p))
            rank_update(1, 0, columns, factors, rows, target, valid)


@kernel
def linear_backward_input_few(dy, weight, size, workers, dx):
    """``dx = dy @ weight`` for a small batch, which reads the weight as a stream."""
    tasks = (size[1] + COLUMNS - 1) // COLUMNS
    parallel_for(_backward_input_few_task, tasks, workers, (dy, weight, size, dx))


@kernel
def _backward_weight_few_task(task, worker, dy, x, size, step, stream, dw):
    batch, k, n = size
    end = min((task + 1) * step, n)
    for j in range(0, k, COLUMNS):
        for i in range(task * step, end, FEW):
            factors, terms, target = (dy, i, 1, n), (x, j, k), (dw, i * k + j, k)
            columns, valid = min(COLUMNS, k - j), (min(FEW, end - i), batch)
            if stream:
                rank_update(0, 1, columns, factors, terms, target, valid)
            else:
                rank_update(0, 0, columns, factors, terms, target, valid)


@kernel
def linear_backward_weight_few(dy, x, size, stream, workers, dw):
    """``dw = dy.T @ x`` for 1 to `FEW` rows; `stream` as in `linear_backward_weight`."""
    step = _share(size[2], 1, FEW, 48)
    tasks = (size[2] + step - 1) // step
    parallel_for(_backward_weight_few_task, tasks, workers, (dy, x, size, step, stream, dw))


# Rows and columns of a task of the weight's gradient. What it needs stays in L2: A, B and C have
# 192, 256 and 192 KiB.
WEIGHT_ROWS, WEIGHT_SPAN = 192, 256
WEIGHT_WORK = DEPTH * (WEIGHT_ROWS + WEIGHT_SPAN + 2 * PAD) + WEIGHT_ROWS * WEIGHT_SPAN


@kernel
def _backward_weight_task(task, worker, dy, x, zeros, size, steps, stream, lanes, work, dw):
    batch, k, n = size
    step, span = steps
    across = (k + span - 1) // span
    i0, j0 = task // across * step, task % across * span
    rows, columns = min(step, n - i0), min(span, k - j0)
    row, panel = span + 2 * PAD, 2 * lanes
    a_at = worker * WEIGHT_WORK
    b_at = a_at + DEPTH * step
    result = (dw, i0 * k + j0, k)
    if stream:
        result = (work, b_at + DEPTH * row, span)
    for p in range(0, batch, DEPTH):
        depth = min(DEPTH, batch - p)
        for q in range(depth):
            move_run(0, work, a_at + q * step, dy, (p + q) * n + i0, rows)
            move_run(0, work, b_at + q * row, x, (p + q) * k + j0, columns)
        init = (zeros, 0, 0) if p == 0 else result
        a, b = (work, a_at, 1, step), (work, b_at, panel, row)
        gemm(rows, columns, depth, a, b, init, result, lanes)
    if stream:
        for i in range(rows):
            move_run(1, dw, (i0 + i) * k + j0, work, result[1] + i * span, columns)


@kernel
def linear_backward_weight(dy, x, zeros, size, stream, lanes, workers, work, dw):
    """``dw = dy.T @ x``: dy (batch, out), x (batch, in), dw (out, in).

    With `stream` the result bypasses the caches; its rows must be aligned to a vector. `zeros`
    holds `WEIGHT_SPAN` zeros, `work` ``workers * WEIGHT_WORK`` elements. The batch is not empty.
    """
    prepare_gemm(dw)
    _, k, n = size
    step, span = _share(n, (k + WEIGHT_SPAN - 1) // WEIGHT_SPAN, GROUP, WEIGHT_ROWS), WEIGHT_SPAN
    tasks = (n + step - 1) // step * ((k + span - 1) // span)
    arguments = (dy, x, zeros, size, (step, span), stream, lanes, work, dw)
    parallel_for(_backward_weight_task, tasks, workers, arguments)
