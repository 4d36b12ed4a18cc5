"""Operations on vectors of one type in LLVM IR, on which all hand-written kernels are built.

Explicit vector types, because Numba's auto-vectorised loops stay at 256 bits on AVX-512.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastlayers.runtime import cpu

__all__ = [
    "LINE",
    "First",
    "Table",
    "Vectors",
    "element_pointer",
    "literals",
    "operand",
    "prefetch",
]

_i32, _i64 = ir.IntType(32), ir.IntType(64)
LINE = 64  # bytes of a cache line


class Table:
    """Reads a table of offsets, of which an empty one stands for zeros."""

    def __init__(self, builder, array, zero) -> None:
        self._builder = builder
        self.empty = builder.icmp_signed("==", array.nitems, _i64(0))
        self.data = builder.select(self.empty, zero, array.data)

    def __getitem__(self, index):
        index = self._builder.select(self.empty, _i64(0), index)
        return self._builder.load(self._builder.gep(self.data, [index]))


class First(NamedTuple):
    """The first lanes of a vector: how many, which may be more than it has, and their mask."""

    count: Any
    bits: Any


class Vectors:
    """Emits operations on vectors of one type, the masked ones included."""

    def __init__(self, builder, element: ir.Type, lanes: int) -> None:
        self.builder, self.element, self.lanes = builder, element, lanes
        self.vector = ir.VectorType(element, lanes)
        self._bits = ir.VectorType(ir.IntType(1), lanes)
        if isinstance(element, ir.IntType):
            self._name, self._align = f"v{lanes}i{element.width}", element.width // 8
        else:
            self._align = 4 if isinstance(element, ir.FloatType) else 8
            self._name = f"v{lanes}f{8 * self._align}"

    def declare(self, name: str, returns: ir.Type, arguments: list[ir.Type]):
        """Declare an LLVM intrinsic; braces in its name stand for the vector type."""
        # Not module.declare_intrinsic, which refuses vector types.
        signature = ir.FunctionType(returns, arguments)
        return cgutils.get_or_insert_function(
            self.builder.module, signature, name.format(self._name)
        )

    def splat(self, scalar):
        """Emit a vector of equal elements."""
        undefined = ir.Constant(ir.VectorType(scalar.type, self.lanes), ir.Undefined)
        first = self.builder.insert_element(undefined, scalar, _i32(0))
        zeros = ir.Constant(ir.VectorType(_i32, self.lanes), [0] * self.lanes)
        return self.builder.shuffle_vector(first, undefined, zeros)

    def fma(self, a, b, c):
        """Emit ``a * b + c``, rounded once."""
        name = self.declare("llvm.fma.{}", self.vector, [self.vector] * 3)
        return self.builder.call(name, [a, b, c])

    def better(self, new, old):
        """Mask of where `new` is greater, or a NaN against a number; a NaN stays against all."""
        unordered = self.builder.fcmp_unordered("ugt", new, old)
        return self.builder.and_(unordered, self.builder.fcmp_ordered("ord", old, old))

    def first_lanes(self, count) -> First:
        """The lanes below `count`, a 64-bit integer."""
        most = _i64(self.lanes)  # the lower half of 2**31 is negative
        less = self.builder.icmp_signed("<", count, most)
        low = self.builder.trunc(self.builder.select(less, count, most), _i32)
        index = ir.Constant(ir.VectorType(_i32, self.lanes), list(range(self.lanes)))
        return First(count, self.builder.icmp_signed("<", index, self.splat(low)))

    def _at(self, pointer, v: int):
        at = self.builder.gep(pointer, [_i64(v * self.lanes)])
        return self.builder.bitcast(at, self.vector.as_pointer())

    def load_vector(self, pointer, v: int = 0, mask: First | None = None):
        """Read vector `v`; lanes outside the mask are zero and not touched."""
        at = self._at(pointer, v)
        if mask is None:
            return self.builder.load(at, align=self._align)
        if cpu.masked_loads():
            return self.load_masked(pointer, mask.bits, v)
        return self._load_parts(self.builder.gep(pointer, [_i64(v * self.lanes)]), mask.count)

    def load_masked(self, pointer, bits, v: int = 0):
        """Read the lanes of any mask; the others are zero and not touched."""
        at = self._at(pointer, v)
        arguments = [at.type, _i32, self._bits, self.vector]
        masked = self.declare("llvm.masked.load.{}.p0", self.vector, arguments)
        zero = ir.Constant(self.vector, None)
        return self.builder.call(masked, [at, _i32(self._align), bits, zero])

    def store_vector(self, value, pointer, v: int = 0, mask: First | None = None) -> None:
        """Write vector `v`; lanes outside the mask are not touched."""
        self.store_vectors([value], [pointer], v, mask)

    def store_vectors(
        self, values: Sequence[Any], pointers: list[Any], v: int = 0, mask: First | None = None
    ) -> None:
        """Write vector `v` at each pointer; lanes outside the mask are not touched."""
        places = [self._at(pointer, v) for pointer in pointers]
        if mask is None:
            for value, at in zip(values, places, strict=True):
                self.builder.store(value, at, align=self._align)
        elif cpu.masked_stores():
            arguments = [self.vector, places[0].type, _i32, self._bits]
            masked = self.declare("llvm.masked.store.{}.p0", ir.VoidType(), arguments)
            for value, at in zip(values, places, strict=True):
                self.builder.call(masked, [value, at, _i32(self._align), mask.bits])
        else:
            starts = [self.builder.gep(pointer, [_i64(v * self.lanes)]) for pointer in pointers]
            self._store_parts(values, starts, mask.count)

    def _store_parts(self, values: Sequence[Any], pointers: list[Any], count) -> None:
        """Write the first lanes: whole vectors, or what `_part_store` writes."""
        builder = self.builder
        whole = builder.icmp_signed(">=", count, _i64(self.lanes))
        with builder.if_else(whole, likely=True) as (all_, some):
            with all_:
                for value, pointer in zip(values, pointers, strict=True):
                    builder.store(value, self._at(pointer, 0), align=self._align)
            with some:
                function = self._part_store(pointers[0].type)
                for value, pointer in zip(values, pointers, strict=True):
                    builder.call(function, [value, pointer, count])

    def _part_store(self, pointer: ir.Type):
        """Function that writes halves, quarters ... of a vector for the bits of a count.

        Once in a module: in line, the first step of ResNet-20 takes 0.5 s longer to compile.
        """
        name = f"fastlayers.store_first.{self._name}"
        module = self.builder.module
        if (known := module.globals.get(name)) is not None:
            return known
        kind = ir.FunctionType(ir.VoidType(), [self.vector, pointer, _i64])
        function = ir.Function(module, kind, name)
        function.linkage = "linkonce_odr"
        for attribute in ("noinline", "nounwind"):
            function.attributes.add(attribute)
        value, start, count = function.args
        builder = ir.IRBuilder(function.append_basic_block("entry"))
        vectors = Vectors(builder, self.element, self.lanes)
        for size, bit, at in vectors._parts(count):
            low, high = vectors._halves(value, size)
            with builder.if_then(bit):
                place = builder.bitcast(builder.gep(start, [at]), low.type.as_pointer())
                builder.store(low, place, align=self._align)
            value = builder.select(bit, high, low)
        builder.ret_void()
        return function

    def _load_parts(self, pointer, count):
        """Read the first lanes: a whole vector, or halves, quarters ... for the bits of `count`."""
        builder = self.builder
        whole = builder.icmp_signed(">=", count, _i64(self.lanes))
        with builder.if_else(whole, likely=True) as (all_, some):
            with all_:
                full = builder.load(self._at(pointer, 0), align=self._align)
                full_block = builder.block
            with some:
                # What is behind a part; the last one has nothing there.
                rest = self._zero(1) if self.lanes > 1 else ir.Constant(self.vector, None)
                for size, bit, at in reversed(list(self._parts(count))):
                    zero, before = self._zero(size), builder.block
                    with builder.if_then(bit):
                        place = builder.gep(pointer, [at])
                        place = builder.bitcast(place, zero.type.as_pointer())
                        read = builder.load(place, align=self._align)
                        inside = builder.block
                    part = builder.phi(zero.type)
                    part.add_incoming(zero, before)
                    part.add_incoming(read, inside)
                    low, high = builder.select(bit, part, rest), builder.select(bit, rest, zero)
                    rest = self._joined(low, high, size)
                some_block = builder.block
        either = builder.phi(self.vector)
        either.add_incoming(full, full_block)
        either.add_incoming(rest, some_block)
        return either

    def _parts(self, count) -> Iterator[tuple[int, Any, Any]]:
        """Sizes of a vector's parts, whether the first lanes have each, and where it begins."""
        builder, size = self.builder, self.lanes // 2
        some = builder.icmp_signed(">", count, _i64(0))
        count = builder.select(some, count, _i64(0))
        while size:
            bit = builder.icmp_signed("!=", builder.and_(count, _i64(size)), _i64(0))
            yield size, bit, builder.and_(count, _i64(-2 * size))
            size //= 2

    def _zero(self, size: int):
        """So many zeros: a vector, or a scalar, as vectors of one element abort LLVM 22."""
        if size > 1:
            return ir.Constant(ir.VectorType(self.element, size), None)
        return ir.Constant(self.element, 0)

    def _halves(self, value, size: int) -> list[Any]:
        """Lower and upper half, of `size` lanes each."""
        if size == 1:
            return [self.builder.extract_element(value, _i32(i)) for i in (0, 1)]
        places = (list(range(first, first + size)) for first in (0, size))
        orders = (ir.Constant(ir.VectorType(_i32, size), lanes) for lanes in places)
        return [self.builder.shuffle_vector(value, value, order) for order in orders]

    def _joined(self, low, high, size: int):
        """The vector of two halves of `size` lanes each."""
        order = ir.Constant(ir.VectorType(_i32, 2 * size), list(range(2 * size)))
        if size > 1:
            return self.builder.shuffle_vector(low, high, order)
        pair = ir.Constant(ir.VectorType(self.element, 2), ir.Undefined)
        for i, element in enumerate((low, high)):
            pair = self.builder.insert_element(pair, element, _i32(i))
        return pair

    def stream_vector(self, value, pointer, v: int = 0) -> None:
        """Write an aligned vector by a non-temporal store, which does not read the line first."""
        size = self.lanes * self._align
        store = self.builder.store(value, self._at(pointer, v), align=size)
        store.set_metadata("nontemporal", self.builder.module.add_metadata([_i32(1)]))

    def transpose(self, rows: list[Any]) -> list[Any]:
        """Columns of a square of vectors, by log2(lanes) rounds of one instruction a vector.

        Rounds inside 128 bits interleave elements, those across deal out the even and the odd
        quarters: unpack and shuffle of x86, zip of ARM, with no index in a register.
        """
        size, chunk = self.lanes, 16 // self._align

        def shuffled(a, b, lanes: list[int]):
            mask = ir.Constant(ir.VectorType(_i32, size), lanes)
            return self.builder.shuffle_vector(a, b, mask)

        def interleaved(a, b, half: int):
            places = [
                c + half * chunk // 2 + i for c in range(0, size, chunk) for i in range(chunk // 2)
            ]
            return shuffled(a, b, [place + other for place in places for other in (0, size)])

        def dealt(a, b, parity: int):
            places = range(parity * chunk, 2 * size, 2 * chunk)
            return shuffled(a, b, [place + i for place in places for i in range(chunk)])

        blocks = [rows[i : i + chunk] for i in range(0, size, chunk)]
        for _ in range(chunk.bit_length() - 1):
            blocks = [
                [
                    interleaved(block[i], block[i + chunk // 2], half)
                    for i in range(chunk // 2)
                    for half in (0, 1)
                ]
                for block in blocks
            ]
        for _ in range(len(blocks).bit_length() - 1):
            blocks = [
                [dealt(a, b, parity) for a, b in zip(*blocks[i : i + 2], strict=True)]
                for parity in (0, 1)
                for i in range(0, len(blocks), 2)
            ]
        return [column for block in blocks for column in block]


def element_pointer(cgctx, builder, array_type, array, at, count=None):
    """Pointer to an element of a flat array.

    With NUMBA_BOUNDSCHECK the caller raises an IndexError where the `count` that follow do not
    exist.
    """
    array = cgctx.make_array(array_type)(cgctx, builder, array)
    if count is not None and cgctx.enable_boundscheck:
        beyond = builder.icmp_signed(">", builder.add(at, count), array.nitems)
        outside = builder.or_(builder.icmp_signed("<", at, _i64(0)), beyond)
        some = builder.icmp_signed(">", count, _i64(0))
        with builder.if_then(builder.and_(some, outside), likely=False):
            cgctx.call_conv.return_user_exc(builder, IndexError, ("a run is out of bounds",))
    return builder.gep(array.data, [at])


def operand(cgctx, builder, kind, value) -> list[Any]:
    """Pointer to the first element of ``(array, offset, ...)``, then what follows in the tuple."""
    array, at, *rest = cgutils.unpack_tuple(builder, value)
    return [element_pointer(cgctx, builder, kind.types[0], array, at), *rest]


def literals(*kinds) -> list[int] | None:
    """The values of literal integers; None, by which Numba asks again, where one is not literal."""
    if not all(isinstance(kind, types.IntegerLiteral) for kind in kinds):
        return None
    return [kind.literal_value for kind in kinds]


def prefetch(builder, pointer, write: bool = False, level: int = 2) -> None:
    """Prefetch the cache line at a pointer, which need not exist, into L1 (3) or L2 (2)."""
    signature = ir.FunctionType(ir.VoidType(), [pointer.type, _i32, _i32, _i32])
    prefetch = cgutils.get_or_insert_function(builder.module, signature, "llvm.prefetch.p0")
    builder.call(prefetch, [pointer, _i32(int(write)), _i32(level), _i32(1)])  # 1: data
