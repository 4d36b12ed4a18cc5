"""How a training step would grow with the cores: its parallel regions, chunk by chunk.

    python -m benchmarks.compare.regions [--models NAMES] [--batch 32] [--threads 2 16 64]
        [--markdown FILE]

A step is cut for a number of threads, runs with all its regions in one, and each chunk is timed.
From these times follows that of each region on the threads: each begins with its share of the
chunks and then takes what others have left, as `runtime.pool` does. What is outside the regions
stays as it is. Cores are assumed to be as fast together as one alone, memory too, so that the
result is what the cut of the work allows. The step is measured too on as many threads as the
machine has cores.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import njit

import fastlayers as fl
from benchmarks.compare.cases import CASES, Case
from benchmarks.compare.contestants import prepare_fastlayers
from benchmarks.compare.harness import table
from fastlayers.runtime import cores, parallel
from fastlayers.runtime.compiler import InnerKernel, Kernel, SharedCode
from fastlayers.runtime.linkage import SharedKernel
from fastlayers.runtime.system import clock
from fastlayers.runtime.words import Words, add, call, primitive, store

__all__ = ["Call", "main", "on_threads", "predicted", "recorded"]

ROOM = 1 << 20  # words of the record
STEPS = 5
LAUNCH = 0.2e-6  # seconds for each thread of a region, as measured for two
_record = (ctypes.c_int64 * ROOM)()
llvm.add_symbol("fastlayers_record", ctypes.addressof(_record))


@dataclass
class Call:
    """A kernel that Python called: its seconds, and those of each chunk of each of its regions."""

    name: str
    seconds: float
    regions: list[np.ndarray] = field(default_factory=list)

    @property
    def serial(self) -> float:
        """Seconds outside the regions."""
        return max(0.0, self.seconds - sum(float(chunks.sum()) for chunks in self.regions))

    def on(self, threads: int) -> float:
        """Seconds on so many threads."""
        return self.serial + sum(on_threads(chunks, threads) for chunks in self.regions)


def on_threads(chunks: np.ndarray, threads: int) -> float:
    """Seconds of a region whose chunks take so long, with its launch."""
    workers = min(threads, len(chunks))
    if workers == 1:
        return float(chunks.sum())
    ends = [len(chunks) * (w + 1) // workers for w in range(workers)]
    places = [0, *ends[:-1]]
    times = np.zeros(workers)
    for _ in range(len(chunks)):
        worker = int(times.argmin())
        share = next(
            s for s in ((worker + k) % workers for k in range(workers)) if places[s] < ends[s]
        )
        times[worker] += chunks[places[share]]
        places[share] += 1
    return float(times.max()) + LAUNCH * workers


@primitive(Words())
def _words(builder: Any) -> Any:
    """The words of the record; the first says how many are used."""
    name, kind = "fastlayers_record", ir.ArrayType(ir.IntType(64), ROOM)
    start = builder.module.globals.get(name) or ir.GlobalVariable(builder.module, kind, name)
    return builder.bitcast(start, ir.IntType(64).as_pointer())


@njit(nogil=True)  # type: ignore[untyped-decorator]
def region_recorded(chunk: Any, context: Any, count: int, workers: int) -> None:
    """Run a region in this thread, and record its number of chunks and their nanoseconds."""
    words = _words()
    at = add(words, 0, count + 1) + 1
    store(words, at, count)
    for index in range(count):
        begin = clock()
        call(chunk, context, index, 0)
        store(words, at + 1 + index, clock() - begin)


class _Recorder:
    """Takes the place of a kernel, and keeps what its calls did."""

    def __init__(self, kernel: Kernel, name: str, calls: list[Call]) -> None:
        self._kernel, self._name, self._calls = kernel, name, calls

    def __call__(self, *arguments: Any) -> Any:
        _record[0] = 0
        begin = time.perf_counter()
        result = self._kernel(*arguments)
        call = Call(f"{self._name} {_largest(arguments)}", time.perf_counter() - begin)
        self._calls.append(call)
        words, at = np.array(_record[: _record[0] + 1]), 1
        while at < len(words):
            count = int(words[at])
            call.regions.append(1e-9 * words[at + 1 : at + 1 + count])
            at += 1 + count
        return result

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kernel, name)


def _largest(arguments: tuple[Any, ...]) -> str:
    """Shape of the largest array."""
    arrays = [a for a in arguments if isinstance(a, np.ndarray)]
    shape = max(arrays, key=lambda a: a.size).shape if arrays else ()
    return "x".join(map(str, shape))


@contextmanager
def recorded() -> Iterator[list[Call]]:
    """Record all kernels that Python calls, with their regions in one thread."""
    calls: list[Call] = []
    region = parallel._region
    recorder = SharedKernel("fastlayers_recorder", region_recorded, region.args)
    replaced = [
        (module, name, kernel)
        for path, module in list(sys.modules.items())
        if path.startswith("fastlayers.kernels.")
        for name, kernel in list(vars(module).items())
        if isinstance(kernel, Kernel) and not isinstance(kernel, InnerKernel | SharedCode)
    ]
    address, region._slot[0] = region._slot[0], recorder._resolve()
    for module, name, kernel in replaced:
        setattr(module, name, _Recorder(kernel, name, calls))
    try:
        yield calls
    finally:
        region._slot[0] = address
        for module, name, kernel in replaced:
            setattr(module, name, kernel)


def predicted(calls: list[Call], threads: int) -> float:
    """Seconds of all calls on so many threads."""
    return sum(call.on(threads) for call in calls)


def _median(step: Callable[[], Any]) -> float:
    times = []
    for _ in range(STEPS + 1):
        begin = time.perf_counter()
        step()
        times.append(time.perf_counter() - begin)
    return statistics.median(times[1:])


def _typical(step: Callable[[], Any]) -> tuple[list[Call], float]:
    """The calls of a step with the median time of each chunk, and the seconds outside kernels."""
    runs, outside = [], []
    with recorded() as calls:
        for _ in range(STEPS):
            calls.clear()
            begin = time.perf_counter()
            step()
            outside.append(time.perf_counter() - begin - sum(call.seconds for call in calls))
            runs.append(list(calls))
    typical = []
    for same in zip(*runs, strict=True):
        seconds = statistics.median(call.seconds for call in same)
        regions = [np.median(chunks, 0) for chunks in zip(*(c.regions for c in same), strict=True)]
        typical.append(Call(same[0].name, seconds, regions))
    return typical, statistics.median(outside)


def _layer_lines(cuts: dict[int, list[Call]], shown: int) -> Iterator[list[str]]:
    """A line for each kernel and shape, the longest first; chunks are those for `shown` threads."""
    layers: dict[str, list[int]] = defaultdict(list)
    for index, one in enumerate(cuts[shown]):
        layers[one.name].append(index)
    alone = {name: sum(cuts[1][k].on(1) for k in places) for name, places in layers.items()}
    for name, places in sorted(layers.items(), key=lambda pair: -alone[pair[0]]):
        same = [cuts[shown][k] for k in places]
        largest = [chunks.max() / chunks.sum() for chunks in same[0].regions]
        yield [
            name,
            str(len(same)),
            f"{1e3 * alone[name]:.2f}",
            " + ".join(str(len(chunks)) for chunks in same[0].regions) or "-",
            " + ".join(f"{share:.1%}" for share in largest) or "-",
            f"{sum(one.serial for one in same) / sum(one.seconds for one in same):.1%}",
            *(f"{alone[name] / predicted([cuts[n][k] for k in places], n):.1f}" for n in cuts),
        ]


def account(case: Case, threads: list[int]) -> str:
    """The tables of one model."""
    step, _ = prepare_fastlayers(2, case)
    cuts, outside, measured = {}, {}, {}
    for n in sorted({1, 2, *threads}):
        if n <= cores.available()[0]:
            fl.set_num_threads(n)
            measured[n] = _median(step)
        fl.set_num_threads(max(2, n))  # on one thread there are no regions to record
        step()
        cuts[n], outside[n] = _typical(step)
    alone, kernels = outside[1] + predicted(cuts[1], 1), predicted(cuts[1], 1)
    steps = [
        [
            str(n),
            f"{1e3 * (outside[1] + predicted(cuts[n], n)):.1f}",
            f"{1e3 * measured[n]:.1f}" if n in measured else "-",
            f"{alone / (outside[1] + predicted(cuts[n], n)):.2f}",
            f"{kernels / predicted(cuts[n], n):.2f}",
        ]
        for n in cuts
    ]
    header = ["threads", "predicted ms", "measured ms", "growth", "growth of the kernels"]
    shown = threads[len(threads) // 2]
    layers = ["kernel", "calls", "ms", f"chunks for {shown} threads", "largest share", "serial"]
    layers += [f"growth {n}" for n in cuts]
    title = f"### {case.name}, batch {case.batch}: {1e3 * outside[1]:.1f} ms outside kernels"
    return "\n\n".join(
        [title, table(header, steps), table(layers, list(_layer_lines(cuts, shown)))]
    )


def main() -> None:
    """Print the account of each model."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_argument = parser.add_argument
    add_argument("--models", nargs="+", default=["ResNet-20", "ResNet-18"], metavar="NAME")
    add_argument("--batch", type=int, help="the comparison's without it")
    add_argument("--threads", nargs="+", type=int, default=[2, 16, 64])
    add_argument("--markdown", type=Path, help="a file for the tables")
    options = parser.parse_args()
    known = {case.name: case for case in CASES}
    if unknown := set(options.models) - set(known):
        parser.error(f"--models must be of {', '.join(known)}, got {', '.join(unknown)}")
    texts = []
    for name in options.models:
        case = known[name]
        texts.append(account(case.at(options.batch or case.batch), options.threads))
        print(texts[-1], flush=True)
    if options.markdown:
        options.markdown.write_text("\n\n".join(texts) + "\n")


if __name__ == "__main__":
    main()
