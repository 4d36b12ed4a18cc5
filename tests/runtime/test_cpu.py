import platform
from pathlib import Path

import pytest
from specs.conv_sizes import EXACT as CONVOLUTIONS

from fastlayers.runtime import cpu

vector_bytes = cpu.vector_bytes.__wrapped__


@pytest.fixture
def features(monkeypatch):
    """Give a function that says which features the CPU has."""
    monkeypatch.delenv("FASTLAYERS_VECTOR_BYTES", raising=False)
    return lambda *names: monkeypatch.setattr(cpu, "_features", lambda: dict.fromkeys(names, True))


@pytest.mark.parametrize(
    ("names", "widest"), [((), 16), (("neon",), 16), (("avx2",), 32), (("avx2", "avx512f"), 64)]
)
def test_vector_width(features, monkeypatch, names, widest):
    features(*names)
    assert vector_bytes() == widest
    for asked in (16, 32, 64):
        monkeypatch.setenv("FASTLAYERS_VECTOR_BYTES", str(asked))
        assert vector_bytes() == min(asked, widest)


@pytest.mark.parametrize("value", ["48", "", "wide", "16.0", "-16"])
def test_wrong_vector_width(monkeypatch, value):
    monkeypatch.setenv("FASTLAYERS_VECTOR_BYTES", value)
    message = rf"^FASTLAYERS_VECTOR_BYTES: expected 16, 32 or 64, got '{value}'"
    with pytest.raises(ValueError, match=message):
        vector_bytes()


def test_fleet(features, monkeypatch):
    features("avx2")
    fleet = cpu.fleet.__wrapped__
    monkeypatch.setenv("FASTLAYERS_CPU", "")
    assert fleet() is None
    monkeypatch.setenv("FASTLAYERS_CPU", "x86-64-v3")
    assert fleet() == "x86-64-v3"
    for value, message in (
        ("x86-64-v4", "FASTLAYERS_CPU: .* does not support x86-64-v4"),
        ("i386", "FASTLAYERS_CPU: expected x86-64-v3 or x86-64-v4, got 'i386'"),
    ):
        monkeypatch.setenv("FASTLAYERS_CPU", value)
        with pytest.raises(ValueError, match=message):
            fleet()


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a level of x86-64")
def test_code_for_a_fleet(run, tmp_path):
    if cpu.vector_bytes() < 32:
        pytest.skip("needs AVX2")
    code = """
import numpy as np
from fastlayers import ops
from fastlayers.kernels import activation
from fastlayers.runtime import cpu
assert ops.relu(np.array([-1, 2], np.float32)).tolist() == [0, 2]
assert cpu.vector_bytes() <= 32
(assembly,) = activation.relu.inspect_asm().values()
assert "zmm" not in assembly
"""
    # Code from a cache has no assembly to look at.
    result = run(code, FASTLAYERS_CPU="x86-64-v3", FASTLAYERS_CACHE_DIR=tmp_path)
    assert result.returncode == 0, result.stderr


def test_facts():
    assert cpu.cpu_name() and cpu.vector_bytes() in (16, 32, 64)
    assert cpu.lanes(4) * 4 == cpu.lanes(8) * 8 == cpu.vector_bytes()
    assert cpu.tile_rows() in (6, 12)


EXACT = Path(__file__).parents[1] / "trust" / "test_exactness.py"
# In the short form one convolution of so many, and no kernels by themselves.
EVERY = 64
CODE = """
import pytest
from cases import CASES, check_exact
from fastlayers.runtime import cpu

assert cpu.vector_bytes() == {width}
for op in ("linear", "max_pool2d"):
    chosen = [case for case in CASES if case.op == op and case.size < 40000]
    for case in chosen[:6] + chosen[-1:]:
        check_exact(case)
raise SystemExit(pytest.main({arguments!r}))
"""


@pytest.mark.parametrize("width", [16, 32])
def test_narrow_vectors_give_the_same_integers(run, width, effort):
    """`.ci/run` runs more tests so."""
    if width >= cpu.vector_bytes():
        pytest.skip("all other tests have vectors that are no wider")
    # Small caches too, as then `tests/ops/test_conv_cuts.py` finds all cuts in these cases.
    variables = {"FASTLAYERS_VECTOR_BYTES": width, "FASTLAYERS_L2_BYTES": 32 << 10}
    if cpu.vector_bytes() == 64:  # the 16 registers and other instructions of a smaller CPU, too
        variables |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}
    chosen = CONVOLUTIONS[:: effort(EVERY, 1)]
    arguments = ["-q", "-p", "no:cacheprovider", *effort([], [str(EXACT.parents[1] / "kernels")])]
    arguments += [f"{EXACT}::test_convolution[{case.id}]" for case in chosen]
    result = run(CODE.format(width=width, arguments=arguments), **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
