from collections import OrderedDict, UserDict, deque, namedtuple
from types import MappingProxyType

import numpy as np
import pytest

from fastlayers.autograd import Tensor
from fastlayers.data import collate, default_collate, default_convert


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
    for sample, name in ((None, "NoneType"), ({1}, "set"), (np.array("a"), "ndarray of <U1"),
                         (np.array([None]), "ndarray of object"), (1j, "complex")):  # fmt: skip
        with pytest.raises(TypeError, match=f"collate: samples must hold .* got {name}$"):
            collate([sample, sample])


Point = namedtuple("Point", ["x", "label"])


def test_containers_keep_their_type():
    batch = default_collate([Point(1.5, "a"), Point(2.5, "b")])
    assert type(batch) is Point and isinstance(batch.x, Tensor) and batch.label == ["a", "b"]
    assert np.asarray(batch.x).tolist() == [1.5, 2.5]
    for kind in (dict, OrderedDict, UserDict, MappingProxyType):
        batch = default_collate([kind({"a": 1, "b": b"x"}), kind({"a": 2, "b": b"y"})])
        assert type(batch) is kind and batch["b"] == [b"x", b"y"]
        assert isinstance(batch["a"], Tensor) and np.asarray(batch["a"]).tolist() == [1, 2]
    for kind in (list, tuple, deque):
        batch = default_collate([kind([1, "a"]), kind([2, "b"])])
        assert type(batch) is (list if kind is tuple else kind)
        assert isinstance(batch[0], Tensor) and batch[1] == ["a", "b"]
    assert isinstance(default_collate([range(2), range(2)]), list)


def test_convert_leaves_what_is_no_array():
    sample = [np.ones(2), np.float64(3), "a", b"b", None, 3, (np.str_("c"), {"d": np.arange(2)})]
    found = default_convert(sample)
    assert [type(item) for item in found] == [Tensor, Tensor, str, bytes, type(None), int, list]
    assert isinstance(found[6][1]["d"], Tensor) and found[6][0] == "c"
    assert default_convert(np.array(["a"])).tolist() == ["a"]
    assert np.shares_memory(sample[0], found[0].array())
