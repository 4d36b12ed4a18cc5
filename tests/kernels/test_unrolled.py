"""Kernels in a loop that a user has compiled and Numba unrolls: the same bits, and sound addresses.

llvmlite warns that LLVM 22 may miscompile unrolled loops over memory whose address was an integer.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import pytest
from guards import CALLS
from numba import njit, typeof, types
from numba.core.registry import CPUDispatcher

from fastlayers import kernels
from fastlayers.profiling import machine
from fastlayers.runtime import threads
from fastlayers.runtime.compiler import Kernel

REPEATS = 4
# Elements that the first array of a call should have: some vectors and a rest.
ELEMENTS = 150

MODULES = [
    importlib.import_module(module.name)
    for module in pkgutil.walk_packages(kernels.__path__, f"{kernels.__name__}.")
]
KERNELS = {
    f"{home.__name__.removeprefix('fastlayers.kernels.')}.{name}": k
    for home in MODULES
    for name, k in vars(home).items()
    if type(k) is Kernel and k.py_func.__module__ == home.__name__
}
# Those that only other kernels call.
PARTS = {
    "norm.batchnorm.merge_moments",
    "norm.matrix.chunk_rows",
    "norm.matrix.repeat_channels",
    "norm.matrix.write_factors",
    "pool.loops.spilled_lanes",
}
# Options of a step, and how many arrays a parameter has.
STEPS = {
    "adadelta": ((1.0, 0.01, 0.1, 0.9, 1e-6), 4),
    "adam": ((3.0, 1.0, 0.01, 0.99, 0.1, 0.9, 0.99, 1e-6), 5),
    "sgd": ((-1.0, 0.01, 0.1, 0.9, 0.5, True), 3),
}
NAMES = sorted(KERNELS.keys() - PARTS - {f"optimizer.{name}" for name in (*STEPS, "gather")})
# Memory of workers, and sums whose padding comes from it: they depend on which worker did what.
OF_WORKERS = {"parts", "pattern", "sums", "work"}
SHARED = {
    name: shared
    for home in MODULES
    for name, shared in vars(home).items()
    if hasattr(shared, "body") and shared.body.py_func.__module__ == home.__name__
}


def arrays_of(value: Any) -> Iterator[np.ndarray]:
    for each in value if isinstance(value, tuple) else ():
        yield from arrays_of(each)
    if isinstance(value, np.ndarray):
        yield value


def copied(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(map(copied, value))
    return value.copy() if isinstance(value, np.ndarray) else value


class Recorder:
    """Keeps the arguments of a small call of each kernel."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[Any, ...]] = {}
        self._names = {KERNELS[name]: name for name in NAMES}
        self._ranks: dict[str, tuple[bool, int]] = {}

    def call(self, kernel: Any, args: tuple[Any, ...]) -> Any:
        """Call a kernel, and keep the arguments if this is the best call so far."""
        if name := self._names.get(kernel):
            first, *rest = (a.size for a in arrays_of(args))
            rank = (False, first + sum(rest)) if first >= ELEMENTS else (True, -first)
            if name not in self._ranks or rank < self._ranks[name]:
                self._ranks[name], self.found[name] = rank, copied(args)
        return CPUDispatcher.__call__(kernel, *args)


@pytest.fixture(scope="module")
def recorded() -> Iterator[dict[str, tuple[Any, ...]]]:
    """Arguments of kernels before they ran, as ops and the profiler give them."""
    recorder, before = Recorder(), threads.get_num_threads()
    threads.set_num_threads(2)
    with (
        mock.patch.object(threads, "SERIAL_WORK", 1),
        mock.patch.object(Kernel, "__call__", lambda k, *args: recorder.call(k, args), create=True),
    ):
        for call in CALLS.values():
            call(np.copy, np.float32)
        machine.multiply_adds(2)[0]()
        KERNELS["speed.copy"](np.arange(40000, dtype=np.float32), 2, np.empty(40000, np.float32))
    yield recorder.found
    threads.set_num_threads(before)


