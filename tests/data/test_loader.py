import numpy as np
import pytest

from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.data import DataLoader, Subset, TensorDataset

PREFETCHES = [0, 1, 2, 5]


@pytest.fixture
def points():
    x = np.arange(20, dtype=np.float32).reshape(10, 2)
    return TensorDataset(x, np.arange(10, dtype=np.int16))


def epoch(loader):
    return [label for _, y in loader for label in np.asarray(np.asarray(y)).tolist()]


@pytest.mark.parametrize("prefetch", PREFETCHES)
def test_batches_are_lists_of_tensors(points, prefetch):
    batches = list(DataLoader(points, batch_size=4, **workers(prefetch)))
    assert all(isinstance(batch, list) for batch in batches)
    assert all(isinstance(field, Tensor) for batch in batches for field in batch)
    assert [x.shape for x, _ in batches] == [(4, 2), (4, 2), (2, 2)]
    assert batches[0][0].data.dtype == np.float32 and batches[0][1].data.dtype == np.int16
    np.testing.assert_array_equal(np.concatenate([x.data for x, _ in batches]), points.arrays[0])


@pytest.mark.parametrize(
    ("size", "batch_size", "drop_last", "expected"),
    [(10, 4, False, 3), (10, 4, True, 2), (8, 4, False, 2), (3, 4, True, 0), (0, 4, False, 0)],
)
def test_length(size, batch_size, drop_last, expected):
    dataset = TensorDataset(np.zeros(size))
    loader = DataLoader(dataset, batch_size, drop_last=drop_last)
    assert len(loader) == len(list(loader)) == expected


@pytest.mark.parametrize("seed", [None, 7])
def test_order_does_not_depend_on_prefetch(points, seed):
    def epochs(prefetch):
        random.manual_seed(5)
        loader = DataLoader(points, 3, shuffle=True, seed=seed, **workers(prefetch))
        return [epoch(loader) for _ in range(3)]

    reference = epochs(0)
    assert all(epochs(prefetch) == reference for prefetch in PREFETCHES)
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
        np.testing.assert_array_equal(x.data[:, 0], 2 * np.asarray(y))


def test_sampler(points):
    loader = DataLoader(points, 2, sampler=[9, 0, 4])
    assert epoch(loader) == epoch(loader) == [9, 0, 4]
    assert len(loader) == 2
    assert epoch(DataLoader(points, 2, sampler=(i for i in (3, 2)))) == [3, 2]
    assert epoch(DataLoader(points, 2, sampler=[])) == []


def test_sampler_errors(points):
    with pytest.raises(ValueError, match="DataLoader: sampler must be None if shuffle is true"):
        DataLoader(points, shuffle=True, sampler=[1])
    with pytest.raises(TypeError, match="DataLoader: sampler must be a sequence of integers"):
        iter(DataLoader(points, sampler=[0.5]))
    with pytest.raises(TypeError, match="DataLoader: sampler must have __len__ .* got generator"):
        len(DataLoader(points, sampler=(i for i in range(2))))
    with pytest.raises(IndexError, match="TensorDataset: index must be in"):
        list(DataLoader(points, sampler=[10]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a positive integer, got 0"),
        ({"batch_size": 2.0}, "batch_size must be a positive integer, got 2.0"),
        ({"batch_size": True}, "batch_size must be a positive integer, got True"),
        ({"prefetch": -1}, "prefetch must be a non-negative integer, got -1"),
        ({"seed": -1}, "seed must be a non-negative integer, got -1"),
        ({"seed": "a"}, "seed must be a non-negative integer, got 'a'"),
    ],
)
def test_argument_errors(points, arguments, message):
    with pytest.raises(ValueError, match=f"^DataLoader: {message}$"):
        DataLoader(points, **arguments)


def test_dataset_must_be_indexable():
    with pytest.raises(TypeError, match="DataLoader: dataset must have __getitem__, got set"):
        DataLoader({1, 2})


def test_generic_datasets():
    (batch,) = DataLoader([(1, 2.5, np.zeros(2)), (3, 4.5, np.ones(2))], batch_size=2)
    assert [field.data.dtype for field in batch] == [np.int64, np.float32, np.float64]
    assert batch[2].data.tolist() == [[0, 0], [1, 1]]
    (single,) = DataLoader([3, 4], batch_size=2)
    assert isinstance(single, Tensor) and single.data.tolist() == [3, 4]
    (mapping,) = DataLoader([{"a": 1}, {"a": 2}], batch_size=2)
    assert isinstance(mapping["a"], Tensor) and mapping["a"].data.tolist() == [1, 2]


def test_whole_batches_are_fetched_at_once(points):
    calls = []

    class Watched(TensorDataset):
        def batch(self, indices):
            calls.append(indices.tolist())
            return super().batch(indices)

    dataset = Subset(Watched(*points.arrays), range(9, -1, -1))
    assert epoch(DataLoader(dataset, 5)) == list(range(9, -1, -1))
    assert calls == [[9, 8, 7, 6, 5], [4, 3, 2, 1, 0]]


def test_two_iterations_at_once(points):
    loader = DataLoader(points, 5)
    pairs = [(a[1].data[0], b[1].data[0]) for a in loader for b in loader]
    assert pairs == [(0, 0), (0, 5), (5, 0), (5, 5)]
