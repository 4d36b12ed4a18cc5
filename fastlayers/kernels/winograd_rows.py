"""Convolution with kernels 5 wide, by Winograd's transform along rows: lanes run over images.

Few channels fill few lanes, but a batch fills all. F(4, 5) needs 8 products for 4 neighbours in a
row instead of 20, and each of its points is a convolution down the columns: a matrix product whose
rows are output channels, whose sums go over input channels and the kernel's rows, and whose columns
are the vectors of (output row, tile of the row). They are contiguous, so no place is wasted.

A block is as many images as a vector has lanes. Its transformed rows are
``v[point, channel, row, tile, lane]`` and ``z[point, filter, row of a piece, tile, lane]``; a piece
is a few output rows that reach the same rows of the kernel, so that zeros above and below the image
are left out. ``form = (sizes, left, tiles, strides, starts, pooled)`` has ``sizes = ((N, H, W, C),
(OH, OW, M))``; the columns of zeros on the left; the tiles of a row; the elements from point to
point of v, from point to point and from filter to filter of z; where in a worker's memory z begins,
a row of inputs, rows of outputs, the filters' sums and the next worker's; and 2 for a max pooling
of 2x2 that follows, or 1.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.layout import NO_TABLE
from fastlayers.kernels.linear_tile import _sum_lanes as sum_lanes
from fastlayers.kernels.runs import add_run, clear_run, copy_run, transpose_block
from fastlayers.kernels.toom_cook import Emitter, make_emitter, matrices, transposed
from fastlayers.kernels.vectors import Vectors, element_pointer
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "POINTS",
    "ROWS",
    "STEP",
    "TAPS",
    "VECTORS",
    "conv2d_winograd_rows",
    "conv2d_winograd_rows_backward_weight",
    "slots",
]

_i64 = ir.IntType(64)
VECTOR_BYTES = cpu.vector_bytes()
STEP, TAPS, POINTS = 4, 5, 8
# A tile's filters and vectors: 24 sums in 32 registers, 12 in 16.
ROWS = 6
VECTORS = cpu.tile_rows() // 3
_MATRICES = matrices(STEP, TAPS)
# A pair's point and the factor of its filter, which are those of rows 1, 3 and 5.
_PAIRS = tuple(_MATRICES.filter[row][1] / _MATRICES.filter[row][0] for row in (1, 3, 5))
_FACTORS = tuple(_MATRICES.filter[row][0] for row in (1, 3, 5))
_ORIGIN = _MATRICES.filter[0][0]
_ONE = 2 * _PAIRS.index(1.0) + 1  # the point 1, whose values are sums


def slots(lanes: int) -> int:
    """Elements that the sums of a tile of dot products take: whole vectors."""
    return -(-ROWS * VECTORS // lanes) * lanes


def _operand(cgctx: Any, builder: Any, kind: Any, value: Any) -> list[Any]:
    """Pointer to the first element of ``(array, offset, strides...)``, then the strides."""
    array, at, *strides = cgutils.unpack_tuple(builder, value)
    return [element_pointer(cgctx, builder, kind.types[0], array, at), *strides]


def _each_tile(
    cgctx: Any,
    builder: Any,
    sig: Any,
    values: Any,
    steps: tuple[int, int],
    emit: Callable[[Emitter, Callable[[int], Any], Callable[[int, Any], None]], None],
) -> Any:
    """Loop over tiles, of which `emit` loads values and stores others; `steps` from tile to tile.

    The values follow ``(count, source, out)``; a step of 0 is one vector.
    """
    emitter = make_emitter(cgctx, builder, sig.args[2].types[0])
    (source, stride), (out, out_stride) = (
        _operand(cgctx, builder, sig.args[i], values[i]) for i in (1, 2)
    )

    def tile(pointer: Any, stride: Any, index: Any, step: int) -> Any:
        size = builder.mul(stride, _i64(step)) if step else _i64(emitter.lanes)
        return builder.gep(pointer, [builder.mul(index, size)])

    with cgutils.for_range(builder, values[0]) as loop:
        start = tile(source, stride, loop.index, steps[0])
        target = tile(out, out_stride, loop.index, steps[1])

        def load(k: int) -> Any:
            return emitter.load_vector(builder.gep(start, [builder.mul(stride, _i64(k))]))

        def store(k: int, value: Any) -> None:
            emitter.store_vector(value, builder.gep(target, [builder.mul(out_stride, _i64(k))]))

        emit(emitter, load, store)
    return cgctx.get_dummy_value()


def _to_points(matrix: list[list[float]], source: Any, out: Any, *total: Any) -> Any:
    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        vectors = make_emitter(cgctx, builder, source.types[0])
        held = cgutils.alloca_once(builder, vectors.vector)
        if total:
            (place,) = _operand(cgctx, builder, total[0], values[3])
            builder.store(vectors.load_vector(place), held)

        def emit(emitter: Emitter, load: Any, store: Any) -> None:
            inputs = [load(k) for k in range(len(matrix[0]))]
            groups = list(range(POINTS // 2))
            for point, (value, _) in emitter.paired_rows(matrix, inputs.__getitem__, groups):
                store(point, value)
                if total and point == _ONE:
                    builder.store(builder.fadd(builder.load(held), value), held)

        _each_tile(cgctx, builder, sig, values, (STEP, 0), emit)
        if total:
            vectors.store_vector(builder.load(held), place)
        return cgctx.get_dummy_value()

    return types.void(types.int64, source, out, *total), codegen


@intrinsic
def _transform_inputs(typingctx: Any, tiles: Any, source: Any, out: Any) -> Any:
    """``out[p, tile] = (B^T source[4 tile : 4 tile + 8])[p]``.

    ``source = (array, offset, elements from pixel to pixel)``, and `out` from point to point.
    """
    return _to_points(_MATRICES.data, source, out)


@intrinsic
def _transform_gradients(typingctx: Any, tiles: Any, source: Any, out: Any, total: Any) -> Any:
    """``out[p, tile] = (A source[4 tile : 4 tile + 4])[p]``, as `_transform_inputs`.

    The sum of the source, which is that of the point 1, is added to the vector at ``total = (array,
    offset)``.
    """
    return _to_points(transposed(_MATRICES.output), source, out, total)


@intrinsic
def _transform_outputs(
    typingctx: Any, tiles: Any, source: Any, out: Any, bias: Any, floor: Any
) -> Any:
    """``out[4 tile + i] = max(floor, bias + (A^T source[:, tile])[i])``."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        def emit(emitter: Emitter, load: Any, store: Any) -> None:
            points = [load(p) for p in range(POINTS)]
            shift, low = emitter.splat(values[3]), emitter.splat(values[4])
            columns = emitter.paired_columns(_MATRICES.output, points.__getitem__, [0, 1])
            for i, (value, scale) in columns:
                y = emitter.multiply_add(scale, value, shift)
                store(i, builder.select(builder.fcmp_ordered("<", y, low), low, y))

        return _each_tile(cgctx, builder, sig, values, (0, STEP), emit)

    dtype = out.types[0].dtype
    return types.void(types.int64, source, out, dtype, dtype), codegen