def unrolled(kernel: Any) -> Any:
    @njit
    def call(*args):
        for _ in range(REPEATS):
            result = kernel(*args)
        return result

    return call


def results_of(kernel: Any, args: tuple[Any, ...]) -> list[np.ndarray]:
    """All arrays of a call that do not depend on which worker did what."""
    parameters = inspect.signature(kernel.py_func).parameters
    kept = [a for name, a in zip(parameters, args, strict=True) if name not in OF_WORKERS]
    return list(arrays_of(tuple(kept)))


@pytest.mark.parametrize("name", NAMES)
def test_results_are_bitwise_the_same(recorded, name):
    kernel = KERNELS[name]
    given, expected = copied(recorded[name]), copied(recorded[name])
    results = [kernel(*expected) for _ in range(REPEATS)]
    assert unrolled(kernel)(*given) == results[-1]
    for a, b in zip(results_of(kernel, given), results_of(kernel, expected), strict=True):
        assert a.tobytes() == b.tobytes()


@pytest.mark.parametrize("name", STEPS)
def test_steps_are_bitwise_the_same(name):
    (options, roles), shapes = STEPS[name], [(7,), (3, 11), (20011,)]
    gather, update = KERNELS["optimizer.gather"], KERNELS[f"optimizer.{name}"]
    ids, like = (id(np.dtype(np.float32)), id(np.ndarray)), np.empty(0, np.float32)

    def steps(tables, like, options):
        total = 0
        for i in range(REPEATS):
            total += gather(*ids, tables[i])
            update(like, tables[i], options, 2)
        return total

    results = []
    for run in (steps, njit(steps)):
        rng = np.random.default_rng(0)
        arrays = [np.abs(rng.standard_normal(s, np.float32)) for _ in range(roles) for s in shapes]
        tables = np.empty((REPEATS, len(shapes), roles + 1), np.int64)
        tables[:, 0, 0] = id(arrays)
        assert run(tables, like, options) == REPEATS * (7 + 33 + 20011)
        results.append(b"".join(a.tobytes() for a in arrays))
    assert results[0] == results[1]


def linked_code(kernel: Any, kinds: tuple[Any, ...]) -> str:
    """LLVM IR of a kernel and all that it calls, as it is linked into a user's code."""
    kernel.linked.get_call_template(kinds, {})
    (compiled,) = [c for args, c in kernel.linked.overloads.items() if args == kinds]
    return str(compiled.library.get_llvm_str())


def converted(code: str) -> list[str]:
    """Lines that make pointers of integers."""
    return [line for line in code.splitlines() if "inttoptr" in line]


@pytest.mark.parametrize("name", NAMES)
def test_no_address_was_an_integer(recorded, name):
    assert converted(linked_code(KERNELS[name], tuple(map(typeof, recorded[name])))) == []


@pytest.mark.parametrize("name", STEPS)
def test_no_address_of_a_step_was_an_integer(name):
    (options, _), table = STEPS[name], types.int64[:, ::1]
    update, gather = KERNELS[f"optimizer.{name}"], KERNELS["optimizer.gather"]
    kinds = types.float32[::1], table, typeof(options), types.int64
    assert converted(linked_code(update, kinds)) == []
    assert converted(linked_code(gather, (types.int64, types.int64, table))) == []


@pytest.mark.parametrize("name", SHARED)
def test_no_address_of_a_shared_kernel_was_an_integer(name):
    shared = SHARED[name]
    assert converted(linked_code(shared.body, shared.signature(types.float32))) == []


def test_an_address_that_was_an_integer_is_found():
    code = "define void @f(i64 %.1) {\n  %.2 = inttoptr i64 %.1 to ptr\n"
    assert converted(code) == ["  %.2 = inttoptr i64 %.1 to ptr"]
    assert len(converted("  call void @f(ptr inttoptr (i64 5 to ptr))")) == 1
