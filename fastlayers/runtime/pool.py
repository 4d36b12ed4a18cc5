"""Threads of our own, which bear the company of other programs.

A *job* is a parallel region: chunks that are claimed from counters. The caller of a region works
too, and returns when all chunks are done, whoever did them. So a thread that has lost its core and
holds no chunk is not waited for, and none needs to be there at all: that a worker sleeps too long,
or was never started, changes the time but not the result. GNU OpenMP instead waits for each thread
of its team at the end of each region.

`runtime.jobs` has how chunks are claimed. A job's `PENDING` counts chunks that are not done; its
lowest bit says that the caller sleeps.

Where other programs want the cores:

- A worker that has had its core for `TURN` lets others run, between two chunks. If it was
  preempted within a chunk, its caller would wait for a time slice of the other program, 3 ms.
- Once it has lost its core, it sleeps as soon as there is nothing to do. Time that it would spend
  on waiting counts as used.
- A worker that wakes on its caller's core moves. The kernel's scheduler puts it there at times, and
  caller and worker then share one core, while the other program has one alone.
- If the caller itself is being preempted, workers neither let others run nor sleep early, so that
  they run when it does.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from fastlayers.runtime import jobs
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.jobs import LINE, MOST
from fastlayers.runtime.system import (
    clock,
    core,
    cpu_time,
    futex_wait,
    futex_wake,
    give_way,
    leave_core,
)
from fastlayers.runtime.words import add, emit_words, extern, load, relax, store, swap, words

__all__ = ["run"]

# Words of the pool: a futex that changes with each job, a bit for each sleeping worker, whether
# threads are being started, how many there are with the caller, the core of the last caller that
# woke workers, and until when callers count as disturbed.
BOARD, SLEEPERS, STARTING, TEAM, CALLER, CALLER_DISTURBED = 0, LINE, 2 * LINE, 3 * LINE, 49, 50
# Words of a thread: when it was last checked, its CPU time then, since when it has its core, until
# when it counts as disturbed, and its number as a worker.
CHECKED, USED, SINCE, DISTURBED, NUMBER = range(5)
THREAD = 4 * LINE
ANY = 0xFFFFFFFF  # bits of a futex
# Nanoseconds: that a worker keeps its core for, between two checks whether a thread had its core,
# and without it that count.
TURN, PERIOD, LOST = 1_500_000, 1_000_000, 500_000
# For how long a thread counts as disturbed, in units of the time for which it had lost its core:
# a worker, and a caller. A time slice of 3 ms is remembered for 0.1 s.
MEMORY, CALLER_MEMORY = 32, 8
# Nanoseconds of waiting in a loop before a thread sleeps: usually; if the caller is disturbed, or
# waits for the last chunks itself; and if another program wants this core.
PATIENCE, CALLER_PATIENCE, SHORT_PATIENCE = 1_000_000, 200_000, 2_000
LOOKS = 16  # at a word, for one at the clock


@kernel(inner=True)
def run(chunk: Any, context: Any, count: int, workers: int) -> None:
    """Call ``chunk(context, i, worker)`` for every ``i < count`` on at most `workers` threads."""
    memory = words()
    job = jobs.take(memory)
    if job < 0:
        jobs.run_alone(chunk, context, count)
        return
    workers = min(workers, count, MOST)
    if load(memory, TEAM) < workers:
        _start(memory, workers)
    jobs.publish(memory, job, chunk, context, count, workers)
    _wake(memory, workers)
    now = clock()
    if now - load(memory, job + jobs.OWN + CHECKED) > PERIOD:
        _lost(memory, job + jobs.OWN, now)
    _work(memory, job, 0, job + jobs.OWN)
    _await(memory, job)
    store(memory, job + jobs.TAKEN, 0)


@kernel
def _wake(memory: Any, workers: int) -> None:
    """Tell waiting workers of a job, and wake those that sleep and may work for it."""
    add(memory, BOARD, 1)
    # An addition, too: ARM's acquiring load (LDAPR) may pass the one before it, and would miss a
    # worker that goes to sleep just then.
    asleep = add(memory, SLEEPERS, 0) & ((1 << (workers - 1)) - 1)
    if asleep != 0:
        store(memory, CALLER, core())
        futex_wake(memory, BOARD, (asleep | (asleep >> 32)) & ANY)


@kernel
def _work(memory: Any, job: int, worker: int, thread: int) -> None:
    """Do what is left of a job, first of the worker's own share."""
    workers = load(memory, job + jobs.WORKERS)
    for k in range(workers):
        share, done = job + jobs.SHARES + LINE * ((worker + k) % workers), 0
        while True:
            index = jobs.claim(memory, share, worker)
            if index < 0:
                break
            jobs.run_chunk(memory, job, index, worker)
            done += 1
            if _look(memory, thread, worker == 0) and worker > 0:
                _complete(memory, job, done)
                done = 0
                _take_turns(memory, thread)
        _complete(memory, job, done)


