import gc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from fastlayers.runtime import memory

LARGE = 2 * memory.SMALLEST_BLOCK


@pytest.fixture(autouse=True)
def _emptied():
    gc.collect()
    memory.empty_cache()


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
    assert memory.memory_stats()["free_blocks"] == 0
    b = memory.empty(LARGE, np.uint8)
    assert address(b) != start
    del kept
    assert memory.memory_stats()["free_blocks"] == 1
    assert address(memory.empty(LARGE, np.uint8)) == start
    assert address(b) != start


def test_zeros_of_a_used_block():
    memory.empty(LARGE, np.uint8).fill(7)
    assert memory.memory_stats()["free_blocks"] == 1
    assert not memory.zeros(LARGE, np.uint8).any()


def test_statistics_and_empty_cache():
    nothing = {"free_blocks": 0, "free_bytes": 0}
    assert memory.memory_stats() == nothing
    kept = [memory.empty(LARGE, np.uint8) for _ in range(3)]
    memory.empty(8, np.uint8)
    assert memory.memory_stats() == nothing
    kept[0].fill(1)
    del kept[1:]
    stats = memory.memory_stats()
    assert stats["free_blocks"] == 2
    assert 2 * LARGE <= stats["free_bytes"] <= 2 * 1.2 * LARGE
    memory.empty_cache()
    assert memory.memory_stats() == nothing
    assert (kept[0] == 1).all()


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
    assert memory.memory_stats()["free_blocks"] > 0


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
