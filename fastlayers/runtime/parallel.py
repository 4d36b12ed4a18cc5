"""One parallel driver for all kernels.

A kernel cuts its work into chunks that depend on the shape alone, and hands a serial task to
`parallel_for`. A worker starts with a contiguous share of the chunks, the same in each call, so
that it finds in its caches what it wrote before, and then takes what others have left. Only the
driver is compiled with ``parallel=True``: a parallel kernel costs 0.7-2.3 s to compile, a serial
one 0.1-0.3 s, and there are dozens of those.
"""

from __future__ import annotations

import ctypes
import os
from typing import Any

import llvmlite.binding as llvm
import numba
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.compiler_lock import global_compiler_lock
from numba.extending import intrinsic

from fastlayers.runtime import threads
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.linkage import SharedKernel

__all__ = ["parallel_for", "threading_layer"]

_i32, _i64 = ir.IntType(32), ir.IntType(64)
_pointer = ir.IntType(8).as_pointer()
_line_type = ir.ArrayType(_i64, 8)
_task_type = ir.FunctionType(ir.VoidType(), [_i64, _i64])

# 1 while a parallel region runs, and permanently in a forked child, where the pool's threads do not
# exist and GNU OpenMP would abort the process.
_BUSY = "fastlayers_busy"
_busy = ctypes.c_int64(0)
llvm.add_symbol(_BUSY, ctypes.addressof(_busy))


@intrinsic
def _run_worker(typingctx: Any, task: Any, context: Any, worker: Any) -> Any:
    """Call the compiled function at address `task` with (context, worker)."""

    def codegen(cgctx: Any, builder: Any, sig: Any, args: Any) -> Any:
        function = builder.inttoptr(args[0], _task_type.as_pointer())
        builder.call(function, args[1:])
        return cgctx.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


@kernel(parallel=True, shared=True)
def driver(task: int, context: int, workers: int) -> None:
    for worker in numba.prange(workers):
        _run_worker(task, context, worker)


_shared_driver = SharedKernel("fastlayers_driver", driver, (types.int64,) * 3)


