"""The test report: runs the long form of all tests and writes tests/REPORT.md.

    pip install -e ".[test,train,bench,dev]"
    python -m tests.report [tests] [coverage] [order] [mutation] [arm] [--short] [--workers N]
        [--runs N] [--mutants N] [--seed S] [--resume] [--render]

``tests`` runs the long form of every test and takes the figures that they count, ``coverage`` the
short form under branch coverage, ``order`` the short form N times in random order, ``mutation`` is
`tests/mutation.py`, and ``arm`` is `tests/arm.sh`, which needs Debian or Ubuntu. Without a step all
but ``arm`` are run; ``--resume`` goes on with orders and mutants.
Each leaves a JSON file in .report/, of which ``--render`` makes the page without running anything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

__all__ = ["main", "render"]

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / ".report"
COVERED = ("ops", "autograd.py", "nn", "optim", "data")

Record = dict[str, Any]


def _python(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *arguments], cwd=ROOT, text=True, stdout=subprocess.PIPE
    )


def _outcome(output: str) -> str:
    """The last line of pytest, without its rule."""
    return output.strip().splitlines()[-1].strip("= ")


def run_tests(options: argparse.Namespace) -> Record:
    """All tests, dealt out to processes that run at a time."""
    form = [] if options.short else ["--long"]
    files = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tests").rglob("test_*.py"))

    def run(worker: int) -> tuple[subprocess.CompletedProcess[str], Path]:
        figures = RESULTS / f"figures{worker}.json"
        share = files[worker :: options.workers]
        return _python("pytest", "-q", *form, f"--figures={figures}", *share), figures

    with ThreadPoolExecutor(options.workers) as pool:
        done = list(pool.map(run, range(options.workers)))
    for process, _ in done:
        print(process.stdout[-12000:], flush=True)
    chapters: dict[str, Any] = {}
    for _, path in done:
        chapters |= json.loads(path.read_text())  # a chapter is one file's
    return {
        "outcome": "; ".join(_outcome(process.stdout) for process, _ in done),
        "form": "short" if options.short else "long",
        "figures": dict(sorted(chapters.items())),
    }


def run_coverage(options: argparse.Namespace) -> Record:
    """The short form of all tests, and which branches ran."""
    covered = RESULTS / "coverage-files.json"
    _python("coverage", "erase")
    done = _python("coverage", "run", "-m", "pytest", "-q")
    print(done.stdout[-2000:], flush=True)
    _python("coverage", "combine")
    _python("coverage", "json", "-q", "-o", str(covered))
    files = json.loads(covered.read_text())["files"]
    parts = {part: _covered(files, part) for part in COVERED}
    return {"outcome": _outcome(done.stdout), "coverage": parts}


def _covered(files: dict[str, Any], part: str) -> list[int]:
    """Branches and lines that ran, and all, of a module or package."""
    chosen = [f["summary"] for name, f in files.items() if name.startswith(f"fastlayers/{part}")]
    reached = sum(s["covered_lines"] + s["covered_branches"] for s in chosen)
    return [reached, sum(s["num_statements"] + s["num_branches"] for s in chosen)]


def run_order(options: argparse.Namespace) -> Record:
    """The tests in random order, with another seed each time."""
    kept = RESULTS / "orders.json"
    outcomes: list[str] = json.loads(kept.read_text()) if options.resume and kept.exists() else []
    failed = [seed for seed, outcome in enumerate(outcomes) if "failed" in outcome]
    for seed in range(len(outcomes), options.runs):
        done = _python("pytest", "-q", "-p", "randomly", f"--randomly-seed={seed}")
        outcomes.append(_outcome(done.stdout))
        print(f"seed {seed}: {outcomes[-1]}", flush=True)
        kept.write_text(json.dumps(outcomes))
        if done.returncode:
            failed.append(seed)
            print(done.stdout[-12000:], flush=True)
    return {"runs": len(outcomes), "failed": failed}


def run_mutation(options: argparse.Namespace) -> Record:
    """Mutants of ops and kernels."""
    outcomes = RESULTS / "mutants.json"
    form = ["--resume"] if options.resume else []
    drawn = f"--mutants={options.mutants}", f"--seed={options.seed}"
    _python("tests.mutation", *drawn, f"--results={outcomes}", *form)
    return {"seed": options.seed, "outcomes": json.loads(outcomes.read_text())}


def run_arm(options: argparse.Namespace) -> Record:
    """Parts of the tests on an emulated ARM CPU."""
    folder = RESULTS / "arm"
    (folder / "outcomes.tsv").unlink(missing_ok=True)
    script = [str(ROOT / "tests" / "arm.sh"), str(folder)]
    subprocess.run(script, env=os.environ | {"PYTHON": sys.executable}, check=False)
    return {"outcomes": arm_outcomes(folder)}


def arm_outcomes(folder: Path) -> list[list[str]]:
    """What `tests/arm.sh` wrote of its parts: name, outcome and seconds."""
    return [line.split("\t") for line in (folder / "outcomes.tsv").read_text().splitlines()]


STEPS: dict[str, Callable[[argparse.Namespace], Record]] = {
    "tests": run_tests,
    "coverage": run_coverage,
    "order": run_order,
    "mutation": run_mutation,
    "arm": run_arm,
}


def _conditions() -> Record:
    commit = subprocess.run(
        ["git", "rev-parse", "--short=10", "HEAD"], cwd=ROOT, text=True, capture_output=True
    )
    packages = ("numpy", "numba", "pytest", "hypothesis")
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python "
        f"{platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in packages),
    }


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _told(record: Record) -> str:
    seconds = record["seconds"]
    return f"{record['date']}, commit {record['commit']}, {record['machine']}, {seconds:.0f} s."


def _render_tests(record: Record) -> str:
    figures = [
        [chapter, name, f"{value:,.6g}"]
        for chapter, values in record["figures"].items()
        for name, value in values.items()
    ]
    return (
        f"## The {record['form']} form\n\n{record['outcome']}. {_told(record)}\n\n"
        f"{_table(['chapter', 'what was counted', 'figure'], figures)}"
    )


def _render_coverage(record: Record) -> str:
    covered = [
        [part, f"{reached} of {total}", f"{reached / total:.2%}"]
        for part, (reached, total) in record["coverage"].items()
    ]
    return (
        f"## Branch coverage of the short form\n\n{record['outcome']}. {_told(record)}\n\n"
        "Kernels, which are compiled, are not counted.\n\n"
        f"{_table(['part', 'lines and branches', 'share'], covered)}"
    )


def _render_order(record: Record) -> str:
    failed = ", ".join(map(str, record["failed"])) or "none"
    return f"## Random order\n\n{record['runs']} runs, failed: {failed}. {_told(record)}"


def _render_mutation(record: Record) -> str:
    rows = []
    for package in ("kernels", "ops", ""):
        found = [
            o["outcome"] for o in record["outcomes"] if o["mutant"]["module"].startswith(package)
        ]
        killed, survived = found.count("killed") + found.count("timeout"), found.count("survived")
        share = f"{killed / max(killed + survived, 1):.1%}"
        equivalent = str(found.count("equivalent"))
        rows.append([package or "both", str(killed), str(survived), equivalent, share])
    survivors = [
        f"- `{o['mutant']['module']}`, line {o['mutant']['line']}: "
        + " becomes ".join(f"`{line[1:].strip()}`" for line in o["diff"].splitlines()[1:3])
        for o in record["outcomes"]
        if o["outcome"] == "survived"
    ]
    header = ["mutants of", "killed", "survived", "equivalent", "killed of those that differ"]
    told = "\n".join(survivors) or "None survived."
    title = f"## Mutants, drawn by seed {record['seed']}"
    return f"{title}\n\n{_told(record)}\n\n{_table(header, rows)}\n\n{told}"


def _render_arm(record: Record) -> str:
    return (
        "## On ARM, emulated\n\n"
        "`tests/arm.sh`: a Cortex-A76 by qemu-user, with kernels for armv8.2-a. "
        f"{_told(record)}\n\n"
        f"{_table(['part', 'outcome', 'seconds'], record['outcomes'])}"
    )


def render(records: dict[str, Record]) -> str:
    """The page of those steps that were run."""
    parts = {
        "tests": _render_tests,
        "coverage": _render_coverage,
        "order": _render_order,
        "mutation": _render_mutation,
        "arm": _render_arm,
    }
    title = "# Test report\n\nMade by `python -m tests.report`; see CONTRIBUTING.md."
    return "\n\n".join([title, *(parts[name](record) for name, record in records.items())]) + "\n"


def main() -> None:
    """Run the steps, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.report", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("steps", nargs="*", metavar="step", help=f"of {', '.join(STEPS)}")
    parser.add_argument("--short", action="store_true", help="the short form of the tests")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes of tests"
    )
    parser.add_argument("--runs", type=int, default=50, help="in random order (%(default)s)")
    parser.add_argument("--mutants", type=int, default=300, help="(%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the mutants that are drawn")
    parser.add_argument("--resume", action="store_true", help="run mutants that were not yet run")
    parser.add_argument("--render", action="store_true", help="run nothing")
    options = parser.parse_args()
    if unknown := set(options.steps) - set(STEPS):
        parser.error(f"a step is one of {', '.join(STEPS)}, got {', '.join(sorted(unknown))}")
    RESULTS.mkdir(exist_ok=True)
    chosen = options.steps or [name for name in STEPS if name != "arm"]
    for name in [] if options.render else chosen:
        begin = time.monotonic()
        record = _conditions() | STEPS[name](options)
        record["seconds"] = time.monotonic() - begin
        (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")
    kept = {name: RESULTS / f"{name}.json" for name in STEPS}
    records = {name: json.loads(path.read_text()) for name, path in kept.items() if path.exists()}
    (ROOT / "tests" / "REPORT.md").write_text(render(records))


if __name__ == "__main__":
    main()
