"""Emits loops over the windows that tile a channels-last image, for batch normalisation.

Windows are as far apart as they are long, so each cell belongs to one or, behind the last window,
to none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastlayers.kernels.ir.vectors import Vectors, element_pointer, prefetch
from fastlayers.kernels.norm.rows import AHEAD
from fastlayers.runtime import cpu

__all__ = ["Facts", "GradientWindows", "Pooled", "Start", "Windows"]

_i64 = ir.IntType(64)


class Facts(NamedTuple):
    """Images in windows of so many rows and columns, and how they are cut into chunks."""

    images: int
    height: int
    width: int
    channels: int
    window_rows: int
    window_columns: int
    span: int  # rows of windows of a chunk
    chunks: int
    stream_gradient: bool  # by non-temporal stores: then the channels fill aligned vectors


class Pooled(NamedTuple):
    """What pooling gives, maxima and the cells that hold them."""

    maxima: Any
    cells: Any


class Start(NamedTuple):
    """Where a row of windows starts: in the images, and in what pooling gives."""

    image: int
    pooled: int


class Windows(Vectors):
    """Emits loops over the windows of a row and over their cells, for a vector of channels."""

    def __init__(self, cgctx, builder, element: types.Type, facts, start) -> None:
        lanes = cpu.lanes(element.bitwidth // 8)
        super().__init__(builder, cgctx.get_data_type(element), lanes)
        self._context, self.start = cgctx, Start(*cgutils.unpack_tuple(builder, start))
        self.facts = facts = Facts(*cgutils.unpack_tuple(builder, facts))
        self.width, self.channels = facts.width, facts.channels
        self.rows, self.columns = facts.window_rows, facts.window_columns
        self.two_columns = False

    def pointer(self, kind, array, at=None):
        """Pointer to the element `at` of a flat array, of the first by default."""
        at = _i64(0) if at is None else at
        return element_pointer(self._context, self.builder, kind, array, at)

    def pooled_pointers(self, kind, pooled) -> list[Any]:
        """Pointers to the row's first maximum and first cell in `Pooled`."""
        arrays = zip(kind.types, cgutils.unpack_tuple(self.builder, pooled), strict=True)
        return [self.pointer(of, array, self.start.pooled) for of, array in arrays]

    def by_channels(self, emit: Callable[[], None]) -> None:
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
                first = self.first_column.bits
                self._second_column = builder.and_(both.bits, builder.not_(first))
                self.both_columns = both
                emit()
            with many:
                self.two_columns = False
                emit()

    def _square(self):
        builder, two = self.builder, _i64(2)
        return builder.and_(
            builder.icmp_signed("==", self.rows, two),
            builder.icmp_signed("==", self.columns, two),
        )

    def load_columns(self, vectors: Vectors, pointer, *offsets, mask):
        """Load channels of a window, for each of its columns that a vector holds."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        if not self.two_columns:
            return vectors.load_vector(pointer, mask=mask)
        second = self.builder.gep(pointer, [self.builder.neg(self.channels)])
        return self.builder.select(
            self.first_column.bits,
            vectors.load_vector(pointer, mask=self.first_column),
            vectors.load_masked(second, self._second_column),
        )

    def second_column(self, value):
        """The lanes of the second column, moved to those of the first."""
        held = cgutils.alloca_once(self.builder, self.vector, 2)
        self.builder.store(value, held)
        start = self.builder.bitcast(held, self.element.as_pointer())
        return self.load_vector(self.builder.gep(start, [self.channels]))

    def channel_vectors(self):
        """Loop over the vectors of a pixel's channels; gives the first channel of each."""
        return cgutils.for_range_slice(self.builder, _i64(0), self.channels, _i64(self.lanes), _i64)

    def mask(self, at):
        """Mask of the lanes that have a channel, for the vector that begins at one."""
        if self.two_columns:
            return self.both_columns
        return self.first_lanes(self.builder.sub(self.channels, at))

    def factors(self, pointer, at, count: int, mask) -> list[Any]:
        """Vectors of `count` rows of factors."""
        rows = (self.builder.mul(self.channels, _i64(k)) for k in range(count))
        return [self.load_columns(self, pointer, row, at, mask=mask) for row in rows]

    def load(self, pointer, *offsets, mask):
        """Load the vector at some offsets from a pointer."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        return self.load_vector(pointer, mask=mask)

    def windows(self):
        """Loop over the windows of a row."""
        return cgutils.for_range(self.builder, self.builder.sdiv(self.width, self.columns))

    def places(self, window, at) -> tuple[Any, Any]:
        """Offsets in their rows of a window's first cell, and of what pooling gives for it."""
        builder, channels = self.builder, self.channels
        first = builder.mul(builder.mul(window.index, self.columns), channels)
        return builder.add(first, at), builder.add(builder.mul(window.index, channels), at)

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
                cgutils.for_range(builder, self.rows) as r,
                cgutils.for_range(builder, self.columns) as s,
            ):
                cell = builder.add(builder.mul(r.index, self.columns), s.index)
                right = builder.mul(s.index, self.channels)
                visit(cell, builder.add(builder.mul(r.index, row), right))

    def read(self, pointer, *offsets, mask):
        """Load what is read once, and prefetch what follows."""
        for offset in offsets:
            pointer = self.builder.gep(pointer, [offset])
        prefetch(self.builder, self.builder.gep(pointer, [_i64(AHEAD // self._align)]))
        return self.load_vector(pointer, mask=mask)


class GradientWindows(Windows):
    """What the loops of a backward pass over a row of windows share.

    The arguments and their types begin with dy, `Pooled`, x, `Start`, `Facts`, the table of factors
    and whether there was a ReLU.
    """

    def __init__(self, cgctx, builder, kinds, args) -> None:
        dy, pooled, x, start, facts, factors, self._relu = args[:7]
        super().__init__(cgctx, builder, kinds[2].dtype, facts, start)
        self._dy = self.pointer(kinds[0], dy, self.start.pooled)
        self._maxima, self._cells = self.pooled_pointers(kinds[1], pooled)
        self.source = self.pointer(kinds[2], x, self.start.image)
        self.table = self.pointer(kinds[5], factors)
        self.numbers = Vectors(builder, self._cells.type.pointee, self.lanes)
        self.zero = ir.Constant(self.vector, None)

    def gradient(self, place, mask):
        """Gradient of the window at `place`: dy, or 0 where a ReLU gave neither > 0 nor NaN."""
        builder = self.builder
        dy = self.load_columns(self, self._dy, place, mask=mask)
        maximum = self.load_columns(self, self._maxima, place, mask=mask)
        zero, infinity = (ir.Constant(self.element, value) for value in (0.0, float("-inf")))
        low = builder.select(self._relu, self.splat(zero), self.splat(infinity))
        return builder.select(builder.fcmp_ordered("<=", maximum, low), self.zero, dy)

    def cell_of(self, place, mask):
        """The cells that hold the maxima of the window at `place`."""
        return self.load_columns(self.numbers, self._cells, place, mask=mask)

    def holds(self, cell, cell_of):
        """Where the cell that holds the maximum is `cell`, or the one beside it."""
        number = self.numbers.splat(self.builder.trunc(cell, self.numbers.element))
        if self.two_columns:
            one = ir.Constant(self.numbers.vector, [1] * self.lanes)
            right = self.builder.add(number, one)
            number = self.builder.select(self.first_column.bits, number, right)
        return self.builder.icmp_unsigned("==", cell_of, number)

    def add_to(self, pointer, value, mask) -> None:
        """Add the lanes of a mask to memory."""
        total = self.builder.fadd(self.load_vector(pointer, mask=mask), value)
        self.store_vector(total, pointer, mask=mask)
