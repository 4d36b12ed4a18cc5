"""Cores and caches of machines as Linux describes them."""

import pytest

from fastlayers.runtime import topology

# Siblings by the numbers of the logical cores.
PAIRS = {n: f"{n // 2 * 2}-{n // 2 * 2 + 1}" for n in range(8)}  # 2n and 2n + 1
HALVES = {n: f"{n % 4},{n % 4 + 4}" for n in range(8)}  # n and n + N / 2
# Two cores with hyperthreads, then four smaller ones without.
HYBRID = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3", 4: "4", 5: "5", 6: "6", 7: "7"}
FOURS = {n: f"{n % 2},{n % 2 + 2},{n % 2 + 4},{n % 2 + 6}" for n in range(8)}
L1, L1I = ("1", "Data", "32K", "0"), ("1", "Instruction", "64K", "0")
L2, L3 = ("2", "Unified", "512K", "0,8"), ("3", "Unified", "32768K", "0-3,8-11")


@pytest.fixture
def root(tmp_path):
    """Give a function that writes the files of some logical cores, and gives their root."""

    def write(siblings, name="core_cpus_list"):
        for number, text in siblings.items():
            put(tmp_path, f"cpu{number}/topology/{name}", text)
        return tmp_path

    return write


def put(root, name, text):
    path = root / "sys/devices/system/cpu" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{text}\n")


def with_caches(root, *levels):
    for i, level in enumerate(levels):
        for name, text in zip(("level", "type", "size", "shared_cpu_list"), level, strict=True):
            put(root, f"cpu0/cache/index{i}/{name}", text)
    return topology.caches(root)


@pytest.mark.parametrize("name", ["core_cpus_list", "thread_siblings_list"])
@pytest.mark.parametrize(
    ("siblings", "logical", "expected"),
    [
        (PAIRS, range(8), 4),
        (PAIRS, [0, 2, 4, 6], 4),
        (PAIRS, [1, 3], 2),
        (PAIRS, [3], 1),
        (PAIRS, [1, 2], 2),
        (HALVES, range(8), 4),
        (HALVES, range(4), 4),
        (HALVES, range(4, 8), 4),
        (HALVES, [0, 4, 5], 2),
        (HYBRID, range(8), 6),
        (HYBRID, [0, 1, 4, 5], 3),
        (HYBRID, [4, 5], 2),
        (FOURS, range(8), 2),
        ({0: "0"}, [0], 1),
    ],
)
def test_physical_cores(root, name, siblings, logical, expected):
    assert topology.physical(logical, root(siblings, name)) == expected


@pytest.mark.parametrize("text", ["", "-", "a", "0-", "1", "3-0", "0,,1", "-1"])
def test_malformed_siblings_count_as_missing(root, text):
    folder = root({0: text, 1: "1"})
    assert topology.physical([0], folder) is topology.physical([0, 1], folder) is None
    assert topology.physical([1], folder) == 1
    root({0: "0-1"}, "thread_siblings_list")
    assert topology.physical([0], folder) == 1


def test_without_files(tmp_path):
    assert topology.physical([0, 1], tmp_path) is None
    assert topology.online(tmp_path) is None
    assert topology.caches(tmp_path) == []


def test_online(root):
    folder = root(PAIRS)
    put(folder, "online", "0-2,5,8-9")
    assert topology.online(folder) == {0, 1, 2, 5, 8, 9}


def test_caches(root):
    assert with_caches(root({}), L1, L1I, L2, L3) == [
        ("L1d", 32 << 10, 1),
        ("L2", 512 << 10, 2),
        ("L3", 32 << 20, 8),
    ]


@pytest.mark.parametrize("field", range(4))
@pytest.mark.parametrize("text", ["", "x"])
def test_a_malformed_cache_counts_as_missing(root, field, text):
    wrong = (*L3[:field], text, *L3[field + 1 :])
    assert with_caches(root({}), L1, wrong) == [("L1d", 32 << 10, 1)]
