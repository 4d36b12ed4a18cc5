import copy

import numpy as np
import pytest

from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    Subset,
    TensorDataset,
    default_collate,
    get_worker_info,
)

# From Python 3.12 on, where other tests have left threads.
pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
WORKERS = [
    {},
    {"num_workers": 1},
    {"num_workers": 3, "prefetch_factor": 1},
    {"num_workers": 2, "prefetch_factor": 5, "persistent_workers": True},
    {"num_workers": 2, "multiprocessing_context": "fork"},
]


@pytest.fixture
def points():
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    return TensorDataset(x, np.arange(10, dtype=np.int16))


class Noisy(Dataset):
    """Draws from NumPy's global generator, as many programs do."""

    def __len__(self):
        return 64

    def __getitem__(self, index):
        return np.float32(np.random.rand())


@pytest.mark.parametrize("options", [{}, {"prefetch": 0}, {"prefetch": 2}])
def test_without_workers_no_sample_is_drawn_ahead(options):
    np.random.seed(0)
    if options:
        with pytest.warns(DeprecationWarning, match="DataLoader: prefetch has no effect"):
            loader = DataLoader(Noisy(), batch_size=4, **options)
    else:
        loader = DataLoader(Noisy(), batch_size=4)
    next(iter(loader))
    drawn = np.random.rand()
    np.random.seed(0)
    assert drawn == [np.random.rand() for _ in range(5)][-1]


def epoch(loader):
    return [label for _, y in loader for label in np.asarray(y).tolist()]


@pytest.mark.parametrize("workers", WORKERS)
def test_batches_are_lists_of_tensors(points, workers):
    batches = list(DataLoader(points, batch_size=4, **workers))
    assert all(isinstance(batch, list) for batch in batches)
    assert all(isinstance(field, Tensor) for batch in batches for field in batch)
    assert [x.shape for x, _ in batches] == [(4, 2), (4, 2), (2, 2)]
    assert batches[0][0].dtype == np.float32 and batches[0][1].dtype == np.int16
    np.testing.assert_array_equal(np.concatenate([x for x, _ in batches]), points.arrays[0])


@pytest.mark.parametrize(
    ("size", "batch_size", "drop_last", "expected"),
    [(10, 4, False, 3), (10, 4, True, 2), (8, 4, False, 2), (3, 4, True, 0), (0, 4, False, 0)],
)
def test_length(size, batch_size, drop_last, expected):
    dataset = TensorDataset(np.zeros(size))
    loader = DataLoader(dataset, batch_size, drop_last=drop_last)
    assert len(loader) == len(list(loader)) == expected


@pytest.mark.parametrize("options", [{}, {"seed": 7}, {"generator": np.random.default_rng(2)}])
def test_order_does_not_depend_on_workers(points, options):
    def epochs(workers):
        random.manual_seed(5)
        own = copy.deepcopy(options)
        loader = DataLoader(points, 3, shuffle=True, **own, **workers)
        return [epoch(loader) for _ in range(3)]

    reference = epochs({})
    assert all(epochs(workers) == reference for workers in WORKERS)
    assert all(sorted(order) == list(range(10)) for order in reference)
    assert reference[0] != reference[1] != reference[2]


def test_seeded_order_depends_on_seed_and_epoch_alone(points):
    first = DataLoader(points, 3, shuffle=True, seed=1)
    orders = [epoch(first) for _ in range(3)]
    random.manual_seed(99)
    resumed = DataLoader(points, 5, shuffle=True, seed=1)
    resumed.epoch = 2
    assert epoch(resumed) == orders[2]
    assert first.epoch == resumed.epoch == 3
    assert epoch(DataLoader(points, 3, shuffle=True, seed=2)) != orders[0]


def test_manual_seed_governs_unseeded_order(points):
    def order():
        return epoch(DataLoader(points, 3, shuffle=True))

    random.manual_seed(1)
    first, second = order(), order()
    random.manual_seed(1)
    assert order() == first != second


