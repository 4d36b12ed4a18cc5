"""Operations on vectors of one type in LLVM IR, on which all hand-written kernels are built.

Explicit vector types, because Numba's auto-vectorised loops stay at 256 bits on AVX-512.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

__all__ = ["LINE", "Table", "Vectors", "element_pointer", "literals", "operand", "prefetch"]

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

    def first_lanes(self, count):
        """Mask of the lanes below `count`, a 64-bit integer."""
        most = _i64(self.lanes)  # the lower half of 2**31 is negative
        less = self.builder.icmp_signed("<", count, most)
        count = self.builder.trunc(self.builder.select(less, count, most), _i32)
        index = ir.Constant(ir.VectorType(_i32, self.lanes), list(range(self.lanes)))
        return self.builder.icmp_signed("<", index, self.splat(count))

    def _at(self, pointer, v: int):
        at = self.builder.gep(pointer, [_i64(v * self.lanes)])
        return self.builder.bitcast(at, self.vector.as_pointer())

    def load_vector(self, pointer, v: int = 0, mask=None):
        """Read vector `v`; lanes outside the mask are zero and not touched."""
        at = self._at(pointer, v)
        if mask is None:
            return self.builder.load(at, align=self._align)
        arguments = [at.type, _i32, self._bits, self.vector]
        masked = self.declare("llvm.masked.load.{}.p0", self.vector, arguments)
        zero = ir.Constant(self.vector, None)
        return self.builder.call(masked, [at, _i32(self._align), mask, zero])

    def store_vector(self, value, pointer, v: int = 0, mask=None) -> None:
        """Write vector `v`; lanes outside the mask are not touched."""
        at = self._at(pointer, v)
        if mask is None:
            self.builder.store(value, at, align=self._align)
            return
        arguments = [self.vector, at.type, _i32, self._bits]
        masked = self.declare("llvm.masked.store.{}.p0", ir.VoidType(), arguments)
        self.builder.call(masked, [value, at, _i32(self._align), mask])

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
