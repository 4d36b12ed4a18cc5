import numpy as np
import pytest

from fastlayers.autograd import Tensor
from fastlayers.data import TensorDataset


@pytest.fixture
def points():
    x = np.arange(30, dtype=np.float32).reshape(10, 3)
    return TensorDataset(x, np.arange(10, dtype=np.int16))


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
    assert [type(held) for held in dataset.tensors] == [Tensor, np.ndarray]
    for index in (0, slice(2), [1, 3]):
        assert [type(field) for field in dataset[index]] == [Tensor, np.ndarray]
        assert dataset[index][0].shape == array[index].shape
    assert [type(field) for field in dataset.fetch_batch(np.arange(2))] == [np.ndarray] * 2


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