@kernel
def _complete(memory: Any, job: int, done: int) -> None:
    """Count chunks as done, and wake the caller if they were the last and it sleeps."""
    if done > 0 and add(memory, job + jobs.PENDING, -2 * done) == 2 * done + 1:
        futex_wake(memory, job + jobs.PENDING, ANY)


@kernel
def _await(memory: Any, job: int) -> None:
    """Wait until all chunks are done."""
    end = 0
    while end == 0 or clock() < end:
        for _ in range(LOOKS):
            if load(memory, job + jobs.PENDING) == 0:
                return
            relax()
        if end == 0:
            end = clock() + CALLER_PATIENCE
    add(memory, job + jobs.PENDING, 1)
    while True:
        pending = load(memory, job + jobs.PENDING)
        if pending == 1:
            return
        futex_wait(memory, job + jobs.PENDING, pending, ANY)


@kernel
def _serve(memory: Any, worker: int) -> None:
    """Work for all jobs, and wait for others: what the worker's thread runs, without end."""
    thread = THREAD + LINE * worker
    _lost(memory, thread, clock())
    while True:
        seen = load(memory, BOARD)
        for k in range(jobs.JOBS):
            _work(memory, jobs.FIRST + k * jobs.SIZE, worker, thread)
        if not _sees_job(memory, thread, seen):
            _sleep(memory, worker, seen)


@kernel
def _sees_job(memory: Any, thread: int, seen: int) -> bool:
    """Wait in a loop for a job, while this pays; whether there is one."""
    end = 0
    while end == 0 or clock() < end:
        for _ in range(LOOKS):
            if load(memory, BOARD) != seen:
                return True
            relax()
        if end == 0:
            now = clock()
            end = now + _patience(memory, thread, now)
    return False


@kernel
def _sleep(memory: Any, worker: int, seen: int) -> None:
    """Sleep until a job for this worker comes, on the way out of the caller's core."""
    bit = 1 << (worker - 1)
    add(memory, SLEEPERS, bit)
    futex_wait(memory, BOARD, seen, (bit | (bit >> 32)) & ANY)
    add(memory, SLEEPERS, -bit)
    now, thread = clock(), THREAD + LINE * worker
    store(memory, thread + SINCE, now)
    _lost(memory, thread, now)
    own = core()
    if own == load(memory, CALLER):
        leave_core(own)


@kernel
def _patience(memory: Any, thread: int, now: int) -> int:
    """How long to wait in a loop."""
    if now < load(memory, CALLER_DISTURBED):
        return CALLER_PATIENCE
    return SHORT_PATIENCE if now < load(memory, thread + DISTURBED) else PATIENCE


@kernel
def _look(memory: Any, thread: int, calls: bool) -> bool:
    """Note whether a thread has lost its core, and tell whether its turn is over."""
    now = clock()
    if now - load(memory, thread + CHECKED) > PERIOD:
        lost = _lost(memory, thread, now)
        if lost > LOST:
            store(memory, thread + SINCE, now)
            store(memory, thread + DISTURBED, now + MEMORY * lost)
            if calls:
                store(memory, CALLER_DISTURBED, now + CALLER_MEMORY * lost)
    return bool(now - load(memory, thread + SINCE) > TURN)


