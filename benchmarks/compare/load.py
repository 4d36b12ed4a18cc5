"""How training bears company: a step beside busy processes, and beside a second training.

    python -m benchmarks.compare.load [--models NAMES] [--contestants NAMES] [--threads 2]
        [--busy 1 2] [--quick] [--markdown FILE]

A busy process is an endless loop of Python. A second training is another process of the same
contestant with the same model. Each contestant makes steps for some seconds in each company in
turn, several times, and all its steps in one company count together. The launch of an empty
parallel region, and a step that alternates with a product by NumPy in the same process, are
measured without company.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare import models
from benchmarks.compare.cases import CASES, MORE, Case
from benchmarks.compare.contestants import Start, Step, prepare_fastlayers, prepare_torch
from benchmarks.compare.harness import Contestant, repeated_times, table
from fastlayers.runtime import cores

__all__ = ["CONTESTANTS", "MODELS", "busy", "fair", "main", "measure", "table_of"]

_KNOWN = {(case.name, case.batch): case for case in CASES + MORE}
MODELS = [
    _KNOWN["ResNet-20", 32],
    _KNOWN["CIFAR CNN, batch norm", 128],
    _KNOWN["mobile (depthwise)", 32],
]


def _layer(name: str) -> dict[str, str]:
    return {"FASTLAYERS_THREADING": "numba", "NUMBA_THREADING_LAYER": name}


# Library and environment. torch is the memory format that is faster for most of the models.
CONTESTANTS: dict[str, tuple[str, dict[str, str]]] = {
    "fastlayers": ("fastlayers", {}),
    "OpenMP": ("fastlayers", _layer("omp")),
    "workqueue": ("fastlayers", _layer("workqueue")),
    "torch": ("torch", {}),
}
# Variables that choose how threads wait; contestants have only their own.
_DROPPED = ("FASTLAYERS_THREADING", "NUMBA_THREADING_LAYER", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")

# It ends when it is killed, or when its input ends because this process is gone.
_BUSY = """
import os, sys, threading
threading.Thread(target=lambda: (sys.stdin.read(), os._exit(0)), daemon=True).start()
while True:
    pass
"""
# Seconds until a new company has started, and threads of others that spin have given up.
SETTLE = 0.3
LAUNCHES = 1000
SIDE = 800  # of the matrices that NumPy multiplies


@dataclass(frozen=True)
class Effort:
    """How often each company is met, and the seconds of each time and of the warm-up."""

    rounds: int = 4
    seconds: float = 2.0
    warm_up: float = 2.0


QUICK = Effort(2, 0.35, 0.3)


@dataclass(frozen=True)
class Company:
    """What runs beside a training.

    Attributes
    ----------
    name : str
    fair : float
        Time of a step over its time alone if all threads get the same share of the cores.
    start : callable
        ``start(rival)`` gives a context in which it runs; the rival is a second training.
    """

    name: str
    fair: float
    start: Callable[[Contestant], AbstractContextManager[Any]]


@contextmanager
def busy(count: int) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run so many processes that keep a core busy each; they are gone afterwards."""
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for _ in range(count):
            order = [sys.executable, "-I", "-c", _BUSY]
            process = subprocess.Popen(order, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL)
            processes.append(process)
        yield processes
    finally:
        for process in processes:
            process.kill()
        for process in processes:
            process.communicate()


@contextmanager
def _second_training(rival: Contestant) -> Iterator[None]:
    rival.keep_on("step", 0.0)
    try:
        yield
    finally:
        rival.rest()


def fair(threads: int, others: int, available: int) -> float:
    """Time over that alone, where `others` want a core each besides this training's threads."""
    return max(1.0, (threads + others) / available)


def _companies(threads: int, counts: list[int], available: int) -> list[Company]:
    def of(count: int) -> Company:
        name = f"{count} busy process{'es' if count > 1 else ''}"
        return Company(name, fair(threads, count, available), lambda rival: busy(count))

    second = Company("a second training", fair(threads, threads, available), _second_training)
    return [Company("nothing", 1.0, nullcontext), *map(of, counts), second]


# In a contestant's process


