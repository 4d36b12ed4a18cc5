import platform
import re
from pathlib import Path

import pytest
from specs.conv_sizes import EXACT as CONVOLUTIONS

import fastlayers as fl
from fastlayers.runtime import caches, cpu, topology

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


NAMES = ("L1", "L2", "L3")
CACHES = {
    # Of Zen 3, Raspberry Pi 3 and 4 (four cores with one L2), M1, and two threads of an Intel core.
    "zen 3": ([("L1d", 32, 1), ("L2", 512, 1), ("L3", 32768, 8)], [32, 512, 32768]),
    "cortex-a53": ([("L1d", 32, 1), ("L2", 512, 4)], [32, 128, 512]),
    "cortex-a72": ([("L1d", 32, 1), ("L2", 1024, 4)], [32, 256, 1024]),
    "m1": ([("L1d", 128, 1), ("L2", 12288, 4)], [128, 3072, 12288]),
    "intel": ([("L1d", 48, 2), ("L2", 2048, 2), ("L3", 24576, 16)], [48, 2048, 24576]),
    "no L1": ([("L2", 256, 1)], [32, 256, 256]),
}


@pytest.fixture
def sizes(monkeypatch):
    """Give a function that sets caches and variables, and gives the sizes in KiB."""
    monkeypatch.setattr(cpu, "_host", lambda: "x86_64")
    monkeypatch.setattr(cpu, "fleet", lambda: None)
    for name in NAMES:
        monkeypatch.delenv(f"FASTLAYERS_{name}_BYTES", raising=False)
    functions = (cpu.l1_bytes, cpu.l2_bytes, cpu.cache_bytes)

    def sizes(found, **variables):
        levels = [topology.Cache(name, size << 10, shared) for name, size, shared in found]
        monkeypatch.setattr(caches, "caches", lambda: levels)
        for name, value in variables.items():
            monkeypatch.setenv(f"FASTLAYERS_{name}_BYTES", str(value))
        return [function.__wrapped__() >> 10 for function in functions]

    return sizes


@pytest.mark.parametrize(("found", "expected"), CACHES.values(), ids=CACHES)
def test_sizes_of_caches(sizes, found, expected):
    assert sizes(found) == expected
    assert sizes(found, L1=1 << 14) == [16, *expected[1:]]
    assert sizes(found, L2=1 << 17) == [16, 128, expected[2]]
    assert sizes(found, L3=1 << 21) == [16, 128, 2048]


def test_sizes_where_the_system_does_not_tell(sizes, monkeypatch):
    assert sizes([]) == [32, 512, 32768]
    monkeypatch.setattr(cpu, "_host", lambda: "aarch64")
    assert sizes([]) == [32, 256, 1024]


def test_sizes_of_a_level_are_not_the_machines(sizes, monkeypatch):
    found = CACHES["m1"][0]
    monkeypatch.setattr(cpu, "fleet", lambda: "x86-64-v4")
    assert sizes(found) == [32, 1024, 32768]
    monkeypatch.setattr(cpu, "fleet", lambda: "armv8.2-a")
    assert sizes(found) == [64, 512, 2048]
    assert sizes(found, L2=1 << 17) == [64, 128, 2048]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", ["", "0", "-1", "1e6", "64K", "\u00b2"])
def test_wrong_sizes(sizes, name, value):
    message = rf"^FASTLAYERS_{name}_BYTES: expected a positive number of bytes, got '{value}'$"
    with pytest.raises(ValueError, match=message):
        sizes([], **{name: value})


def test_kernels_depend_on_no_fact_that_the_cache_does_not_know():
    """Its folder's name has a hash of `CODE_FACTS`; `lanes` follows from them."""
    files = (Path(fl.__file__).parent / "kernels").rglob("*.py")
    used = {name for file in files for name in re.findall(r"\bcpu\.(\w+)", file.read_text())}
    assert used <= {fact.__name__ for fact in cpu.CODE_FACTS} | {"lanes"}


