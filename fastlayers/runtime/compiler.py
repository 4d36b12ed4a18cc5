"""How kernels are compiled: by Numba's compiler, without the stages that they do not need.

With an empty cache a user waits for all of it; docs/measurements.md has what each of these changes
saves in the first training step of a small network. The geometric mean of 150 timings of ops does
not change:

- A kernel that is only called by others gives them LLVM IR, and nothing else. Of the 53 functions
  of that step 36 are such: no machine code, Python wrapper or cache file is made for them.
- A kernel allocates nothing and keeps no array, so references to arrays are not counted, and the
  passes that prune such counts are left out. Nor do threads contend for the counts.
- LLVM's -O2 without loop unrolling is run once over a kernel and its callees: -O3 makes a copy of
  the GEMM for each option that a loop tests. Most loops over vectors are unrolled in the IR
  already.
"""

from __future__ import annotations

import functools
from typing import Any, NoReturn

import llvmlite.binding as llvm
from numba.core.codegen import JITCodeLibrary
from numba.core.compiler import Compiler, _LowerResult
from numba.core.compiler_machinery import register_pass
from numba.core.registry import CPUDispatcher
from numba.core.typed_passes import NativeLowering, NopythonRewrites
from numba.core.untyped_passes import (
    InlineClosureLikes,
    InlineInlinables,
    MakeFunctionToJitFunction,
    RewriteDynamicRaises,
    WithLifting,
)

from fastlayers.runtime import cpu

__all__ = ["InnerKernel", "Kernel", "SharedCode"]


# Passes for what kernels do not use: `with`, closures, arithmetic on whole arrays. They take 5 % of
# the time, since Numba rebuilds its tables of a function after each pass.
_NOT_NEEDED = (
    InlineClosureLikes,
    InlineInlinables,
    MakeFunctionToJitFunction,
    NopythonRewrites,
    RewriteDynamicRaises,
    WithLifting,
)


class _InnerLibrary(JITCodeLibrary):
    """Code that is linked into others and optimised there, and never loaded by itself."""

    def _optimize_functions(self, ll_module: Any) -> None:
        """Make functions small, so that callers can decide what to inline."""
        ll_module.data_layout = self._codegen._data_layout
        builder = llvm.create_pass_builder(_machine(self._codegen), _tuning())
        manager = llvm.create_new_function_pass_manager()
        manager.add_sroa_pass()
        manager.add_instruction_combine_pass()
        manager.add_simplify_cfg_pass()
        for function in ll_module.functions:
            manager.run(function, builder)

    def _optimize_final_module(self) -> None:
        """Leave it to the callers."""

    def _finalize_final_module(self) -> None:
        self._finalize_dynamic_globals()
        self._verify_declare_only_symbols()
        self._finalized = True


class _KernelLibrary(JITCodeLibrary):
    """Machine code of a kernel and all that it calls."""

    tuning: dict[str, Any]

    def _optimize_functions(self, ll_module: Any) -> None:
        """Leave it to the passes over the whole."""
        ll_module.data_layout = self._codegen._data_layout

    def _optimize_final_module(self) -> None:
        builder = llvm.create_pass_builder(_machine(self._codegen), _tuning(**self.tuning))
        builder.getModulePassManager().run(self._final_module, builder)


def _machine(codegen: Any) -> Any:
    """What LLVM's passes take for the target: a CPU without ARM's scalable vectors (SVE).

    Kernels are written for vectors of a fixed width. LLVM's vectoriser would choose scalable ones
    for the plain loops of some, and their sums would depend on the width of the machine's.
    """
    if cpu.machine() != "aarch64":
        return codegen._tm
    return _machine_without_scalable_vectors(*codegen.magic_tuple())


@functools.cache
def _machine_without_scalable_vectors(triple: str, name: str, features: str) -> Any:
    options = ",".join(filter(None, (features, "-sve")))  # and with it all that need it
    return llvm.Target.from_triple(triple).create_target_machine(cpu=name, features=options)


def _tuning(opt: int = 2, unroll: bool = False) -> Any:
    options = llvm.create_pipeline_tuning_options(speed_level=opt)
    options.loop_vectorization, options.slp_vectorization = True, False
    options.loop_unrolling = unroll
    return options


