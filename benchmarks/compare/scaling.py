"""How fastlayers' training step scales with threads and with the batch.

    python -m benchmarks.compare.scaling [--models NAMES] [--batch 128] [--large 512] [--quick]

A step with 1 and with 2 threads, and the time per image in a large and in a small batch,
alternating in one run, each in its own process.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from benchmarks.compare.cases import CASES, Case
from benchmarks.compare.contestants import start
from benchmarks.compare.harness import Contestant, alternate_for, table

__all__ = ["main", "measure"]

SECONDS = 15.0


def measure(work: list[tuple[Case, int]], quick: bool) -> list[Contestant]:
    """Contestants of fastlayers, timed in turn, each with its case and number of threads."""
    with ExitStack() as stack:
        contestants = []
        for case, threads in work:
            contestant = start("fastlayers", threads)
            stack.callback(contestant.close)
            contestant.prepare(case)
            contestants.append(contestant)
        alternate_for(contestants, SECONDS, (1, 3) if quick else (10, 40))
        return contestants


def _cell(contestant: Contestant) -> str:
    return f"{1e3 * contestant.median:.4g} ({contestant.spread:.0%})"


def thread_line(case: Case, threads: int, quick: bool) -> list[str]:
    """Times with one and with more threads, and their ratio, which should be 1.7 for two."""
    one, many = measure([(case, 1), (case, threads)], quick)
    start_of_line = [case.name, str(case.batch), str(threads)]
    return [*start_of_line, _cell(one), _cell(many), f"{one.median / many.median:.2f}"]


def batch_line(case: Case, large: int, threads: int, quick: bool) -> list[str]:
    """Times of the two batch sizes, and per image the larger's over the smaller's."""
    few, many = measure([(case, threads), (case.at(large), threads)], quick)
    per_image = [1e6 * few.median / case.batch, 1e6 * many.median / large]
    line = [case.name, str(threads), _cell(few), _cell(many)]
    return [*line, *(f"{t:.1f}" for t in per_image), f"{per_image[1] / per_image[0]:.2f}"]


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--models", nargs="+", default=["VGG-small", "ResNet-20"], metavar="NAME")
    add("--batch", type=int, default=128)
    add("--large", type=int, default=512, help="the larger batch; 0 for no such table")
    add("--threads", type=int, default=2, help="the larger number of threads")
    add("--quick", action="store_true", help="at most three rounds")
    add("--markdown", type=Path, help="a file for the tables")
    options = parser.parse_args()
    known = {case.name: case.at(options.batch) for case in CASES}
    if unknown := set(options.models) - set(known):
        parser.error(f"--models must be of {', '.join(known)}, got {', '.join(unknown)}")
    cases = [known[name] for name in options.models]
    header = ["model", "batch", "threads", "1 thread ms", "more threads ms", "1 / more"]
    lines = [thread_line(case, options.threads, options.quick) for case in cases]
    tables = [table(header, lines)]
    print(tables[0], flush=True)
    if options.large:
        sizes = options.batch, options.large
        header = ["model", "threads", *(f"batch {size} ms" for size in sizes)]
        header += [*(f"us an image at {size}" for size in sizes), "larger / smaller"]
        lines = [
            batch_line(case, options.large, threads, options.quick)
            for case in cases
            for threads in dict.fromkeys((1, options.threads))
        ]
        tables.append(table(header, lines))
        print(f"\n{tables[1]}")
    if options.markdown:
        options.markdown.write_text("\n\n".join(tables) + "\n")


if __name__ == "__main__":
    main()
