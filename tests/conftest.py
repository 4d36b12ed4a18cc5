"""What all tests share: the long form, and the figures of what was checked."""

import gc
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

# Where regions run on GNU OpenMP, its threads spin at a barrier and use up their share of a busy
# machine: 70 s instead of 6 for the small convolutions of `specs/conv_sizes.py`. Read when the
# first parallel region is launched.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")


class Figures:
    """What the tests counted, by chapter and name, in the order in which it came up."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, float]] = {}

    def count(self, chapter: str, name: str, number: int = 1) -> None:
        """Add to a sum."""
        chapter_figures = self.found.setdefault(chapter, {})
        chapter_figures[name] = chapter_figures.get(name, 0) + number

    def most(self, chapter: str, name: str, value: float) -> None:
        """Keep the largest value."""
        chapter_figures = self.found.setdefault(chapter, {})
        chapter_figures[name] = max(chapter_figures.get(name, value), value)


_FIGURES = pytest.StashKey[Figures]()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("fastlayers")
    group.addoption("--long", action="store_true", help="more cases: an hour instead of minutes")
    group.addoption("--figures", type=Path, help="a JSON file for what the tests counted")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_FIGURES] = Figures()


def pytest_collection_finish() -> None:
    """Let collections of garbage not see 14,000 tests, which take 0.5 s each time."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def young_heap() -> None:
    """Let collections of garbage see new objects only, and not the reports of all tests before."""
    gc.freeze()


@pytest.fixture(scope="session")
def figures(pytestconfig: pytest.Config) -> Figures:
    """Where a test says what it counted, for the summary and the report."""
    return pytestconfig.stash[_FIGURES]


@pytest.fixture(scope="session")
def effort(pytestconfig: pytest.Config) -> Callable[[Any, Any], Any]:
    """Choose between the short form's value and the long one's."""
    return lambda short, long: long if pytestconfig.getoption("long") else short


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    found = config.stash[_FIGURES].found
    if path := config.getoption("figures"):
        path.write_text(json.dumps(found, indent=1) + "\n")
    if found:
        terminalreporter.section("figures")
    for chapter, values in found.items():
        for name, value in values.items():
            terminalreporter.write_line(f"{chapter}: {name}: {value:.4g}")