X86 = ("sse2", "avx", "avx2", "fma", "bmi2")
MACHINES = {
    # By architecture and features as LLVM has them: the levels, and rows of a tile.
    ("x86_64", X86[:2]): ([], 6),
    ("x86_64", X86): (["x86-64-v3"], 6),
    ("x86_64", (*X86, "avx512f", "avx512vl")): (["x86-64-v3", "x86-64-v4"], 12),
    ("aarch64", ("neon", "crc")): (["armv8-a"], 12),
    ("aarch64", ("neon", "lse", "sve")): (["armv8-a", "armv8.2-a"], 12),
    ("aarch64", ()): (["armv8-a"], 12),  # as qemu 7.2 has it
    ("arm", ("neon",)): ([], 6),
    ("riscv64", ()): ([], 6),
}


@pytest.mark.parametrize(("machine", "expected"), MACHINES.items(), ids=str)
def test_levels_of_machines(features, monkeypatch, machine, expected):
    host, names = machine
    features(*names)
    monkeypatch.setattr(cpu, "_host", lambda: host)
    monkeypatch.setattr(cpu, "fleet", lambda: None)
    monkeypatch.setattr(cpu, "vector_bytes", vector_bytes)
    assert [level for level in cpu.LEVELS if cpu.supports(level)] == expected[0]
    assert cpu.tile_rows() == expected[1]


def test_levels_of_apple(features, monkeypatch):
    features()
    monkeypatch.setattr(cpu, "_host", lambda: "aarch64")
    monkeypatch.setattr("sys.platform", "darwin")
    assert [level for level in cpu.LEVELS if cpu.supports(level)] == ["armv8-a", "armv8.2-a"]


@pytest.mark.parametrize(
    ("triple", "expected"),
    [
        ("x86_64-unknown-linux-gnu", "x86_64"),
        ("aarch64-unknown-linux-gnu", "aarch64"),
        ("arm64-apple-darwin25.0.0", "aarch64"),
        ("AMD64-pc-windows-msvc", "x86_64"),
        ("armv7l-unknown-linux-gnueabihf", "armv7l"),
    ],
)
def test_architectures(monkeypatch, triple, expected):
    monkeypatch.setattr("llvmlite.binding.get_process_triple", lambda: triple)
    assert cpu._host.__wrapped__() == expected


def test_features_that_llvm_does_not_tell(monkeypatch):
    def fail():
        raise RuntimeError("not for this machine")

    monkeypatch.setattr("llvmlite.binding.get_host_cpu_features", fail)
    assert cpu._features.__wrapped__() == {}


FACTS = {  # of each level: vector bits, rows of a tile, free masks of loads and of stores
    "x86-64-v3": (32, 6, True, False),
    "x86-64-v4": (64, 12, True, True),
    "armv8-a": (16, 12, False, False),
    "armv8.2-a": (16, 12, False, False),
}


@pytest.mark.parametrize(("level", "facts"), FACTS.items())
def test_facts_of_a_level_are_not_the_machines(features, monkeypatch, level, facts):
    for names in ((), ("avx2", "avx512f"), ("neon", "sve")):
        features(*names)
        monkeypatch.setattr(cpu, "fleet", lambda: level)
        monkeypatch.setattr(cpu, "vector_bytes", vector_bytes)
        found = cpu.vector_bytes(), cpu.tile_rows(), cpu.masked_loads(), cpu.masked_stores()
        assert found == facts
        assert cpu.machine() == cpu.LEVELS[level].machine
    assert FACTS.keys() == cpu.LEVELS.keys()


