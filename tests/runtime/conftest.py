import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
    """Give a function that runs Python code in a new process with changed variables.

    A variable that is None is removed, `paths` are those of the modules, and `command` begins the
    command line; the rest goes to `subprocess.run`.
    """

    def run(
        code: str,
        paths: Sequence[object] = PATHS,
        command: Sequence[object] = (),
        options: Mapping[str, Any] = MappingProxyType({}),
        **variables: object,
    ) -> subprocess.CompletedProcess[str]:
        env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, paths))}
        # as for pytest itself, but for the library's own words on backend and cache; a busy machine
        # may take so long that it would speak of compilation
        env |= {"PYTHONWARNINGS": "error,default:fastlayers", "FASTLAYERS_QUIET": "1"} | variables
        return subprocess.run(
            [*map(str, command), sys.executable, "-c", code],
            env={name: str(value) for name, value in env.items() if value is not None},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,
        )

    return run
