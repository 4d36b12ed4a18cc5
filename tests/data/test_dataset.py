import numpy as np
import pytest

from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.data import Dataset, Subset, TensorDataset, collate, random_split


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


@pytest.mark.parametrize("call", [len, lambda dataset: dataset[0]])
def test_base_names_missing_method(call):
    class Empty(Dataset):
        pass

    with pytest.raises(NotImplementedError, match="Empty: a Dataset must define __"):
        call(Empty())


def test_tensor_dataset_int_slice_array(points):
    assert len(points) == 10
    x, y = points[-1]
    assert x.tolist() == [27, 28, 29] and y == 9
    x, y = points[2:4]
    assert x.shape == (2, 3) and y.tolist() == [2, 3]
    x, y = points[np.array([7, 0, 7])]
    assert x[:, 0].tolist() == [21, 0, 21] and y.tolist() == [7, 0, 7]
    assert x.dtype == np.float32 and y.dtype == np.int16
    assert points[[]][0].shape == (0, 3)


def test_tensor_dataset_takes_tensors_without_copy():
    array = np.zeros((4, 2), np.float32)
    dataset = TensorDataset(Tensor(array), array)
    assert all(np.shares_memory(held, array) for held in dataset.arrays)
    assert isinstance(dataset[0][0], np.ndarray)


@pytest.mark.parametrize("index", [1.0, "a", True, np.array([True] * 10), (1, 2, 3.5), [[1]]])
def test_tensor_dataset_rejects_other_indices(points, index):
    with pytest.raises(TypeError, match="TensorDataset: index must be an integer, a slice or"):
        points[index]


@pytest.mark.parametrize("index", [10, -11, [0, 10]])
def test_tensor_dataset_index_out_of_range(points, index):
    with pytest.raises(IndexError, match=r"TensorDataset: index must be in \[-10, 10\), got -?1"):
        points[index]


def test_tensor_dataset_ends_iteration(points):
    assert [int(y) for _, y in points] == list(range(10))


@pytest.mark.parametrize("arrays", [(), (np.zeros(3), np.zeros(4)), (np.zeros(()),)])
def test_tensor_dataset_rejects_shapes(arrays):
    with pytest.raises(ValueError, match="TensorDataset: tensors must be .* got shapes"):
        TensorDataset(*arrays)


def test_tensor_dataset_rejects_lists():
    with pytest.raises(TypeError, match="TensorDataset: tensor 1 must be .* got list"):
        TensorDataset(np.zeros(2), [1, 2])


def test_subset(points):
    subset = Subset(points, [3, 1, 8])
    assert len(subset) == 3
    assert subset[2][1] == 8
    assert subset[-1][1] == 8
    assert subset[:2][1].tolist() == [3, 1]
    assert subset.batch(np.array([2, 0]))[1].tolist() == [8, 3]
    assert Subset(subset, [1])[0][1] == 1


def test_subset_of_one_at_a_time_datasets():
    subset = Subset(Squares(), [5, 2])
    assert subset[0] == (5, 25)
    assert [field.tolist() for field in subset.batch(np.array([1, 0]))] == [[2, 5], [4, 25]]
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
        x, y = dataset.batch(np.array([1, 2]))
        assert x.tolist() == [[-3, -4, -5], [-6, -7, -8]] and y.tolist() == [1, 2]


def test_subset_rejects_indices(points):
    with pytest.raises(IndexError, match=r"Subset: index must be in \[-10, 10\), got 10"):
        Subset(points, [0, 10])
    with pytest.raises(TypeError, match="Subset: indices must be a sequence of integers"):
        Subset(points, [0.5])
    with pytest.raises(IndexError, match=r"Subset: index must be in \[-2, 2\), got 2"):
        Subset(points, [0, 1])[2]


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
        return [part.indices.tolist() for part in random_split(points, [5, 5], seed)]

    assert split(seed=3) == split(seed=3) != split(seed=4)
    random.manual_seed(0)
    first, second = split(), split()
    random.manual_seed(0)
    assert split() == first != second


@pytest.mark.parametrize("lengths", [[5, 4], [11, -1], [0.5, 0.4], [1.5, -0.5], [9.5, 0.5], []])
def test_random_split_rejects_lengths(points, lengths):
    with pytest.raises(ValueError, match="random_split: lengths must be .* add up to 10"):
        random_split(points, lengths)


def test_random_split_rejects_seed(points):
    with pytest.raises(ValueError, match="random_split: seed must be a non-negative integer"):
        random_split(points, [10], seed=-1)


@pytest.mark.parametrize(
    ("samples", "dtype"),
    [
        ([1, 2], np.int64),
        ([1.0, 2.0], np.float32),
        ([1, 2.5], np.float32),
        ([True, False], np.bool_),
        ([True, 2], np.int64),
        ([np.float64(1), np.float64(2)], np.float64),
        ([np.uint8(1), np.uint8(2)], np.uint8),
        ([np.zeros(2, np.int8)] * 2, np.int8),
        ([Tensor(np.zeros(2, np.float32))] * 2, np.float32),
    ],
)
def test_collate_dtypes(samples, dtype):
    batch = collate(samples)
    assert batch.dtype == dtype
    np.testing.assert_array_equal(batch, [np.asarray(sample) for sample in samples])


def test_collate_structures():
    batch = collate([(1, {"a": np.zeros(3)}), (2, {"a": np.ones(3)})])
    assert isinstance(batch, list) and batch[0].tolist() == [1, 2]
    assert batch[1]["a"].tolist() == [[0, 0, 0], [1, 1, 1]]


def test_collate_errors():
    with pytest.raises(ValueError, match=r"collate: .* equal shapes, got \[\(2,\), \(3,\)\]"):
        collate([np.zeros(3), np.zeros(2)])
    with pytest.raises(ValueError, match=r"collate: .* equally many fields, got \[1, 2\]"):
        collate([(1,), (1, 2)])
    with pytest.raises(TypeError, match="collate: samples must hold .* got str"):
        collate(["a", "b"])