def prepare(threads: int, library: str, case: Case) -> tuple[Callable[..., list[float]], Start]:
    """``work(name, seconds)`` gives the times of a step, a product, both, or launches.

    Launches are those of an empty region from compiled code; without times for torch.
    """
    works: dict[str, Callable[[], Any]] = {}
    if library == "fastlayers":
        works["step"], start = prepare_fastlayers(threads, case)
        works["launches"] = _launches(threads)
    else:
        works["step"], start = prepare_torch(threads, "channels_last", case)
    works["product"] = _product()
    works["both"] = _in_turn(works["step"], works["product"])

    def work(name: str, seconds: float) -> list[float]:
        if name not in works:
            return []
        works[name]()  # threads that slept are awake, and caches filled
        return repeated_times(works[name], 1, seconds)

    return work, start


def _launches(threads: int) -> Callable[[], None]:
    from numba import njit

    from fastlayers.runtime.parallel import launch

    @njit(nogil=True)  # type: ignore[untyped-decorator]
    def launches(count: int, workers: int) -> None:
        for _ in range(count):
            launch(workers)

    return lambda: launches(LAUNCHES, threads)


def _product() -> Callable[[], Any]:
    a = np.random.default_rng(0).standard_normal((SIDE, SIDE), np.float32)
    out = np.empty_like(a)
    return lambda: np.matmul(a, a, out=out)


def _in_turn(step: Step, product: Callable[[], Any]) -> Callable[[], None]:
    def both() -> None:
        step()
        product()

    return both


# In the process that measures


@contextmanager
def _environment(changes: dict[str, str]) -> Iterator[None]:
    """What processes that are started inherit."""
    before = dict(os.environ)
    for name in _DROPPED:
        os.environ.pop(name, None)
    os.environ.update(changes)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


def _start(name: str, threads: int, stack: ExitStack) -> tuple[Contestant, Contestant]:
    """A contestant and its rival."""
    library, variables = CONTESTANTS[name]
    with _environment(variables):
        both = (
            Contestant(name, prepare, threads, library),
            Contestant(f"{name}, second training", prepare, threads, library),
        )
    for one in both:
        stack.callback(one.close)
    return both


class _Contestants:
    """The contestants, each with its rival, and why others have left."""

    def __init__(self, names: list[str], threads: int, stack: ExitStack) -> None:
        self.pairs = {name: _start(name, threads, stack) for name in names}
        self.errors: dict[str, str] = {}

    def prepare(self, case: Case) -> None:
        for name, pair in list(self.pairs.items()):
            try:
                for contestant in pair:
                    contestant.prepare(case)
            except RuntimeError as error:
                self.errors[name] = " ".join(str(error).split())[:300]
                del self.pairs[name]
        models.check([contestant for contestant, _ in self.pairs.values()], self.errors)
        self.pairs = {name: pair for name, pair in self.pairs.items() if name not in self.errors}

    def times(
        self, parts: list[str], companies: list[Company], effort: Effort
    ) -> dict[tuple[str, str, str], list[float]]:
        """Seconds by contestant, company and part of the work, which take turns."""
        found: dict[tuple[str, str, str], list[float]] = {}
        for _ in range(effort.rounds):
            for name, (contestant, rival) in self.pairs.items():
                for company in companies:
                    with company.start(rival):
                        time.sleep(SETTLE)
                        for part in parts:
                            more = contestant.call(part, effort.seconds)
                            found.setdefault((name, company.name, part), []).extend(more)
        return found


