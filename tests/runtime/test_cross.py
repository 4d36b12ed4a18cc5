"""Kernels for a CPU that this machine is not: compiled, kept, and not run."""

import json
import re
import struct
import sys

import pytest
from assembly import loops

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
    message = "^warmup: cpu must be this machine's except on Linux, got 'armv8-a'$"
    with pytest.raises(ValueError, match=message):
        cpu.choose("armv8-a")


ARM = """
import gc
import numpy as np
from numba import types
from fastlayers import ops
from fastlayers.runtime import cpu
cpu.supports = lambda level: False
cpu.choose("armv8-a")
from fastlayers.kernels.gemm.gemm import gemm_batch
from fastlayers.runtime import compiler, cross
x, w, c = (np.ones(shape, np.float32) for shape in ((2, 8, 6, 6), (8, 1, 3, 3), 8))
with cross.compiling():
    ops.conv2d(x, w, groups=8)
    ops.batch_norm(x, c, c)
    gemm_batch.body.compile(gemm_batch.signature(types.float32))
for kernel in gc.get_objects():
    if isinstance(kernel, compiler.Kernel) and not isinstance(kernel, compiler.InnerKernel):
        for signature in kernel.overloads:
            print("NAME", kernel.py_func.__name__)
            print("MASKED" * ("llvm.masked" in kernel.inspect_llvm(signature)))
            print(kernel.inspect_asm(signature))
"""
BY_LANE = re.compile(r"^\s+fmla\s+v\d+\.4s, v\d+\.4s, v\d+\.s\[")


def test_code_for_arm(run, tmp_path):
    """LLVM takes masked vectors apart, as NEON has none; multiplies by a lane save registers."""
    result = run(ARM, FASTLAYERS_CACHE_DIR=tmp_path, FASTLAYERS_CPU=None)
    assert result.returncode == 0, result.stderr
    kernels = dict(text.split("\n", 1) for text in result.stdout.split("NAME ")[1:])
    assert {"gemm_batch", "batch_norm_apply"} < kernels.keys()
    assert not [name for name, text in kernels.items() if "MASKED" in text]
    functions = re.split(r"\.cfi_endproc|\.Lfunc_end\d+:", kernels["gemm_batch"])
    tiles = [loop for function in functions for loop in loops(function)]
    assert max(len(list(filter(BY_LANE.match, loop))) for loop in tiles) == 24  # 12 x 2 sums
