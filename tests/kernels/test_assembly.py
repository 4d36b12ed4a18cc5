"""The machine code of all kernels for AVX2: 16 registers, and masked stores of 7 ns on Zen 3.

`test_micro` reads the tiles of the GEMM for other CPUs too.
"""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import assembly
import pytest

from fastlayers.runtime import cpu

FLEET = "x86-64-v3"
# Kernels that only other kernels call, and those that measure.
NOT_COMPILED = {
    "norm.batchnorm.merge_moments",
    "norm.matrix.chunk_rows",
    "norm.matrix.repeat_channels",
    "norm.matrix.write_factors",
    "pool.loops.spilled_lanes",
    "speed.copy",
    "speed.multiply_adds",
}
# Vectors that loops with multiply-adds may move to or from the stack, of kernels that have more
# values than AVX2 has registers: Winograd's weight gradient and rows of tiles, exponentials of
# several vectors at a time, and what is kept over the store of a part. None is a loop over k.
SPILLS = {
    "activation.log_softmax_backward": 17,
    "activation.silu_backward": 27,
    "conv.winograd.rows.conv2d_winograd_rows": 3,
    "conv.winograd.rows.conv2d_winograd_rows_backward_weight": 2,
    "conv.winograd.weight.winograd_backward_weight": 5,
    "conv.winograd.weight.winograd_backward_weight_by_panels": 5,
    "norm.pooled.batch_norm_max_pool2d_backward": 6,
}


@pytest.fixture(scope="module")
def codes(effort, tmp_path_factory):
    """Assembly of all kernels by name, of all signatures."""
    if (
        platform.machine() not in ("x86_64", "AMD64")
        or cpu.vector_bytes() < cpu.LEVELS[FLEET].vector_bytes
    ):
        pytest.skip(f"this CPU, or what is tested of it, is not {FLEET}")
    folder = tmp_path_factory.mktemp("assembly")
    tests, file = Path(assembly.__file__), folder / "codes.json"
    environment = os.environ | {
        "FASTLAYERS_CPU": FLEET,
        "FASTLAYERS_CACHE_DIR": str(folder),
        "FASTLAYERS_QUIET": "1",
        "PYTHONPATH": os.pathsep.join(filter(None, [str(tests.parent), *sys.path])),
    }
    command = [sys.executable, tests, file, *effort([], ["--long"])]
    subprocess.run(command, env=environment, check=True)
    return {name: list(codes.values()) for name, codes in json.loads(file.read_text()).items()}


def test_all_kernels_are_compiled(codes):
    assert {name for name, some in codes.items() if not some} <= NOT_COMPILED


def test_no_kernel_stores_by_a_mask(codes):
    masked = {name: assembly.masked_stores(code) for name, some in codes.items() for code in some}
    assert not {name: lines for name, lines in masked.items() if lines}


def test_kernels_use_16_registers(codes):
    assert max(assembly.highest_register(code) for some in codes.values() for code in some) == 15


def test_loops_with_multiply_adds_stay_in_registers(codes):
    most = {}
    for name, some in codes.items():
        spills = [len(lines) for code in some for _, lines in assembly.tile_loops(code)]
        most[name] = max(spills, default=0)
    assert {name: count for name, count in most.items() if count > SPILLS.get(name, 0)} == {}


@pytest.mark.parametrize(
    ("line", "masked"),
    [
        ("\tvmaskmovps\t%ymm2, %ymm1, (%rax,%rcx,4)", True),
        ("\tvpmaskmovd\t%xmm2, %xmm1, 32(%rax)", True),
        ("\tvmaskmovps\t(%rax,%rcx,4), %ymm1, %ymm2", False),
        ("\tvmovups\t%ymm2, (%rax)", False),
    ],
)
def test_masked_stores_are_found(line, masked):
    assert bool(assembly.masked_stores(line)) == masked