def _busy_counts(threads: int) -> list[int]:
    """A quarter and half as many as threads; one and two at least."""
    return [max(1, threads // 4), max(2, threads // 2)]


def measure(
    threads: int,
    quick: bool = False,
    names: list[str] | None = None,
    cases: list[Case] | None = None,
    counts: list[int] | None = None,
    effort: Effort | None = None,
) -> Iterator[dict[str, Any]]:
    """Records of each model in each company, then of launches and of a product's turns."""
    cases = cases or (MODELS[:2] if quick else MODELS)
    effort = effort or (QUICK if quick else Effort())
    available, _ = cores.available()
    companies = _companies(threads, counts or _busy_counts(threads), available)
    with ExitStack() as stack:
        contestants = _Contestants(names or list(CONTESTANTS), threads, stack)
        for case in cases:
            contestants.prepare(case)
            for contestant, _ in contestants.pairs.values():
                contestant.call("step", effort.warm_up)
            times = contestants.times(["step"], companies, effort)
            row = {"model": case.name, "batch": case.batch, "threads": threads}
            row |= {"cores": available, "errors": dict(contestants.errors)}
            for company in companies:
                found = {name: _step(times, name, company.name) for name in contestants.pairs}
                yield row | {"beside": company.name, "fair": company.fair, "contestants": found}
        contestants.prepare(cases[0])
        alone = _alone(contestants, companies[:1], effort)
        yield alone | {"model": cases[0].name, "threads": threads}


def _step(
    times: dict[tuple[str, str, str], list[float]], name: str, company: str
) -> dict[str, float]:
    own, quiet = times[name, company, "step"], times[name, "nothing", "step"]
    return {
        "quiet": statistics.median(quiet),
        "median": statistics.median(own),
        "p90": float(np.percentile(own, 90)),
        "steps": len(own),
    }


def _alone(contestants: _Contestants, nothing: list[Company], effort: Effort) -> dict[str, Any]:
    """Seconds of a launch, and of a step and a product in turn over the sum of both alone."""
    parts = ["step", "product", "both", "launches"]
    times = contestants.times(parts, nothing, effort)
    middle = {key: statistics.median(found) for key, found in times.items() if found}
    ratios, launches = {}, {}
    for name in contestants.pairs:
        step, product, both = (middle[name, "nothing", part] for part in parts[:3])
        ratios[name] = both / (step + product)
        if (name, "nothing", "launches") in middle:
            launches[name] = middle[name, "nothing", "launches"] / LAUNCHES
    return {"neighbour": ratios, "launch": launches}


# What is shown


def table_of(rows: list[dict[str, Any]]) -> str:
    """Medians over those alone, with the 90th percentile; beside nothing milliseconds."""
    names = [name for name in CONTESTANTS if any(name in _shown(row) for row in rows)]
    lines = []
    for row in rows:
        if "beside" in row:
            line = [f"{row['model']}, batch {row['batch']}", str(row["threads"])]
            line += [row["beside"], f"{row['fair']:.3g}"]
            lines.append([*line, *(_cell(row, name) for name in names)])
            continue
        for key, form, what, best in _ALONE:
            line = [what.format(row["model"]), str(row["threads"]), "nothing", best]
            lines.append([*line, *(form(row[key][n]) if n in row[key] else "-" for n in names)])
    return table(["a step of", "threads", "beside", "fair", *names], lines)


_ALONE = (
    (
        "neighbour",
        lambda ratio: f"{ratio:.2f}",
        f"{{}} and NumPy's product of {SIDE} x {SIDE} in turn, over the sum of both alone",
        "1",
    ),
    ("launch", lambda seconds: f"{1e6 * seconds:.2f} us", "launch of an empty region", "-"),
)


def _shown(row: dict[str, Any]) -> set[str]:
    return set(row["contestants"]) | set(row["errors"]) if "beside" in row else set()


def _cell(row: dict[str, Any], name: str) -> str:
    found = row["contestants"].get(name)
    if not found:
        return "failed"
    median, late = found["median"] / found["quiet"], found["p90"] / found["quiet"]
    first = f"{1e3 * found['median']:.4g} ms" if row["beside"] == "nothing" else f"{median:.2f}"
    return f"{first} ({late:.2f})"


def report(rows: list[dict[str, Any]]) -> str:
    """The table, the number of steps behind it, and why contestants failed."""
    steps = [found["steps"] for row in rows for found in row.get("contestants", {}).values()]
    errors = dict.fromkeys(
        f"- {row['model']}: {name}: {error}"
        for row in rows
        for name, error in row.get("errors", {}).items()
    )
    parts = [
        "Median of a step over the median beside nothing in the same run (90th percentile over "
        "that median); fair is what an equal share of the cores gives:",
        table_of(rows),
        *([f"Each from {min(steps)} to {max(steps)} steps."] if steps else []),
        *(["Failed:", "\n".join(errors)] if errors else []),
    ]
    return "\n\n".join(parts)


def main() -> None:
    """Measure, then print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    known = {case.name: case for case in MODELS}
    add = parser.add_argument
    add("--models", nargs="+", choices=known, default=list(known), metavar="NAME")
    add("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    add("--threads", type=int, default=2)
    add("--busy", nargs="+", type=int, help="numbers of busy processes")
    add("--quick", action="store_true", help="two short turns each")
    add("--markdown", type=Path, help="a file for the table")
    options = parser.parse_args()
    cases = [known[name] for name in options.models]
    rows = measure(options.threads, options.quick, options.contestants, cases, options.busy)
    text = report(list(rows))
    print(text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
