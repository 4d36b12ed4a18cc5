"""Kernels that are compiled once and called by address.

Numba links the code of a callee into every caller and optimises it again: with the GEMM's nine
register tiles that took 1.1 s for each of its callers. A `SharedKernel` is called through a slot
of memory that compiled code finds by name, so code from the disk cache works in any process.
"""

from __future__ import annotations

import ctypes
import os
import threading
import traceback
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils

from fastlayers.runtime import cpu, notice
from fastlayers.runtime.compiler import InnerKernel

__all__ = ["SharedKernel"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_pointer = ir.IntType(8).as_pointer()
_slot_type = ir.ArrayType(_pointer, 2)
_resolver = ctypes.CFUNCTYPE(ctypes.c_int64)


class SharedKernel:
    """A compiled function of one signature that returns nothing.

    Parameters
    ----------
    symbol : str
        Name of the slot for the linker, unique in the process.
    dispatcher : Dispatcher
        The function, as `runtime.cache.kernel` returns it.
    args : tuple of numba types
        The signature.
    """

    def __init__(self, symbol: str, dispatcher: Any, args: tuple[Any, ...]) -> None:
        if isinstance(dispatcher, InnerKernel):
            raise TypeError(f"{symbol}: code that only callers have cannot be called by address")
        self.symbol, self.args = symbol, args
        self._dispatcher, self._lock = dispatcher, threading.RLock()
        self._callback = _resolver(self._resolve)
        resolver = ctypes.cast(self._callback, ctypes.c_void_p).value or 0
        # [address of the machine code or 0, address of a C function that resolves it]
        self._slot = (ctypes.c_int64 * 2)(0, resolver)
        llvm.add_symbol(symbol, ctypes.addressof(self._slot))
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._after_fork)

    def _resolve(self) -> int:
        """Compile the function or load it from the cache, and publish its address.

        No exception can pass through the compiled caller, which finds no address and returns an
        error instead.
        """
        try:
            with self._lock:
                if not self._slot[0]:
                    self._slot[0] = self._address()
                return int(self._slot[0])
        except (Exception, KeyboardInterrupt):
            notice.tell(traceback.format_exc())
        return 0

    def _address(self) -> int:
        self._dispatcher.compile(self.args)
        compiled = self._dispatcher.get_compile_result(types.none(*self.args))
        return int(compiled.library.get_pointer_to_function(compiled.fndesc.llvm_func_name))

    def _after_fork(self) -> None:
        """Give the child its own lock, since another thread may have held the parent's."""
        self._lock = threading.RLock()

    def _slot_field(self, builder: Any, field: int) -> Any:
        slot = builder.module.globals.get(self.symbol)
        if slot is None:
            slot = ir.GlobalVariable(builder.module, _slot_type, self.symbol)
        return builder.gep(slot, [_i32(0), _i32(field)])

    def emit_prepare(self, cgctx: Any, builder: Any) -> None:
        """Emit the resolution of the address, unless it has been resolved.

        It may compile and takes the GIL, so it belongs before a parallel region, not in a task. If
        the compilation fails or is interrupted, the caller returns with an error. Where no caller
        runs, it is compiled now.
        """
        if cpu.compiles_only():
            self._dispatcher.compile(self.args)
        nothing = ir.Constant(_pointer, None)
        address = builder.load(self._slot_field(builder, 0))
        with builder.if_then(builder.icmp_unsigned("==", address, nothing), likely=False):
            resolver = builder.load(self._slot_field(builder, 1))
            builder.call(builder.bitcast(resolver, ir.FunctionType(_i64, []).as_pointer()), [])
            # Not its result, which is undefined if an interrupt arrives between two lines.
            found = builder.load(self._slot_field(builder, 0))
            with builder.if_then(builder.icmp_unsigned("==", found, nothing), likely=False):
                message = f"{self.symbol}: the compilation failed or was interrupted"
                cgctx.call_conv.return_user_exc(builder, RuntimeError, (message,))

    def emit_call(self, cgctx: Any, builder: Any, values: list[Any]) -> None:
        """Emit a call with Numba's calling convention."""
        function_type = cgctx.call_conv.get_function_type(types.none, self.args)
        address = builder.load(self._slot_field(builder, 0))
        function = builder.bitcast(address, function_type.as_pointer())
        outputs = [cgutils.alloca_once(builder, t.pointee) for t in function_type.args[:2]]
        arguments = cgctx.get_arg_packer(self.args).as_arguments(builder, values)
        status = builder.call(function, [*outputs, *arguments])
        if cgctx.enable_boundscheck:  # nothing else can fail
            with builder.if_then(builder.icmp_signed(">", status, _i32(0)), likely=False):
                message = f"{self.symbol}: an index is out of bounds"
                cgctx.call_conv.return_user_exc(builder, IndexError, (message,))