def test_order_is_drawn_when_the_epoch_begins(points):
    random.manual_seed(1)
    expected = epoch(DataLoader(points, 3, shuffle=True))
    random.manual_seed(1)
    batches = iter(DataLoader(points, 3, shuffle=True))
    random.manual_seed(2)
    assert [int(label) for _, y in batches for label in np.asarray(y)] == expected


def test_samples_and_fields_stay_together(points):
    for x, y in DataLoader(points, 3, shuffle=True, seed=0):
        np.testing.assert_array_equal(np.asarray(x)[:, 0], 2 * np.asarray(y))


def test_sampler(points):
    loader = DataLoader(points, 2, sampler=[9, 0, 4])
    assert epoch(loader) == epoch(loader) == [9, 0, 4]
    assert len(loader) == 2
    assert epoch(DataLoader(points, 2, sampler=(i for i in (3, 2)))) == [3, 2]
    assert epoch(DataLoader(points, 2, sampler=[])) == []


def test_sampler_errors(points):
    with pytest.raises(TypeError, match="DataLoader: sampler must have __len__ .* got generator"):
        len(DataLoader(points, None, sampler=(i for i in range(2))))
    with pytest.raises(TypeError, match="BatchSampler: sampler must have __len__ .* got generator"):
        len(DataLoader(points, sampler=(i for i in range(2))))
    with pytest.raises(IndexError, match="TensorDataset: index must be in"):
        list(DataLoader(points, sampler=[10]))


@pytest.mark.parametrize("workers", WORKERS)
def test_batch_sampler(points, workers):
    lists = [[1, 2], (3,), np.array([9, 0, 4]), Tensor(np.array([5]))]
    loader = DataLoader(points, batch_sampler=lists, **workers)
    assert [np.asarray(y).tolist() for _, y in loader] == [[1, 2], [3], [9, 0, 4], [5]]
    assert len(loader) == 4 and loader.batch_size is None
    assert loader.batch_sampler is lists and isinstance(loader.sampler, SequentialSampler)


@pytest.mark.parametrize("workers", WORKERS)
def test_without_batches(points, workers):
    samples = list(DataLoader(points, None, sampler=[4, 2], **workers))
    assert [[type(field) for field in sample] for sample in samples] == [[Tensor, Tensor]] * 2
    assert [np.asarray(x).tolist() for x, _ in samples] == [[8, 9], [4, 5]]
    assert len(DataLoader(points, None)) == 10


def total(samples):
    return sum(samples)


@pytest.mark.parametrize("workers", WORKERS)
def test_collate_fn(workers):
    assert list(DataLoader([1, 2, 3, 4, 5], 2, collate_fn=total, **workers)) == [3, 7, 5]
    assert list(DataLoader(["a", "b"], None, collate_fn=str.upper, **workers)) == ["A", "B"]
    assert list(DataLoader(["a", "b"], 2, **workers)) == [["a", "b"]]


class Stream(IterableDataset):
    """Numbers, of which each worker gives its share."""

    def __init__(self, stop, split=True):
        self.stop, self.split = stop, split

    def __iter__(self):
        info = get_worker_info()
        if info is None or not self.split:
            return iter(range(self.stop))
        return iter(range(info.id, self.stop, info.num_workers))

    def __len__(self):
        return self.stop


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize("drop_last", [False, True])
def test_iterable(workers, drop_last):
    loader = DataLoader(Stream(13), 3, drop_last=drop_last, **workers)
    for _ in range(2):
        batches = [np.asarray(batch).tolist() for batch in loader]
        found = [number for batch in batches for number in batch]
        if not drop_last:
            assert sorted(found) == list(range(13))
        assert len(found) == len(set(found)) and all(len(batch) == 3 for batch in batches[:2])
        if not workers:
            assert found == list(range(12 + (not drop_last)))
    assert len(loader) == 5 - drop_last
    assert sorted(DataLoader(Stream(5), None, **workers)) == list(range(5))
    times = max(1, workers.get("num_workers", 1))
    whole = [int(x) for x in DataLoader(Stream(4, split=False), None, **workers)]
    assert sorted(whole) == sorted(list(range(4)) * times)


