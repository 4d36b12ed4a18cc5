"""Training steps of the same models in fastlayers, torch and JAX, alternating in one run.

    python -m benchmarks.compare.models [--models NAMES] [--batch N] [--threads 1 2]
        [--contestants NAMES] [--bfloat16] [--quick] [--markdown FILE] [--json FILE]

A step is forward, cross-entropy, backward and SGD with momentum. Every contestant has its own
process and starts from the same weights and batches; the losses of the first steps must agree. The
ratio is the fastest float32 mode of torch over fastlayers.
"""

from __future__ import annotations

import argparse
import json
import math
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from benchmarks.compare.cases import CASES, MORE, Case
from benchmarks.compare.contestants import CONTESTANTS, TORCH_FLOAT32, start
from benchmarks.compare.harness import Contestant, alternate_for, table

__all__ = ["check", "compare", "main", "size_table", "step_table"]

# The first loss agrees to rounding; the next ones show whether the gradients do.
LOSS_GAP = 1e-4
MOVE_GAP = 0.02
SECONDS = 12.0
ROUNDS = 5, 25
QUICK_ROUNDS = 1, 3


def compare(case: Case, threads: int, names: list[str], quick: bool = False) -> dict[str, Any]:
    """Measure one case: a record of every contestant's step, and the errors of those that fail."""
    row: dict[str, Any] = {"model": case.name, "batch": case.batch, "threads": threads}
    row |= {"contestants": {}, "errors": {}}
    with ExitStack() as stack:
        contestants = _prepared(case, threads, names, stack, row["errors"])
        check(contestants, row["errors"])
        alternate_for(contestants, SECONDS, QUICK_ROUNDS if quick else ROUNDS)
        for contestant in contestants:
            row["contestants"][contestant.name] = {
                "seconds": contestant.median,
                "spread": contestant.spread,
                "images_per_second": case.batch / contestant.median,
                "steps": len(contestant.times),
                "peak_bytes": contestant.peak_memory(),
                "bytes_before": contestant.value.resident,
                "losses": contestant.value.losses,
            }
    return row


def _prepared(
    case: Case, threads: int, names: list[str], stack: ExitStack, errors: dict[str, str]
) -> list[Contestant]:
    """The contestants that can do the case; the errors of the others are noted."""
    contestants = []
    for name in names:
        contestant = start(name, threads)
        stack.callback(contestant.close)
        try:
            contestant.prepare(case)
            contestants.append(contestant)
        except RuntimeError as error:
            errors[name] = " ".join(str(error).split())[:300]
    return contestants


def check(contestants: list[Contestant], errors: dict[str, str]) -> None:
    """Take out the contestants whose losses or parameters are not those of the first one."""
    for contestant in contestants[1:]:
        first, other = contestants[0].value, contestant.value
        agree = all(
            abs(a - b) <= LOSS_GAP + MOVE_GAP * abs(a - first.losses[0])
            for a, b in zip(first.losses, other.losses, strict=True)
        )
        # bfloat16 rounds at 4e-3, and is not part of the ratio
        if contestant.name != "bfloat16" and not agree:
            errors[contestant.name] = (
                f"other work: the first losses are {other.losses}, "
                f"those of {contestants[0].name} {first.losses}"
            )
        if other.parameters != first.parameters:
            errors[contestant.name] = (
                f"other work: {other.parameters} parameters, "
                f"{contestants[0].name} has {first.parameters}"
            )
    contestants[:] = [c for c in contestants if c.name not in errors]


def ratio(row: dict[str, Any], others: tuple[str, ...] = TORCH_FLOAT32) -> float:
    """The least time of the others over that of fastlayers; NaN if either is missing."""
    found = {name: record["seconds"] for name, record in row["contestants"].items()}
    times = [found[name] for name in others if name in found]
    return min(times) / found["fastlayers"] if times and "fastlayers" in found else math.nan


def _start_of_line(row: dict[str, Any]) -> list[str]:
    return [row["model"], str(row["batch"]), str(row["threads"])]


