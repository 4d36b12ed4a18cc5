"""Kernels for a CPU that this machine is not: compiled, kept, and not run."""

import json
import struct
import sys

import pytest

from fastlayers.runtime import cpu

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="compiles for Linux, on Linux")
# Numbers of architectures in ELF files.
ELF = {"x86_64": 62, "aarch64": 183}
OTHERS = [level for level in cpu.LEVELS if not cpu.supports(level)]
SUPPORTED = [level for level in cpu.LEVELS if cpu.supports(level)]


def architectures(folder):
    """The numbers in the object code of all kernels that were kept, and how many there are."""
    contents = [path.read_bytes() for path in folder.glob("*/*.nbc")]
    found = {struct.unpack_from("<H", c, c.index(b"\x7fELF") + 18)[0] for c in contents}
    return found, len(contents)


RELU = """
import numpy as np, pytest
import fastlayers as fl
from fastlayers import nn, ops
with pytest.raises(ValueError, match="^warmup: cpu must be x86-64-v3, .* got 'i386'$"):
    fl.warmup(nn.ReLU(), (2, 4), cpu="i386")
print(fl.warmup(nn.ReLU(), (2, 4), cpu={level!r}).kernels)
with pytest.raises(RuntimeError, match="relu: kernels are compiled for {level} in this process"):
    ops.relu(np.ones(3, np.float32))
other = "x86-64-v3" if {level!r} != "x86-64-v3" else "armv8-a"
with pytest.raises(RuntimeError, match="^warmup: cpu must be chosen before the first op, got"):
    fl.warmup(nn.ReLU(), (2, 4), cpu=other)
"""


@pytest.mark.parametrize("level", OTHERS)
def test_code_for_another_cpu(run, tmp_path, level):
    for kernels in ("1", "0"):  # besides it the region's code, which it calls
        result = run(RELU.format(level=level), FASTLAYERS_CACHE_DIR=tmp_path, FASTLAYERS_CPU=None)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip() == kernels
        assert architectures(tmp_path) == ({ELF[cpu.LEVELS[level].machine]}, 2)


TRAIN = """
import json
import fastlayers as fl
from fastlayers import nn
from fastlayers.runtime import cpu
if {pretend}:
    cpu.supports = lambda level: False
layers = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)
found = fl.warmup(nn.Sequential(*layers), (2, 3, 8, 8), cpu={level!r})
print(json.dumps([found.kernels, cpu.compiles_only()]))
"""


@pytest.mark.skipif(not SUPPORTED, reason="this machine has no level")
def test_what_is_compiled_without_running_is_all_that_runs(run, tmp_path):
    found = []
    for pretend in (True, False):
        code = TRAIN.format(pretend=pretend, level=SUPPORTED[0])
        result = run(code, FASTLAYERS_CACHE_DIR=tmp_path, FASTLAYERS_CPU=None)
        assert result.returncode == 0, result.stderr
        found.append(json.loads(result.stdout))
    assert found[0][0] > 10 and found[0][1]
    assert found[1] == [0, False]


def test_levels_of_other_systems(monkeypatch):
    monkeypatch.setattr(cpu, "_host", lambda: "x86_64")
    monkeypatch.setattr(cpu, "_chosen", None)
    monkeypatch.setattr("sys.platform", "darwin")
    message = "^warmup: cpu must be of x86_64 except on Linux, got 'armv8-a'$"
    with pytest.raises(ValueError, match=message):
        cpu.choose("armv8-a")
