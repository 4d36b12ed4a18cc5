import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import fastlayers as fl

PATHS = (Path(fl.__file__).parents[1], Path(__file__).parents[1])


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = fl.get_num_threads()
    yield
    fl.set_num_threads(before)


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Give a function that runs Python code in a new process with changed variables."""

    def run(code: str, **variables: object) -> subprocess.CompletedProcess[str]:
        paths = os.pathsep.join(map(str, PATHS))
        env = os.environ | {"PYTHONPATH": paths} | {k: str(v) for k, v in variables.items()}
        return subprocess.run(
            [sys.executable, "-c", code],
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )

    return run
