"""Contestants in processes of their own, timed in turn.

The machine's speed drifts, so that only what alternates in one run can be compared: each round
asks every contestant for a few repetitions, and the medians over the rounds are what counts.
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["Contestant", "alternate"]


class Contestant:
    """A process that prepares a piece of work once, and runs it on demand.

    Parameters
    ----------
    name : str
    prepare : callable
        ``prepare(*arguments)`` returns a function that runs the work once and returns a value
        to check, such as the loss. It must be importable.
    threads : int
        Threads of the contestant's own library and of everything below it.
    """

    def __init__(
        self, name: str, prepare: Callable[..., Any], threads: int, *arguments: Any
    ) -> None:
        self.name = name
        self.times: list[float] = []
        self.values: list[float] = []
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, prepare, threads, arguments), daemon=True
        )
        self._process.start()
        theirs.close()
        self._receive()

    def run(self, repetitions: int) -> None:
        """Repeat the work and keep times (seconds each) and values."""
        self._pipe.send(repetitions)
        times, values = self._receive()
        self.times += times
        self.values += values

    def forget(self) -> None:
        """Drop the times of a warm-up."""
        self.times.clear()

    @property
    def median(self) -> float:
        """Median time of one repetition in seconds."""
        return statistics.median(self.times)

    def close(self) -> None:
        """End the process."""
        if self._process.is_alive():
            self._pipe.send(None)
        self._process.join(30)

    def _receive(self) -> Any:
        answer = self._pipe.recv()
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self.name} failed: {answer}") from answer
        return answer


def _serve(
    pipe: Connection, prepare: Callable[..., Any], threads: int, arguments: tuple[Any, ...]
) -> None:
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[variable] = str(threads)
    # They name an older kernel than the CPU has, and slow NumPy down.
    for variable in ("OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE"):
        os.environ.pop(variable, None)
    try:
        work = prepare(threads, *arguments)
        pipe.send(None)
        while (repetitions := pipe.recv()) is not None:
            times, values = [], []
            for _ in range(repetitions):
                start = time.perf_counter()
                value = work()
                times.append(time.perf_counter() - start)
                values.append(value)
            pipe.send((times, values))
    except Exception as error:  # told to the parent, which raises it
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def alternate(contestants: list[Contestant], rounds: int, repetitions: int) -> None:
    """Warm up, then let all take turns."""
    for contestant in contestants:
        contestant.run(repetitions)
        contestant.forget()
    for _ in range(rounds):
        for contestant in contestants:
            contestant.run(repetitions)
