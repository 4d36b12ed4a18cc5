"""Loops over the vectors of a pixel, or of a row of pixels, that kernels of windows share."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from llvmlite import ir
from numba.core import cgutils

from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel

__all__ = [
    "AHEAD",
    "COLUMNS",
    "LANES",
    "LARGE",
    "Images",
    "beyond_caches",
    "bounded",
    "image_sizes",
    "pixel_vectors",
    "rolled",
    "smaller",
    "spilled_lanes",
    "vectors_of_pixel",
]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
LANES = 16
# Columns that are summed together, and elements between a row that is read and one prefetched.
COLUMNS, AHEAD = 4 * LANES, 4096
# A gradient is written by non-temporal stores where the caches do not hold it. At 25 MB one thread
# took 0.8 ms instead of 1.5 for 3 x 3 windows, but two gained nothing over one.
LARGE = cpu.cache_bytes()


class Images(NamedTuple):
    """An image and its pooled output."""

    height: int
    width: int
    depth: int  # channels
    out_height: int
    out_width: int


@kernel(inner=True)
def image_sizes(x, y):
    """`Images` of arrays (N, H, W, C) and (N, OH, OW, C)."""
    return Images(x.shape[1], x.shape[2], x.shape[3], y.shape[1], y.shape[2])


@kernel
def spilled_lanes(depth):
    """Lanes of a vector that reaches beyond a pixel's channels; 0 where vectors end with them."""
    lanes = 8 if depth <= 8 else 16
    return lanes if depth < lanes else 0


@contextlib.contextmanager
def _loop(builder, starts: list[Any]) -> Iterator[tuple[list[Any], Any]]:
    """Loop that LLVM leaves as it is; gives its variables, and what takes their next values.

    It ends when the last of them is not positive. LLVM would unroll these loops over few cells by
    eight: twice the time to compile, and slower.
    """
    before = builder.block
    head, body, done = (builder.append_basic_block(f"rolled.{n}") for n in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    state = [builder.phi(_i64) for _ in starts]
    for variable, start in zip(state, starts, strict=True):
        variable.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed(">", state[-1], _i64(0)), body, done)
    builder.position_at_end(body)

    def proceed(following: list[Any]) -> None:
        for variable, value in zip(state, following, strict=True):
            variable.add_incoming(value, builder.block)
        back = builder.branch(head)
        module = builder.module
        option = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
        name = module.add_metadata([option, option])  # of the loop: it begins with itself
        name.operands = (name, option)
        back.set_metadata("llvm.loop", name)

    yield state, proceed
    builder.position_at_end(done)


@contextlib.contextmanager
def rolled(builder, start, stop, step=1) -> Iterator[Any]:
    """Loop over a range, not unrolled; gives the index."""
    step = _i64(step) if isinstance(step, int) else step
    with _loop(builder, [start, builder.sub(stop, start)]) as ((index, left), proceed):
        yield index
        proceed([builder.add(index, step), builder.sub(left, step)])


def pixel_vectors(
    builder,
    lanes: int,
    size: tuple[Any, Any],
    depth,
    strides: tuple[Any, ...],
    jumps: tuple[Any, ...],
    body: Callable[..., None],
    narrow: bool = False,
) -> None:
    """Loop over rows of pixels and over the vectors of each, of which the last ends at the depth.

    Calls ``body(*(i * jump + (i * columns + j) * stride + c))`` for the strides and jumps, where
    ``size = (rows, columns)``. All in one loop, as rows and pixels may be short: with a loop for
    each, maxima of 2 x 2 cells of 16 channels took 23 cycles a vector instead of 18. Where a pixel
    is one vector, the counter of channels would cost 3 of these; `narrow` says that it is.
    """
    zero, width, (rows, columns) = _i64(0), _i64(lanes), size

    def sweep(single: bool) -> None:
        starts = [zero] * (1 + len(strides)) + [columns, builder.mul(rows, columns)]
        with _loop(builder, starts) as ((c, *bases, column, left), proceed):
            body(*(bases if single else [builder.add(base, c) for base in bases]))
            last, one, channel = ir.IntType(1)(1), _i64(1), c
            if not single:
                channel = builder.add(c, width)
                last = builder.icmp_signed(">=", channel, depth)
                one = builder.zext(last, _i64)
                channel = smaller(builder, channel, builder.sub(depth, width))
                channel = builder.select(last, zero, channel)
            pixel = builder.sub(column, one)
            turn = builder.icmp_signed("==", pixel, zero)
            following = []
            for base, stride, jump in zip(bases, strides, jumps, strict=True):
                step = builder.select(last, stride, zero)
                step = builder.add(step, builder.select(turn, jump, zero))
                following.append(builder.add(base, step))
            pixel = builder.select(turn, columns, pixel)
            proceed([channel, *following, pixel, builder.sub(left, one)])

    if narrow or lanes < LANES:
        sweep(True)
        return
    with builder.if_else(builder.icmp_signed("<=", depth, width)) as (one_vector, more):
        with one_vector:
            sweep(True)
        with more:
            sweep(False)


def beyond_caches(cgctx, builder, kind, value, depth):
    """Whether the array of ``(array, offset)`` is for non-temporal stores: large and aligned.

    Its pixels must be whole aligned vectors.
    """
    kind, array = kind.types[0], cgutils.unpack_tuple(builder, value)[0]
    array = cgctx.make_array(kind)(cgctx, builder, array)
    width = kind.dtype.bitwidth // 8
    address = builder.mul(depth, _i64(width))
    address = builder.or_(address, builder.ptrtoint(array.data, _i64))
    aligned = builder.icmp_signed("==", builder.and_(address, _i64(LANES * width - 1)), _i64(0))
    large = builder.icmp_signed(">=", array.nitems, _i64(LARGE // width))
    return builder.and_(aligned, large)


def vectors_of_pixel(builder, lanes: int, depth):
    """Loop over a pixel's vectors, of which the last one ends at its last channel."""
    step = _i64(lanes)
    count = builder.sdiv(builder.add(depth, _i64(lanes - 1)), step)
    last = builder.sub(depth, step)
    last = builder.select(builder.icmp_signed("<", last, _i64(0)), _i64(0), last)
    return rolled(builder, _i64(0), count), step, last


def bounded(builder, count, v: int):
    """Elements of vector v among `count`, as many as a mask has at most."""
    return smaller(builder, builder.sub(count, _i64(v * LANES)), _i64(LANES))


def smaller(builder, a, b):
    return builder.select(builder.icmp_signed("<", a, b), a, b)
