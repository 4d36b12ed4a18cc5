"""Where a training step's time goes: arithmetic, memory traffic, and the rest.

    python -m benchmarks.compare.account [--models NAMES] [--threads 2] [--markdown FILE]

Convolutions and linear maps count the multiply-adds of direct arithmetic, so that Winograd's rate
may be above the peak. Memory-bound ops count each array that a call reads or writes once. The rest
of the step, that is the tape, the layers and the dispatch, is "calls".
"""

from __future__ import annotations

import argparse
import concurrent.futures
import multiprocessing
import statistics
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fastlayers as fl
from benchmarks.compare.cases import CASES, Case
from benchmarks.compare.contestants import prepare_fastlayers
from benchmarks.compare.harness import table
from fastlayers import ops
from fastlayers.ops import prepared

__all__ = ["Account", "account", "main"]

MEMORY_BOUND = [
    name
    for name in ops.__all__
    if name.startswith(("batch_norm", "max_pool2d", "avg_pool2d", "adaptive", "dropout", "feature"))
    or name in ("relu", "relu_backward", "flatten", "flatten_backward")
]


class Account:
    """Seconds, calls, multiply-adds and bytes of a step by kind of op, outermost calls only."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self.work: dict[str, float] = defaultdict(float)
        self.calls = 0
        self._inside = False

    def watch(self, place: Any, name: str, kind: str, work: Callable[..., float]) -> None:
        """Count what the function `name` of `place` does, until `place` is gone."""
        function = getattr(place, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            if self._inside:
                return function(*args, **kwargs)
            self._inside, begin = True, time.perf_counter()
            try:
                result = function(*args, **kwargs)
            finally:
                self.seconds[kind] += time.perf_counter() - begin
                self._inside = False
            self.calls += 1
            self.work[kind] += work(result, *args)
            return result

        setattr(place, name, counted)


def _nbytes(result: Any, *args: Any) -> float:
    results = result if isinstance(result, tuple) else (result,)
    return float(sum(a.nbytes for a in (*results, *args) if isinstance(a, np.ndarray)))


def _forward_work(result: Any, convolution: Any, *args: Any) -> float:
    shape = getattr(convolution, "convolution", convolution).shape
    return float(shape.pixels * np.prod(shape.weight))


def _backward_work(result: Any, convolution: Any, *args: Any) -> float:
    return _forward_work(result, convolution) * sum(map(bool, args[-1][:2]))


def _norm_work(result: Any, norm: Any, *args: Any) -> float:
    return _nbytes(result, norm.x, *args)


def _watch_all(found: Account) -> None:
    for name in ("forward", "backward"):
        found.watch(prepared.Normalisation, name, "memory-bound", _norm_work)
    read = prepared, "batch_norm_call", "memory-bound"
    found.watch(*read, lambda norm, *_: float(norm.x.nbytes if norm.of_batch else 0))
    found.watch(ops.arithmetic, "add", "memory-bound", _nbytes)
    for kind in (ops.conv.Convolution, ops.conv.pooled.PooledConvolution):
        found.watch(kind, "forward", "convolution", _forward_work)
        found.watch(kind, "backward", "convolution", _backward_work)
    rows = prepared, "linear_rows", "linear"
    found.watch(*rows, lambda y, x, w, *_: float(y.shape[0] * w.size))
    found.watch(
        prepared,
        "linear_rows_backward",
        "linear",
        lambda result, dy, y, x, w, needs: float(len(dy) * w.size * sum(needs[:2])),
    )
    for name in MEMORY_BOUND:
        found.watch(ops, name, "memory-bound", _nbytes)
    for name in ("cross_entropy_forward", "cross_entropy_apply"):
        found.watch(ops, name, "loss", lambda *_: 0.0)
    found.watch(fl.optim.SGD, "step", "optimiser", lambda *_: 0.0)


def account(case: Case, threads: int, repetitions: int) -> tuple[float, Account]:
    """Mean seconds of a step, and what it consists of."""
    step, _ = prepare_fastlayers(threads, case)
    found, times = Account(), []
    for _ in range(repetitions // 4 + 2):
        step()
    _watch_all(found)
    for _ in range(repetitions):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    for name in found.seconds:
        found.seconds[name] /= repetitions
        found.work[name] /= repetitions
    found.calls //= repetitions
    return statistics.mean(times), found


def _row(case: Case, threads: int) -> list[str]:
    seconds, found = account(case, threads, 5 if case.shape[-1] > 100 else 50)
    rest = seconds - sum(found.seconds.values())

    def rate(kind: str, scale: float, unit: str) -> str:
        spent, work = found.seconds[kind], found.work[kind]
        return f"{1e3 * spent:.2f} ({work / max(spent, 1e-9) / 1e9 * scale:.0f} {unit})"

    return [
        case.name,
        str(case.batch),
        str(threads),
        f"{1e3 * seconds:.2f}",
        rate("convolution", 2, "GFLOP/s"),
        rate("linear", 2, "GFLOP/s"),
        rate("memory-bound", 1, "GB/s"),
        f"{1e3 * (found.seconds['loss'] + found.seconds['optimiser']):.2f}",
        f"{1e3 * rest:.2f} ({found.calls} ops)",
    ]


def main() -> None:
    """Print a row per model, each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=None, metavar="NAME")
    parser.add_argument("--threads", nargs="+", type=int, default=[2])
    parser.add_argument("--markdown", type=Path, help="a file for the table")
    options = parser.parse_args()
    head = ["model", "batch", "threads", "step ms", "convolution", "linear", "memory-bound"]
    head, rows = [*head, "loss and optimiser", "calls"], []
    context = multiprocessing.get_context("spawn")
    for case in CASES:
        if options.models is not None and case.name not in options.models:
            continue
        for threads in options.threads:
            with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
                rows.append(pool.submit(_row, case, threads).result())
            print(" | ".join(rows[-1]), flush=True)
    text = table(head, rows)
    print("\n" + text)
    if options.markdown:
        options.markdown.write_text(text + "\n")


if __name__ == "__main__":
    main()