def test_attributes(points):
    def start(number):
        pass

    generator = np.random.default_rng(0)
    loader = DataLoader(
        points, 4, True, None, None, 2, total, True, True, 1.5, start, "spawn", generator,
        prefetch_factor=3, persistent_workers=True, pin_memory_device="x", in_order=False,
    )  # fmt: skip
    assert (loader.dataset, loader.batch_size, loader.drop_last) == (points, 4, True)
    assert isinstance(loader.sampler, RandomSampler) and loader.sampler.generator is generator
    assert isinstance(loader.batch_sampler, BatchSampler)
    assert loader.batch_sampler.sampler is loader.sampler and loader.batch_sampler.drop_last
    assert (loader.num_workers, loader.prefetch_factor, loader.timeout) == (2, 3, 1.5)
    assert loader.collate_fn is total and loader.worker_init_fn is start
    assert loader.pin_memory and loader.pin_memory_device == "x" and not loader.in_order
    assert loader.persistent_workers and loader.generator is generator
    assert loader.multiprocessing_context.get_start_method() == "spawn"
    plain = DataLoader[int](points)
    assert plain.prefetch_factor is None and plain.collate_fn is default_collate
    assert DataLoader(points, num_workers=1).prefetch_factor == 2
    for name in ("dataset", "batch_size", "sampler", "batch_sampler", "drop_last"):
        with pytest.raises(ValueError, match=f"DataLoader: {name} must not be set after"):
            setattr(plain, name, None)


def test_repr(points):
    assert repr(DataLoader(points, 3, True)) == (
        "DataLoader(TensorDataset(float32 (10, 2), int16 (10,)), batch_size=3, "
        "sampler=RandomSampler, num_workers=0, drop_last=False)"
    )
    assert "list of 2 samples, batch_sampler=list" in repr(DataLoader([1, 2], batch_sampler=[[0]]))
    endless = type("Endless", (IterableDataset,), {})()
    assert "Endless of no length, batch_size=1, sampler=NoneType" in repr(DataLoader(endless))


