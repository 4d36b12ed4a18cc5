"""Workers of a loader that are processes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import random as python_random
import time
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.reduction import ForkingPickler
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.data.fetch import Plan
from fastlayers.data.threads import Owner, TimedOut
from fastlayers.data.worker import Failure, WorkerInfo, serve
from fastlayers.runtime.threads import set_num_threads

__all__ = ["start_processes"]

_PARENT_CHECK = 5.0  # seconds between checks whether the program still exists
_PATIENCE = 5.0  # seconds in which workers may end by themselves


def _reduced(tensor: Tensor) -> tuple[Any, ...]:
    return Tensor, (tensor.array(), tensor.requires_grad)


ForkingPickler.register(Tensor, _reduced)


class ProcessChannel:
    """What goes to a worker process, and what comes back."""

    # Tasks go through a queue, whose thread waits when a pipe is full: a program and a worker that
    # both wait for room in a pipe would wait forever.
    def __init__(self, context: Any) -> None:
        self.tasks = context.Queue()
        self.results, self.replies = context.Pipe(duplex=False)
        self.process: Any = None
        self.pending = 0  # results not taken yet
        self.user: object = None

    def put(self, task: Any) -> None:
        self.tasks.put(task)

    def get(self, timeout: float | None) -> Any:
        """The next result, `TimedOut`, or the `Failure` that the process has ended."""
        if not wait([self.results, self.process.sentinel], timeout):
            return TimedOut
        with contextlib.suppress(EOFError, OSError):
            if self.results.poll():
                return self.results.recv()
        self.process.join(_PATIENCE)
        return Failure(
            RuntimeError,
            f"DataLoader: worker (pid {self.process.pid}) must not end before the loader, got "
            f"exit code {self.process.exitcode}",
        )


def start_processes(
    plan: Plan, count: int, seed: int, init: Callable[[int], Any] | None, context: BaseContext
) -> tuple[Owner, list[ProcessChannel]]:
    """Start daemon processes with random states of their own; they end when the `Owner` is gone."""
    channels: list[ProcessChannel] = []
    owner, forks = Owner(), context.get_start_method() == "fork"
    weakref.finalize(owner, _end, channels, os.getpid())
    for number in range(count):
        # Made just before its process: a process started earlier would have the pipe open, too.
        channel = ProcessChannel(context)
        channels.append(channel)
        inherited = channel.results if forks else None
        arguments = (plan, number, count, seed, init, channel.tasks, channel.replies, inherited)
        process: Any = context.Process(target=_run, args=arguments, daemon=True)  # type: ignore[attr-defined]
        process.start()
        channel.process = process
        channel.replies.close()
    return owner, channels


def _end(channels: Sequence[ProcessChannel], program: int) -> None:
    if os.getpid() != program:  # a fork of it, whose copy of the owner is gone
        return
    started = [channel for channel in channels if channel.process is not None]
    for channel in started:
        channel.put(None)
        channel.results.close()
    deadline = time.monotonic() + _PATIENCE
    for channel in started:
        channel.process.join(max(0.0, deadline - time.monotonic()))
        if channel.process.is_alive():
            channel.process.terminate()
            channel.process.join()
        channel.process.close()
    for channel in channels:
        channel.tasks.cancel_join_thread()
        channel.tasks.close()


def _run(
    plan: Plan,
    number: int,
    count: int,
    seed: int,
    init: Callable[[int], Any] | None,
    tasks: Any,
    replies: Connection,
    inherited: Connection | None,
) -> None:
    if inherited is not None:  # open, it would make sending wait forever without the program
        inherited.close()
    program = multiprocessing.parent_process()

    def receive() -> Any:
        while program is None or program.is_alive():
            try:
                return tasks.get(timeout=_PARENT_CHECK)
            except queue.Empty:
                continue
        return None

    info = WorkerInfo(number, count, seed + number, plan.dataset)
    _seed(seed, number)
    set_num_threads(1)  # the cores are shared with the program and with other workers
    # The program has ended, or receives the interrupt as well.
    with contextlib.suppress(BrokenPipeError, KeyboardInterrupt):
        serve(plan, info, init, f"process {number}", receive, _Replies(replies, number))


class _Replies:
    """Sends results; instead of one that can't be pickled, the reason."""

    def __init__(self, connection: Connection, number: int) -> None:
        self.connection, self.where = connection, f"process {number}"

    def __call__(self, result: Any) -> None:
        try:
            content = ForkingPickler.dumps(result)
        except Exception as error:  # whatever pickling a user's object raises
            text = result.message if isinstance(result, Failure) else None
            message = text or Failure.of(error, self.where).message
            content = ForkingPickler.dumps(Failure(RuntimeError, message))
        self.connection.send_bytes(content)


def _seed(seed: int, number: int) -> None:
    """Seed the generators of fastlayers, of Python and of NumPy's legacy functions."""
    random.manual_seed(seed + number)
    python_random.seed(seed + number)
    np.random.seed(np.random.SeedSequence((seed, number)).generate_state(4))