@kernel
def _lost(memory: Any, thread: int, now: int) -> int:
    """For how long a thread did not have its core since the last check."""
    before, used = load(memory, thread + USED), cpu_time()
    passed = now - load(memory, thread + CHECKED)
    store(memory, thread + CHECKED, now)
    store(memory, thread + USED, used)
    # A job's words may have been those of another caller, with another CPU time.
    return int(min(passed - (used - before), passed)) if used > before else 0


@kernel
def _take_turns(memory: Any, thread: int) -> None:
    """Let other programs have the core, unless the caller has to wait for its own."""
    begin = clock()
    if begin < load(memory, CALLER_DISTURBED):
        return
    give_way()
    now = clock()
    if now - begin > LOST:
        store(memory, thread + DISTURBED, now + MEMORY * (now - begin))
    store(memory, thread + SINCE, now)
    _lost(memory, thread, now)


@kernel
def _start(memory: Any, workers: int) -> None:
    """Start threads until there are `workers` with the caller, unless another caller does."""
    if swap(memory, STARTING, 0, 1):
        team = max(load(memory, TEAM), 1)
        while team < workers and _spawn(_serve, memory, team) == 0:
            team += 1
        # If the system allows no more threads, none is asked for again: the others do the work.
        store(memory, TEAM, team if team >= workers else MOST)
        store(memory, STARTING, 0)


_pointer, _i32, _i64 = ir.IntType(8).as_pointer(), ir.IntType(32), ir.IntType(64)
# Signals that an instruction raises in its own thread: SIGILL, SIGTRAP, SIGABRT, SIGBUS, SIGFPE and
# SIGSEGV. All others are for Python's threads, where they end a system call such as `sleep`.
_OWN_SIGNALS = sum(1 << (number - 1) for number in (4, 5, 6, 7, 8, 11))
_SIGNAL_WORDS, _SIG_SETMASK = 16, 2


@intrinsic
def _spawn(typingctx: Any, serve: Any, memory: Any, worker: Any) -> Any:
    """Start a thread that runs ``serve(memory, worker)``; 0, or the system's error."""
    called = serve.get_call_type(typingctx, (memory, types.int64), {})
    compiled = serve.dispatcher.get_compile_result(called)

    def codegen(cgctx: Any, builder: Any, sig: Any, values: Any) -> Any:
        module = builder.module
        start = ir.FunctionType(_pointer, [_pointer])
        body = ir.Function(module, start, module.get_unique_name("fastlayers_worker"))
        body.linkage = "internal"
        inside = ir.IRBuilder(body.append_basic_block("entry"))
        function = cgctx.declare_function(module, compiled.fndesc)
        number = inside.load(inside.bitcast(body.args[0], _i64.as_pointer()))
        arguments = [emit_words(inside), number]
        cgctx.call_conv.call_function(
            inside, function, types.none, (memory, types.int64), arguments
        )
        inside.ret(ir.Constant(_pointer, None))
        cgctx.active_code_library.add_linking_library(compiled.library)

        signals = ir.ArrayType(_i64, _SIGNAL_WORDS)
        ours, theirs = (cgutils.alloca_once(builder, signals) for _ in range(2))
        builder.store(ir.Constant(signals, [~_OWN_SIGNALS] + [-1] * (_SIGNAL_WORDS - 1)), ours)
        mask = extern(builder, "pthread_sigmask", _i32, _i32, ours.type, ours.type)
        handle = cgutils.alloca_once(builder, _i64)
        started = handle.type, _pointer, start.as_pointer(), _pointer
        create = extern(builder, "pthread_create", _i32, *started)
        builder.call(mask, [_i32(_SIG_SETMASK), ours, theirs])
        own = builder.add(_i64(THREAD + NUMBER), builder.mul(_i64(LINE), values[2]))
        number = builder.gep(values[1], [own])
        builder.store(values[2], number)
        number = builder.bitcast(number, _pointer)
        error = builder.call(create, [handle, ir.Constant(_pointer, None), body, number])
        builder.call(mask, [_i32(_SIG_SETMASK), theirs, ir.Constant(theirs.type, None)])
        with builder.if_then(builder.icmp_signed("==", error, _i32(0))):
            builder.call(extern(builder, "pthread_detach", _i32, _i64), [builder.load(handle)])
        return builder.sext(error, _i64)

    return types.int64(serve, memory, types.int64), codegen
