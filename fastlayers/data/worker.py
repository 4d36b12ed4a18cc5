"""What one worker of a loader does, in its own thread or process."""

from __future__ import annotations

import enum
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

from fastlayers.data.fetch import Plan

__all__ = ["BEGIN", "Failure", "WorkerInfo", "get_worker_info", "serve"]


class _Task(enum.Enum):  # which is the same object in another process
    BEGIN = enum.auto()


BEGIN = _Task.BEGIN  # instead of indices: an epoch begins


@dataclass(frozen=True)
class WorkerInfo:
    """One of the workers that load the batches of a `DataLoader`.

    Attributes
    ----------
    id : int
        From 0.
    num_workers : int
    seed : int
        That of `fastlayers.manual_seed` in this worker; another in each, and in each epoch unless
        the workers are persistent.
    dataset : object
        The loader's: the same object in a thread, a copy in a process.
    """

    id: int
    num_workers: int
    seed: int
    dataset: Any


_info: ContextVar[WorkerInfo | None] = ContextVar("fastlayers.data.worker", default=None)


def get_worker_info() -> WorkerInfo | None:
    """The worker of a loader that runs this code, or None outside of workers.

    As `torch.utils.data.get_worker_info
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.get_worker_info>`_.
    """
    return _info.get()


class _Text(str):
    """A message that KeyError, which shows the repr of its argument, shows as it is."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


class Failure:
    """An exception of a worker, sent instead of a batch.

    Parameters
    ----------
    kind : type
    message : str
    cause : exception, optional
        The exception itself, in the same process.
    """

    def __init__(self, kind: type, message: str, cause: BaseException | None = None) -> None:
        self.kind, self.message, self.cause = kind, message, cause

    @classmethod
    def of(cls, error: Exception, where: str) -> Failure:
        """The failure for an exception, with its traceback, in PyTorch's wording."""
        text = "".join(traceback.format_exception(error))
        message = f"Caught {type(error).__name__} in DataLoader worker {where}.\nOriginal {text}"
        return cls(type(error), message, error)

    def __reduce__(self) -> tuple[Any, ...]:
        return Failure, (self.kind, self.message)

    def error(self) -> BaseException:
        """An exception of the same type, or a RuntimeError where a message alone makes none."""
        message = _Text(self.message) if issubclass(self.kind, KeyError) else self.message
        try:
            error: BaseException = self.kind(message)
        except Exception:
            error = RuntimeError(message)
        error.__cause__ = self.cause
        return error


def serve(
    plan: Plan,
    info: WorkerInfo,
    init: Callable[[int], Any] | None,
    where: str,
    receive: Callable[[], Any],
    reply: Callable[[Any], None],
) -> None:
    """Answer every task except `BEGIN` with its batch or a `Failure`, until the task is None."""
    _info.set(info)
    fetch: Any = None
    broken: Failure | None = None
    if init is not None:
        try:
            init(info.id)
        except Exception as error:
            broken = Failure.of(error, where)
    problem = broken
    while (task := receive()) is not None:
        result: Any
        try:
            if task is BEGIN:
                problem, fetch = broken, plan.begin()
                continue
            result = problem or fetch(*task)
        except Exception as error:
            result = Failure.of(error, where)
        if task is BEGIN:
            problem = broken or result
        else:
            reply(result)
        del result, task  # the memory of a batch
