"""The sections of ``python -m benchmarks.compare``: what is measured, and how it is shown."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.compare import charts, load, memory_bound, models, ops, start
from benchmarks.compare.contestants import CONTESTANTS
from benchmarks.compare.harness import table
from benchmarks.compare.record import Record

__all__ = ["SECTIONS", "Section"]

Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Section:
    """What one section of the command measures and shows.

    Attributes
    ----------
    measure : callable
        ``measure(threads, quick)`` gives the rows.
    report : callable
        Markdown of a record, with all rows.
    summary : callable
        Markdown for the README.
    draw : callable
        ``draw(record, folder)`` writes the charts.
    """

    measure: Callable[[list[int], bool], Rows]
    report: Callable[[Record], str]
    summary: Callable[[Record], str]
    draw: Callable[[Record, Path], None]


def _conditions(record: Record) -> str:
    machine, versions = record["machine"], record["versions"]
    found = ", ".join(f"{name} {version}" for name, version in versions.items() if version)
    return (
        f"{record['date']}, {machine['cpu']}, {machine['cores']} cores, vectors of "
        f"{8 * machine['vector_bytes']} bits, Python {machine['python']}, {found}, commit "
        f"{record['commit']}, `{record['command']}`."
    )


def _told(rows: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for row in rows:
        named = [
            str(row[key])
            for key in ("group", "model", "shape", "batch", "pass", "beside")
            if key in row
        ]
        print(", ".join(named), flush=True)
        yield row


# Operations


def _measure_ops(threads: list[int], quick: bool) -> Rows:
    return [
        row
        for count in threads
        for module in (ops, memory_bound)
        for row in _told(module.measure(count, quick))
    ]


def _milliseconds(row: dict[str, Any], name: str) -> str:
    return f"{1e3 * row['seconds'][name]:.3f}" if name in row["seconds"] else "-"


def _report_ops(record: Record) -> str:
    names = list(dict.fromkeys(name for row in record["rows"] for name in row["seconds"]))
    lines = []
    for row in record["rows"]:
        ours = row["seconds"]["fastlayers"]
        rate = f"{row['bytes'] / ours / 1e9:.1f} GB/s"
        if "flops" in row:
            speed = row["flops"] / ours
            rate = f"{speed / 1e9:.1f} GFLOP/s ({speed / row['peak']:.0%} of the peak)"
        times = [_milliseconds(row, name) for name in names]
        place = [row["group"], row["shape"], row["pass"], str(row["threads"])]
        lines.append([*place, *times, rate, f"{row['ratio']:.2f}"])
    header = ["operation", "shape", "pass", "threads", *(f"{n} ms" for n in names), "rate", "ratio"]
    return f"{_conditions(record)}\n\n{_summary_table(record)}\n\n{table(header, lines)}"


def _summary_table(record: Record) -> str:
    rows = record["rows"]
    columns = list(dict.fromkeys((row["pass"], row["threads"]) for row in rows))
    lines = []
    for group in dict.fromkeys(row["group"] for row in rows):
        line = [group]
        for which, threads in columns:
            ratios = [
                row["ratio"]
                for row in rows
                if (row["group"], row["pass"], row["threads"]) == (group, which, threads)
            ]
            mean = f"{statistics.geometric_mean(ratios):.2f} ({min(ratios):.2f})" if ratios else "-"
            line.append(mean)
        lines.append(line)
    header = ["geometric mean of ratios (lowest)", *(f"{p}, threads {t}" for p, t in columns)]
    return table(header, lines)


def _summary_ops(record: Record) -> str:
    pictures = (
        "![Ratios of single operations](docs/figures/ops.png)\n\n"
        "![Roofline of convolutions and linear maps](docs/figures/roofline.png)"
    )
    return f"{_summary_table(record)}\n\n{pictures}\n\n{_conditions(record)}"


def _draw_ops(record: Record, folder: Path) -> None:
    rows = record["rows"]
    charts.op_chart(rows, folder / "ops.png")
    copied = {
        row["bytes"]: row["bytes"] / row["copy_seconds"] for row in rows if "copy_seconds" in row
    }
    charts.roofline(rows, _bandwidths(copied), folder / "roofline.png")


def _bandwidths(copied: dict[float, float]) -> dict[str, float]:
    """Bytes per second of the fastest copy, and of copies of at least half the largest size."""
    if not copied:
        return {}
    large = [rate for size, rate in copied.items() if 2 * size >= max(copied)]
    return {
        "copy within the caches": max(copied.values()),
        "copy from memory": statistics.median(large),
    }


# Models


def _compare_models(threads: list[int], quick: bool) -> Iterator[dict[str, Any]]:
    names = [name for name in CONTESTANTS if name != "bfloat16"]
    cases = [c for c in models.CASES if not quick or c.shape[-1] < 100]
    for count in threads:
        for case in cases:
            yield models.compare(case, count, names, quick)


def _measure_models(threads: list[int], quick: bool) -> Rows:
    return list(_told(_compare_models(threads, quick)))


def _contestants(record: Record) -> list[str]:
    found = {name for row in record["rows"] for name in row["contestants"]}
    return [name for name in CONTESTANTS if name in found]


def _report_models(record: Record) -> str:
    return f"{_conditions(record)}\n\n{models.report(record['rows'], _contestants(record))}"


def _summary_models(record: Record) -> str:
    steps = models.step_table(record["rows"], _contestants(record))
    picture = "![Ratios of training steps](docs/figures/models.png)"
    return f"{picture}\n\n{steps}\n\n{_conditions(record)}"


def _draw_models(record: Record, folder: Path) -> None:
    charts.model_chart(record["rows"], models.ratio, folder / "models.png")


# Peak memory


def _measure_memory(threads: list[int], quick: bool) -> Rows:
    """Few steps, since the peak is in the first ones; only the larger batches."""
    names = [name for name in CONTESTANTS if name != "bfloat16"]
    largest = list({case.name: case for case in models.CASES}.values())
    cases = largest[:2] if quick else largest
    rows = (models.compare(case, max(threads), names, quick=True) for case in cases)
    return list(_told(rows))


def _summary_memory(record: Record) -> str:
    sizes = models.size_table(record["rows"], _contestants(record))
    return f"{sizes}\n\n{_conditions(record)}"


def _draw_nothing(record: Record, folder: Path) -> None:
    pass


# Start


def _measure_start(threads: list[int], quick: bool) -> Rows:
    return [start.record([sys.executable], 2 if quick else 10)]


def _report_start(record: Record) -> str:
    [measured] = record["rows"]
    return f"{start.report(*start.read(measured))}\n{_conditions(record)}"


# Company


def _measure_load(threads: list[int], quick: bool) -> Rows:
    return [row for count in threads for row in _told(load.measure(count, quick))]


def _report_load(record: Record) -> str:
    return f"{_conditions(record)}\n\n{load.report(record['rows'])}"


def _summary_load(record: Record) -> str:
    return f"{load.table_of(record['rows'])}\n\n{_conditions(record)}"


SECTIONS = {
    "models": Section(_measure_models, _report_models, _summary_models, _draw_models),
    "ops": Section(_measure_ops, _report_ops, _summary_ops, _draw_ops),
    "memory": Section(_measure_memory, _summary_memory, _summary_memory, _draw_nothing),
    "load": Section(_measure_load, _report_load, _summary_load, _draw_nothing),
    "start": Section(_measure_start, _report_start, _report_start, _draw_nothing),
}
