import gc
import threading
import time
import traceback

import numpy as np
import pytest

from fastlayers.data import DataLoader, Dataset, TensorDataset
from fastlayers.data.prefetch import THREAD_NAME

PREFETCHES = [0, 1, 2, 5]


@pytest.fixture
def points():
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    return TensorDataset(x, np.arange(10, dtype=np.int16))


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    gc.collect()
    assert threads_end()


class Counting(Dataset):
    """Endless for the purposes of a test; counts how far it was read."""

    def __init__(self, fails_at=None):
        self.fails_at = fails_at
        self.reads = 0

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        self.reads += 1
        if index == self.fails_at:
            raise KeyError("sample is broken")
        return float(index)


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def threads_end(timeout=2.0):
    deadline = time.monotonic() + timeout
    while worker_threads() and time.monotonic() < deadline:
        time.sleep(0.001)
    return not worker_threads()


@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_exception_reaches_the_caller_with_its_traceback(prefetch):
    loader = DataLoader(Counting(fails_at=5), batch_size=2, prefetch=prefetch)
    seen = []
    with pytest.raises(KeyError, match="sample is broken") as caught:
        seen.extend(batch.data.tolist() for batch in loader)
    frames = traceback.extract_tb(caught.value.__traceback__)
    assert any(frame.name == "__getitem__" for frame in frames)
    with pytest.raises(KeyError):
        for batch in loader:
            seen.append(batch.data.tolist())
    assert seen[-2:] == [[0, 1], [2, 3]]


def test_stop_iteration_of_a_dataset_is_no_end():
    class Stops(Dataset):
        def __len__(self):
            return 3

        def __getitem__(self, index):
            raise StopIteration

    for prefetch in (0, 2):
        with pytest.raises(RuntimeError, match="StopIteration"):
            list(DataLoader(Stops(), prefetch=prefetch))


def test_no_thread_without_prefetch(points):
    for _ in DataLoader(points, prefetch=0):
        assert not worker_threads()


def test_one_daemon_thread(points):
    batches = iter(DataLoader(points, prefetch=3))
    next(batches)
    assert [thread.daemon for thread in worker_threads()] in ([True], [])
    assert len(list(batches)) == 9
    assert threads_end()


def test_thread_works_ahead_by_prefetch_batches():
    dataset = Counting()
    batches = iter(DataLoader(dataset, batch_size=1, prefetch=3))
    next(batches)
    deadline = time.monotonic() + 2
    while dataset.reads < 4 and time.monotonic() < deadline:
        time.sleep(0.001)
    time.sleep(0.02)
    assert dataset.reads == 4
    (worker,) = worker_threads()
    assert worker.daemon


def test_thread_ends_after_break():
    dataset = Counting()
    for _ in DataLoader(dataset, batch_size=2):
        assert worker_threads()
        break
    assert threads_end()
    assert dataset.reads <= 8


def test_thread_ends_after_exception():
    with pytest.raises(ZeroDivisionError):
        for _ in DataLoader(Counting()):
            raise ZeroDivisionError
    assert threads_end()


def test_thread_ends_with_the_iterator():
    batches = iter(DataLoader(Counting()))
    next(batches)
    assert worker_threads()
    del batches
    assert threads_end()


def test_thread_ends_when_a_cycle_is_collected():
    batches = iter(DataLoader(Counting()))
    next(batches)
    cycle = [batches]
    cycle.append(cycle)
    del batches, cycle
    gc.collect()
    assert threads_end()
