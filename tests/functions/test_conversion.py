"""Dtypes, copies, exchange with other libraries, and what is said of CUDA."""

from typing import Any

import numpy as np
import pytest

from fastlayers import cuda
from fastlayers import functions as fl
from fastlayers.autograd import Tensor
from fastlayers.utils import dlpack


def test_to_gives_the_tensor_itself_where_nothing_changes() -> None:
    x = fl.ones(2)
    same = [x.to(np.float32), x.to("cpu"), x.to(x), x.float(), x.cpu(), x.type(fl.FloatTensor)]
    assert all(y is x for y in same)
    assert x.to(np.float32, copy=True) is not x and x.clone() is not x
    assert x.to("cpu", np.float64, True, True).dtype == x.to(fl.DoubleTensor).dtype == np.float64


def test_gradients_come_back_in_the_dtype() -> None:
    x = fl.ones(2, requires_grad=True)
    (x.double() * 2).half().sum().backward()
    assert x.grad is not None and x.grad.dtype == np.float32 and x.grad.tolist() == [2, 2]
    assert not x.long().requires_grad


def test_integers_wrap() -> None:
    assert fl.tensor([300.0, -1.0]).to(np.uint8).tolist() == [44, 255]
    assert fl.tensor([300]).byte().tolist() == [44]


def test_types_by_name() -> None:
    x = fl.ones(2)
    assert x.type() == "torch.FloatTensor" and fl.tensor(True).type() == "torch.BoolTensor"
    assert x.type("torch.LongTensor").dtype == np.int64
    assert isinstance(x, fl.FloatTensor) and not isinstance(x, fl.LongTensor)
    assert fl.LongTensor([1.5, 2]).tolist() == [1, 2] and fl.FloatTensor(2, 3).shape == (2, 3)
    assert type(fl.ByteTensor(np.ones(2))) is Tensor
    with pytest.raises(ValueError, match="XTensor"):
        x.type("torch.XTensor")
    with pytest.raises(TypeError, match="float32"):
        fl.LongTensor(x)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: x.cuda(), RuntimeError, "CUDA"),
        (lambda x: x.to("cuda:0"), RuntimeError, "CUDA"),
        (lambda x: x.to([1]), TypeError, "dtype, device or tensor"),
        (lambda x: x.to("float33"), RuntimeError, "device"),
        (lambda x: fl.set_default_dtype(np.int64), TypeError, "floating"),
        (lambda x: fl.set_default_dtype(np.float64), NotImplementedError, "float32"),
        (lambda x: cuda.current_device(), RuntimeError, "is_available"),
        (lambda x: cuda.synchronize(), RuntimeError, "is_available"),
        (lambda x: fl.from_dlpack([1]), TypeError, "__dlpack__"),
        (lambda x: x.requires_grad_().__dlpack__(), BufferError, "detach"),
        (lambda x: x[::-1].__dlpack__(copy=False), BufferError, "negative"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(fl.ones(2))


def test_there_is_no_cuda() -> None:
    assert not cuda.is_available() and cuda.device_count() == 0 and not cuda.is_initialized()
    cuda.manual_seed_all(3)
    cuda.manual_seed(3)
    cuda.empty_cache()
    assert cuda.memory_allocated() == cuda.max_memory_allocated() == 0


def test_facts_of_dtypes() -> None:
    assert fl.finfo(np.float32).eps == fl.finfo().eps == np.finfo(np.float32).eps
    assert type(fl.finfo(np.float16).max) is float and "bits=16" in repr(fl.finfo(np.float16))
    assert fl.iinfo(np.int8).max == 127 and "min=-128" in repr(fl.iinfo(np.int8))
    assert fl.get_default_dtype() == np.float32
    fl.set_default_dtype(np.float32)
    assert fl.can_cast(np.int64, np.uint8) and not fl.can_cast(np.float32, np.int64)
    assert fl.result_type(fl.ones(2, dtype=np.int64), 1.5) == np.float32
    assert fl.is_tensor(fl.ones(1)) and not fl.is_tensor(np.ones(1))
    assert fl.is_floating_point(fl.ones(1)) and fl.numel(fl.ones(2, 3)) == 6


def test_dlpack_with_numpy() -> None:
    x = fl.arange(6.0).reshape(2, 3)
    array = np.from_dlpack(x)
    assert np.may_share_memory(array, x.numpy()) and x.__dlpack_device__() == (1, 0)
    back = fl.from_dlpack(array)
    assert np.may_share_memory(back.numpy(), array)
    flipped = np.from_dlpack(x[:, ::-1])
    assert flipped.strides[1] > 0 and flipped.tolist() == x[:, ::-1].tolist()
    assert dlpack.from_dlpack(x).tolist() == x.tolist()


def test_read_only_memory_is_exported_as_such_or_copied() -> None:
    array = np.ones(2, np.float32)
    array.flags.writeable = False
    x = fl.from_numpy(array)
    flagged = np.from_dlpack(x)
    assert not flagged.flags.writeable and np.may_share_memory(flagged, array)

    class Old:
        """A library that knows no flag."""

        def __dlpack__(self, **options: Any) -> Any:
            return x.__dlpack__()

        def __dlpack_device__(self) -> Any:
            return x.__dlpack_device__()

    assert not np.may_share_memory(np.from_dlpack(Old()), array)


def test_a_change_through_dlpack_is_counted() -> None:
    w = Tensor([1.0, 2.0], requires_grad=True)
    x = w * 1
    y = (x * x).sum()
    fl.from_dlpack(x.detach()).mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
