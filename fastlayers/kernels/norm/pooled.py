"""Batch normalisation and max pooling in one, over windows that tile a channels-last image.

Windows are as far apart as they are long, so each cell belongs to one or, behind the last window,
to none. ``form = (height, width, channels, kernel height, kernel width, images a chunk)``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.runs import add_run, clear_run, view
from fastlayers.kernels.ir.vectors import Vectors, element_pointer, prefetch
from fastlayers.kernels.norm.batchnorm import mirrored
from fastlayers.kernels.norm.rows import AHEAD
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["batch_norm_max_pool2d", "batch_norm_max_pool2d_backward"]

_i64 = ir.IntType(64)


class _Windows(Vectors):
    """Emits loops over the windows of a row and over their cells, for a vector of channels.

    ``sizes = (width, channels, kernel height, kernel width)``.
    """

    def __init__(self, cgctx: Any, builder: Any, element: types.Type, sizes: Any) -> None:
        lanes = cpu.lanes(element.bitwidth // 8)
        super().__init__(builder, cgctx.get_data_type(element), lanes)
        self.width, self.channels, self.height, self.columns = cgutils.unpack_tuple(builder, sizes)
        self.zero = ir.Constant(self.vector, None)
        self.two_columns = False

    def each_form(self, emit: Callable[[], None]) -> None:
        """Emit for windows of 2 x 2 of few channels, a row of which fits a vector, and for others.

        There the lanes from `channels` on are the second column's: a loop of 6 channels then has
        two loads and stores of 12 lanes instead of four of 6.
        """
        builder = self.builder
        fits = builder.icmp_signed("<=", builder.mul(self.channels, _i64(2)), _i64(self.lanes))
        with builder.if_else(builder.and_(fits, self._square())) as (few, many):
            with few:
                self.two_columns = True
                self.first_column = self.first_lanes(self.channels)
                both = self.first_lanes(builder.mul(self.channels, _i64(2)))
                self.second_column = builder.and_(both, builder.not_(self.first_column))
                self.both_columns = both
                emit()
            with many:
                self.two_columns = False
                emit()

    def _square(self) -> Any:
        builder, two = self.builder, _i64(2)
        return builder.and_(
            builder.icmp_signed("==", self.height, two),
            builder.icmp_signed("==", self.columns, two),
        )

    def pooled(self, vectors: Vectors, pointer: Any, *offsets: Any, mask: Any) -> Any:
        """Load channels of a window, for each of its columns that a vector holds."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        if not self.two_columns:
            return vectors.load_vector(pointer, mask=mask)
        second = self.builder.gep(pointer, [self.builder.neg(self.channels)])
        return self.builder.select(
            self.first_column,
            vectors.load_vector(pointer, mask=self.first_column),
            vectors.load_vector(second, mask=self.second_column),
        )

    def holds(self, numbers: Vectors, cell: Any, cell_of: Any) -> Any:
        """Where the cell that holds the maximum is `cell`, or the one beside it."""
        number = numbers.splat(self.builder.trunc(cell, numbers.element))
        if self.two_columns:
            one = ir.Constant(numbers.vector, [1] * self.lanes)
            right = self.builder.add(number, one)
            number = self.builder.select(self.first_column, number, right)
        return self.builder.icmp_unsigned("==", cell_of, number)

    def channel_vectors(self) -> Any:
        return cgutils.for_range_slice(self.builder, _i64(0), self.channels, _i64(self.lanes), _i64)

    def mask(self, at: Any) -> Any:
        if self.two_columns:
            return self.both_columns
        return self.first_lanes(self.builder.sub(self.channels, at))

    def factors(self, pointer: Any, at: Any, count: int, mask: Any) -> list[Any]:
        """Vectors of `count` rows of factors."""
        rows = (self.builder.mul(self.channels, _i64(k)) for k in range(count))
        return [self.pooled(self, pointer, row, at, mask=mask) for row in rows]

    def load(self, pointer: Any, *offsets: Any, mask: Any) -> Any:
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return self.load_vector(pointer, mask=mask)

    def windows(self) -> Any:
        count = self.builder.sdiv(self.width, self.columns)
        return cgutils.for_range(self.builder, count)

    def each_cell(self, visit: Callable[[Any, Any], None]) -> None:
        """Call ``visit(cell, its distance from the window's first)``, unrolled for 2 x 2 cells."""
        builder = self.builder
        row = builder.mul(self.width, self.channels)
        if self.two_columns:
            visit(_i64(0), _i64(0))
            visit(_i64(2), row)
            return
        with builder.if_else(self._square()) as (unrolled, looped):
            with unrolled:
                for r, below in enumerate((_i64(0), row)):
                    visit(_i64(2 * r), below)
                    visit(_i64(2 * r + 1), builder.add(below, self.channels))
            with (
                looped,
                cgutils.for_range(builder, self.height) as r,
                cgutils.for_range(builder, self.columns) as s,
            ):
                cell = builder.add(builder.mul(r.index, self.columns), s.index)
                right = builder.mul(s.index, self.channels)
                visit(cell, builder.add(builder.mul(r.index, row), right))

    def read(self, pointer: Any, *offsets: Any, mask: Any) -> Any:
        """Load what is read once, and ask for what follows."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        prefetch(self.builder, self.builder.gep(pointer, [_i64(AHEAD // self._align)]))
        return self.load_vector(pointer, mask=mask)

    def add_to(self, pointer: Any, value: Any, mask: Any) -> None:
        """Add the lanes of a mask to memory."""
        total = self.builder.fadd(self.load_vector(pointer, mask=mask), value)
        self.store_vector(total, pointer, mask=mask)

    def gradient(self, dy: Any, y: Any, relu: Any) -> Any:
        """`dy` where the output is positive or NaN or where there was no ReLU."""
        builder = self.builder
        low = builder.select(relu, self.splat(ir.Constant(self.element, 0.0)), self.lowest())
        return builder.select(builder.fcmp_ordered("<=", y, low), self.zero, dy)

    def lowest(self) -> Any:
        return self.splat(ir.Constant(self.element, float("-inf")))


@intrinsic
def _pool_row(
    typingctx: Any,
    x: Any,
    x_at: Any,
    sizes: Any,
    factors: Any,
    floor: Any,
    y: Any,
    cells: Any,
    y_at: Any,
) -> Any:
    """Maxima over the windows of one row, with the cells that hold them."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        source = element_pointer(cgctx, builder, x, values[0], values[1])
        table = element_pointer(cgctx, builder, factors, values[3], _i64(0))
        out = element_pointer(cgctx, builder, y, values[5], values[7])
        holders = element_pointer(cgctx, builder, cells, values[6], values[7])
        emit = _Windows(cgctx, builder, x.dtype, values[2])
        numbers = Vectors(builder, holders.type.pointee, emit.lanes)
        best = cgutils.alloca_once(builder, emit.vector)
        holder = cgutils.alloca_once(builder, numbers.vector)
        low = emit.splat(values[4])
        with emit.channel_vectors() as (at, _):
            mask = emit.first_lanes(builder.sub(emit.channels, at))
            mean, scale, shift = emit.factors(table, at, 3, mask)
            with emit.windows() as window:
                first = builder.mul(builder.mul(window.index, emit.columns), emit.channels)
                origin = builder.gep(builder.gep(source, [first]), [at])
                delta = builder.fsub(emit.load(origin, mask=mask), mean)
                builder.store(emit.fma(delta, scale, shift), best)
                builder.store(ir.Constant(numbers.vector, None), holder)

                def visit(cell: Any, offset: Any) -> None:
                    delta = builder.fsub(emit.read(origin, offset, mask=mask), mean)
                    new, old = emit.fma(delta, scale, shift), builder.load(best)
                    better = emit.better(new, old)
                    number = numbers.splat(builder.trunc(cell, numbers.element))
                    builder.store(builder.select(better, new, old), best)
                    builder.store(builder.select(better, number, builder.load(holder)), holder)

                emit.each_cell(visit)
                value = builder.load(best)
                value = builder.select(builder.fcmp_ordered("<=", value, low), low, value)
                place = builder.add(builder.mul(window.index, emit.channels), at)
                emit.store_vector(value, builder.gep(out, [place]), mask=mask)
                numbers.store_vector(builder.load(holder), builder.gep(holders, [place]), mask=mask)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(x, i8, sizes, factors, x.dtype, y, cells, i8), codegen