@register_pass(mutates_CFG=True, analysis_only=False)
class _KernelLowering(NativeLowering):
    _name = "kernel_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _KernelLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.library.tuning = state.tuning
        state.library.enable_object_caching()
        return bool(super().run_pass(state))


@register_pass(mutates_CFG=True, analysis_only=False)
class _InnerLowering(NativeLowering):
    _name = "inner_lowering"

    def run_pass(self, state: Any) -> bool:
        state.library = _InnerLibrary(state.targetctx.codegen(), state.func_id.func_qualname)
        state.flags.no_compile = True
        super().run_pass(state)
        lowered, entry = state.cr, object()  # callers find the code by its entry point
        state.targetctx.insert_user_function(entry, lowered.fndesc, [state.library])
        state.cr = _LowerResult(lowered.fndesc, lowered.call_helper, cfunc=entry, env=lowered.env)
        return True


class _KernelCompiler(Compiler):
    lowering: type[NativeLowering] = _KernelLowering

    def __init__(self, *args: Any, **tuning: Any) -> None:
        super().__init__(*args)
        self.state.tuning = tuning

    def define_pipelines(self) -> list[Any]:
        managers: list[Any] = super().define_pipelines()
        if self.state.flags.auto_parallel.enabled:  # `parallel.driver`, as Numba does it
            return managers
        for manager in managers:
            manager.passes = [
                (self.lowering, text) if kind is NativeLowering else (kind, text)
                for kind, text in manager.passes
                if kind not in _NOT_NEEDED
            ]
        return managers


class _InnerCompiler(_KernelCompiler):
    lowering = _InnerLowering


class Kernel(CPUDispatcher):
    """A function that Python calls as machine code, and compiled code links as LLVM IR.

    Parameters
    ----------
    function : callable
    options : dict
        Those of ``numba.njit``, and `opt`, LLVM's level of optimisation (2), and `unroll`, whether
        it unrolls loops (False).
    """

    _compiler_class: Any = _KernelCompiler

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        options = dict(options)
        tuning = {name: options.pop(name) for name in ("opt", "unroll") if name in options}
        compiler = functools.partial(self._compiler_class, **tuning)
        # _nrt: without it a function counts no references, and cannot return an array.
        options |= {"nopython": True, "_nrt": False}
        super().__init__(function, targetoptions=options, pipeline_class=compiler)

    @functools.cached_property
    def linked(self) -> InnerKernel:
        """What compiled callers link."""
        return InnerKernel(self.py_func, self.targetoptions)

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Compile for a caller that is being compiled."""
        return self.linked.get_call_template(args, kws)

    def get_overload(self, sig: Any) -> Any:
        """What the caller finds the code by."""
        return self.linked.get_overload(sig)


class _UnwrappedKernel(Kernel):
    """A function without machine code for calls from Python."""

    def __init__(self, function: Any, options: dict[str, Any]) -> None:
        super().__init__(function, options | {"no_cpython_wrapper": True})

    def add_overload(self, compiled: Any) -> None:
        """Keep compiled code; the table that calls from Python look into stays empty."""
        self.overloads[tuple(compiled.signature.args)] = compiled


class SharedCode(_UnwrappedKernel):
    """A function that compiled code calls by its address, through `linkage.SharedKernel`."""

    def __call__(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Refuse."""
        raise TypeError(f"{self.py_func.__name__}: only compiled code can call it")


class InnerKernel(_UnwrappedKernel):
    """A function for compiled code; from Python it runs as it is written."""

    _compiler_class = _InnerCompiler

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run it uncompiled."""
        return self.py_func(*args, **kwargs)

    @property
    def linked(self) -> InnerKernel:
        """Itself."""
        return self

    def get_call_template(self, args: Any, kws: Any) -> Any:
        """Compile for a caller that is being compiled."""
        return CPUDispatcher.get_call_template(self, args, kws)

    def get_overload(self, sig: Any) -> Any:
        """What the caller finds the code by."""
        return CPUDispatcher.get_overload(self, sig)
