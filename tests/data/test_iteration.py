"""Workers of a loader: threads and processes."""

import gc
import multiprocessing
import os
import random as python_random
import threading
import time
import traceback

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    TensorDataset,
    get_worker_info,
    processes,
)
from fastlayers.data.threads import THREAD_NAME

# From Python 3.12 on, where other tests have left threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
THREADS = {"num_workers": 2}
PROCESSES = {"num_workers": 2, "multiprocessing_context": "fork"}
KINDS = [THREADS, PROCESSES]


@pytest.fixture(autouse=True)
def no_worker_is_left():
    yield
    gc.collect()
    assert ended()


class Counting(Dataset):
    """Endless for the purposes of a test; counts how far it was read."""

    def __init__(self, fails_at=None, error=KeyError):
        self.fails_at, self.error = fails_at, error
        self.reads = 0

    def __len__(self):
        return 10_000

    def __getitem__(self, index):
        self.reads += 1
        if index == self.fails_at:
            raise self.error("sample is broken")
        return float(index)


def worker_threads():
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def ended(timeout=5.0):
    deadline = time.monotonic() + timeout
    while (worker_threads() or multiprocessing.active_children()) and time.monotonic() < deadline:
        time.sleep(0.001)
    return not worker_threads() and not multiprocessing.active_children()


def wait_for(condition):
    deadline = time.monotonic() + 5
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.001)
    assert condition()


@pytest.mark.parametrize("workers", KINDS)
@pytest.mark.parametrize("error", [KeyError, ValueError, MemoryError])
def test_an_exception_has_its_type_and_its_traceback(workers, error):
    loader = DataLoader(Counting(5, error), batch_size=2, **workers)
    seen = []
    with pytest.raises(error) as caught:
        seen.extend(np.asarray(batch).tolist() for batch in loader)
    kind = "thread" if workers is THREADS else "process"
    text = str(caught.value)
    assert text.startswith(
        f"Caught {error.__name__} in DataLoader worker {kind} 0.\nOriginal Traceback (most recent"
    )
    assert "in __getitem__" in text and "sample is broken" in text
    assert seen == [[0, 1], [2, 3]]
    if workers is THREADS:
        frames = traceback.extract_tb(caught.value.__cause__.__traceback__)
        assert any(frame.name == "__getitem__" for frame in frames)


class OddError(Exception):
    def __init__(self, first, second):
        super().__init__(first, second)


@pytest.mark.parametrize("workers", KINDS)
def test_an_exception_that_a_message_does_not_make(workers):
    class Fails(Counting):
        def __getitem__(self, index):
            raise OddError(1, 2)

    with pytest.raises(
        RuntimeError, match=r"Caught OddError in DataLoader worker(.|\n)*OddError: \(1, 2\)"
    ):
        list(DataLoader(Fails(), **workers))


@pytest.mark.parametrize("workers", [{}, *KINDS])
def test_stop_iteration_of_a_dataset_is_no_end(workers):
    with pytest.raises(RuntimeError, match="StopIteration"):
        list(DataLoader(Counting(0, StopIteration), **workers))


def test_what_ends_a_thread_ends_each_later_epoch():
    loader = DataLoader(Counting(1, SystemExit), num_workers=1, persistent_workers=True)
    for _ in range(2):
        with pytest.raises(SystemExit, match="sample is broken") as caught:
            list(loader)
    caught.value.__traceback__ = None


def test_a_process_that_ends_is_told():
    class Dies(Counting):
        def __getitem__(self, index):
            return os._exit(3) if index == 1 else index

    message = r"DataLoader: worker \(pid \d+\) must not end before the loader, got exit code 3"
    with pytest.raises(RuntimeError, match=message):
        list(DataLoader(Dies(), **PROCESSES))


