"""Calls of the operating system from compiled code: the clock, futexes, and a thread's core.

All but the clocks and `give_way` are Linux's; a futex is the lower half of a word.
"""

from __future__ import annotations

import ctypes
import sys
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastlayers.runtime import cpu
from fastlayers.runtime.words import Words, extern, primitive

__all__ = [
    "clock",
    "core",
    "cpu_time",
    "futex_wait",
    "futex_wake",
    "give_way",
    "has_futex",
    "leave_core",
]

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_int = types.int64
# Number of the system call `futex` in /usr/include/asm-generic/unistd.h, and in that of x86-64.
_FUTEX = {"x86_64": 202, "aarch64": 98, "riscv64": 98}
_FUTEX_WAIT, _FUTEX_WAKE = 9 | 128, 10 | 128  # the variants with a mask of bits, in one process
_MONOTONIC, _THREAD_CPU = 1, 3  # of Linux's headers
_CORES = 1024  # of a `cpu_set_t`


def has_futex() -> bool:
    """Whether threads can wait for a word here, as on Linux with 64 bits."""
    return (
        sys.platform == "linux"
        and cpu.machine() in _FUTEX
        and sys.byteorder == "little"
        and ctypes.sizeof(ctypes.c_void_p) == 8
    )


def _time(builder: Any, clock: int) -> Any:
    """Nanoseconds of one of the system's clocks."""
    time = cgutils.alloca_once(builder, ir.ArrayType(_i64, 2))
    function = extern(builder, "clock_gettime", _i32, _i32, time.type)
    builder.call(function, [_i32(clock), time])
    seconds, rest = (builder.load(builder.gep(time, [_i32(0), _i32(k)])) for k in range(2))
    return builder.add(builder.mul(seconds, _i64(10**9)), rest)


@primitive(_int())
def clock(builder: Any) -> Any:
    """Nanoseconds of a clock that never goes back; 25 ns a call."""
    return _time(builder, _MONOTONIC)


@primitive(_int())
def cpu_time(builder: Any) -> Any:
    """Nanoseconds for which this thread has had a core; 0.6 us a call."""
    return _time(builder, _THREAD_CPU)


def _futex(builder: Any, words: Any, at: Any, operation: int, value: Any, bits: Any) -> None:
    function = extern(builder, "syscall", _i64, _i64, var_arg=True)
    number = _i64(_FUTEX.get(cpu.machine(), 0))
    nothing = ir.Constant(ir.IntType(8).as_pointer(), None)
    word = builder.gep(words, [at])
    arguments = [number, word, _i64(operation), value, nothing, nothing, bits]
    builder.call(function, arguments)


@primitive(types.void(Words, _int, _int, _int))
def futex_wait(builder: Any, words: Any, at: Any, value: Any, bits: Any) -> None:
    """Sleep until woken with one of `bits`, or not at all if the word is no longer `value`."""
    _futex(builder, words, at, _FUTEX_WAIT, value, bits)


@primitive(types.void(Words, _int, _int))
def futex_wake(builder: Any, words: Any, at: Any, bits: Any) -> None:
    """Wake all threads that sleep at a word with one of `bits`."""
    _futex(builder, words, at, _FUTEX_WAKE, _i64(2**31 - 1), bits)


@primitive(types.void())
def give_way(builder: Any) -> None:
    """Let another thread that waits for this core run; 0.6 us if there is none."""
    builder.call(extern(builder, "sched_yield", _i32), [])


@primitive(_int())
def core(builder: Any) -> Any:
    """Number of the core that this thread runs on."""
    return builder.sext(builder.call(extern(builder, "sched_getcpu", _i32), []), _i64)


@primitive(types.void(_int))
def leave_core(builder: Any, core: Any) -> None:
    """Move this thread to another core, if it may run on others; it may come back later."""
    cores = ir.ArrayType(_i64, _CORES // 64)
    allowed, rest = (cgutils.alloca_once(builder, cores) for _ in range(2))
    arguments = (_i32, _i64, allowed.type)
    get, move = (extern(builder, f"sched_{k}affinity", _i32, *arguments) for k in ("get", "set"))
    size = _i64(_CORES // 8)
    known = builder.call(get, [_i32(0), size, allowed])
    inside = builder.icmp_unsigned("<", core, _i64(_CORES))
    with builder.if_then(builder.and_(inside, builder.icmp_signed(">=", known, _i32(0)))):
        builder.store(builder.load(allowed), rest)
        word = builder.gep(rest, [_i32(0), builder.lshr(core, _i64(6))])
        bit = builder.shl(_i64(1), builder.and_(core, _i64(63)))
        builder.store(builder.and_(builder.load(word), builder.not_(bit)), word)
        # If no core is left, the first call fails and changes nothing.
        builder.call(move, [_i32(0), size, rest])
        builder.call(move, [_i32(0), size, allowed])
