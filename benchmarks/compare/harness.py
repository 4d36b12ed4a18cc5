"""Contestants in separate processes, timed in turn.

The machine's speed drifts, so only what alternates in one run can be compared: each round asks
every contestant for a few repetitions, and the medians over the rounds count.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import statistics
import sys
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

__all__ = [
    "Contestant",
    "alternate",
    "alternate_for",
    "peak_memory",
    "repeated_times",
    "resident_memory",
    "spread",
    "table",
]

# Seconds of steps before any are timed by `alternate_for`.
WARM_UP = 2.0


class Contestant:
    """A separate process that prepares pieces of work, one at a time, and runs them on demand.

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
        """Repeat the work at least this often and this long, and keep the times (seconds each)."""
        self.times += self._ask("run", repetitions, seconds)

    def call(self, *arguments: Any) -> Any:
        """Do the work once with these arguments, and return what it returns."""
        return self._ask("call", *arguments)

    def keep_on(self, *arguments: Any) -> None:
        """Do the work with these arguments again and again until `rest`; returns at once."""
        with contextlib.suppress(ConnectionError):  # `rest` says so
            self._pipe.send(("keep on", *arguments))

    def rest(self) -> None:
        """End what `keep_on` began, after the work that is being done."""
        self._ask("rest")

    def peak_memory(self) -> int:
        """Peak resident bytes of the process."""
        return int(self._ask("memory"))

    def forget(self) -> None:
        """Drop the times of a warm-up."""
        self.times.clear()

    @property
    def median(self) -> float:
        """Median time of one repetition in seconds."""
        return statistics.median(self.times)

    @property
    def spread(self) -> float:
        """Interquartile range of the times, as a share of the median."""
        return spread(self.times)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(BrokenPipeError):  # it ended with its own error
            self._pipe.send(None)
        self._process.join(30)

    def _ask(self, *order: Any) -> Any:
        try:
            self._pipe.send(order)
            answer = self._pipe.recv()
        except (EOFError, ConnectionError) as error:  # killed, perhaps for lack of memory
            self._process.join(5)
            code = self._process.exitcode
            raise RuntimeError(f"{self.name} failed: its process ended, code {code}") from error
        if isinstance(answer, Exception):
            raise RuntimeError(f"{self.name} failed: {answer}") from answer
        return answer


def _set_environment(threads: int) -> None:
    """Set what a child inherits: its libraries read it when they load, before `_serve` runs."""
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
                    pipe.send(repeated_times(work, repetitions, seconds))
                case "call", *arguments:
                    pipe.send(work(*arguments))
                case "keep on", *arguments:
                    while not pipe.poll():
                        work(*arguments)
                case ("rest",):
                    pipe.send(None)
                case ("memory",):
                    pipe.send(peak_memory())
    except EOFError:  # the parent was stopped
        return
    except Exception as error:  # sent to the parent, which raises it
        pipe.send(RuntimeError(f"{type(error).__name__}: {error}"))


def repeated_times(work: Callable[[], Any], repetitions: int, seconds: float) -> list[float]:
    """Repeat the work at least this often and this long: the seconds of each."""
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
    """Warm up, then let all take turns of at least so many repetitions and seconds."""
    for contestant in contestants:
        contestant.run(repetitions)
        contestant.forget()
    for _ in range(rounds):
        for contestant in contestants:
            contestant.run(repetitions, seconds)


def alternate_for(
    contestants: list[Contestant], seconds: float, rounds: tuple[int, int], turn: float = 0.1
) -> None:
    """Alternate for about so many seconds, in at least and at most so many rounds.

    Each turn takes `turn` seconds and at least one repetition.
    """
    for contestant in contestants:
        # A process that starts to spin may have all its threads on one CPU at first: torch's steps
        # of 3 ms took 480 ms for two seconds.
        contestant.run(1, WARM_UP)
    round_seconds = sum(max(turn, contestant.times[-1]) for contestant in contestants)
    count = int(min(max(seconds / round_seconds, rounds[0]), rounds[1])) if contestants else 0
    for contestant in contestants:
        contestant.forget()
    for _ in range(count):
        for contestant in contestants:
            contestant.run(1, turn)


def table(header: list[str], lines: list[list[str]]) -> str:
    """A table in Markdown."""
    cells = [header, ["---"] * len(header), *lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def spread(times: list[float]) -> float:
    """Interquartile range, as a share of the median."""
    if len(times) < 2:
        return 0.0
    low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return (high - low) / statistics.median(times)


def _status(field: str) -> int:
    """A size of this process in bytes, from Linux's /proc."""
    with open("/proc/self/status") as lines:
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def resident_memory() -> int:
    """Resident bytes of this process; 0 if the system does not report them."""
    try:
        return _status("VmRSS:")
    except OSError:
        return 0


def peak_memory() -> int:
    """Peak resident bytes of this process."""
    try:  # ru_maxrss would include the parent's at the fork
        return _status("VmHWM:")
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