@intrinsic
def _add_row(
    typingctx: Any,
    dy: Any,
    y: Any,
    cells: Any,
    y_at: Any,
    x: Any,
    x_at: Any,
    sizes: Any,
    factors: Any,
    relu: Any,
    sums: Any,
) -> Any:
    """Add ``sum(g)`` and ``sum(g * (x - mean))`` over the windows of one row to two rows."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        gradients = element_pointer(cgctx, builder, dy, values[0], values[3])
        outputs = element_pointer(cgctx, builder, y, values[1], values[3])
        holders = element_pointer(cgctx, builder, cells, values[2], values[3])
        source = element_pointer(cgctx, builder, x, values[4], values[5])
        table = element_pointer(cgctx, builder, factors, values[7], _i64(0))
        target = element_pointer(cgctx, builder, sums, values[9], _i64(0))
        emit = _Windows(cgctx, builder, x.dtype, values[6])
        numbers = Vectors(builder, holders.type.pointee, emit.lanes)
        held, total, dot = (cgutils.alloca_once(builder, emit.vector) for _ in range(3))
        of_cell = cgutils.alloca_once(builder, emit.vector)
        relu = builder.icmp_signed("!=", values[8], _i64(0))

        def add_window(window: Any, at: Any, mean: Any, mask: Any) -> None:
            first = builder.mul(builder.mul(window.index, emit.columns), emit.channels)
            origin = builder.gep(builder.gep(source, [first]), [at])
            place = builder.add(builder.mul(window.index, emit.channels), at)
            g = emit.gradient(
                emit.pooled(emit, gradients, place, mask=mask),
                emit.pooled(emit, outputs, place, mask=mask),
                relu,
            )
            cell_of = emit.pooled(numbers, holders, place, mask=mask)
            builder.store(mean, held)
            builder.store(emit.zero, of_cell)

            def visit(cell: Any, offset: Any) -> None:
                here = emit.holds(numbers, cell, cell_of)
                value = emit.read(origin, offset, mask=mask)
                builder.store(builder.select(here, value, builder.load(held)), held)
                if emit.two_columns:  # the other column's lanes have another window's cell, or none
                    builder.store(builder.select(here, g, builder.load(of_cell)), of_cell)

            emit.each_cell(visit)
            delta = builder.fsub(builder.load(held), mean)
            builder.store(builder.fadd(builder.load(total), g), total)
            factor = builder.load(of_cell) if emit.two_columns else g
            builder.store(emit.fma(factor, delta, builder.load(dot)), dot)

        def add_all() -> None:
            with emit.channel_vectors() as (at, _):
                mask = emit.mask(at)
                (mean,) = emit.factors(table, at, 1, mask)
                builder.store(emit.zero, total)
                builder.store(emit.zero, dot)
                with emit.windows() as window:
                    add_window(window, at, mean, mask)
                column = emit.first_column if emit.two_columns else mask
                row = builder.gep(target, [at])
                emit.add_to(row, builder.load(total), column)
                row = builder.gep(row, [emit.channels])
                emit.add_to(row, builder.load(dot), column)
                if emit.two_columns:
                    row = builder.gep(row, [builder.neg(emit.channels)])
                    emit.add_to(row, builder.load(dot), emit.second_column)

        emit.each_form(add_all)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(dy, y, cells, i8, x, i8, sizes, factors, i8, sums), codegen


@intrinsic
def _spread_row(
    typingctx: Any,
    dy: Any,
    y: Any,
    cells: Any,
    y_at: Any,
    x: Any,
    x_at: Any,
    sizes: Any,
    factors: Any,
    relu: Any,
    dx: Any,
    stream: Any,
) -> Any:
    """Write the input's gradient in all cells of the windows of one row.

    Past the caches if `stream` is not 0: then the channels fill aligned vectors.
    """

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        gradients = element_pointer(cgctx, builder, dy, values[0], values[3])
        outputs = element_pointer(cgctx, builder, y, values[1], values[3])
        holders = element_pointer(cgctx, builder, cells, values[2], values[3])
        source = element_pointer(cgctx, builder, x, values[4], values[5])
        out = element_pointer(cgctx, builder, dx, values[9], values[5])
        table = element_pointer(cgctx, builder, factors, values[7], _i64(0))
        emit = _Windows(cgctx, builder, x.dtype, values[6])
        numbers = Vectors(builder, holders.type.pointee, emit.lanes)
        relu = builder.icmp_signed("!=", values[8], _i64(0))
        past = builder.icmp_signed("!=", values[10], _i64(0))

        def spread_window(window: Any, at: Any, factors: list[Any], mask: Any) -> None:
            mean, scale, _, slope, constant = factors
            first = builder.mul(builder.mul(window.index, emit.columns), emit.channels)
            first = builder.add(first, at)
            place = builder.add(builder.mul(window.index, emit.channels), at)
            g = emit.gradient(
                emit.pooled(emit, gradients, place, mask=mask),
                emit.pooled(emit, outputs, place, mask=mask),
                relu,
            )
            g = builder.fmul(g, scale)
            cell_of = emit.pooled(numbers, holders, place, mask=mask)

            def visit(cell: Any, offset: Any) -> None:
                here = emit.holds(numbers, cell, cell_of)
                offset = builder.add(first, offset)
                delta = builder.fsub(emit.read(source, offset, mask=mask), mean)
                value = emit.fma(delta, slope, constant)
                value = builder.fadd(builder.select(here, g, emit.zero), value)
                target = builder.gep(out, [offset])
                if emit.two_columns:
                    emit.store_vector(value, target, mask=mask)
                    return
                with builder.if_else(past) as (streamed, stored):
                    with streamed:
                        emit.stream_vector(value, target)
                    with stored:
                        emit.store_vector(value, target, mask=mask)

            emit.each_cell(visit)

        def spread_all() -> None:
            with emit.channel_vectors() as (at, _):
                mask = emit.mask(at)
                factors = emit.factors(table, at, 5, mask)
                with emit.windows() as window:
                    spread_window(window, at, factors, mask)

        emit.each_form(spread_all)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(dy, y, cells, i8, x, i8, sizes, factors, i8, dx, i8), codegen


@kernel
def _factors(mean, invstd, weight, bias, factors):
    """Write rows of mean, scale and shift."""
    channels = mean.size
    for c in range(channels):
        factors[c] = mean[c]
        factors[channels + c] = invstd[c] * weight[c] if weight.size else invstd[c]
        factors[2 * channels + c] = bias[c] if bias.size else bias.dtype.type(0)


@kernel
def _forward_chunk(chunk, worker, x, form, images, factors, floor, y, cells):
    height, width, channels, kh, kw, span = form
    oh, ow = height // kh, width // kw
    for n in range(chunk * span, min((chunk + 1) * span, images)):
        for i in range(oh):
            at = (n * height + i * kh) * width * channels
            out = (n * oh + i) * ow * channels
            _pool_row(x, at, (width, channels, kh, kw), factors, floor, y, cells, out)


@kernel(opt=3)
def batch_norm_max_pool2d(
    x, form, images, mean, invstd, weight, bias, relu, workers, work, y, cells
):
    """Maxima of ``act((x - mean) * (invstd * weight) + bias)`` and the cells that hold them.

    Arrays are flat; work holds 3 * channels elements.
    """
    _factors(mean, invstd, weight, bias, work)
    floor = x.dtype.type(0 if relu else -np.inf)
    arguments = (x, form, images, work, floor, y, cells)
    parallel_for(_forward_chunk, (images + form[5] - 1) // form[5], workers, arguments)


@kernel
def _sums_chunk(chunk, worker, dy, y, cells, x, form, images, work, relu):
    height, width, channels, kh, kw, span = form
    oh, ow = height // kh, width // kw
    sums = view(work, (5 + 2 * chunk) * channels, 2 * channels)
    clear_run(sums, 0, 2 * channels)
    for n in range(chunk * span, min((chunk + 1) * span, images)):
        for i in range(oh):
            at = (n * height + i * kh) * width * channels
            out = (n * oh + i) * ow * channels
            _add_row(dy, y, cells, out, x, at, (width, channels, kh, kw), work, relu, sums)


@kernel
def _plain_run(x, at, count, channels, factors, dx):
    """Gradient of `count` pixels that no window covers."""
    for pixel in range(count):
        start = at + pixel * channels
        for c in range(channels):
            delta = x[start + c] - factors[c]
            dx[start + c] = delta * factors[3 * channels + c] + factors[4 * channels + c]


@kernel
def _input_chunk(chunk, worker, dy, y, cells, x, form, images, work, relu, workers, dx, stream):
    height, width, channels, kh, kw, span = form
    chunk = mirrored(chunk, (images + span - 1) // span, workers)
    oh, ow = height // kh, width // kw
    for n in range(chunk * span, min((chunk + 1) * span, images)):
        for i in range(oh):
            row = n * height + i * kh
            out = (n * oh + i) * ow * channels
            sizes = (width, channels, kh, kw)
            _spread_row(dy, y, cells, out, x, row * width * channels, sizes, work, relu, dx, stream)
            if ow * kw < width:
                for r in range(row, row + kh):
                    at = (r * width + ow * kw) * channels
                    _plain_run(x, at, width - ow * kw, channels, work, dx)
        row, rest = n * height + oh * kh, height - oh * kh
        _plain_run(x, row * width * channels, rest * width, channels, work, dx)


@kernel(opt=3)
def batch_norm_max_pool2d_backward(
    dy,
    y,
    cells,
    x,
    form,
    images,
    mean,
    invstd,
    weight,
    relu,
    part,
    stream,
    workers,
    work,
    dx,
    grads,
):
    """Gradients by the input, weight and bias, ``dx``, ``grads[0]`` and ``grads[1]``.

    The statistics are the batch's. Where they are those of a larger batch that this one is a `part`
    of, grads are read: they hold the means of ``dy * xhat`` and of dy over all of that. dx may be
    empty, and is then not computed; with `stream`, which needs channels that fill aligned vectors,
    it is written past the caches. work holds (5 + 2 * chunks) * channels elements.
    """
    height, width, channels, _, _, span = form
    chunks = (images + span - 1) // span
    _factors(mean, invstd, weight, mean, work)
    if not part:
        arguments = (dy, y, cells, x, form, images, work, relu)
        parallel_for(_sums_chunk, chunks, workers, arguments)
        sums = view(work, 5 * channels, 2 * max(chunks, 1) * channels)
        if chunks == 0:
            clear_run(sums, 0, 2 * channels)
        for chunk in range(1, chunks):
            add_run(sums, 0, sums, 2 * chunk * channels, 2 * channels)
        for c in range(channels):
            grads[0, c] = sums[channels + c] * invstd[c]
            grads[1, c] = sums[c]
    if dx.size == 0:
        return
    share = x.dtype.type(1 if part else 1 / (images * height * width))
    for c in range(channels):
        scale = work[channels + c] * share
        work[3 * channels + c] = -scale * invstd[c] * grads[0, c]
        work[4 * channels + c] = -scale * grads[1, c]
    whole = (dy, y, cells, x, form, images, work, relu, workers, dx, stream)
    parallel_for(_input_chunk, chunks, workers, whole)
