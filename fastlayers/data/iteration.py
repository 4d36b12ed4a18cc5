"""An epoch of a loader: its batches in order, made here or by workers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from fastlayers.data.fetch import END, Plan
from fastlayers.data.threads import Owner, TimedOut
from fastlayers.data.worker import BEGIN, Failure

__all__ = ["Channel", "Team", "made_by_workers", "made_here"]


class Channel(Protocol):
    """A connection to a worker, which gives one result for each task except `BEGIN`, in order."""

    pending: int
    user: object  # the iteration that its results are for

    def put(self, task: Any) -> None:
        """Hand over a task."""

    def get(self, timeout: float | None) -> Any:
        """Wait for the next result; `TimedOut` if it does not come in that many seconds."""


# The workers end when their owner is gone, so nothing that an exception keeps may refer to it.
Team = tuple[Owner, "list[Channel]"]


def made_here(plan: Plan, tasks: Iterator[Any]) -> Iterator[Any]:
    """The batches of an epoch, each made when it is requested."""
    fetch = plan.begin()
    for task in tasks:
        if (batch := fetch(task)) is END:
            return
        yield batch


def made_by_workers(
    hire: Callable[[], Team], tasks: Iterator[Any], ahead: int, timeout: float
) -> Iterator[Any]:
    """The batches of an epoch in order, prepared in advance by workers that take turns.

    The workers start with the first batch requested; those that serve only this iteration end, each
    after its current batch, as soon as this generator is closed or collected.

    Parameters
    ----------
    hire : callable
    tasks : iterator
        Indices for each batch, drawn here.
    ahead : int
        How many batches each worker prepares.
    timeout : float
        Seconds to wait for a batch, 0 for as long as it takes.
    """
    owner: Owner | None = None
    result: Any = None
    try:
        owner, channels = hire()
        workers = _Turns(channels, tasks, timeout)
        for _ in range(ahead * len(channels)):
            workers.assign()
        while (result := workers.next()) is not END:
            if isinstance(result, Failure):
                raise result.error()
            if isinstance(result, BaseException):
                raise result
            workers.assign()
            yield result
    finally:
        del owner  # also from a traceback's frame
        result = None  # else error, traceback and frame form a cycle


class _Turns:
    """Tasks of an epoch that go to workers in turn, and their results in the same order."""

    def __init__(self, channels: list[Channel], tasks: Iterator[Any], timeout: float) -> None:
        self.tasks, self.timeout = tasks, timeout
        self.idle = deque(channels)  # in the order of their turns
        self.assigned: deque[Channel] = deque()
        self.token = object()
        for channel in channels:
            channel.user = self.token
            while channel.pending:  # of an epoch that was abandoned
                channel.get(None)
                channel.pending -= 1
            channel.put(BEGIN)

    def assign(self) -> None:
        """Hand the next task, if there is one, to the worker whose turn it is."""
        for task in self.tasks if self.idle else ():
            channel = self.idle[0]
            self.idle.rotate(-1)
            channel.pending += 1
            channel.put((task,))
            self.assigned.append(channel)
            return

    def next(self) -> Any:
        """The result of the oldest task, and `END` when there is none."""
        while self.assigned:
            channel = self.assigned.popleft()
            if channel.user is not self.token:
                message = (
                    "DataLoader: persistent workers must serve one iteration at a time, "
                    "got another one that has begun"
                )
                return Failure(RuntimeError, message)
            result = channel.get(self.timeout or None)
            if result is TimedOut:
                message = f"DataLoader: timed out after {self.timeout} seconds, got no batch"
                return Failure(RuntimeError, message)
            channel.pending -= 1
            if result is not END:
                return result
            if channel in self.idle:  # its share of an iterable dataset is over
                self.idle.remove(channel)
            self.assign()
        return END
