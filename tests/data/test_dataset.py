import numpy as np
import pytest

from fastlayers.data import (
    ChainDataset,
    ConcatDataset,
    Dataset,
    IterableDataset,
    Subset,
    TensorDataset,
)
from fastlayers.data.dataset import fetch_batch


@pytest.fixture
def points():
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    return TensorDataset(x, np.arange(10, dtype=np.int16))


class Squares(Dataset):
    def __len__(self):
        return 6

    def __getitem__(self, index):
        if not isinstance(index, int):
            raise TypeError("one sample at a time")
        return index, index**2


def test_base_names_the_missing_method():
    class Empty(Dataset):
        pass

    with pytest.raises(NotImplementedError, match="Empty: a Dataset must define __getitem__"):
        Empty()[0]
    with pytest.raises(TypeError, match="has no len"):
        len(Empty())


def test_subset(points):
    subset = Subset(points, [3, 1, 8])
    assert len(subset) == 3
    assert subset[2][1] == 8
    assert subset[-1][1] == 8
    assert subset[:2][1].tolist() == [3, 1]
    assert subset.fetch_batch(np.array([2, 0]))[1].tolist() == [8, 3]
    assert Subset(subset, [1])[0][1] == 1


def test_subset_of_one_at_a_time_datasets():
    subset = Subset(Squares(), [5, 2])
    assert subset[0] == (5, 25)
    assert [field.tolist() for field in subset.fetch_batch(np.array([1, 0]))] == [[2, 5], [4, 25]]
    assert Subset(["a", "b"], [1])[0] == "b"


def test_overridden_getitem_is_used_for_batches(points):
    class Negated(TensorDataset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            assert np.ndim(y) == 0
            return -x, y

    class NegatedSubset(Subset):
        def __getitem__(self, index):
            x, y = super().__getitem__(index)
            assert np.ndim(y) == 0
            return -x, y

    for dataset in (Negated(*points.arrays), NegatedSubset(points, range(10))):
        x, y = dataset.fetch_batch(np.array([1, 2]))
        assert x.tolist() == [[-3, -4, -5], [-6, -7, -8]] and y.tolist() == [1, 2]


def test_subset_rejects_indices(points):
    with pytest.raises(IndexError, match=r"Subset: index must be in \[-10, 10\), got 10"):
        Subset(points, [0, 10])
    with pytest.raises(TypeError, match="Subset: indices must be a sequence of integers"):
        Subset(points, [0.5])
    with pytest.raises(IndexError, match=r"Subset: index must be in \[-2, 2\), got 2"):
        Subset(points, [0, 1])[2]


def test_a_dataset_that_is_iterated_needs_no_length():
    class Three(Dataset[int]):
        def __getitem__(self, index):
            if index == 3:
                raise IndexError
            return index

    assert list(Three()) == [0, 1, 2]


def test_concat(points):
    both = Squares() + points
    assert isinstance(both, ConcatDataset) and len(both) == 16
    assert both.cumulative_sizes == [6, 16]
    assert both[0] == (0, 0) and both[5] == (5, 25) and both[-11] == (5, 25)
    assert both[6][1] == 0 and both[15][1] == both[-1][1] == 9
    assert [int(y) for _, y in both] == [0, 1, 4, 9, 16, 25, *range(10)]


def test_concat_refuses(points):
    for index in (16, -17):
        with pytest.raises(IndexError, match=r"ConcatDataset: index must be in \[-16, 16\)"):
            (Squares() + points)[index]
    with pytest.raises(TypeError, match="ConcatDataset: index must be an integer"):
        (Squares() + points)[1:2]
    with pytest.raises(ValueError, match="ConcatDataset: datasets must be at least one, got none"):
        ConcatDataset([])
    with pytest.raises(TypeError, match="ConcatDataset: datasets must have __len__ .* got Count"):
        ConcatDataset([points, Count(3)])


class Count(IterableDataset):
    def __init__(self, stop):
        self.stop = stop

    def __iter__(self):
        return iter(range(self.stop))

    def __len__(self):
        return self.stop


def test_chain(points):
    chain = Count(2) + Count(3)
    assert isinstance(chain, ChainDataset)
    assert list(chain) == list(chain) == [0, 1, 0, 1, 2] and len(chain) == 5
    with pytest.raises(TypeError, match="ChainDataset: datasets must be Iterable.* got Tensor"):
        Count(2) + points
    with pytest.raises(NotImplementedError, match="IterableDataset must define __iter__"):
        iter(IterableDataset())


def test_getitems_gives_several_samples_at_once():
    class Several(Dataset):
        def __getitems__(self, indices):
            return [index + 0.5 for index in indices]

    class Listed(list):
        __getitems__ = Several.__getitems__

    for dataset in (Several(), Listed()):
        assert fetch_batch(dataset, [1, 2]).tolist() == [1.5, 2.5]


def test_keys_need_not_be_numbers():
    class Named(Dataset):
        def __getitem__(self, key):
            return len(key)

    assert fetch_batch(Named(), ["a", "bcd"]).tolist() == [1, 3]


def test_reprs(points):
    assert repr(points) == "TensorDataset(float32 (10, 3), int16 (10,))"
    assert repr(Subset(points, [3, 1])) == f"Subset(2 samples of {points!r})"
    assert (
        repr(ConcatDataset([Squares(), [1]]))
        == "ConcatDataset(Squares of 6 samples, list of 1 samples)"
    )
