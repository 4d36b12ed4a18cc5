"""Panels: a few channels of successive pixels side by side, as the tiles of a GEMM read them.

Channels-last pixels are a power of two of bytes apart, so that the lines of one panel share few
sets of the L1: sums over 256 pixels of 64 channels reach 65 % of the peak where they lie, 93 % from
panels (Zen 3).
"""

from __future__ import annotations

from typing import NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.kernels.ir.lanes import lanes_of
from fastlayers.kernels.ir.named import Elements
from fastlayers.kernels.ir.runs import clear_run
from fastlayers.kernels.ir.shared import shared_kernel
from fastlayers.kernels.ir.vectors import Vectors, literals, operand, prefetch
from fastlayers.kernels.layout import inside
from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel

__all__ = ["Panels", "Pixels", "Region", "copy_pixels", "pack_region", "prepare_pixels"]

_i64 = ir.IntType(64)
# Bytes from what is copied to the line that is prefetched.
AHEAD = 8192


class Panels(NamedTuple):
    """Where panels are: steps from one pixel to the next and from one panel to the next."""

    array: Elements
    offset: int
    pixel: int
    panel: int


class Pixels(NamedTuple):
    """Pixels that are so many elements apart, of which `width` channels become a panel."""

    array: Elements
    offset: int
    step: int
    width: int


class Region(NamedTuple):
    """How the input pixels of a slab lie in a panel: of each stride those that some tap reads."""

    row_stride: int
    column_stride: int
    kept_rows: int  # of each stride
    kept_columns: int
    reach: int  # kept rows that one output row reads
    columns: int  # pixels of a row that have the same remainder by the stride


@intrinsic(prefer_literal=True)
def _copy_panels(typingctx, shape, out, source, pixels, channels):
    """Copy the channels of some pixels to panels of ``shape = (vectors, part)``.

    Both are literal integers, and a vector has the CPU's lanes divided by `part`. `out` are
    `Panels` and `source` are `Pixels`. Pixel by pixel, so that both sides are read and written in
    lines: panel by panel the lines of the source are read again from L2, 20 % of a 1x1 convolution.
    """
    size = literals(*shape.types)
    if size is None:
        return None
    vectors, part = size

    def codegen(cgctx, builder, sig, values):
        target, to_step, to_panel = operand(cgctx, builder, out, values[1])
        start, from_step, width = operand(cgctx, builder, source, values[2])
        itemsize = out.types[0].dtype.bitwidth // 8
        lanes = cpu.lanes(itemsize) // part
        lines = Vectors(builder, target.type.pointee, lanes)
        room = builder.sub(values[4], _i64(vectors * lanes))
        # Panels whose vectors lie within the channels; those of the last one or two are cut off.
        whole = builder.add(builder.sdiv(room, width), _i64(1))
        whole = builder.select(builder.icmp_signed("<", room, _i64(0)), _i64(0), whole)
        panels = builder.sdiv(builder.add(values[4], builder.sub(width, _i64(1))), width)
        with cgutils.for_range(builder, values[3]) as pixel:
            from_ = builder.gep(start, [builder.mul(pixel.index, from_step)])
            to = builder.gep(target, [builder.mul(pixel.index, to_step)])

            def copy(panel, masks, from_=from_, to=to) -> None:
                read = builder.gep(from_, [builder.mul(panel, width)])
                written = builder.gep(to, [builder.mul(panel, to_panel)])
                prefetch(builder, builder.gep(read, [_i64(AHEAD // itemsize)]))
                for v, mask in enumerate(masks):
                    lines.store_vector(lines.load_vector(read, v, mask), written, v)

            with cgutils.for_range(builder, whole) as panel:
                copy(panel.index, [None] * vectors)
            with cgutils.for_range_slice(builder, whole, panels, _i64(1), _i64) as (panel, _):
                left = builder.sub(values[4], builder.mul(panel, width))
                counts = (builder.sub(left, _i64(v * lanes)) for v in range(vectors))
                copy(panel, [lines.first_lanes(count) for count in counts])
        return cgctx.get_dummy_value()

    return types.void(shape, out, source, types.int64, types.int64), codegen


# From six places: compiled into each, the first step of ResNet-20 takes 0.7 s longer.
@shared_kernel
def copy_pixels(out: Panels, source: Pixels, pixels: int, channels: int) -> None:
    """Copy the channels of some pixels to panels, the last of which is filled up with zeros.

    Where a panel is not half a vector or some vectors wide, up to a vector more is written, over
    the next pixels.
    """
    lanes, width = lanes_of(out.array), source.width
    if 2 * width == lanes:
        _copy_panels((1, 2), out, source, pixels, channels)
    elif width <= lanes:
        _copy_panels((1, 1), out, source, pixels, channels)
    elif width <= 2 * lanes:
        _copy_panels((2, 1), out, source, pixels, channels)
    elif width <= 3 * lanes:
        _copy_panels((3, 1), out, source, pixels, channels)
    else:  # tiles of 12 rows of float64, where a vector has two
        _copy_panels((6, 1), out, source, pixels, channels)


prepare_pixels = copy_pixels.prepare


@kernel(inner=True)
def pack_region(x, size, slab, slabs, region, channels, out):
    """Pack the pixels of a slab that taps read, with zeros outside of the images.

    ``channels = (first, count)`` of x, and `out` are `Panels` that are as wide as its pixels are
    apart. The columns of each remainder by the stride are successive, so that a tap reads
    successive pixels.
    """
    panels = (channels[1] + out.pixel - 1) // out.pixel
    line, at = region.kept_columns * region.columns * out.pixel, out.offset
    top = slab.row * slabs.row_step + slabs.top
    for image in range(slab.image, slab.image + slab.images):
        for i in range((slab.rows - 1) * region.kept_rows + region.reach):
            y = top + i // region.kept_rows * region.row_stride + i % region.kept_rows
            if y < 0 or y >= size.height:
                for p in range(panels):
                    clear_run(out.array, at + p * out.panel, line)
            else:
                row = (image * size.height + y) * size.width * size.channels + channels[0]
                to = Panels(out.array, at, out.pixel, out.panel)
                _pack_row(x, row, size, slabs.left, region, channels[1], to)
            at += line


@kernel
def _pack_row(x, row, size, left, region, channels, out):
    """Pack one row of an image; the columns of each remainder by the stride at a time."""
    width, at, columns, stride = out.pixel, out.offset, region.columns, region.column_stride
    for q in range(region.kept_columns):
        low, high = inside(left + q, stride, columns, size.width)
        for p in range((channels + width - 1) // width):
            clear_run(out.array, at + p * out.panel, low * width)
            clear_run(out.array, at + p * out.panel + high * width, (columns - high) * width)
        first = row + (left + q + low * stride) * size.channels
        source = Pixels(x, first, stride * size.channels, width)
        to = Panels(out.array, at + low * width, width, out.panel)
        copy_pixels(to, source, high - low, channels)
        at += columns * width