@intrinsic
def _pool_rows(typingctx: Any, windows: Any, rows: Any, out: Any, cells: Any) -> Any:
    """Maxima of the 2x2 windows of two rows of one channel, and their cells.

    ``rows = (array, offset, elements from row to row)``, `out` and `cells` have elements from pixel
    to pixel. A NaN is a maximum, and the first of equal ones; cells are integers of the elements'
    size.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        emitter = make_emitter(cgctx, builder, rows.types[0])
        numbers = Vectors(builder, ir.IntType(rows.types[0].dtype.bitwidth), emitter.lanes)
        (upper, stride), (best_at, pixel), (cell_at, _) = (
            _operand(cgctx, builder, kind, value)
            for kind, value in zip((rows, out, cells), values[1:], strict=True)
        )
        lower = builder.gep(upper, [stride])
        with cgutils.for_range(builder, values[0]) as window:
            first = builder.mul(window.index, _i64(2 * emitter.lanes))
            best, *others = [
                emitter.load_vector(builder.gep(row, [first]), v)
                for row in (upper, lower)
                for v in (0, 1)
            ]
            holder = ir.Constant(numbers.vector, None)
            for cell, new in enumerate(others, 1):
                better = builder.and_(
                    builder.fcmp_unordered("ugt", new, best),
                    builder.fcmp_ordered("ord", best, best),
                )
                best = builder.select(better, new, best)
                number = ir.Constant(numbers.vector, [cell] * emitter.lanes)
                holder = builder.select(better, number, holder)
            place = builder.mul(window.index, pixel)
            emitter.store_vector(best, builder.gep(best_at, [place]))
            holder = builder.bitcast(holder, emitter.vector)
            emitter.store_vector(holder, builder.gep(cell_at, [place]))
        return cgctx.get_dummy_value()

    return types.void(types.int64, rows, out, cells), codegen


@intrinsic
def _write_cells(
    typingctx: Any, rows: Any, images: Any, source: Any, cells: Any, at: Any, image: Any
) -> Any:
    """``cells[at + n * image + e] = source[e, n]``, integers in vectors, for e < rows, n < images.

    ``source = (array, offset)`` has a vector of vectors that can be read.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        bits = source.types[0].dtype.bitwidth
        numbers = Vectors(builder, ir.IntType(bits), cpu.lanes(bits // 8))
        (start,) = _operand(cgctx, builder, source, values[2])
        out = element_pointer(cgctx, builder, cells, values[3], values[4])
        bytes_ = Vectors(builder, out.type.pointee, numbers.lanes)
        start = builder.bitcast(start, numbers.element.as_pointer())
        mask = numbers.first_lanes(values[0])
        lines = [numbers.load_vector(start, e) for e in range(numbers.lanes)]
        for n, line in enumerate(numbers.transpose(lines)):
            with builder.if_then(builder.icmp_signed("<", _i64(n), values[1])):
                place = builder.gep(out, [builder.mul(values[5], _i64(n))])
                bytes_.store_vector(builder.trunc(line, bytes_.vector), place, mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, source, cells, i8, i8), codegen


def _sum_loop(
    builder: Any,
    emitter: Emitter,
    last: Any,
    step: int,
    body: Callable[[Any, list[Any]], list[Any]],
) -> list[Any]:
    """Emit ``sums = body(at, sums)`` for ``at in range(0, last, step)``, the sums a whole tile."""
    before = builder.block
    names = ("sums.test", "sums.body", "sums.done")
    test, inside, done = (builder.append_basic_block(name) for name in names)
    builder.branch(test)
    builder.position_at_end(test)
    at = builder.phi(_i64)
    sums = [builder.phi(emitter.vector) for _ in range(ROWS * VECTORS)]
    builder.cbranch(builder.icmp_signed("<", at, last), inside, done)
    builder.position_at_end(inside)
    updated = body(at, sums)
    following = builder.add(at, _i64(step))
    zero = ir.Constant(emitter.vector, None)
    for phi, new in zip([at, *sums], [following, *updated], strict=True):
        phi.add_incoming(_i64(0) if phi is at else zero, before)
        phi.add_incoming(new, builder.block)
    builder.branch(test)
    builder.position_at_end(done)
    return sums


@intrinsic
def _product_tile(typingctx: Any, a: Any, b: Any, tables: Any, c: Any) -> Any:
    """``c[i, j] = sum over k of a[table_a[k] + i] * b[table_b[k] + j]``, j one of some vectors.

    ``tables = (table_a, table_b, first, count)``, ``a`` and ``b`` are ``(array, offset)``, and ``c
    = (array, offset, row stride)``.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        emitter = make_emitter(cgctx, builder, c.types[0])
        (a_at,), (b_at,) = (_operand(cgctx, builder, sig.args[i], values[i]) for i in (0, 1))
        table_a, table_b, first, count = cgutils.unpack_tuple(builder, values[2])
        table_a = element_pointer(cgctx, builder, tables.types[0], table_a, first)
        table_b = element_pointer(cgctx, builder, tables.types[1], table_b, first)
        fma = emitter.declare("llvm.fma.{}", emitter.vector, [emitter.vector] * 3)

        def body(k: Any, sums: list[Any]) -> list[Any]:
            row = builder.gep(b_at, [builder.load(builder.gep(table_b, [k]))])
            factors = builder.gep(a_at, [builder.load(builder.gep(table_a, [k]))])
            columns = [emitter.load_vector(row, v) for v in range(VECTORS)]
            updated = []
            for i in range(ROWS):
                factor = emitter.splat(builder.load(builder.gep(factors, [_i64(i)])))
                for v, column in enumerate(columns):
                    updated.append(builder.call(fma, [factor, column, sums[i * VECTORS + v]]))
            return updated

        sums = _sum_loop(builder, emitter, count, 1, body)
        target, stride = _operand(cgctx, builder, sig.args[3], values[3])
        for i in range(ROWS):
            for v in range(VECTORS):
                emitter.store_vector(sums[i * VECTORS + v], target, v)
            target = builder.gep(target, [stride])
        return cgctx.get_dummy_value()

    return types.void(a, b, tables, c), codegen


@intrinsic
def _dot_tile(typingctx: Any, count: Any, a: Any, b: Any, table: Any, c: Any) -> Any:
    """``c[i * VECTORS + j] += sum over k < count of a[i, k] * b[table[j] + k]``.

    `count` is a multiple of a vector, ``a = (array, offset, row stride)``, the others are ``(array,
    offset)``. `slots` elements of c are written.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        emitter = make_emitter(cgctx, builder, c.types[0])
        a_at, stride = _operand(cgctx, builder, sig.args[1], values[1])
        (b_at,), (entries,), (target,) = (
            _operand(cgctx, builder, sig.args[i], values[i]) for i in (2, 3, 4)
        )
        rows = [a_at]
        for _ in range(1, ROWS):
            rows.append(builder.gep(rows[-1], [stride]))
        offsets = [builder.load(builder.gep(entries, [_i64(j)])) for j in range(VECTORS)]
        starts = [builder.gep(b_at, [offset]) for offset in offsets]
        fma = emitter.declare("llvm.fma.{}", emitter.vector, [emitter.vector] * 3)

        def body(k: Any, sums: list[Any]) -> list[Any]:
            columns = [emitter.load_vector(builder.gep(start, [k])) for start in starts]
            updated = []
            for i, row in enumerate(rows):
                value = emitter.load_vector(builder.gep(row, [k]))
                for j, column in enumerate(columns):
                    updated.append(builder.call(fma, [value, column, sums[i * VECTORS + j]]))
            return updated

        sums = _sum_loop(builder, emitter, values[0], emitter.lanes, body)
        zero = ir.Constant(emitter.vector, None)
        sums = sums + [zero] * (slots(emitter.lanes) - len(sums))
        for v, total in enumerate(sum_lanes(builder, sums, emitter.lanes)):
            old = emitter.load_vector(target, v)
            emitter.store_vector(builder.fadd(old, total), target, v)
        return cgctx.get_dummy_value()

    return types.void(types.int64, a, b, table, c), codegen


@kernel
def _gather_row(x, at, image, count, elements, row, row_at):
    """``row[row_at + e * lanes + n] = x[at + n * image + e]``, zeros for n >= count."""
    lanes = VECTOR_BYTES // x.itemsize
    for e in range(0, elements, lanes):
        source = (x, at + e, image)
        target = (row, row_at + e * lanes, lanes, lanes, NO_TABLE)
        transpose_block(count, min(lanes, elements - e), source, target)


@kernel
def _transform_images(block, x, planar, form, work, at):
    """The transformed rows of a block of images, v."""
    ((images, height, width, channels), _), left, tiles, strides, starts, _ = form
    lanes = VECTOR_BYTES // x.itemsize
    first, image = block * lanes, height * width * channels
    count = min(lanes, images - first)
    row, depth = at + starts[1], 1 if planar else channels
    clear_run(work, row, (STEP * tiles + TAPS - 1) * depth * lanes)
    for line in range(height * channels // depth):
        start = first * image + line * width * depth
        _gather_row(x, start, image, count, width * depth, work, row + left * depth * lanes)
        channel, i = divmod(line, height)
        for c in range(depth):
            source = (work, row + c * lanes, depth * lanes)
            to = at + ((channel + c) * height + i) * tiles * lanes
            _transform_inputs(tiles, source, (work, to, strides[0]))


@kernel
def _forward_block(
    block, worker, x, planar, u, bias, floor, form, pieces, table_a, table_b, work, y, cells
):
    """The output of one block of images."""
    ((images, _, _, _), (oh, ow, m)), _, tiles, (point, z_point, z_row), starts, pooled = form
    lanes = VECTOR_BYTES // x.itemsize
    at = worker * starts[4]
    z, row = at + starts[0], at + starts[2]
    wide = STEP * tiles * lanes
    pair = at + starts[3] - 2 * wide  # two rows of one channel
    _transform_images(block, x, planar, form, work, at)
    groups = (m + ROWS - 1) // ROWS
    first = block * lanes
    count = min(lanes, images - first)
    for piece in range(pieces.shape[0]):
        i, rows = pieces[piece, 0], pieces[piece, 1]
        tables = (table_a, table_b, pieces[piece, 2], pieces[piece, 3])
        for p in range(POINTS):
            for g in range(groups):
                a = (u, (p * groups + g) * (u.size // (POINTS * groups)))
                for j in range(0, rows * tiles * lanes, VECTORS * lanes):
                    b = (work, at + p * point + i * tiles * lanes + j)
                    c = (work, z + p * z_point + g * ROWS * z_row + j, z_row)
                    _product_tile(a, b, tables, c)
        for r in range(0, rows - pooled + 1, pooled):
            for channel in range(m):
                to, step = row + channel * lanes, m * lanes
                for half in range(pooled):
                    at_row = z + channel * z_row + (r + half) * tiles * lanes
                    target = (work, to, step) if pooled == 1 else (work, pair + half * wide, lanes)
                    _transform_outputs(tiles, (work, at_row, z_point), target, bias[channel], floor)
                if pooled == 2:
                    cell = (work, to + wide * m, step)
                    _pool_rows(ow // 2, (work, pair, wide), (work, to, step), cell)
            length, image = ow // pooled * m, oh // pooled * (ow // pooled) * m
            out = first * image + (i + r) // pooled * length
            for e in range(0, length, lanes):
                some = min(lanes, length - e)
                target = (y, out + e, image, some, NO_TABLE)
                transpose_block(some, count, (work, row + e * lanes, lanes), target)
                if pooled == 2:
                    source = (work, row + wide * m + e * lanes)
                    _write_cells(some, count, source, cells, out + e, image)


@kernel
def _transform_weight(weight, shape, strides, u):
    """``u[point, group of filters, depth * kernel row, filter]`` of ``G w`` along the rows.

    ``shape = (filters, depth, kernel rows)``, and `strides` of weight are the first element's
    place, then from filter to filter, channel to channel, row to row and tap to tap.
    """
    filters, depth, rows = shape
    start, of_filter, of_channel, of_row, tap = strides
    point = u.size // POINTS
    clear_run(u, 0, u.size)
    for f in range(filters):
        for k in range(depth * rows):
            at = start + f * of_filter + k // rows * of_channel + k % rows * of_row
            to = (f // ROWS * depth * rows + k) * ROWS + f % ROWS
            w0, w1, w2 = weight[at], weight[at + tap], weight[at + 2 * tap]
            w3, w4 = weight[at + 3 * tap], weight[at + 4 * tap]
            u[to] = _ORIGIN * w0
            for i in range(3):
                p, q = _PAIRS[i], _PAIRS[i] * _PAIRS[i]
                even = _FACTORS[i] * (w0 + q * (w2 + q * w4))
                odd = _FACTORS[i] * p * (w1 + q * w3)
                u[(2 * i + 1) * point + to] = even + odd
                u[(2 * i + 2) * point + to] = even - odd
            u[(POINTS - 1) * point + to] = w4


@kernel
def conv2d_winograd_rows(
    x,
    planar,
    weight,
    shape,
    strides,
    bias,
    floor,
    form,
    pieces,
    tables,
    workers,
    u,
    work,
    y,
    cells,
):
    """``y = max(floor, bias + x * weight)``, x of either memory layout, y channels-last, all flat.

    Where it is pooled, `cells` are those of the maxima.
    The integers are those of a `ops.winograd_rows.Plan`; `shape` and `strides` say what a weight's
    elements are, so that turned and transposed ones give the gradient by the input.
    """
    _transform_weight(weight, shape, strides, u)
    lanes = VECTOR_BYTES // x.itemsize
    arguments = (x, planar, u, bias, floor, form, pieces, *tables, work, y, cells)
    parallel_for(_forward_block, (form[0][0][0] + lanes - 1) // lanes, workers, arguments)


@kernel
def _weight_chunk(chunk, worker, x, planar, dy, form, pieces, table, chunks, work, parts):
    """Sums of products of a chunk of blocks, for all points."""
    ((images, _, _, _), (oh, ow, m)), _, tiles, (point, z_point, z_row), starts, _ = form
    lanes = VECTOR_BYTES // x.itemsize
    at = worker * starts[4]
    z, row = at + starts[0], at + starts[2]
    totals = at + starts[3]
    groups = (m + ROWS - 1) // ROWS
    blocks = (images + lanes - 1) // lanes
    size = parts.size // chunks
    tile = (size - m) // (POINTS * groups * (table.size // VECTORS))
    clear_run(parts, chunk * size, size)
    clear_run(work, totals, m * lanes)
    clear_run(work, row, STEP * tiles * m * lanes)
    for block in range(blocks * chunk // chunks, blocks * (chunk + 1) // chunks):
        _transform_images(block, x, planar, form, work, at)
        first = block * lanes
        count = min(lanes, images - first)
        for piece in range(pieces.shape[0]):
            i, rows = pieces[piece, 0], pieces[piece, 1]
            for r in range(rows):
                start = (first * oh + i + r) * ow * m
                _gather_row(dy, start, oh * ow * m, count, ow * m, work, row)
                for channel in range(m):
                    source = (work, row + channel * lanes, m * lanes)
                    to = (work, z + channel * z_row + r * tiles * lanes, z_point)
                    _transform_gradients(tiles, source, to, (work, totals + channel * lanes))
            for p in range(POINTS):
                b = (work, at + p * point + i * tiles * lanes)
                for g in range(groups):
                    a = (work, z + p * z_point + g * ROWS * z_row, z_row)
                    for k in range(pieces[piece, 2], pieces[piece, 2] + pieces[piece, 3], VECTORS):
                        column = (p * groups + g) * (table.size // VECTORS) + k // VECTORS
                        c = (parts, chunk * size + column * tile)
                        _dot_tile(rows * tiles * lanes, a, b, (table, k), c)
    for channel in range(m):
        for lane in range(lanes):
            total = work[totals + channel * lanes + lane]
            parts[(chunk + 1) * size - m + channel] += total


@kernel
def _untransform_weight(parts, shape, table, tile, dw):
    """``dw[filter, channel, row] += G^T u`` of the sums in the first chunk of `parts`."""
    filters, depth, rows = shape
    groups = (filters + ROWS - 1) // ROWS
    columns = table.size // VECTORS
    clear_run(dw, 0, dw.size)
    for f in range(filters):
        for k in range(table.size):
            if table[k] < 0:
                continue
            at = (f // ROWS * columns + k // VECTORS) * tile
            at += f % ROWS * VECTORS + k % VECTORS
            point = groups * columns * tile
            to = (f * depth * rows + table[k] // ROWS) * TAPS
            dw[to] += _ORIGIN * parts[at]
            for i in range(3):
                p, q = _PAIRS[i], _PAIRS[i] * _PAIRS[i]
                plus, minus = parts[at + (2 * i + 1) * point], parts[at + (2 * i + 2) * point]
                even, odd = _FACTORS[i] * (plus + minus), _FACTORS[i] * p * (plus - minus)
                dw[to] += even
                dw[to + 1] += odd
                dw[to + 2] += q * even
                dw[to + 3] += q * odd
                dw[to + 4] += q * q * even
            dw[to + 4] += parts[at + (POINTS - 1) * point]


@kernel
def conv2d_winograd_rows_backward_weight(
    x, planar, dy, shape, form, pieces, tables, chunks, workers, work, parts, dw, db
):
    """Gradients of dy by weight and bias, dw and db; arguments as in `conv2d_winograd_rows`.

    Each of the `chunks` of blocks has its sums in `parts`, so that the order of additions does not
    depend on the number of threads.
    """
    arguments = (x, planar, dy, form, pieces, tables[1], chunks, work, parts)
    parallel_for(_weight_chunk, chunks, workers, arguments)
    size = parts.size // chunks
    for chunk in range(1, chunks):
        add_run(parts, 0, parts, chunk * size, size)
    groups = (shape[0] + ROWS - 1) // ROWS
    tile = (size - db.size) // (POINTS * groups * (tables[0].size // VECTORS))
    copy_run(db, 0, parts, size - db.size, db.size)
    _untransform_weight(parts, shape, tables[0], tile, dw)
