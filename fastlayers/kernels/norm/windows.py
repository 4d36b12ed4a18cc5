"""Batch normalisation with max pooling, and its gradients, over one row of windows."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.vectors import Vectors
from fastlayers.kernels.norm.window_loops import GradientWindows, Windows

__all__ = ["add_row", "pool_row", "spread_row"]


@intrinsic
def pool_row(typingctx, x, start, facts, factors, floor, pooled):
    """Maxima over the windows of one row, with the cells that hold them."""

    def codegen(cgctx, builder, sig, args):
        emit = Windows(cgctx, builder, x.dtype, args[2], args[1])
        source, table = emit.pointer(x, args[0], emit.start.image), emit.pointer(factors, args[3])
        out, holders = emit.pooled_pointers(pooled, args[5])
        numbers = Vectors(builder, holders.type.pointee, emit.lanes)
        best = cgutils.alloca_once(builder, emit.vector)
        holder = cgutils.alloca_once(builder, numbers.vector)
        low = emit.splat(args[4])
        with emit.channel_vectors() as (at, _):
            mask = emit.first_lanes(builder.sub(emit.channels, at))
            mean, scale, shift = emit.factors(table, at, 3, mask)
            with emit.windows() as window:
                first, place = emit.places(window, at)
                origin = builder.gep(source, [first])
                delta = builder.fsub(emit.load(origin, mask=mask), mean)
                builder.store(emit.fma(delta, scale, shift), best)
                builder.store(ir.Constant(numbers.vector, None), holder)

                def visit(cell, offset) -> None:
                    delta = builder.fsub(emit.read(origin, offset, mask=mask), mean)
                    new, old = emit.fma(delta, scale, shift), builder.load(best)
                    better = emit.better(new, old)
                    number = numbers.splat(builder.trunc(cell, numbers.element))
                    builder.store(builder.select(better, new, old), best)
                    builder.store(builder.select(better, number, builder.load(holder)), holder)

                emit.each_cell(visit)
                value = builder.load(best)
                value = builder.select(builder.fcmp_ordered("<=", value, low), low, value)
                emit.store_vector(value, builder.gep(out, [place]), mask=mask)
                numbers.store_vector(builder.load(holder), builder.gep(holders, [place]), mask=mask)
        return cgctx.get_dummy_value()

    return types.void(x, start, facts, factors, x.dtype, pooled), codegen


@intrinsic
def add_row(typingctx, dy, pooled, x, start, facts, factors, relu, sums):
    """Add ``sum(g)`` and ``sum(g * (x - mean))`` over the windows of one row to two rows."""

    def codegen(cgctx, builder, sig, args):
        emit = GradientWindows(cgctx, builder, sig.args, args)
        target = emit.pointer(sums, args[7])
        held, total, dot = (cgutils.alloca_once(builder, emit.vector) for _ in range(3))
        of_cell = cgutils.alloca_once(builder, emit.vector)

        def add_window(window, at, mean, mask) -> None:
            first, place = emit.places(window, at)
            origin = builder.gep(emit.source, [first])
            g, cell_of = emit.gradient(place, mask), emit.cell_of(place, mask)
            builder.store(mean, held)
            builder.store(emit.zero, of_cell)

            def visit(cell, offset) -> None:
                here = emit.holds(cell, cell_of)
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
                (mean,) = emit.factors(emit.table, at, 1, mask)
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
                    emit.add_to(row, emit.second_column(builder.load(dot)), column)

        emit.by_channels(add_all)
        return cgctx.get_dummy_value()

    return types.void(dy, pooled, x, start, facts, factors, types.boolean, sums), codegen


@intrinsic
def spread_row(typingctx, dy, pooled, x, start, facts, factors, relu, dx):
    """Write the input gradient in all cells of the windows of one row."""

    def codegen(cgctx, builder, sig, args):
        emit = GradientWindows(cgctx, builder, sig.args, args)
        out = emit.pointer(dx, args[7], emit.start.image)

        def spread_window(window, at, factors: list[Any], mask) -> None:
            mean, scale, _, slope, constant = factors
            first, place = emit.places(window, at)
            g = builder.fmul(emit.gradient(place, mask), scale)
            cell_of = emit.cell_of(place, mask)

            def visit(cell, offset) -> None:
                here = emit.holds(cell, cell_of)
                offset = builder.add(first, offset)
                delta = builder.fsub(emit.read(emit.source, offset, mask=mask), mean)
                value = emit.fma(delta, slope, constant)
                value = builder.fadd(builder.select(here, g, emit.zero), value)
                target = builder.gep(out, [offset])
                if emit.two_columns:
                    emit.store_vector(value, target, mask=mask)
                    return
                with builder.if_else(emit.facts.stream_gradient) as (streamed, stored):
                    with streamed:
                        emit.stream_vector(value, target)
                    with stored:
                        emit.store_vector(value, target, mask=mask)

            emit.each_cell(visit)

        def spread_all() -> None:
            with emit.channel_vectors() as (at, _):
                mask = emit.mask(at)
                factors = emit.factors(emit.table, at, 5, mask)
                with emit.windows() as window:
                    spread_window(window, at, factors, mask)

        emit.by_channels(spread_all)
        return cgctx.get_dummy_value()

    return types.void(dy, pooled, x, start, facts, factors, types.boolean, dx), codegen
