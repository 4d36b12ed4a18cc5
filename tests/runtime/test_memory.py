import gc
import mmap
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastlayers.runtime import memory

LARGE = 2 * memory.SMALLEST_BLOCK


@pytest.fixture(autouse=True)
def _emptied(young_heap):
    gc.collect()
    memory.empty_cache()


def used_blocks():
    return memory.memory_stats()["used_blocks"]


def free_blocks():
    return memory.memory_stats()["free_blocks"]


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64, np.int64])
@pytest.mark.parametrize(
    "shape", [0, 7, (), (0, 3), (3, 5), LARGE, (LARGE,), (77, 1001), (3, 5, 4099)]
)
def test_arrays(shape, dtype):
    a = memory.empty(shape, dtype)
    expected = np.empty(shape, dtype)
    assert (a.shape, a.dtype, a.strides) == (expected.shape, expected.dtype, expected.strides)
    assert type(a) is np.ndarray and a.flags.writeable and a.flags.aligned
    assert a.nbytes < memory.SMALLEST_BLOCK or address(a) % 64 == 0
    a.fill(1)
    np.testing.assert_array_equal(memory.zeros(shape, dtype), np.zeros(shape, dtype))


VIEWS = {
    "itself": lambda a: a,
    "slice": lambda a: a[5:9],
    "transpose": lambda a: a.reshape(2, -1).T[::3],
    "other dtype": lambda a: a.view(np.uint8)[1:],
    "view of a view": lambda a: np.asarray(a[1:])[2:].reshape(-1, 1),
    "read only": lambda a: np.broadcast_to(a[:1], (4, 1)),
    "buffer": memoryview,
}


@pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
def test_blocks_are_reused_after_the_last_view(view):
    a = memory.empty(LARGE, np.uint8)
    start, kept = address(a), view(a)
    del a
    assert free_blocks() == 0
    b = memory.empty(LARGE, np.uint8)
    assert address(b) != start
    del kept
    assert free_blocks() == 1
    assert address(memory.empty(LARGE, np.uint8)) == start
    assert address(b) != start


def test_zeros_of_a_used_block():
    memory.empty(LARGE, np.uint8).fill(7)
    assert free_blocks() == 1
    assert not memory.zeros(LARGE, np.uint8).any()


@pytest.mark.skipif(sys.platform != "linux", reason="counts page faults as Linux does")
def test_zeros_of_a_new_block_are_not_touched():
    resource, pages = pytest.importorskip("resource"), 256
    before = resource.getrusage(resource.RUSAGE_THREAD).ru_minflt
    zeros = memory.zeros(pages * mmap.PAGESIZE, np.uint8)
    assert resource.getrusage(resource.RUSAGE_THREAD).ru_minflt - before < pages // 2
    assert not zeros.any()
    zeros.fill(1)
    del zeros
    assert not memory.zeros(pages * mmap.PAGESIZE, np.uint8).any()


def test_statistics_and_empty_cache():
    before = memory.memory_stats()
    assert (before["free_blocks"], before["free_bytes"]) == (0, 0)
    kept = [memory.empty(LARGE, np.uint8) for _ in range(3)]
    memory.empty(8, np.uint8)
    stats = memory.memory_stats()
    assert stats["used_blocks"] == before["used_blocks"] + 3
    assert stats["new_blocks"] == before["new_blocks"] + 3
    kept[0].fill(1)
    del kept[1:]
    stats = memory.memory_stats()
    assert stats["free_blocks"] == 2 and stats["used_blocks"] == before["used_blocks"] + 1
    assert 2 * LARGE <= stats["free_bytes"] <= 2 * 1.2 * LARGE
    assert stats["peak_bytes"] >= stats["used_bytes"] + stats["free_bytes"]
    memory.empty_cache()
    assert (free_blocks(), used_blocks()) == (0, before["used_blocks"] + 1)
    assert (kept[0] == 1).all()
    del kept
    assert (free_blocks(), used_blocks()) == (1, before["used_blocks"])


@pytest.mark.parametrize("nbytes", [memory.SMALLEST_BLOCK, 10**5, 3 << 20, (9 << 20) + 12345])
def test_a_loop_takes_no_new_memory(nbytes):
    def step():
        live = [memory.empty(nbytes + i % 2 * 64, np.uint8) for i in range(6)]
        return [memory.empty(2 * nbytes, np.uint8), live.pop(0)]

    step()
    new = memory.memory_stats()["new_blocks"]
    for _ in range(5):
        step()
    assert memory.memory_stats()["new_blocks"] == new


def test_what_is_kept_is_bounded(monkeypatch):
    monkeypatch.setattr(memory, "KEPT", 0)
    monkeypatch.setattr(memory, "_pool", memory._Pool())
    monkeypatch.setattr(memory, "_frees", {})
    monkeypatch.setattr(memory, "_frees_of", {})
    most = 40 * LARGE
    for size in range(most, 10 * LARGE, -4099):  # no two of them fit the same block
        memory.empty(size, np.uint8)
        memory.empty(LARGE, np.uint8)  # used all the time
        assert memory.memory_stats()["free_bytes"] <= 2.5 * most
    new = memory.memory_stats()["new_blocks"]
    memory.empty(LARGE, np.uint8)
    assert memory.memory_stats()["new_blocks"] == new


