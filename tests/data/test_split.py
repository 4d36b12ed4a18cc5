import numpy as np
import pytest

import fastlayers as fl
from fastlayers.data import TensorDataset, random_split


@pytest.fixture
def points():
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    return TensorDataset(x, np.arange(10, dtype=np.int16))


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        ([7, 3], [7, 3]),
        ([10, 0], [10, 0]),
        ([0.5, 0.5], [5, 5]),
        ([0.35, 0.35, 0.3], [4, 3, 3]),
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([1 / 3, 1 / 3, 1 / 3], [4, 3, 3]),
    ],
)
def test_random_split_is_a_partition(points, lengths, expected):
    parts = random_split(points, lengths, seed=1)
    assert [len(part) for part in parts] == expected
    indices = np.concatenate([part.indices for part in parts])
    assert sorted(indices) == list(range(10))
    assert list(indices) != list(range(10))


def test_random_split_seeds(points):
    def split(seed=None):
        return [part.indices for part in random_split(points, [5, 5], seed=seed)]

    assert split(seed=3) == split(seed=3) != split(seed=4)
    fl.manual_seed(0)
    first, second = split(), split()
    fl.manual_seed(0)
    assert split() == first != second


@pytest.mark.parametrize("lengths", [[5, 4], [11, -1], [0.5, 0.4], [1.5, -0.5], [9.5, 0.5], []])
def test_random_split_rejects_lengths(points, lengths):
    with pytest.raises(ValueError, match="random_split: lengths must be .* add up to 10"):
        random_split(points, lengths)


def test_random_split_rejects_seed(points):
    with pytest.raises(ValueError, match="random_split: seed must be a non-negative integer"):
        random_split(points, [10], seed=-1)


def test_generators(points):
    def split(generator):
        return [part.indices for part in random_split(points, [5, 5], generator)]

    seeded = fl.Generator().manual_seed(4)
    assert split(seeded) == split(fl.Generator().manual_seed(4)) != split(seeded)
    assert split(np.random.default_rng(4)) == split(fl.Generator().manual_seed(4))
    with pytest.raises(TypeError, match="random_split: generator must be a Generator .* got int"):
        split(3)
    with pytest.raises(ValueError, match="random_split: seed must be None if a generator is"):
        random_split(points, [10], seeded, seed=1)


def test_a_fraction_of_no_sample_is_told(points):
    with pytest.warns(UserWarning, match="random_split: subset 1 has no samples"):
        random_split(range(2), [0.9, 0.05, 0.05])
