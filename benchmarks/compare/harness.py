"""Contestants in processes of their own, timed in turn.

The machine's speed drifts, so that only what alternates in one run can be compared: each round
asks every contestant for a few repetitions, and the medians over the rounds are what counts.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Contestant", "alternate"]


class Contestant:
    """A process of its own that prepares pieces of work, one at a time, and runs them on demand.

    Parameters
    ----------
    name : str
    prepare : callable
        ``prepare(threads, *options, *work)`` returns a function that runs the work once, and a
        value of it to check, such as the first loss. It must be importable.
    threads : int
        Threads of the contestant's own library and of everything below it.
    """

    def __init__(self, name: str, prepare: Callable[..., Any], threads: int, *options: Any) -> None:
        self.name = name
        self.times: list[float] = []
        self.value: Any = None
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, prepare, threads, options), daemon=True
        )
        _set_environment(threads)
        self._process.start()
        theirs.close()

    def prepare(self, *work: Any) -> None:
        """Drop the work so far with its times, prepare another piece and keep its value."""
        self.times.clear()
        self.value = self._ask("prepare", *work)

    def run(self, repetitions: int = 1, seconds: float = 0.0) -> None:
        """Repeat the work at least so often and so long, and keep the times (seconds each)."""
        self.times += self._ask("run", repetitions, seconds)

    def forget(self) -> None:
        """Drop the times of a warm-up."""
        self.times.clear()

    @property
    def median(self) -> float:
        """Median time of one repetition in seconds."""
        return statistics.median(self.times)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # it ended by an error of its own
            self._pipe.send(None)
        self._process.join(30)

    def _ask(self, *order: Any) -> Any:
        self._pipe.send(order)
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self.name} failed: {answer}") from answer
        return answer


def _set_environment(threads: int) -> None:
    """Set what a child inherits: its libraries read it as they load, before `_serve` runs."""
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    # They name an older kernel than the CPU has, and slow NumPy down.
    for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(variable, None)


def _serve(
    pipe: Connection, prepare: Callable[..., Any], threads: int, options: tuple[Any, ...]
) -> None:
    work: Any = None
    try:
        while (order := pipe.recv()) is not None:
            match order:
                case "prepare", *arguments:
                    work = None  # its arrays are freed before the next are made
                    work, value = prepare(threads, *options, *arguments)
                    pipe.send(value)
                case "run", repetitions, seconds:
                    pipe.send(_times(work, repetitions, seconds))
    except Exception as error:  # told to the parent, which raises it
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def _times(work: Callable[[], Any], repetitions: int, seconds: float) -> list[float]:
    times: list[float] = []
    begin = time.perf_counter()
    while len(times) < repetitions or time.perf_counter() - begin < seconds:
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return times


def alternate(
    contestants: list[Contestant], rounds: int, repetitions: int = 1, seconds: float = 0.0
) -> None:
    """Warm up, then let all take turns of so many repetitions and so many seconds or more."""
    for contestant in contestants:
        contestant.run(repetitions)
        contestant.forget()
    for _ in range(rounds):
        for contestant in contestants:
            contestant.run(repetitions, seconds)