def _after_fork() -> None:
    _busy.value = 1
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
    one thread at a time, for scratch space. Calls from inside a task, from a second Python
    thread while a region runs, or in a forked child run serially in the caller: the same answer
    on every threading layer, where nesting would abort the process on some. In your own parallel
    loop pass 1 worker, since other parallel regions cannot be detected here.
    """
    task_sig = task.get_call_type(typingctx, (types.int64, types.int64, *args.types), {})
    dispatcher = getattr(task.dispatcher, "linked", task.dispatcher)
    compiled = dispatcher.get_compile_result(task_sig)

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        _, n, threads, packed = values
        # One counter per worker, on its own cache line; the stack is restored after the call, which
        # may be in a loop.
        save = ir.FunctionType(_pointer, [])
        save = cgutils.get_or_insert_function(builder.module, save, "llvm.stacksave.p0")
        top = builder.call(save, [])
        counters = builder.alloca(_line_type, threads)
        with cgutils.for_range(builder, threads) as loop:
            share = builder.sdiv(builder.mul(n, loop.index), threads)
            builder.store(share, _counter(builder, counters, loop.index))
        state_type = ir.LiteralStructType([_line_type.as_pointer(), _i64, _i64, _i64, packed.type])
        state = cgutils.alloca_once(builder, state_type)
        # counters, workers, count, failed, arguments
        for field, value in enumerate([counters, threads, n, _i64(0), packed]):
            builder.store(value, builder.gep(state, [_i32(0), _i32(field)]))
        worker_loop = _emit_worker_loop(cgctx, builder, compiled, args, state_type)
        _emit_dispatch(cgctx, builder, worker_loop, builder.ptrtoint(state, _i64), threads)
        restore = ir.FunctionType(ir.VoidType(), [_pointer])
        restore = cgutils.get_or_insert_function(builder.module, restore, "llvm.stackrestore.p0")
        builder.call(restore, [top])
        failed = builder.load(builder.gep(state, [_i32(0), _i32(3)]))
        with builder.if_then(builder.icmp_signed("!=", failed, _i64(0)), likely=False):
            cgctx.call_conv.return_user_exc(builder, IndexError, ("a parallel task failed",))
        return cgctx.get_dummy_value()

    return types.void(task, types.int64, types.int64, args), codegen


def _counter(builder: Any, counters: Any, worker: Any) -> Any:
    return builder.gep(counters, [worker, _i32(0)])


def _emit_worker_loop(
    cgctx: Any, caller: Any, compiled: Any, args: Any, state_type: ir.Type
) -> Any:
    """Emit ``loop(state, worker)``: run the tasks of the worker's share, then of the others'."""
    name = caller.module.get_unique_name(f"{caller.function.name}.worker")
    function = ir.Function(caller.module, _task_type, name)
    function.linkage = "internal"
    builder = ir.IRBuilder(function.append_basic_block("entry"))
    state = builder.inttoptr(function.args[0], state_type.as_pointer())
    worker = function.args[1]
    field = [builder.gep(state, [_i32(0), _i32(k)]) for k in range(5)]
    counters, workers, count, packed = (builder.load(field[k]) for k in (0, 1, 2, 4))
    items = [builder.extract_value(packed, k) for k in range(len(args.types))]
    task = cgctx.declare_function(caller.module, compiled.fndesc)
    with cgutils.for_range(builder, workers) as loop:
        owner = builder.srem(builder.add(worker, loop.index), workers)
        counter = _counter(builder, counters, owner)
        last = builder.sdiv(builder.mul(count, builder.add(owner, _i64(1))), workers)
        head, body, done = (function.append_basic_block(n) for n in ("head", "body", "done"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.atomic_rmw("add", counter, _i64(1), "monotonic")
        builder.cbranch(builder.icmp_signed("<", index, last), body, done)
        builder.position_at_end(body)
        status, _ = cgctx.call_conv.call_function(
            builder,
            task,
            compiled.signature.return_type,
            compiled.signature.args,
            [index, worker, *items],
        )
        with builder.if_then(status.is_error, likely=False):
            builder.store(_i64(1), field[3])
        builder.branch(head)
        builder.position_at_end(done)
    builder.ret_void()
    cgctx.active_code_library.add_linking_library(compiled.library)
    return function


def _emit_dispatch(cgctx: Any, builder: Any, worker_loop: Any, state: Any, threads: Any) -> None:
    """Emit the choice between the parallel driver and a serial run of `worker_loop`."""
    busy = builder.module.globals.get(_BUSY) or ir.GlobalVariable(builder.module, _i64, _BUSY)
    ran = cgutils.alloca_once_value(builder, ir.IntType(1)(0))
    with builder.if_then(builder.icmp_signed(">", threads, _i64(1))):
        _shared_driver.emit_prepare(cgctx, builder)
        claim = builder.cmpxchg(busy, _i64(0), _i64(1), "acquire", "monotonic")
        with builder.if_then(builder.extract_value(claim, 1)):
            task = builder.ptrtoint(worker_loop, _i64)
            _shared_driver.emit_call(cgctx, builder, [task, state, threads])
            builder.store_atomic(_i64(0), busy, "release", 8)
            builder.store(ir.IntType(1)(1), ran)
    with builder.if_then(builder.not_(builder.load(ran))):
        builder.call(worker_loop, [state, _i64(0)])


def _set_team(n: int) -> None:
    """Let Numba's parallel regions wake no more threads than are used."""
    numba.set_num_threads(min(n, numba.config.NUMBA_NUM_THREADS))


threads.follow(_set_team)


@kernel
def _nothing(i: int, worker: int) -> None:
    pass


@kernel
def launch(workers: int) -> None:
    parallel_for(_nothing, workers, workers, ())


def threading_layer() -> str:
    """Numba's threading layer, such as omp; it is chosen by the first parallel launch."""
    launch(threads.get_num_threads())
    try:
        return str(numba.threading_layer())
    except ValueError:  # one thread, or a forked child: nothing was launched
        return "none yet"
