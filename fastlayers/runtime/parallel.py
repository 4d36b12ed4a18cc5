"""Parallel regions of all kernels.

A kernel cuts its work into chunks that depend on the shape alone, and hands a serial task to
`parallel_for`. A worker starts with a contiguous share of the chunks, the same in each call, so
that it finds in its caches what it wrote before, and then takes what others have left. The threads
are those of `runtime.pool` where the system has what that needs, and those of Numba elsewhere or
with ``FASTLAYERS_THREADING=numba``. For these one function is compiled with ``parallel=True``: a
parallel kernel costs 0.7-2.3 s to compile, a serial one 0.1-0.3 s, and there are dozens of those.
"""

from __future__ import annotations

import os
from typing import Any

import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from fastlayers.runtime import jobs, pool, threads
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.linkage import SharedKernel
from fastlayers.runtime.system import has_futex
from fastlayers.runtime.words import chunk_type, reset, store, swap, words, write

__all__ = ["parallel_for", "threading_layer"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_pointer = ir.IntType(8).as_pointer()
BUSY = (
    jobs.FIRST - jobs.LINE
)  # a word: 1 while a region runs on Numba, and always in a forked child


def _uses_pool() -> bool:
    """Whether regions run on the library's own threads.

    Raises
    ------
    ValueError
        If ``FASTLAYERS_THREADING`` is unknown, or asks for the pool where it cannot work.
    """
    asked = os.environ.get("FASTLAYERS_THREADING") or "auto"
    if asked not in ("auto", "numba", "pool"):
        raise ValueError(f"FASTLAYERS_THREADING: expected auto, numba or pool, got {asked!r}")
    if asked == "pool" and not has_futex():
        raise ValueError("FASTLAYERS_THREADING: the pool needs Linux on a CPU of 64 bits")
    return asked != "numba" and has_futex()


POOL = _uses_pool()


@kernel(parallel=True, shared=True)
def driver(job: int, workers: int) -> None:
    for worker in numba.prange(workers):
        jobs.drain(words(), job, worker)


_driver = SharedKernel("fastlayers_driver", driver, (types.int64, types.int64))


@intrinsic
def _drive(typingctx: Any, job: Any, workers: Any) -> Any:
    """Run the driver, whose code is compiled or loaded first."""

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        _driver.emit_prepare(cgctx, builder)
        _driver.emit_call(cgctx, builder, values)
        return cgctx.get_dummy_value()

    return types.void(types.int64, types.int64), codegen


@kernel(shared=True)
def region_on_pool(chunk: Any, context: Any, count: int, workers: int) -> None:
    """Run a region on the library's threads."""
    pool.run(chunk, context, count, workers)


@kernel(shared=True)
def region_on_numba(chunk: Any, context: Any, count: int, workers: int) -> None:
    """Run a region on Numba's threads, one region at a time; others run in their callers.

    Nested or concurrent ones would abort the process on some of Numba's threading layers, and any
    in a forked child on GNU OpenMP's.
    """
    memory = words()
    if swap(memory, BUSY, 0, 1):
        jobs.publish(memory, jobs.FIRST, chunk, context, count, workers)
        _drive(jobs.FIRST, workers)
        store(memory, BUSY, 0)
    else:
        jobs.run_alone(chunk, context, count)


_region = SharedKernel(
    "fastlayers_region",
    region_on_pool if POOL else region_on_numba,
    (types.voidptr, types.voidptr, types.int64, types.int64),
)


def _after_fork() -> None:
    """Let a child begin without the parent's threads and regions."""
    reset()
    if not POOL:
        write(BUSY, 1)
    global_compiler_lock.release()


if hasattr(os, "register_at_fork"):
    # A fork waits for the end of another thread's compilation. In the child, where that thread does
    # not exist, the lock that every compilation and load takes would never be released.
    os.register_at_fork(
        before=global_compiler_lock.acquire,
        after_in_parent=global_compiler_lock.release,
        after_in_child=_after_fork,
    )


@intrinsic
def parallel_for(typingctx: Any, task: Any, count: Any, workers: Any, args: Any) -> Any:
    """Run ``task(i, worker, *args)`` for every ``i < count`` on at most `workers` threads.

    `task` is a compiled function, `args` a tuple. `worker` is in ``[0, workers)`` and belongs to
    one thread at a time, for scratch space. Regions may be nested, and several Python threads may
    have one each. On Numba's threads only one region is parallel at a time, others run serially in
    their callers, and in your own parallel loop pass 1 worker, as that cannot be detected here.
    """
    task_sig = task.get_call_type(typingctx, (types.int64, types.int64, *args.types), {})
    dispatcher = getattr(task.dispatcher, "linked", task.dispatcher)
    compiled = dispatcher.get_compile_result(task_sig)

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        _, n, threads, packed = values
        # Whether a task has failed, and the arguments.
        context_type = ir.LiteralStructType([_i64, packed.type])
        context = cgutils.alloca_once(builder, context_type)
        failed, arguments = (builder.gep(context, [_i32(0), _i32(k)]) for k in range(2))
        builder.store(_i64(0), failed)
        builder.store(packed, arguments)
        chunk = _emit_chunk(cgctx, builder, compiled, args, context_type)
        opaque = builder.bitcast(context, _pointer)
        several = (builder.icmp_signed(">", value, _i64(1)) for value in (n, threads))
        with builder.if_else(builder.and_(*several)) as (parallel, serial):
            with parallel:
                _region.emit_prepare(cgctx, builder)
                function = builder.bitcast(chunk, _pointer)
                _region.emit_call(cgctx, builder, [function, opaque, n, threads])
            with serial, cgutils.for_range(builder, n) as loop:
                builder.call(chunk, [opaque, loop.index, _i64(0)])
        with builder.if_then(
            builder.icmp_signed("!=", builder.load(failed), _i64(0)), likely=False
        ):
            cgctx.call_conv.return_user_exc(builder, IndexError, ("a parallel task failed",))
        return cgctx.get_dummy_value()

    return types.void(task, types.int64, types.int64, args), codegen


def _emit_chunk(cgctx: Any, caller: Any, compiled: Any, args: Any, context_type: ir.Type) -> Any:
    """Emit ``chunk(context, index, worker)``, which calls the task."""
    name = caller.module.get_unique_name(f"{caller.function.name}.chunk")
    function = ir.Function(caller.module, chunk_type, name)
    function.linkage = "internal"
    # A copy in the caller could be optimised further, and multiply and add in one rounding where
    # this one does not: another number of threads would change bits.
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    context = builder.bitcast(function.args[0], context_type.as_pointer())
    failed, packed = (builder.gep(context, [_i32(0), _i32(k)]) for k in range(2))
    values = [builder.load(builder.gep(packed, [_i32(0), _i32(k)])) for k in range(len(args.types))]
    status, _ = cgctx.call_conv.call_function(
        builder,
        cgctx.declare_function(caller.module, compiled.fndesc),
        compiled.signature.return_type,
        compiled.signature.args,
        [*function.args[1:], *values],
    )
    with builder.if_then(status.is_error, likely=False):
        builder.store(_i64(1), failed)
    builder.ret_void()
    cgctx.active_code_library.add_linking_library(compiled.library)
    return function


def _set_team(n: int) -> None:
    """Let Numba's parallel regions wake no more threads than are used."""
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))


if not POOL:
    threads.follow(_set_team)


@kernel
def _nothing(i: int, worker: int) -> None:
    pass


@kernel
def launch(workers: int) -> None:
    parallel_for(_nothing, workers, workers, ())


def threading_layer() -> str:
    """What parallel regions run on: ``pool``, or Numba's threading layer, such as ``omp``.

    Numba's is chosen by the first parallel region.
    """
    if POOL:
        return "pool"
    launch(threads.get_num_threads())
    try:
        return str(numba.threading_layer())
    except ValueError:  # one thread, or a forked child: nothing was launched
        return "none yet"