def test_fleet(features, monkeypatch):
    features("avx2", "fma", "bmi2")
    monkeypatch.setattr(cpu, "_host", lambda: "x86_64")
    fleet = cpu.fleet.__wrapped__
    monkeypatch.setenv("FASTLAYERS_CPU", "")
    assert fleet() is None
    monkeypatch.setenv("FASTLAYERS_CPU", "x86-64-v3")
    assert fleet() == "x86-64-v3"
    levels = "x86-64-v3, x86-64-v4, armv8-a or armv8.2-a"
    for value, message in (
        ("x86-64-v4", "FASTLAYERS_CPU: .* does not support x86-64-v4"),
        ("armv8-a", "FASTLAYERS_CPU: .* does not support armv8-a"),
        ("i386", f"FASTLAYERS_CPU: expected {levels}, got 'i386'"),
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


TRAINED = """
import hashlib
import numpy as np
import fastlayers as fl
from fastlayers import nn
from fastlayers.runtime import cache, caches, cpu, topology

found = dict.fromkeys({features!r}, True)
cpu._features = lambda: found
caches.caches = lambda: [topology.Cache(name, size, 1) for name, size in {sizes!r}]
fl.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, stride=2),
    nn.ReLU(), nn.Flatten(), nn.Linear(16 * 49, 10),
)
optimizer = fl.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
x = np.random.default_rng(0).standard_normal((8, 3, 16, 16), np.float32)
for _ in range(3):
    loss = nn.functional.cross_entropy(net(fl.Tensor(x)), np.arange(8))
    loss.backward()
    optimizer.step()
    optimizer.zero_grad()
bits = b"".join(np.ascontiguousarray(p.array()).tobytes() for p in net.parameters())
print(loss.item(), hashlib.sha256(bits).hexdigest(), cache.cache_dir().name)
"""


@pytest.mark.skipif(not any(map(cpu.supports, cpu.LEVELS)), reason="this machine has no level")
def test_a_level_gives_the_same_bits_on_other_machines(run):
    """With features that not all machines of the level have, other caches and more threads."""
    level = next(filter(cpu.supports, cpu.LEVELS))
    more = ("avx512f", "avx512vl", "neon", "sve", "lse")
    machines = (
        (1, cpu.LEVELS[level].needs, [("L1d", 32 << 10), ("L2", 256 << 10)]),
        (2, (*cpu.LEVELS[level].needs, *more), [("L1d", 48 << 10), ("L2", 2 << 20)]),
    )
    told = set()
    for threads, features, sizes in machines:
        code = TRAINED.format(features=features, sizes=sizes)
        result = run(code, FASTLAYERS_CPU=level, FASTLAYERS_NUM_THREADS=threads)
        assert result.returncode == 0, result.stderr
        told.add(result.stdout)
    assert len(told) == 1


LATE = """
import numba, numpy as np, pytest
assert numba.njit(lambda x: x + 1)(1) == 2
import fastlayers as fl
for _ in range(2):
    with pytest.raises(RuntimeError, match="^FASTLAYERS_CPU: Numba compiles for .* already"):
        fl.ops.relu(np.ones(3, np.float32))
"""


@pytest.mark.skipif(not any(map(cpu.supports, cpu.LEVELS)), reason="this machine has no level")
def test_a_level_that_comes_too_late(run):
    level = next(filter(cpu.supports, cpu.LEVELS))
    result = run(LATE, FASTLAYERS_CPU=level)
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
from fastlayers.runtime import cpu

def tile_rows():
    return {rows}

cpu.CODE_FACTS = tuple(tile_rows if fact is cpu.tile_rows else fact for fact in cpu.CODE_FACTS)
cpu.tile_rows = tile_rows
assert cpu.vector_bytes() == {width}
from cases import CASES, check_exact
for op in ("linear", "max_pool2d"):
    chosen = [case for case in CASES if case.op == op and case.size < 40000]
    for case in chosen[:6] + chosen[-1:]:
        check_exact(case)
raise SystemExit(pytest.main({arguments!r}))
"""


@pytest.mark.parametrize(("width", "rows"), [(16, 6), (16, 12), (32, 6)])
def test_narrow_vectors_give_the_same_integers(run, width, rows, effort):
    """`.ci/run` runs more tests so. 12 rows of 16 bytes are ARM's."""
    if width >= cpu.vector_bytes():
        pytest.skip("all other tests have vectors that are no wider")
    # Small caches too, as then `tests/ops/test_conv_cuts.py` finds all cuts in these cases.
    variables = {"FASTLAYERS_VECTOR_BYTES": width, "FASTLAYERS_L2_BYTES": 32 << 10}
    if cpu.vector_bytes() == 64:  # the 16 registers and other instructions of a smaller CPU, too
        variables |= {"NUMBA_CPU_NAME": "haswell", "NUMBA_CPU_FEATURES": ""}
    chosen = CONVOLUTIONS[:: effort(EVERY, 1)]
    arguments = ["-q", "-p", "no:cacheprovider", *effort([], [str(EXACT.parents[1] / "kernels")])]
    arguments += [f"{EXACT}::test_convolution[{case.id}]" for case in chosen]
    result = run(CODE.format(width=width, rows=rows, arguments=arguments), **variables)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "passed" in result.stdout
