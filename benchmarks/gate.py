"""The regression gate: is a commit slower than its base by more than the noise?

    python -m benchmarks.gate BASE [HEAD] [--factor F] [--bench REGEX] [--threads N] [--rounds N]

Exits with 1 if a benchmark of the asv suite is slower in HEAD, with 0 if none is, and with 2 if the
machine is too busy to tell. The marked layers are measured, or all whose name `--bench` matches.

Only the library is taken from both commits; the benchmarks are those of the working tree, and both
run in the current environment. A virtual environment per commit, as made by `asv continuous`, takes
minutes to build and alternates once per round of the whole suite, during which the host's speed
changes. Here two processes of BASE and two of HEAD take turns of 20 ms at one benchmark, and a
ratio is the median of the turns' ratios. Compiled kernels are kept under a hash of the sources, so
no commit can run another's.

The noise is the difference between the two processes of BASE. The factor is 1 plus six times its
median over the benchmarks, which is four standard deviations of a normal distribution, and at least
1.1. Some kernels take one of two times in different processes, sigmoid 5.1 or 5.9 ms depending on
its addresses. So HEAD's faster process is compared with the slower one of BASE. What is slower by
the factor is measured again in new processes, and reported if it is slower in three groups of them;
a measurement is ignored if the processes of BASE themselves differ by the factor.
"""

from __future__ import annotations

import argparse
import functools
import io
import itertools
import math
import re
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare.harness import Contestant, table

__all__ = ["Benchmark", "Result", "Verdict", "factor_of", "find", "main", "measure"]

ROOT = Path(__file__).resolve().parent
# Seconds of a turn, and of the turn before the first.
TURN, WARM_UP = 0.02, 0.05
# Minimum factor, and multiple of the median noise.
LEAST, MEDIANS = 1.1, 6
# Above this noise there is no verdict.
MOST = 1.3
# Groups of processes in which a benchmark has to be slower, and the most that are started.
TIMES, GROUPS = 3, 6


@dataclass(frozen=True)
class Benchmark:
    """A benchmark of the suite with parameters, as asv knows it."""

    name: str
    index: int
    parameters: tuple[Any, ...]
    marked: bool

    def __str__(self) -> str:
        return f"{self.name}({', '.join(map(str, self.parameters))})"


@dataclass(frozen=True)
class Result:
    """Seconds in BASE, and what a second process of it and those of HEAD took as multiples."""

    benchmark: Benchmark
    seconds: float
    again: float
    head: tuple[float, float]

    @property
    def ratio(self) -> float:
        """The time of HEAD's faster process over that of the slower one of BASE."""
        return min(self.head) / max(self.again, 1.0)

    @property
    def noise(self) -> float:
        """How far the two processes of BASE are apart."""
        return math.exp(abs(math.log(self.again))) - 1


def find(pattern: str | None) -> list[Benchmark]:
    """The timings of the suite that match, or the marked ones."""
    from asv_runner.discovery import disc_benchmarks

    found = []
    for benchmark in disc_benchmarks(str(ROOT)):
        if benchmark.type != "time" or ".timeraw_" in benchmark.name:
            continue
        suite = benchmark.func.__self__
        marked = [m if isinstance(m, tuple) else (m,) for m in getattr(suite, "marked", [])]
        for index, values in enumerate(itertools.product(*getattr(suite, "params", []))):
            found.append(Benchmark(benchmark.name, index, values, values in marked))
    if pattern is None:
        return [b for b in found if b.marked]
    return [b for b in found if re.search(pattern, str(b))]


@functools.cache
def _of_asv(name: str) -> Any:
    from asv_runner.discovery import get_benchmark_from_name

    return get_benchmark_from_name(str(ROOT), name)


def prepare(threads: int, folder: str, name: str, index: int) -> tuple[Callable[[], Any], str]:
    """The benchmark in a new process with the library in `folder`, and why it failed."""
    if folder not in sys.path:
        sys.path.insert(0, folder)
    import fastlayers as fl
    from fastlayers.runtime import memory

    if not Path(fl.__file__).is_relative_to(folder):
        raise RuntimeError(f"{fl.__file__} was loaded before the library of {folder}")
    fl.set_num_threads(threads)
    memory.empty_cache()
    try:
        benchmark = _of_asv(name)
        benchmark.set_param_idx(index)
        benchmark.do_setup()
        work = functools.partial(benchmark.func, *benchmark._current_params)
        work()
    except Exception:  # an op that BASE does not have
        return lambda: None, traceback.format_exc(limit=-3)
    return work, ""


def _turn(contestant: Contestant) -> float:
    """Median time of a turn, without its first call, as others used the caches before it."""
    before = len(contestant.times)
    contestant.run(2, TURN)
    return statistics.median(contestant.times[before + 1 :])


def measure(contestants: list[Contestant], benchmark: Benchmark, rounds: int) -> Result | str:
    """Alternate processes of BASE, HEAD, BASE, HEAD; or what HEAD fails in, or BASE lacks."""
    for contestant in contestants:
        contestant.prepare(benchmark.name, benchmark.index)
    base, head = (contestant.value for contestant in contestants[:2])
    if base or head:
        return f"not in BASE: {base}" if base else f"failed in HEAD: {head}"
    for contestant in contestants:
        contestant.run(1, WARM_UP)
    times: list[list[float]] = [[] for _ in contestants]
    order = list(zip(contestants, times, strict=True))
    for _ in range(rounds):
        for contestant, found in order:
            found.append(_turn(contestant))
        order.reverse()  # so that a drift of the host's speed cancels
    first, *others = times
    head, again, head_again = (
        statistics.median(t / b for t, b in zip(other, first, strict=True)) for other in others
    )
    return Result(benchmark, statistics.median(first), again, (head, head_again))


