"""Compilation for another CPU than this machine's: for a level that a fleet of machines shares.

A level that this machine has is one of Numba's settings. For others, so that a laptop can fill the
cache of a fleet of boards, kernels are compiled and not run: Numba's engine would load the code
into this process, so here LLVM only makes object code of it, which the cache keeps as it keeps any.
Kernels compile when they are called, for the types of what they are given, and do nothing; a
training step on this machine tells which are needed. All facts of the CPU must be the target's from
the start, since plans choose kernels by them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import llvmlite.binding as llvm
from numba import types
from numba.core import config
from numba.core.codegen import JITCodeLibrary, JITCPUCodegen, JitEngine
from numba.core.registry import cpu_target

from fastlayers.runtime import cpu
from fastlayers.runtime.compiler import Kernel

__all__ = ["CompiledOnly", "compiling", "install", "lower"]

_compiling = False


class CompiledOnly(Kernel):
    """A kernel that is compiled by a call, but not run."""

    def __call__(self, *args: Any) -> int | None:
        """Compile for arguments of these types; -1, which kernels return if nothing is wrong.

        An optimiser, to which it says that addresses are missing, makes copies for its kernel.
        """
        if not _compiling:
            raise RuntimeError(
                f"{self.py_func.__name__}: kernels are compiled for {cpu.fleet()} in this process, "
                f"which {cpu.cpu_name()} cannot run; use another process"
            )
        self._compile_for_args(*args)
        compiled = self.overloads[tuple(map(self.typeof_pyval, args))]
        return None if compiled.signature.return_type is types.none else -1


@contextlib.contextmanager
def compiling() -> Iterator[None]:
    """Let kernels be called, to be compiled."""
    global _compiling
    before, _compiling = _compiling, True
    try:
        yield
    finally:
        _compiling = before


def _configure() -> tuple[str, str]:
    """Let Numba take the level's name and features for the host's."""
    level = cpu.LEVELS[str(cpu.fleet())]
    config.CPU_NAME, config.CPU_FEATURES = level.name, level.features
    return level.name, level.features


def lower() -> None:
    """Make Numba compile for a level that this machine has.

    Raises
    ------
    RuntimeError
        If it has compiled for the machine's own CPU in this process, which it then stays with.
    """
    wanted = _configure()
    found = cpu_target.target_context.codegen().magic_tuple()[1:]
    if found != wanted:
        raise RuntimeError(
            f"FASTLAYERS_CPU: Numba compiles for {found[0]} in this process already; run an op of "
            f"fastlayers before other code, or set NUMBA_CPU_NAME={wanted[0]} and "
            f"NUMBA_CPU_FEATURES={wanted[1]!r}"
        )


def install() -> None:
    """Make Numba compile for a level that this machine has not; none of that code can run."""
    context = cpu_target.target_context
    context.refresh()  # loads what Numba itself runs, in code of this machine
    _configure()
    context._internal_codegen = _Codegen("numba.exec")


def _triple() -> str:
    """LLVM's name of the target: on another architecture, Linux as Numba's wheels know it."""
    host = str(llvm.get_process_triple())
    return host if cpu.same_machine() else f"{cpu.machine()}-unknown-linux-gnu"


class _Emitter(JitEngine):
    """Takes the place of Numba's engine, makes object code and loads nothing."""

    def __init__(self, machine: Any) -> None:
        self._machine = machine
        self._defined_symbols: set[str] = set()

    def add_module(self, module: Any) -> None:
        """Make the object code of a library's module, unless it has come from the cache."""
        if JITCodeLibrary._object_getbuffer_hook(module) is None:
            JITCodeLibrary._object_compiled_hook(module, self._machine.emit_object(module))

    def get_function_address(self, name: str) -> int:
        """None that could be called."""
        return 0

    def finalize_object(self) -> None:
        """Load nothing."""


class _Codegen(JITCPUCodegen):
    """Numba's code generator with another target."""

    def _init(self, llvm_module: Any) -> None:
        llvm.initialize_all_targets()
        llvm.initialize_all_asmprinters()
        options = {"opt": config.OPT}
        self._tm_features = self._customize_tm_features()
        self._customize_tm_options(options)
        x86 = cpu.machine() == "x86_64"
        options["reloc"] = "static" if x86 else "default"  # as Numba has it on the target itself
        self._tm = llvm.Target.from_triple(_triple()).create_target_machine(**options)
        self._engine, self._target_data = _Emitter(self._tm), self._tm.target_data
        self._data_layout = str(self._target_data)
        self._loopvect, self._opt_level = bool(config.OPT.is_opt_max), 0

    def _create_empty_module(self, name: str) -> Any:
        module = super()._create_empty_module(name)
        module.triple = _triple()
        return module

    def set_env(self, env_name: str, env: Any) -> None:
        """Set nothing, as no code was loaded."""
