"""Shapes of tensors: which are views, what in-place changes of them do, and what is refused."""

import numpy as np
import pytest

from fastlayers import functions as fl
from fastlayers.autograd import Tensor, no_grad
from fastlayers.autograd.types import Size


def test_reshape_is_a_view_where_strides_can_say_it() -> None:
    x = fl.arange(24.0).reshape(2, 3, 4)
    for view in (x.reshape(6, 4), x[:, 1:].reshape(2, 8), x.transpose(0, 2).view(4, 1, 3, 2)):
        assert np.may_share_memory(view.numpy(), x.numpy())
    copy = x.transpose(0, 1).reshape(6, 4)
    assert not np.may_share_memory(copy.numpy(), x.numpy())
    np.testing.assert_array_equal(copy.numpy(), x.numpy().transpose(1, 0, 2).reshape(6, 4))


def test_view_as_another_dtype_shares_memory_and_counts_changes() -> None:
    x = fl.zeros(2, 4)
    bits = x.view(np.dtype(np.int32))
    bits[0, 0] = 0x3F800000
    assert x[0, 0].item() == 1 and x._version == 1
    assert x.view(dtype=np.dtype(np.int64)).shape == (2, 2)
    with pytest.raises(RuntimeError, match="last axis"):
        x.t().view(np.dtype(np.int64))


def test_a_change_of_the_whole_reaches_expanded_views_gradients_add_up() -> None:
    x = fl.tensor([1.0, 2.0], requires_grad=True)
    y = x * 1
    wide = y.expand(3, 2)
    y.mul_(2)
    wide.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [6, 6]


def test_an_expanded_tensor_is_not_changed_in_place() -> None:
    wide = fl.zeros(2).expand(3, 2)
    with pytest.raises(RuntimeError, match="single memory location"):
        wide.add_(1)
    wide[0].add_(1)
    assert wide.tolist() == [[1, 1]] * 3


def test_windows_that_overlap() -> None:
    x = fl.arange(4.0).requires_grad_()
    y = x * 1
    windows = y.unfold(0, 2, 1)
    y.mul_(2)
    windows.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 4, 4, 2]
    with pytest.raises(RuntimeError, match="single memory location"):
        windows.add_(1)
    y.unfold(0, 2, 2).add_(1)
    assert y.tolist() == [1, 3, 5, 7]


def test_shapes_in_place_keep_views_and_gradients() -> None:
    x = fl.tensor([[1.0, 2.0, 3.0]], requires_grad=True)
    y = x * 2
    first = y[0]
    assert y.squeeze_() is y and y.shape == (3,)
    y.unsqueeze_(-1).transpose_(0, 1)
    assert y.shape == (1, 3)
    first[1:].mul_(3)
    assert y.tolist() == [[2, 12, 18]]
    (y * fl.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[2, 60, 600]]


def test_shapes_in_place_of_leaves() -> None:
    x = fl.zeros(1, 2, requires_grad=True)
    with pytest.raises(RuntimeError, match="leaf"):
        x.squeeze_()
    with no_grad():
        x.squeeze_()
    assert x.shape == (2,) and x.is_leaf and x.requires_grad


def test_transposes() -> None:
    x = fl.arange(6).reshape(2, 3)
    assert x.T.tolist() == x.t().tolist() == x.mT.tolist() == [[0, 3], [1, 4], [2, 5]]
    assert fl.zeros(2, 3, 4).T.shape == (4, 3, 2) and fl.zeros(2, 3, 4).mT.shape == (2, 4, 3)
    with pytest.raises(RuntimeError, match="mT"):
        fl.zeros(3).mT  # noqa: B018
    with pytest.raises(RuntimeError, match="at most 2 axes"):
        fl.zeros(2, 3, 4).t()


def test_images_with_channels_last() -> None:
    x = fl.arange(24.0).reshape(1, 2, 3, 4)
    last = x.contiguous(memory_format=fl.channels_last)
    assert last.stride() == (24, 1, 8, 2) and last.is_contiguous(fl.channels_last)
    assert not last.is_contiguous() and last.contiguous().is_contiguous()
    np.testing.assert_array_equal(last.numpy(), x.numpy())
    assert last.flatten().tolist() == x.flatten().tolist()
    with pytest.raises(RuntimeError, match="4 axes"):
        fl.zeros(3).contiguous(memory_format=fl.channels_last)


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: x.reshape(4, -1), RuntimeError, "6 elements"),
        (lambda x: x.reshape(2.0, 3), TypeError, "integers"),
        (lambda x: x.flatten(1, 0), RuntimeError, "start_dim"),
        (lambda x: x.unflatten(1, (2, 2)), RuntimeError, "multiply up"),
        (lambda x: x.permute(0, 0), RuntimeError, "repeat"),
        (lambda x: x.permute(0), RuntimeError, "once each"),
        (lambda x: x.squeeze(2), IndexError, "dim"),
        (lambda x: x.unsqueeze(4), IndexError, "dim"),
        (lambda x: x.expand(2, 4), RuntimeError, "existing size"),
        (lambda x: x.expand(-1, 2, 3), RuntimeError, "existing size"),
        (lambda x: x.movedim((0, 0), (0, 1)), RuntimeError, "once"),
        (lambda x: fl.broadcast_tensors(x, fl.zeros(4)), RuntimeError, "must match"),
    ],
)
def test_what_is_refused(call: object, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(fl.zeros(2, 3))  # type: ignore[operator]


def test_shapes_are_sizes() -> None:
    assert isinstance(fl.zeros(2, 3).t().shape, Size)


def test_an_axis_may_be_an_integer_of_any_type() -> None:
    x = Tensor(np.zeros((2, 3, 4), np.float32))
    for dim in (1, np.int64(1), np.array(1), Tensor(np.array(1))):
        assert x.flatten(dim).shape == (2, 12)
    for dim in (True, 1.0, np.array([1, 2]), "1", None):
        with pytest.raises(TypeError, match="flatten: dim must be an integer, got"):
            x.flatten(dim)
