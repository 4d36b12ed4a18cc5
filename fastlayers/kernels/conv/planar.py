"""Convolution to few output channels, with a ReLU and a max pooling of 2x2 where asked.

Six channels fill 6 of 8 lanes, or of 16. Here lanes run over the pixels of channels-first images,
and the weight's elements are broadcast, as it lies in memory: a GEMM tile whose rows are output
channels and whose step along k is one pixel to the right. An image is copied to planes with its
padding, of a common pitch; an output is computed for each place of a row, the last of which,
where the kernel reaches into the next row, are dropped.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.conv.padded import Images, load_planes
from fastlayers.kernels.gemm.operands import STORE, Bias, Block, Epilogue, Left, Right, Target
from fastlayers.kernels.gemm.tile import gemm_tile
from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import no_table, transpose_block, view
from fastlayers.kernels.ir.vectors import Vectors, element_pointer
from fastlayers.kernels.layout import square_side
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["ROWS", "VECTORS", "Call", "Facts", "Images", "conv2d_planar"]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
# A tile's output channels and vectors of pixels: 24 sums in 32 registers, 12 in 16.
ROWS = 6
VECTORS = cpu.tile_rows() // 3


class Facts(NamedTuple):
    """A convolution that is cut into bands of `band_rows` rows of the output."""

    images: Images
    image_count: int
    out_height: int
    out_width: int
    filters: int
    pooled: int  # 2 or 1
    band_rows: int
    band_plane: int
    worker_elements: int
    taps: int
    step: int  # from tap to tap
    weight_rows: Any  # tables of offsets: a filter's weight, its kernel rows, those of the planes
    weight_runs: Any
    plane_runs: Any


class Call(NamedTuple):
    """What changes from call to call."""

    channels_first: bool
    floor: float
    workers: int


@intrinsic
def _pool_pairs(typingctx, channels, count, planes, y, cells, at, pixel):
    """Maxima of 2x2 windows and their cells, for up to a vector of pixels and of channels.

    ``y[at + j * pixel + c] = max of plane[c, 0:2, 2j:2j+2]``, where ``planes = (array, offset,
    plane stride, row stride)`` can be read for two vectors of each row. The first of equal
    maxima is taken, and a NaN before everything.
    """

    def codegen(cgctx, builder, sig, values):
        array, first, plane, pitch = cgutils.unpack_tuple(builder, values[2])
        source = element_pointer(cgctx, builder, planes.types[0], array, first)
        out = element_pointer(cgctx, builder, y, values[3], values[5])
        out_cells = element_pointer(cgctx, builder, cells, values[4], values[5])
        size = y.dtype.bitwidth // 8
        floats = Vectors(builder, source.type.pointee, cpu.lanes(size))
        numbers = Vectors(builder, ir.IntType(8 * size), floats.lanes)
        lanes = floats.lanes

        def halves(line) -> list[Any]:
            """Even and odd elements of two vectors."""
            pair = [floats.load_vector(line, v) for v in (0, 1)]
            return [
                builder.shuffle_vector(
                    *pair, ir.Constant(ir.VectorType(_i32, lanes), list(range(odd, 2 * lanes, 2)))
                )
                for odd in (0, 1)
            ]

        maxima = cgutils.alloca_once(builder, floats.vector, lanes)
        holders = cgutils.alloca_once(builder, numbers.vector, lanes)
        with cgutils.for_range(builder, values[0]) as loop:
            line = builder.gep(source, [builder.mul(loop.index, plane)])
            best, *others = halves(line) + halves(builder.gep(line, [pitch]))
            holder = ir.Constant(numbers.vector, None)
            for cell, new in enumerate(others, 1):
                better = floats.better(new, best)
                best = builder.select(better, new, best)
                number = ir.Constant(numbers.vector, [cell] * lanes)
                holder = builder.select(better, number, holder)
            builder.store(best, builder.gep(maxima, [loop.index]))
            builder.store(holder, builder.gep(holders, [loop.index]))
        columns = [
            vectors.transpose([builder.load(builder.gep(held, [_i64(c)])) for c in range(lanes)])
            for vectors, held in ((floats, maxima), (numbers, holders))
        ]
        mask = floats.first_lanes(values[0])
        bytes_ = Vectors(builder, out_cells.type.pointee, lanes)
        done = builder.append_basic_block("pairs.done")
        for j, (best, holder) in enumerate(zip(*columns, strict=True)):
            write = builder.append_basic_block("pairs.write")
            builder.cbranch(builder.icmp_signed("<", _i64(j), values[1]), write, done)
            builder.position_at_end(write)
            place = builder.mul(values[6], _i64(j))
            floats.store_vector(best, builder.gep(out, [place]), mask=mask)
            narrow = builder.trunc(holder, bytes_.vector)
            bytes_.store_vector(narrow, builder.gep(out_cells, [place]), mask=mask)
        builder.branch(done)
        builder.position_at_end(done)
        return cgctx.get_dummy_value()

    i8 = types.int64
    return types.void(i8, i8, planes, y, cells, i8, i8), codegen


@kernel
def _planar_image(n, worker, inputs, facts, call, work, outputs):
    """One image, band by band of its output's rows."""
    (x, weight, bias), (y, cells) = inputs, outputs
    m, across, side = facts.filters, facts.out_width // facts.pooled, square_side(y)
    pitch, at = facts.images.pitch, worker * facts.worker_elements
    band = at + facts.images.elements
    tile = VECTORS * lanes_of(work)
    runs, epilogue = facts.plane_runs.size, Epilogue(call.floor, 1, STORE)
    load_planes(x, n, call.channels_first, facts.images, work, at)
    for i in range(0, facts.out_height, facts.band_rows):
        count = min(facts.band_rows, facts.out_height - i)
        width = (count * pitch + tile - 1) // tile * tile
        for channel in range(m):
            row = view(work, band + channel * facts.band_plane, width)
            for j in range(width):
                row[j] = bias[channel]
        for first in range(0, m, ROWS):
            block = Block(first, tile, 0, runs, facts.taps)
            a = Left(weight, 0, 0, 1, facts.weight_rows, facts.weight_runs)
            for j in range(0, width, tile):
                b = Right(work, at + i * pitch + j, 0, facts.step, facts.plane_runs)
                c = Target(work, band + j, facts.band_plane, no_table())
                gemm_tile((ROWS, VECTORS, 1), block, a, b, Bias(work, band), c, epilogue)
        for row in range(0, count, facts.pooled):
            line = (n * facts.out_height + i + row) // facts.pooled
            for channel in range(0, m, side):
                some = min(side, m - channel)
                for j in range(0, across, side):
                    to, pixels = (line * across + j) * m + channel, min(side, across - j)
                    start = band + row * pitch + channel * facts.band_plane + j * facts.pooled
                    if facts.pooled == 2:
                        source = (work, start, facts.band_plane, pitch)
                        _pool_pairs(some, pixels, source, y, cells, to, m)
                    else:
                        source = (work, start, facts.band_plane)
                        transpose_block(some, pixels, source, (y, to, m, some, no_table()))


@kernel
def conv2d_planar(x, weight, bias, facts, call, work, y, cells):
    """``y = max(floor, bias + x * weight)``, pooled with its `cells`; all arrays are flat.

    The weight is (M, C, R, S), y channels-last; `facts` are `Facts`, and `call` is a `Call`.
    """
    facts, call = named(Facts, facts), named(Call, call)
    arguments = ((x, weight, bias), facts, call, work, (y, cells))
    parallel_for(_planar_image, facts.image_count, call.workers, arguments)