def factor_of(results: Iterable[Result]) -> float:
    """The threshold for ratios, from the noise of all benchmarks."""
    noises = [result.noise for result in results]
    return max(LEAST, 1 + MEDIANS * statistics.median(noises)) if noises else LEAST


class Verdict:
    """What is known of benchmarks that were measured in groups of processes.

    Parameters
    ----------
    factor : float
        The threshold above which a ratio is suspect.

    Attributes
    ----------
    slower : list of Result
        Confirmed; the last measurement of each.
    suspects : list of Benchmark
        To be measured again.
    """

    def __init__(self, factor: float) -> None:
        self.factor = factor
        self.slower: list[Result] = []
        self.suspects: list[Benchmark] = []
        self._times: Counter[Benchmark] = Counter()

    def add(self, results: list[Result]) -> None:
        """Process a group's measurements of the suspects, or initially of all."""
        self.suspects = []
        for result in results:
            settled = 1 + result.noise <= self.factor
            if settled and result.ratio <= self.factor:
                continue
            self._times[result.benchmark] += settled
            if self._times[result.benchmark] == TIMES:
                self.slower.append(result)
            else:
                self.suspects.append(result.benchmark)


def _export(commit: str, folder: Path) -> None:
    """The library at a commit."""
    command = ["git", "-C", str(ROOT.parent), "archive", commit, "fastlayers"]
    archive = subprocess.run(command, check=True, capture_output=True).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        files.extractall(folder, filter="data")


def _run(
    benchmarks: list[Benchmark], base: Path, head: Path, threads: int, rounds: int
) -> tuple[list[Result], list[str]]:
    """Measure in new processes; results, and the names of those that fail in HEAD."""
    kinds = (("BASE", base), ("HEAD", head)) * 2

    def start() -> list[Contestant]:
        return [Contestant(name, prepare, threads, str(path)) for name, path in kinds]

    results, failed, contestants = [], [], start()
    for benchmark in benchmarks:
        try:
            found = measure(contestants, benchmark, rounds)
        except RuntimeError as error:  # a process ended
            _close(contestants)
            contestants = start()
            found = (
                f"{'failed in HEAD' if str(error).startswith('HEAD') else 'not in BASE'}: {error}"
            )
        if isinstance(found, Result):
            results.append(found)
            continue
        print(f"{benchmark}: {found}", file=sys.stderr)
        if found.startswith("failed"):
            failed.append(str(benchmark))
    _close(contestants)
    return results, failed


def _close(contestants: list[Contestant]) -> None:
    for contestant in contestants:
        contestant.close()


def _table(results: list[Result]) -> str:
    lines = [
        [str(r.benchmark), f"{1e3 * r.seconds:.3f}", *(f"{n:.3f}" for n in (r.again, *r.head))]
        for r in sorted(results, key=lambda r: -r.ratio)
    ]
    return table(["benchmark", "BASE ms", "BASE again", "HEAD", "HEAD again"], lines)


def main() -> int:
    """Measure, measure suspects again, and report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base", help="the commit to compare with")
    parser.add_argument("head", nargs="?", default="HEAD")
    parser.add_argument("--factor", type=float, help="instead of that of the measured noise")
    parser.add_argument("--bench", metavar="REGEX", help="all benchmarks with such a name")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=10, help="turns of each process")
    options = parser.parse_args()
    benchmarks = find(options.bench)
    if not benchmarks:
        parser.error(f"no benchmark matches {options.bench!r}")
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        base, head = Path(folder, "base").resolve(), Path(folder, "head").resolve()
        _export(options.base, base)
        _export(options.head, head)
        results, errors = _run(benchmarks, base, head, options.threads, options.rounds)
        print(_table(results))
        noises = [result.noise for result in results] or [0.0]
        factor = options.factor or factor_of(results)
        print(
            f"\nnoise, BASE against BASE: {statistics.median(noises):.1%} in the median, "
            f"{max(noises):.1%} at most; factor {factor:.2f}"
        )
        verdict = Verdict(factor)
        verdict.add(results)
        for _ in range(GROUPS - 1):
            if not verdict.suspects:
                break
            print(f"\n{len(verdict.suspects)} to be measured again:", flush=True)
            again, failed = _run(verdict.suspects, base, head, options.threads, options.rounds)
            print(_table(again))
            verdict.add(again)
            errors += failed
    print(f"\n{len(results)} benchmarks in {time.perf_counter() - begin:.0f} s")
    for benchmark in verdict.suspects:
        print(f"UNSETTLED: {benchmark}")
    for result in verdict.slower:
        print(f"SLOWER: {result.benchmark}: {result.ratio:.2f} times as long")
    for name in errors:
        print(f"FAILED: {name}")
    if verdict.slower or errors:
        return 1
    if factor > MOST and options.factor is None:
        print(f"too noisy to tell: the factor is above {MOST}")
        return 2
    print("no benchmark is slower")
    return 0


if __name__ == "__main__":
    sys.exit(main())
