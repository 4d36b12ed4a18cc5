import numpy as np
import pytest

import fastlayers as fl
from fastlayers.data import (
    BatchSampler,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)


def test_sequential():
    sampler = SequentialSampler("abc")
    assert list(sampler) == list(sampler) == [0, 1, 2] and len(sampler) == 3


def test_random_orders():
    sampler = RandomSampler(range(20))
    fl.manual_seed(1)
    first, second = list(sampler), list(sampler)
    fl.manual_seed(1)
    assert list(sampler) == first != second
    assert sorted(first) == sorted(second) == list(range(20)) and len(sampler) == 20
    assert all(type(index) is int for index in first)
    assert list(RandomSampler([])) == []


def test_random_with_replacement_and_other_lengths():
    drawn = list(RandomSampler(range(3), replacement=True, num_samples=500))
    assert len(drawn) == 500 and set(drawn) == {0, 1, 2}
    longer = RandomSampler(range(3), num_samples=8)
    orders = list(longer)
    assert len(orders) == len(longer) == 8
    assert sorted(orders[:3]) == sorted(orders[3:6]) == [0, 1, 2] and len(set(orders[6:])) == 2


def test_the_order_is_drawn_when_the_iteration_begins():
    sampler = RandomSampler(range(20), generator=(generator := fl.Generator()))
    generator.manual_seed(1)
    begun = [iter(sampler), iter(BatchSampler(sampler, 20, False))]
    generator.manual_seed(1)
    assert list(begun[0]) == list(sampler)
    assert next(begun[1]) == list(sampler)


@pytest.mark.parametrize(
    "make",
    [
        lambda g: RandomSampler(range(9), generator=g),
        lambda g: RandomSampler(range(9), True, generator=g),
        lambda g: SubsetRandomSampler(range(9), g),
        lambda g: WeightedRandomSampler(range(9), 5, generator=g),
    ],
)
def test_generators(make):
    own, numpy = fl.Generator().manual_seed(7), np.random.default_rng(7)
    assert list(make(own)) == list(make(numpy)) == list(make(fl.Generator().manual_seed(7)))
    with pytest.raises(TypeError, match="Sampler: generator must be a Generator of fastlayers or"):
        make(7)


def test_subset():
    sampler = SubsetRandomSampler(["a", "b", "c"])
    assert sorted(sampler) == ["a", "b", "c"] and len(sampler) == 3


def test_weighted():
    sampler = WeightedRandomSampler([0, 1, 3], 4000, generator=np.random.default_rng(0))
    counts = np.bincount(list(sampler), minlength=3)
    assert counts[0] == 0 and len(sampler) == counts.sum() == 4000
    assert 900 < counts[1] < 1100  # 1000, with a deviation of 27
    assert sorted(WeightedRandomSampler([0, 0.1, 5], 2, replacement=False)) == [1, 2]


@pytest.mark.parametrize(
    ("drop_last", "expected"),
    [(False, [[0, 1, 2], [3, 4, 5], [6]]), (True, [[0, 1, 2], [3, 4, 5]])],
)
def test_batches(drop_last, expected):
    batches = BatchSampler(range(7), 3, drop_last)
    assert list(batches) == list(batches) == expected and len(batches) == len(expected)
    endless = iter(BatchSampler(iter(int, 1), 2, drop_last))
    assert next(endless) == [0, 0]


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: RandomSampler([], 1), TypeError, "RandomSampler: replacement must be True or"),
        (lambda: RandomSampler([1], num_samples=0), ValueError, "num_samples must be a positive"),
        (lambda: WeightedRandomSampler([1], 0), ValueError, "num_samples must be a positive"),
        (lambda: WeightedRandomSampler([1], 1, 1), TypeError, "replacement must be True or False"),
        (lambda: WeightedRandomSampler([[1]], 1), ValueError, "weights must be finite and not neg"),
        (lambda: WeightedRandomSampler([-1, 2], 1), ValueError, "weights must be finite and not"),
        (lambda: WeightedRandomSampler([np.nan], 1), ValueError, "weights must be finite and not"),
        (lambda: WeightedRandomSampler([0], 1), ValueError, "must have enough above 0 .* 0 for 1"),
        (lambda: WeightedRandomSampler([0, 1], 2, False), ValueError, "enough .* got 1 for 2"),
        (lambda: BatchSampler([], 0, False), ValueError, "batch_size must be a positive integer"),
        (lambda: BatchSampler([], 1, None), TypeError, "drop_last must be True or False"),
        (lambda: len(BatchSampler(iter([]), 1, True)), TypeError, "sampler must have __len__"),
        (lambda: iter(Sampler()), NotImplementedError, "Sampler: __iter__ must be defined"),
    ],
)
def test_refuses(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
