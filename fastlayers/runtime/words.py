"""Words of memory that threads share, and what compiled code does with them.

Each function is one of compiled code, and becomes a few instructions. The words are one array of
int64, found by its symbol. Loads acquire, stores release, and all else is sequentially consistent.
"""

from __future__ import annotations

import ctypes
import inspect
from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.runtime import cpu

__all__ = [
    "Words",
    "add",
    "call",
    "chunk_type",
    "emit_words",
    "extern",
    "load",
    "load_pointer",
    "primitive",
    "relax",
    "reset",
    "store",
    "store_pointer",
    "swap",
    "words",
    "write",
]

WORDS = 1 << 15
_SYMBOL, _ALIGNMENT = "fastlayers_words", 128
_i8, _i32, _i64 = ir.IntType(8), ir.IntType(32), ir.IntType(64)
_pointer, _words_type = _i8.as_pointer(), _i64.as_pointer()
chunk_type = ir.FunctionType(ir.VoidType(), [_pointer, _i64, _i64])
# LLVM's names of the instructions PAUSE, and ISB with its only operand.
_RELAX: dict[str, tuple[Any, ...]] = {
    "x86_64": ("llvm.x86.sse2.pause",),
    "aarch64": ("llvm.aarch64.isb", _i32(15)),
}


def _allocate() -> int:
    """Address of the words: zeros that begin on a line of their own, and are never released.

    Threads may look at them until the process has ended.
    """
    memory = (ctypes.c_int64 * (WORDS + _ALIGNMENT // 8))()
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(memory))
    return -(-ctypes.addressof(memory) // _ALIGNMENT) * _ALIGNMENT


_address = _allocate()
llvm.add_symbol(_SYMBOL, _address)


def reset() -> None:
    """Make all words zero."""
    ctypes.memset(_address, 0, 8 * WORDS)


def write(at: int, value: int) -> None:
    """Set the word at an index, from Python."""
    ctypes.c_int64.from_address(_address + 8 * at).value = value


Words = types.CPointer(types.int64)
_int, _address_of = types.int64, types.voidptr


def primitive(signature: Any) -> Callable[[Callable[..., Any]], Any]:
    """Make an intrinsic of a function that emits LLVM IR for values of the signature's types."""

    def decorate(emit: Callable[..., Any]) -> Any:
        def define(typingctx: Any, *given: Any) -> Any:
            def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
                result = emit(builder, *values)
                return cgctx.get_dummy_value() if result is None else result

            return signature, codegen

        define.__name__, define.__doc__ = emit.__name__, emit.__doc__
        first = inspect.Parameter("typingctx", inspect.Parameter.POSITIONAL_OR_KEYWORD)
        parameters = list(inspect.signature(emit).parameters.values())[1:]
        define.__signature__ = inspect.Signature([first, *parameters])  # type: ignore[attr-defined]
        return intrinsic(define)

    return decorate


def extern(builder: Any, name: str, result: Any, *arguments: Any, var_arg: bool = False) -> Any:
    """A function of the C library."""
    function = ir.FunctionType(result, arguments, var_arg=var_arg)
    return cgutils.get_or_insert_function(builder.module, function, name)


def emit_words(builder: Any) -> Any:
    """The pointer to all words, in LLVM IR."""
    table = ir.ArrayType(_i64, WORDS)
    start = builder.module.globals.get(_SYMBOL) or ir.GlobalVariable(builder.module, table, _SYMBOL)
    return builder.bitcast(start, _words_type)


@primitive(Words())
def words(builder: Any) -> Any:
    """All words."""
    return emit_words(builder)


@primitive(_int(Words, _int))
def load(builder: Any, words: Any, at: Any) -> Any:
    """The word at an index."""
    return builder.load_atomic(builder.gep(words, [at]), "acquire", 8)


@primitive(types.void(Words, _int, _int))
def store(builder: Any, words: Any, at: Any, value: Any) -> None:
    """Set the word at an index."""
    builder.store_atomic(value, builder.gep(words, [at]), "release", 8)


@primitive(_int(Words, _int, _int))
def add(builder: Any, words: Any, at: Any, value: Any) -> Any:
    """Add to a word, and return what it was."""
    return builder.atomic_rmw("add", builder.gep(words, [at]), value, "seq_cst")


@primitive(types.boolean(Words, _int, _int, _int))
def swap(builder: Any, words: Any, at: Any, expected: Any, value: Any) -> Any:
    """Set a word if it is as expected; whether it was."""
    word = builder.gep(words, [at])
    return builder.extract_value(builder.cmpxchg(word, expected, value, "seq_cst", "acquire"), 1)


@primitive(_address_of(Words, _int))
def load_pointer(builder: Any, words: Any, at: Any) -> Any:
    """The pointer in a word. It was stored as one, so that LLVM knows where it comes from."""
    return builder.load(builder.bitcast(builder.gep(words, [at]), _pointer.as_pointer()))


@primitive(types.void(Words, _int, _address_of))
def store_pointer(builder: Any, words: Any, at: Any, pointer: Any) -> None:
    """Set a word to a pointer."""
    builder.store(pointer, builder.bitcast(builder.gep(words, [at]), _pointer.as_pointer()))


@primitive(types.void(_address_of, _address_of, _int, _int))
def call(builder: Any, chunk: Any, context: Any, index: Any, worker: Any) -> None:
    """Call ``chunk(context, index, worker)``, a function with C's convention."""
    builder.call(builder.bitcast(chunk, chunk_type.as_pointer()), [context, index, worker])


@primitive(types.void())
def relax(builder: Any) -> None:
    """Tell the core that this thread waits in a loop; some 40-140 cycles on x86."""
    name, *operands = _RELAX.get(cpu.machine(), (None,))
    if name:
        kinds = [operand.type for operand in operands]
        builder.call(extern(builder, name, ir.VoidType(), *kinds), operands)
