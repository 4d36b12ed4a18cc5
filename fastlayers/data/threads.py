"""Workers of a loader that are threads."""

from __future__ import annotations

import contextvars
import queue
import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any

from fastlayers import random
from fastlayers.data.fetch import Plan
from fastlayers.data.worker import WorkerInfo, serve

__all__ = ["THREAD_NAME", "Owner", "TimedOut", "start_threads"]

THREAD_NAME = "fastlayers-DataLoader"


class Owner:
    """Lives as long as batches may be requested from the workers; they end after it."""

    __slots__ = ("__weakref__",)


class TimedOut:
    """Returned instead of a batch that did not come in time."""


class ThreadChannel:
    """What goes to a worker thread, and what comes back."""

    # The queues are SimpleQueues since their user may be collected at any moment, even in the
    # worker itself or at interpreter exit: their put() never waits for a lock that another thread
    # holds.
    def __init__(self) -> None:
        self.tasks: SimpleQueue[Any] = SimpleQueue()
        self.results: SimpleQueue[Any] = SimpleQueue()
        self.pending = 0  # results not taken yet
        self.user: object = None

    def put(self, task: Any) -> None:
        self.tasks.put(task)

    def get(self, timeout: float | None) -> Any:
        """The next result, an exception that ended the thread, or `TimedOut`."""
        try:
            result = self.results.get(timeout=timeout)
        except queue.Empty:
            return TimedOut
        if isinstance(result, BaseException):
            self.results.put(result)  # the answer to later tasks, too
        return result


def start_threads(
    plan: Plan, count: int, seed: int, init: Callable[[int], Any] | None
) -> tuple[Owner, list[ThreadChannel]]:
    """Start daemon threads, each in a copy of the caller's context with a random state of its own.

    They end as soon as the `Owner` is gone, each after its current batch.
    """
    owner, channels = Owner(), [ThreadChannel() for _ in range(count)]
    for number, channel in enumerate(channels):
        # The owner's death wakes a worker that waits for a task. No Python code runs for that, so
        # there is no line where a KeyboardInterrupt could leave the worker waiting.
        gone = weakref.ref(owner, channel.tasks.put)
        info = WorkerInfo(number, count, seed + number, plan.dataset)
        arguments = (_run, plan, info, init, channel.tasks, channel.results, gone)
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=arguments, name=THREAD_NAME, daemon=True).start()
    return owner, channels


def _run(
    plan: Plan,
    info: WorkerInfo,
    init: Callable[[int], Any] | None,
    tasks: SimpleQueue[Any],
    results: SimpleQueue[Any],
    gone: weakref.ref[Owner],
) -> None:
    def receive() -> Any:
        task = tasks.get()
        return None if gone() is None else task

    try:
        with random.fork_rng():
            random.manual_seed(info.seed)
            serve(plan, info, init, f"thread {info.id}", receive, results.put)
    # Whatever ends the work, such as SystemExit, must reach the waiting consumer.
    except BaseException as error:
        results.put(error)
