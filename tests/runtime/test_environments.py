"""Places where little can be written, disks that are full, processes that are killed.

Each ends in a process that works, with at most one warning.
"""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import pytest

import fastlayers as fl
from fastlayers.runtime import cache

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX rights and signals")

PACKAGE = Path(fl.__file__).parent
RELU = """
import numpy as np
from fastlayers import ops
from fastlayers.runtime.cache import progress
print(*ops.relu(np.array([-1, 2], np.float32)), progress().kernels)
"""


class Found(NamedTuple):
    """What a process says."""

    values: list[float]
    kernels: int  # compiled, not loaded
    stderr: str


def found(result, runs=1):
    assert result.returncode == 0, result.stderr
    lines = [line.split() for line in result.stdout.splitlines()]
    several = [Found([*map(float, line[:2])], int(line[2]), result.stderr) for line in lines]
    assert len(several) == runs and all(one.values == [0, 2] for one in several)
    return several if runs > 1 else several[0]


def copied_package(folder):
    shutil.copytree(PACKAGE, folder / "fastlayers", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


# A namespace of mounts in which a script runs; user namespaces serve those who are not root.
NAMESPACE = ("unshare", "--mount", "--map-root-user", "sh", "-ec")
ONLY = """
mount --bind "$1" "$1"
while read -r _ _ _ _ point _; do
    case "$point" in "$1"|/proc*|/dev*|/sys*) ;; *) mount -o remount,bind,ro "$point" ;; esac
done < /proc/self/mountinfo
shift
exec "$@"
"""
# Takes from root what lets it write regardless of rights.
MORTAL = ("setpriv", "--bounding-set=-dac_override")
# Of two kernels each is too large for the disk at first.
TWO = """
import numpy as np, fastlayers as fl
fl.set_num_threads(2)
fl.ops.relu(np.ones(1 << 18, np.float32))
"""
SMALL = """
mount -t tmpfs -o size=4k fastlayers "$1"
folder="$1"
shift
"$@"
"$@"
ls -AR "$folder" >&2
mount -o remount,size=16m fastlayers "$folder"
"$@"
"$@"
"""


@functools.cache
def works(*command):
    """Whether this user may begin Python by a command, whose script is given a folder."""
    if not shutil.which(command[0]):
        return False
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["sh", folder] if command[0] == NAMESPACE[0] else []
        arguments = [*command, *arguments, sys.executable, "-c", ""]
        return subprocess.run(arguments, capture_output=True, check=False).returncode == 0


class Place(NamedTuple):
    """A copy of the package in a folder where nothing but `temporary` can be written."""

    home: Path
    temporary: Path
    start: dict[str, object]  # how `run` begins a process there


@pytest.fixture(params=["mounts", "rights"])
def place(request, tmp_path):
    """Give a place that is read-only by its mounts, which bind root too, or by its rights."""
    place = Place(copied_package(tmp_path) / "home", tmp_path / "temporary", {})
    place.home.mkdir()
    place.temporary.mkdir()
    # A source of its own, whose kernels no folder of this user can have already.
    (tmp_path / "fastlayers" / "kernels" / "copy.py").write_text(f"# of {tmp_path}\n")
    place.start.update(paths=[tmp_path], options={"cwd": place.home})
    place.start["COVERAGE_PROCESS_CONFIG"] = None  # its file could not be written
    if request.param == "mounts":
        place.start["command"] = [*NAMESPACE, ONLY, "sh", place.temporary]
        if not works(*NAMESPACE, ONLY):
            pytest.skip("this user may not mount")
        yield place
        return
    if os.getuid() == 0:
        place.start["command"] = MORTAL
        if not works(*MORTAL):
            pytest.skip("root writes regardless of rights")
    frozen = [place.home, *(tmp_path / "fastlayers").rglob("*"), tmp_path / "fastlayers"]
    for path in frozen:
        path.chmod(0o555)
    yield place
    for path in frozen:
        path.chmod(0o755)


UNWRITABLE = """
import fastlayers, os
for folder in (".", os.path.dirname(fastlayers.__file__)):
    assert os.access(folder, os.R_OK) and not os.access(folder, os.W_OK), folder
"""


@pytest.mark.parametrize(
    ("place", "home"),
    [
        ("mounts", "."),
        ("mounts", "nowhere"),
        ("mounts", None),
        ("rights", "."),
        ("rights", "nowhere"),
    ],
    indirect=["place"],
)
def test_only_the_temporary_folder_can_be_written(run, place, home):
    variables = {"HOME": home and place.home / home, "TMPDIR": place.temporary}
    variables |= {"FASTLAYERS_CACHE_DIR": None, "XDG_CACHE_HOME": None}
    first = found(run(UNWRITABLE + RELU, **place.start, **variables))
    assert first.kernels > 0 and not first.stderr
    (private,) = place.temporary.iterdir()
    assert private.stat().st_mode & 0o777 == 0o700
    assert len(list(private.glob("*/*.nbc"))) == first.kernels
    if home == ".":
        second = found(run(RELU, **place.start, **variables))
        assert second.kernels == 0 and not second.stderr


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs mounts")
def test_full_disk(run, tmp_path):
    if not works(*NAMESPACE, SMALL):
        pytest.skip("this user may not mount; test_cache.py has a limit of file sizes instead")
    command = [*NAMESPACE, SMALL, "sh", tmp_path]
    result = run(TWO + RELU, command=command, FASTLAYERS_CACHE_DIR=tmp_path)
    assert [one.kernels for one in found(result, 4)] == [2, 2, 2, 0]
    assert result.stderr.count("Warning: ") == result.stderr.count("cannot be saved") == 2
    assert ".nbc" not in result.stderr  # in the list of what is left


# Ends the process before it saves a kernel, before it renames the file, and half-way.
KILLED = """
import os, signal
from fastlayers.runtime import cache
def die(*arguments, **options):
    os.kill(os.getpid(), signal.SIGKILL)
"""
MOMENTS = {
    "compiled": "cache._KernelFiles.save = die",
    "written": "os.replace = die",
    # The kernel writes up to the limit, and ends the process that asks for more.
    "half": """
import resource
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
""",
}


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_compilation(run, tmp_path, moment):
    variables = {"FASTLAYERS_CACHE_DIR": tmp_path}
    result = run(KILLED + MOMENTS[moment] + RELU, **variables)
    assert -result.returncode in (signal.SIGKILL, signal.SIGXFSZ) and not result.stdout
    assert not list(tmp_path.glob("*/*.nbc"))
    left = list(tmp_path.glob("*/*"))
    assert bool(left) == (moment != "compiled")
    result = found(run(RELU, **variables))
    assert result.kernels > 0 and not result.stderr
    assert len(list(tmp_path.glob("*/*.nbc"))) == result.kernels


# The kernel is in kernels/activation.py: what is below 0 is then 3.
HELPER = "kernels/ir/runs.py", "_where_positive(b, v, x, x)"
CHANGED = (
    "b.select(b.fcmp_ordered('<', x, v.splat(x.type.element(0))), v.splat(x.type.element(3)), x)"
)


def test_changed_helper(run, tmp_path):
    start = {"paths": [copied_package(tmp_path)], "options": {"cwd": tmp_path}}
    start["FASTLAYERS_CACHE_DIR"] = tmp_path / "cache"
    first = found(run(RELU, **start))
    assert first.kernels > 0 == found(run(RELU, **start)).kernels
    name, old = HELPER
    path = tmp_path / "fastlayers" / name
    source = path.read_text()
    assert source.count(old) == 1
    path.write_text(source.replace(old, CHANGED))
    changed = run(RELU, **start)
    assert changed.stdout.split() == ["3.0", "2.0", str(first.kernels)], changed.stderr
    path.write_text(source)  # the kernels of before are still there
    assert found(run(RELU, **start)).kernels == 0


def test_edit_while_a_process_runs(run, tmp_path):
    """What was compiled from the edited file is not found when the edit is taken back."""
    start = {"paths": [copied_package(tmp_path)], "options": {"cwd": tmp_path}}
    start["FASTLAYERS_CACHE_DIR"] = tmp_path / "cache"
    path = tmp_path / "fastlayers" / HELPER[0]
    source = path.read_text()
    edit = f"""
from fastlayers.runtime.cache import cache_dir
cache_dir()
path = {str(path)!r}
source = open(path).read()
open(path, "w").write(source.replace({HELPER[1]!r}, {CHANGED!r}))
"""
    result = run(edit + RELU, **start)
    assert result.stdout.split() == ["3.0", "2.0", "1"], result.stderr
    path.write_text(source)
    assert found(run(RELU, **start)).kernels == 1


def test_warmed_folder_that_is_read_only(run, place):
    variables = {"FASTLAYERS_CACHE_DIR": place.home / "cache", "TMPDIR": place.temporary}
    place.home.chmod(0o755)
    built = found(run(RELU, paths=place.start["paths"], options={"cwd": place.home}, **variables))
    assert built.kernels == 1
    for path in (place.home, *place.home.rglob("*")):
        path.chmod(0o555)
    result = found(run(UNWRITABLE + RELU, **place.start, **variables))
    assert result.kernels == 0 and not result.stderr
    result = found(run(TWO + RELU, **place.start, **variables))  # the driver is new
    assert result.kernels == 1 and not result.stderr
    result = found(run(TWO + RELU, **place.start, **variables))
    assert result.kernels == 0 and not result.stderr
    place.temporary.chmod(0o555)
    for path in (place.home, *place.home.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def test_other_users_can_read_the_files(run, tmp_path):
    found(run(RELU, FASTLAYERS_CACHE_DIR=tmp_path, options={"umask": 0o027}))
    (file,) = tmp_path.glob("*/*.nbc")
    assert file.stat().st_mode & 0o777 == 0o640


def test_abandoned_files_are_removed(run, tmp_path):
    folder = tmp_path / cache.sources_hash()
    folder.mkdir()
    old, new = folder / "a.nbc.00", folder / "b.nbc.00"
    for path in (old, new):
        path.touch()
    os.utime(old, (0, 0))
    found(run(RELU, FASTLAYERS_CACHE_DIR=tmp_path))
    assert new.exists() and not old.exists()
