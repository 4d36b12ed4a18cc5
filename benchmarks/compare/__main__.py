"""fastlayers beside PyTorch and JAX: measure, record, tables, charts and the README's figures.

    python -m benchmarks.compare [ops] [models] [start] [memory] [load] [--threads N ...] [--quick]
        [--results FOLDER] [--render] [--publish]

Without sections, all are measured. Each writes a JSON record with the machine and the versions, a
Markdown report and its PNG charts into the folder of results. ``--publish`` puts the tables into
README.md, between the comments that name them, and its charts into docs/figures; ``--render`` does
so, or writes reports and charts, from the records without measuring.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks.compare import record, sections

__all__ = ["main", "publish"]

ROOT = Path(__file__).parents[2]
RESULTS = Path("benchmarks") / "results"


def publish(page: str, parts: dict[str, str]) -> str:
    """Replace what is between ``<!-- name -->`` and ``<!-- end name -->`` of each part."""
    for name, text in parts.items():
        begin, end = f"<!-- {name} -->", f"<!-- end {name} -->"
        pattern = re.compile(f"{re.escape(begin)}\n.*?{re.escape(end)}", re.DOTALL)
        found = len(pattern.findall(page))
        if found != 1:
            raise ValueError(f"expected one pair of {begin} and {end}, found {found}")
        before, after = pattern.split(page)
        page = f"{before}{begin}\n{text}\n{end}{after}"
    return page


def main(arguments: list[str] | None = None) -> None:
    """Measure the chosen sections, then write the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    add = parser.add_argument
    names = list(sections.SECTIONS)
    add("sections", nargs="*", metavar="section", help=f"of {', '.join(names)}; all without one")
    add("--threads", nargs="+", type=int, default=[2], help="1 2 for both; 2 without")
    add("--quick", action="store_true", help="few rounds of few cases: minutes instead of an hour")
    add("--results", type=Path, default=RESULTS, help="folder of the records (%(default)s)")
    add("--render", action="store_true", help="measure nothing")
    add("--publish", action="store_true", help="write the README's tables and charts")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(names):
        parser.error(f"a section is one of {', '.join(names)}, got {', '.join(sorted(unknown))}")
    command = "python -m benchmarks.compare " + " ".join(sys.argv[1:] if arguments is None else [])
    figures = ROOT / "docs" / "figures" if options.publish else options.results
    parts: dict[str, str] = {}
    for name in options.sections or names:
        section = sections.SECTIONS[name]
        found = record.read(options.results, name)
        if not options.render:
            found = record.conditions(command.strip())
            found["rows"] = section.measure(options.threads, options.quick)
            record.save(options.results, name, found)
        if found is None:
            parser.error(f"{options.results / name}.json does not exist: measure it first")
        report = section.report(found)
        (options.results / f"{name}.md").write_text(report + "\n")
        print(f"\n{report}", flush=True)
        section.draw(found, figures)
        parts |= {name: section.summary(found)}
    if options.publish:
        page = ROOT / "README.md"
        page.write_text(publish(page.read_text(), parts))


if __name__ == "__main__":
    main()
