"""Kernels that only kernels call: LLVM IR for their callers, and nothing else.

Of the 73 functions that a training step of a small network compiles, 54 are called by others
alone. Numba makes machine code, a wrapper for Python and a cache file of each, which nobody uses:
the callers get the IR linked in. Without these an empty cache costs a third less.
"""

from __future__ import annotations

from typing import Any, NoReturn

from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, _LowerResult
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering

__all__ = ["InnerKernel"]


class _LinkedLibrary(JITCodeLibrary):
    """Code to be linked into others, which is optimised there and never loaded by itself."""

    def _optimize_final_module(self) -> None:
        """Leave it to the callers: 16.5 to 14.6 s for that step.

        Of 150 timings of ops the geometric mean stays, sigmoid takes 13 % more. Without the passes
        over single functions too, small linear maps would take 20 % more.
        """

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


@register_pass(mutates_CFG=True, analysis_only=False)
class _InnerLowering(NativeLowering):
    _name = "inner_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _LinkedLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered, entry = state.cr, object()  # callers find the code by its entry
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state.library])
        state.cr = _LowerResult(lowered.fndesc, lowered.call_helper, cfunc=entry, env=lowered.env)
        return True


class _InnerCompiler(Compiler):
    def define_pipelines(self) -> list[Any]:
        managers: list[Any] = super().define_pipelines()
        for manager in managers:
            manager.passes = [
                (_InnerLowering, text) if kind is NativeLowering else (kind, text)
                for kind, text in manager.passes
            ]
        return managers


class InnerKernel(CPUDispatcher):
    """A function that compiled code can call, and Python cannot."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        options = options | {"nopython": True, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
        super().__init__(function, targetoptions=options, pipeline_class=_InnerCompiler)

    def add_overload(self, compiled: Any) -> None:
        """Keep compiled code; the table that calls from Python look into stays empty."""
        self.overloads[tuple(compiled.signature.args)] = compiled

    def _compile_for_args(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(f"{self.py_func.__name__}: only kernels can call it")