def test_what_can_not_be_sent_is_told():
    class Local(Counting):
        def __getitem__(self, index):
            return threading.Lock()

    loader = DataLoader(Local(), None, **PROCESSES)
    with pytest.raises(
        RuntimeError, match="Caught TypeError in DataLoader worker process 0(.|\n)*"
    ):
        list(loader)

    class OwnError(ValueError):
        pass

    with pytest.raises(RuntimeError, match=r"Caught OwnError in DataLoader(.|\n)*sample is broken"):
        list(DataLoader(Counting(1, OwnError), **PROCESSES))


def test_no_worker_without_workers():
    for _, _ in zip(DataLoader(Counting()), range(3), strict=False):
        assert not worker_threads()


def test_threads_work_ahead():
    dataset = Counting()
    batches = iter(DataLoader(dataset, num_workers=2, prefetch_factor=3))
    next(batches)
    wait_for(lambda: dataset.reads == 7)
    assert len(worker_threads()) == 2 and all(thread.daemon for thread in worker_threads())


@pytest.mark.parametrize("workers", KINDS)
def test_workers_end_after_break(workers):
    for _ in DataLoader(Counting(), **workers):
        assert len(worker_threads()) + len(multiprocessing.active_children()) == 2
        break
    assert ended()


@pytest.mark.parametrize("workers", KINDS)
def test_workers_end_after_an_exception(workers):
    with pytest.raises(ZeroDivisionError) as caught:
        for _ in DataLoader(Counting(), **workers):
            raise ZeroDivisionError
    assert ended() and caught.value


@pytest.mark.parametrize("workers", KINDS)
@pytest.mark.parametrize("persistent", [False, True])
def test_workers_end_with_what_they_work_for(workers, persistent):
    loader = DataLoader(Counting(), persistent_workers=persistent, **workers)
    cycle = [iter(loader)]
    next(cycle[0])
    cycle.append(cycle)
    del loader, cycle
    gc.collect()
    assert ended()


@pytest.mark.parametrize("workers", KINDS)
def test_large_batches_that_nobody_takes(workers):
    """They fill the pipe, so a worker waits to send when its end comes."""
    big = TensorDataset(np.zeros((64, 50_000), np.float32))
    next(iter(DataLoader(big, 8, **workers)))
    assert ended()


@pytest.mark.parametrize("workers", KINDS)
def test_a_timeout(workers, monkeypatch):
    """A process that does not end by itself is ended; a thread ends after its sample."""
    monkeypatch.setattr(processes, "_PATIENCE", 0.05)
    free = threading.Event()

    class Slow(Counting):
        def __getitem__(self, index):
            return free.wait(30)  # which the other process waits for in vain

    with pytest.raises(RuntimeError, match=r"DataLoader: timed out after 0.05 seconds, got no"):
        next(iter(DataLoader(Slow(), timeout=0.05, **workers)))
    free.set()