@pytest.mark.parametrize(
    ("kind", "arguments", "message"),
    [
        (ValueError, {"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        (ValueError, {"batch_size": 2.0}, "batch_size must be a positive integer, got 2.0"),
        (ValueError, {"batch_size": True}, "batch_size must be a positive integer, got True"),
        (ValueError, {"seed": -1}, "seed must be a non-negative integer, got -1"),
        (ValueError, {"seed": "a"}, "seed must be a non-negative integer, got 'a'"),
        (ValueError, {"num_workers": -1}, "num_workers must be a non-negative integer, got -1"),
        (ValueError, {"timeout": -1}, "timeout must be a non-negative number, got -1"),
        (ValueError, {"timeout": np.inf}, "timeout must be a non-negative number, got inf"),
        (ValueError, {"prefetch_factor": 1}, "prefetch_factor must be None without workers, got 1"),
        (
            ValueError,
            {"prefetch_factor": 0, "num_workers": 1},
            "prefetch_factor must be a positive integer, got 0",
        ),
        (
            ValueError,
            {"persistent_workers": True},
            "persistent_workers option needs num_workers > 0, got 0",
        ),
        (
            ValueError,
            {"shuffle": True, "sampler": [1]},
            "sampler option is mutually exclusive with shuffle, got both",
        ),
        *[
            (
                ValueError,
                {"batch_sampler": [[1]], **more},
                "batch_sampler option is mutually exclusive with batch_size, shuffle, sampler and "
                "drop_last, got one of them, too",
            )
            for more in (
                {"batch_size": 2},
                {"batch_size": None},
                {"shuffle": True},
                {"sampler": [1]},
                {"drop_last": True},
            )
        ],
        (
            ValueError,
            {"batch_size": None, "drop_last": True},
            "batch_size=None is mutually exclusive with drop_last, got drop_last=True",
        ),
        (
            ValueError,
            {"multiprocessing_context": "fork"},
            "multiprocessing_context can only be used with num_workers > 0, got 0",
        ),
        (
            ValueError,
            {"multiprocessing_context": "threads", "num_workers": 1},
            "multiprocessing_context must be one of .*, got 'threads'",
        ),
        (
            TypeError,
            {"multiprocessing_context": 3, "num_workers": 1},
            "multiprocessing_context must be a context of multiprocessing or one of .*, got 3",
        ),
        (TypeError, {"generator": 3}, "generator must be a Generator of fastlayers or .*, got int"),
        (
            ValueError,
            {"generator": np.random.default_rng(), "seed": 1},
            "seed must be None if a generator is given, got 1",
        ),
        (TypeError, {"collate_fn": 3}, "collate_fn must be a function or None, got 3"),
        (TypeError, {"worker_init_fn": 3}, "worker_init_fn must be a function or None, got 3"),
        (TypeError, {"drop_last": None}, "drop_last must be True or False, got None"),
    ],
)
def test_argument_errors(points, kind, arguments, message):
    with pytest.raises(kind, match=f"^DataLoader: {message}$"):
        DataLoader(points, **arguments)


@pytest.mark.parametrize("options", [{"shuffle": True}, {"sampler": [1]}, {"batch_sampler": [[1]]}])
def test_an_iterable_dataset_excludes_orders(options):
    (name,) = options
    with pytest.raises(ValueError, match=f"DataLoader: {name} must be left out with an Iterable"):
        DataLoader(Stream(3), **options)
    DataLoader(Stream(3), shuffle=False)


def test_dataset_must_be_indexable():
    with pytest.raises(TypeError, match="DataLoader: dataset must have __getitem__, got set"):
        DataLoader({1, 2})


def test_generic_datasets():
    (batch,) = DataLoader([(1, 2.5, np.zeros(2)), (3, 4.5, np.ones(2))], batch_size=2)
    assert [field.dtype for field in batch] == [np.int64, np.float32, np.float64]
    assert np.asarray(batch[2]).tolist() == [[0, 0], [1, 1]]
    (single,) = DataLoader([3, 4], batch_size=2)
    assert isinstance(single, Tensor) and np.asarray(single).tolist() == [3, 4]
    (mapping,) = DataLoader([{"a": 1}, {"a": 2}], batch_size=2)
    assert isinstance(mapping["a"], Tensor) and np.asarray(mapping["a"]).tolist() == [1, 2]


def test_a_seeded_program_draws_the_same_numbers_whatever_the_time():
    """A sample is drawn when its batch is asked for, and no other one is drawn ahead."""

    class Noisy(Dataset):
        def __len__(self):
            return 64

        def __getitem__(self, index):
            return np.float32(np.random.rand())

    np.random.seed(0)
    batch = next(iter(DataLoader(Noisy(), batch_size=4)))
    expected = np.random.RandomState(0).rand(5)
    assert np.asarray(batch).tolist() == expected[:4].astype(np.float32).tolist()
    assert np.random.rand() == expected[4]


def test_parts_of_what_is_no_batch():
    loader = DataLoader([{"x": np.arange(5), "names": list("abcde"), "n": 3}], None)
    (first,), (second,) = (loader.part(rank, 2) for rank in range(2))
    assert np.asarray(first["x"]).tolist() == [0, 1] and first["names"] == ["a", "b"]
    assert np.asarray(second["x"]).tolist() == [2, 3, 4] and second["n"] == 3
    with pytest.raises(TypeError, match="DataLoader: batch_size must be given, and the sampler"):
        loader.samples(0)


def test_whole_batches_are_fetched_at_once(points):
    calls = []

    class Watched(TensorDataset):
        def fetch_batch(self, indices):
            calls.append(indices.tolist())
            return super().fetch_batch(indices)

    dataset = Subset(Watched(*points.arrays), range(9, -1, -1))
    assert epoch(DataLoader(dataset, 5)) == list(range(9, -1, -1))
    assert calls == [[9, 8, 7, 6, 5], [4, 3, 2, 1, 0]]


def test_two_iterations_at_once(points):
    loader = DataLoader(points, 5)
    pairs = [(int(a[1][0]), int(b[1][0])) for a in loader for b in loader]
    assert pairs == [(0, 0), (0, 5), (5, 0), (5, 5)]
