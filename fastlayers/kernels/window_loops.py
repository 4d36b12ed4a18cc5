"""Loops over the vectors of a pixel, or of a row of pixels, that kernels of windows share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from llvmlite import ir
from numba import types

from fastlayers.kernels.vectors import element_pointer

__all__ = [
    "AHEAD",
    "COLUMNS",
    "LANES",
    "LARGE",
    "bounded",
    "optional",
    "past_caches",
    "pointers",
    "rolled",
    "smaller",
    "vectors_of_pixel",
]

_i1, _i32, _i64 = ir.IntType(1), ir.IntType(32), ir.IntType(64)
LANES = 16
# Columns that are summed together, and elements between a row that is read and one asked for.
COLUMNS, AHEAD = 4 * LANES, 2048
# Bytes of a gradient that is written past the caches: more than L3 holds. At 25 MB one thread took
# 0.8 ms instead of 1.5 for 3 x 3 windows, but two gained nothing over one.
LARGE = 32 << 20


def pointers(cgctx: Any, builder: Any, sig: Any, values: Any, *pairs: tuple[int, int]) -> Any:
    """Addresses of elements: pairs of the positions of a flat array and of an index."""
    return [element_pointer(cgctx, builder, sig.args[a], values[a], values[i]) for a, i in pairs]


def optional(cgctx: Any, builder: Any, sig: Any, values: Any, array: int, at: int) -> Any:
    """Address of an element, or None for an array that is None."""
    if isinstance(sig.args[array], types.NoneType):
        return None
    return pointers(cgctx, builder, sig, values, (array, at))[0]


@contextlib.contextmanager
def rolled(builder: Any, start: Any, stop: Any, step: Any = 1) -> Iterator[Any]:
    """Loop that LLVM leaves as it is; gives the index.

    It would unroll by eight these loops over a few cells: twice the time to compile, and slower.
    """
    before = builder.block
    head, body, done = (builder.append_basic_block(f"rolled.{n}") for n in ("head", "body", "done"))
    builder.branch(head)
    builder.position_at_end(head)
    index = builder.phi(_i64)
    index.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("<", index, stop), body, done)
    builder.position_at_end(body)
    yield index
    step = _i64(step) if isinstance(step, int) else step
    index.add_incoming(builder.add(index, step), builder.block)
    back = builder.branch(head)
    module = builder.module
    option = module.add_metadata([ir.MetaDataString(module, "llvm.loop.unroll.disable")])
    name = module.add_metadata([option, option])  # of the loop: it begins with itself
    name.operands = (name, option)
    back.set_metadata("llvm.loop", name)
    builder.position_at_end(done)


def past_caches(cgctx: Any, builder: Any, kind: Any, array: Any, depth: Any) -> Any:
    """Whether an array of whole aligned vectors is so large as to be written past the caches."""
    array = cgctx.make_array(kind)(cgctx, builder, array)
    width = kind.dtype.bitwidth // 8
    address = builder.mul(depth, _i64(width))
    address = builder.or_(address, builder.ptrtoint(array.data, _i64))
    aligned = builder.icmp_signed("==", builder.and_(address, _i64(LANES * width - 1)), _i64(0))
    large = builder.icmp_signed(">=", array.nitems, _i64(LARGE // width))
    return builder.and_(aligned, large)


def vectors_of_pixel(builder: Any, lanes: int, depth: Any) -> Any:
    """Loop over a pixel's vectors, of which the last one ends at its last channel."""
    step = _i64(lanes)
    count = builder.sdiv(builder.add(depth, _i64(lanes - 1)), step)
    last = builder.sub(depth, step)
    last = builder.select(builder.icmp_signed("<", last, _i64(0)), _i64(0), last)
    return rolled(builder, _i64(0), count), step, last


def bounded(builder: Any, count: Any, v: int) -> Any:
    """Elements of vector v among `count`, as many as a mask has at most."""
    return smaller(builder, builder.sub(count, _i64(v * LANES)), _i64(LANES))


def smaller(builder: Any, a: Any, b: Any) -> Any:
    return builder.select(builder.icmp_signed("<", a, b), a, b)