class Told(Dataset):
    """What a worker knows, and draws."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        info = get_worker_info()
        assert info.dataset is self
        return index, info.id, info.num_workers, info.seed, random.numpy_generator().random()


def told(**options):
    return [[part.item() for part in batch] for batch in DataLoader(Told(), **options)]


def test_workers_know_who_they_are_and_have_seeds_of_their_own():
    assert get_worker_info() is None
    runs = []
    for workers in KINDS:
        for _ in range(2):
            fl.manual_seed(4)
            runs.append(told(**workers))
            after = random.numpy_generator().random()
            fl.manual_seed(4)
            list(DataLoader(Counting(), sampler=[]))
            assert after == random.numpy_generator().random()  # one seed is drawn, and no more
    assert runs[0] == runs[1] == runs[2] == runs[3]
    indices, ids, numbers, seeds, drawn = zip(*runs[0], strict=True)
    assert indices == (0, 1, 2, 3, 4, 5) and ids == (0, 1) * 3 and set(numbers) == {2}
    assert seeds == (seeds[0], seeds[0] + 1) * 3
    assert len(set(drawn)) == 6
    expected = np.random.default_rng(seeds[1]).random(3)
    assert drawn[1::2] == tuple(float(np.float32(number)) for number in expected)
    assert told(**THREADS) != runs[0]
    assert told(seed=3, **THREADS) == told(seed=3, **PROCESSES)
    assert told(seed=3, **THREADS) != told(seed=4, **THREADS)


def test_a_process_seeds_python_and_numpy():
    class Noise(Counting):
        def __getitem__(self, index):
            return python_random.random(), np.random.random()

    def drawn():
        fl.manual_seed(1)
        loader = DataLoader(Noise(), sampler=range(4), **PROCESSES)
        return [[part.item() for part in batch] for batch in loader]

    assert drawn() == drawn()
    assert len({number for sample in drawn() for number in sample}) == 8


@pytest.mark.parametrize("workers", KINDS)
@pytest.mark.parametrize("persistent", [False, True])
def test_worker_init_fn(workers, persistent):
    class Started(Counting):
        def __getitem__(self, index):
            return get_worker_info().id, *started[get_worker_info().id]

    started = {0: [], 1: []}

    def start(number):
        started[number].append(random.numpy_generator().random())

    options = {"worker_init_fn": start, "persistent_workers": persistent, **workers}
    loader = DataLoader(Started(), sampler=range(4), **options)
    first, second = ([[x.item() for x in sample] for sample in loader] for _ in range(2))
    assert [sample[0] for sample in first] == [0, 1, 0, 1]
    assert {len(sample) for sample in first} == {2}
    assert (first == second) is persistent
    if not persistent and workers is THREADS:
        assert len(started[0]) == 2


@pytest.mark.parametrize("workers", KINDS)
def test_a_start_that_fails_fails_each_epoch(workers):
    def start(number):
        raise LookupError(f"no worker {number}")

    loader = DataLoader([1, 2], worker_init_fn=start, persistent_workers=True, **workers)
    for _ in range(2):
        with pytest.raises(LookupError, match=r"Caught LookupError(.|\n)*no worker 0"):
            list(loader)


@pytest.mark.parametrize("workers", KINDS)
def test_an_iterable_that_can_not_begin(workers):
    class Never(IterableDataset):
        def __iter__(self):
            raise LookupError("no stream")

    with pytest.raises(LookupError, match="no stream"):
        list(DataLoader(Never(), **workers))


@pytest.mark.parametrize("workers", KINDS)
def test_persistent_workers_stay(workers):
    class Who(Counting):
        def __getitem__(self, index):
            return os.getpid(), threading.get_native_id(), index

    loader = DataLoader(Who(), sampler=range(5), persistent_workers=True, **workers)
    next(iter(loader))  # which leaves results behind
    epochs = [[[x.item() for x in sample] for sample in loader] for _ in range(2)]
    assert epochs[0] == epochs[1]
    assert [sample[2] for sample in epochs[0]] == list(range(5))
    assert len({tuple(sample[:2]) for sample in epochs[0]}) == 2


@pytest.mark.parametrize("workers", KINDS)
def test_persistent_workers_serve_one_iteration(workers):
    loader = DataLoader(range(20), persistent_workers=True, **workers)
    first = iter(loader)
    assert next(first).item() == 0
    assert [x.item() for x in loader] == list(range(20))
    with pytest.raises(RuntimeError, match="persistent workers must serve one iteration at a time"):
        list(first)


def test_two_iterations_at_once_of_other_workers():
    loader = DataLoader([0, 1], **THREADS)
    assert [(a.item(), b.item()) for a in loader for b in loader] == [
        (0, 0),
        (0, 1),
        (1, 0),
        (1, 1),
    ]


def test_tensors_come_from_processes_as_they_are():
    samples = [Tensor(np.ones(2, np.float32), requires_grad=True), Tensor(np.zeros(1, np.int16))]
    found = list(DataLoader(samples, None, **PROCESSES))
    assert [x.requires_grad for x in found] == [True, False]
    assert [(x.dtype, x.shape) for x in found] == [(np.float32, (2,)), (np.int16, (1,))]


def test_processes_that_are_spawned():
    data = TensorDataset(np.arange(5))
    loader = DataLoader(data, 2, num_workers=1, multiprocessing_context="spawn")
    assert [batch[0].tolist() for batch in loader] == [[0, 1], [2, 3], [4]]