def test_no_memory():
    with pytest.raises(MemoryError, match="no memory for an array of"):
        memory.empty(1 << 60, np.uint8)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_huge_pages_hold_nothing_that_is_not_written():
    kept = [memory.empty((2 << 20) - 4096, np.uint8) for _ in range(8)]
    kept += [memory.empty((4 << 20) + 4096, np.uint8) for _ in range(8)]
    before = resident()
    for a in kept:
        a.fill(1)
    assert resident() - before < sum(a.nbytes for a in kept) + (1 << 20)


def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def test_large_arrays_begin_on_a_huge_page():
    assert address(memory.empty(5 << 20, np.uint8)) % memory.HUGE_PAGE == 0


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_a_forked_child_writes_to_a_copy():
    code = (
        "import os, numpy as np; from fastlayers.runtime import memory;"
        "a = memory.zeros(1 << 20, np.uint8); pid = os.fork();"
        "pid or (a.fill(1), os._exit(0)); os.waitpid(pid, 0); assert not a.any()"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_arrays_may_outlive_everything():
    code = (
        "import sys, threading, time; from fastlayers.runtime import memory;"
        "sys.kept = memory.empty(1 << 20, 'u1')[5:]; kept = [memory.empty(1 << 20, 'u1')];"
        "kept.append(kept); memory.scratch((50000,), 'u1');"
        "loop = lambda: all(memory.empty(1 << 20, 'u1') is not None for _ in iter(int, 1));"
        "threading.Thread(target=loop, daemon=True).start(); time.sleep(0.05)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, timeout=60
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_scratch():
    a, b, c = memory.scratch((100, 0, 20_000), np.float32)
    assert [x.shape for x in (a, b, c)] == [(100,), (0,), (20_000,)]
    assert {x.dtype for x in (a, b, c)} == {np.dtype(np.float32)}
    assert address(a) % 64 == address(c) % 64 == 0
    assert not np.shares_memory(a, c)
    first = address(a)
    del a, b, c
    for counts in [(100, 0, 20_000), (7,), (20_000,)]:
        assert address(memory.scratch(counts, np.float32)[0]) == first
    assert address(memory.scratch((5,), np.uint8)[0]) == first
    assert memory.scratch((), np.float32) == ()
    assert [x.size for x in memory.scratch(tuple(range(30)), np.float32)] == list(range(30))


HOLD = {
    "all": lambda arrays: arrays,
    "tuple": lambda arrays: (arrays,),
    "one": lambda arrays: arrays[1],
    "view": lambda arrays: arrays[0][3:].reshape(1, -1),
    "buffer": lambda arrays: memoryview(arrays[2]),
}


@pytest.mark.parametrize("hold", HOLD.values(), ids=HOLD)
def test_scratch_of_a_call_inside_a_call(hold):
    counts = (100, 200, 300)
    first = [address(a) for a in memory.scratch(counts, np.float64)]
    kept = hold(memory.scratch(counts, np.float64))
    for counts in [(100, 200, 300), (5,), (50_000,)]:
        inner = [address(a) for a in memory.scratch(counts, np.float64)]
        assert not set(inner) & set(first)
    memory.empty_cache()
    inner = memory.scratch((600,), np.float64)
    assert not set(first) & {address(inner[0])}
    del inner, kept
    counts = (100, 200, 300)
    again = [address(a) for a in memory.scratch(counts, np.float64)]
    assert [address(a) for a in memory.scratch(counts, np.float64)] == again


def test_scratch_is_freed():
    before = used_blocks()
    memory.scratch((100_000,), np.uint8)
    thread = threading.Thread(target=memory.scratch, args=((100_000,), np.uint8))
    thread.start()
    thread.join()
    assert used_blocks() == before + 1  # the other thread's is free
    memory.empty_cache()
    assert (used_blocks(), free_blocks()) == (before, 0)
    memory.scratch((memory.SCRATCH + 1,), np.uint8)
    assert used_blocks() == before


def test_threads_have_their_own_scratch():
    def work(seed):
        rng = np.random.default_rng(seed)
        for _ in range(200):
            arrays = memory.scratch(tuple(rng.integers(0, 5000, 3).tolist()), np.int64)
            for i, a in enumerate(arrays):
                a.fill(3 * seed + i)
            inner = memory.scratch((5000,), np.int64)[0]
            inner.fill(-1)
            if seed == 0:
                memory.empty_cache()
            assert all((a == 3 * seed + i).all() for i, a in enumerate(arrays))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(8)))


def use_memory(seed, rounds=300):
    """Allocate and drop at random; every live array keeps what was written to it."""
    rng = np.random.default_rng(seed)
    live = []
    for number in range(rounds):
        if live and rng.random() < 0.5:
            view, value = live.pop(rng.integers(len(live)))
            assert (view == value).all()
        size = int(rng.choice([LARGE, LARGE + 64, 3 * LARGE]))
        a = memory.empty(size, np.int32)
        a.fill(seed * rounds + number)
        live.append((a[rng.integers(size) :], seed * rounds + number))
    assert all((view == value).all() for view, value in live)


def test_live_views_are_never_handed_out():
    use_memory(0)
    assert free_blocks() > 0


def test_threads_never_share_a_block():
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(use_memory, range(1, 9), [100] * 8))


def test_writable_view():
    a = np.arange(6.0).reshape(2, 3)[:, ::2]
    assert memory.writable_view(a) is a
    a.flags.writeable = False
    view = memory.writable_view(a)
    assert view.flags.writeable and not a.flags.writeable
    assert (address(view), view.strides, view.dtype) == (address(a), a.strides, a.dtype)
    del a
    np.testing.assert_array_equal(view, [[0, 2], [3, 5]])