def step_table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Median milliseconds with the interquartile range, images per second and the ratio."""
    lines = []
    for row in rows:
        line = _start_of_line(row)
        for name in names:
            record = row["contestants"].get(name)
            line.append(
                f"{1e3 * record['seconds']:.4g} ({record['spread']:.0%})" if record else "failed"
            )
        if "fastlayers" in names:
            record = row["contestants"].get("fastlayers")
            line.append(f"{record['images_per_second']:.0f}" if record else "-")
        line.append(f"{ratio(row):.2f}")
        if "bfloat16" in names:
            line.append(f"{ratio(row, ('bfloat16',)):.2f}")
        lines.append(line)
    header = ["model", "batch", "threads", *(f"{name} ms" for name in names)]
    header += ["images/s"] if "fastlayers" in names else []
    header += ["ratio", *(["bfloat16 ratio"] if "bfloat16" in names else [])]
    return table(header, lines)


def size_table(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Peak resident memory of each process in MB, and its growth after the imports."""
    lines = []
    for row in rows:
        line = _start_of_line(row)
        for name in names:
            record = row["contestants"].get(name)
            if record is None:
                line.append("failed")
                continue
            peak, own = record["peak_bytes"], record["peak_bytes"] - record["bytes_before"]
            line.append(f"{peak / 1e6:.0f} ({own / 1e6:.0f})")
        lines.append(line)
    return table(["model", "batch", "threads", *(f"{name} MB" for name in names)], lines)


def report(rows: list[dict[str, Any]], names: list[str]) -> str:
    """Both tables, and why contestants failed."""
    errors = [
        f"- {row['model']}, batch {row['batch']}, threads {row['threads']}: {name}: {error}"
        for row in rows
        for name, error in row["errors"].items()
    ]
    parts = [
        "Median milliseconds of a step (interquartile range), images/s of fastlayers, and "
        "the fastest float32 mode of torch over fastlayers:",
        step_table(rows, names),
        "Peak resident memory of the process, compilation included (of it since the imports):",
        size_table(rows, names),
        *(["Failed:", "\n".join(errors)] if errors else []),
    ]
    return "\n\n".join(parts) + "\n"


def chosen_cases(names: list[str] | None, batch: int | None) -> list[Case]:
    """Cases of these models, of `CASES` by default, each once if a batch size is given."""
    cases = CASES if names is None else [c for c in CASES + MORE if c.name in names]
    if batch is None:
        return cases
    return list({case.name: case.at(batch) for case in cases}.values())


def main() -> None:
    """Print a line as each row is done, then the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    models = list(dict.fromkeys(case.name for case in CASES + MORE))
    usual = [name for name in CONTESTANTS if name != "bfloat16"]
    add = parser.add_argument
    add("--models", nargs="+", choices=models, metavar="NAME", help=f"of: {', '.join(models)}")
    add("--batch", type=int, help="another batch size")
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--contestants", nargs="+", choices=CONTESTANTS, default=usual)
    add("--bfloat16", action="store_true", help="with torch's autocast; not part of the ratio")
    add("--quick", action="store_true", help="at most three rounds")
    add("--markdown", type=Path, help="a file for the tables, written as rows are done")
    add("--json", type=Path, help="a file for all that was measured")
    options = parser.parse_args()
    names = [n for n in CONTESTANTS if n in options.contestants]
    names += ["bfloat16"] if options.bfloat16 and "bfloat16" not in names else []
    rows: list[dict[str, Any]] = []
    for case in chosen_cases(options.models, options.batch):
        for threads in options.threads:
            rows.append(compare(case, threads, names, options.quick))
            lines = step_table(rows[-1:], names).splitlines()
            print("\n".join(lines if len(rows) == 1 else lines[2:]), flush=True)
            if options.markdown:
                options.markdown.write_text(report(rows, names))
            if options.json:
                options.json.write_text(json.dumps(rows, indent=1) + "\n")
    print(f"\n{report(rows, names)}")


if __name__ == "__main__":
    main()
