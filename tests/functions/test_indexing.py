"""Elements by their index, by tensors of indices and by masks."""

from typing import Any

import numpy as np
import pytest

from fastlayers import functions as fl
from fastlayers.autograd import Tensor
from fastlayers.functions.masks import one_hot


def test_negative_steps_are_views() -> None:
    x = fl.arange(6.0).reshape(2, 3)
    back = x[:, ::-1]
    back[0, 0] = 9
    assert x[0, 2].item() == 9
    x.requires_grad_()
    (x[::-1] * fl.tensor([[1.0], [2.0]])).sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[2, 2, 2], [1, 1, 1]]


def test_integers_beside_lists_come_first() -> None:
    x = fl.zeros(2, 3, 4)
    assert x[0, :, [0, 1]].shape == (3, 2)  # NumPy's is (2, 3)
    assert x[fl.tensor(0), :, [0, 1]].shape == (3, 2)
    assert x[[0, 1], :, [0, 1]].shape == (2, 3)


def test_indices_of_all_kinds() -> None:
    x = fl.arange(6).reshape(2, 3)
    assert x[fl.tensor([1, 0], dtype=np.uint8)].tolist() == [[0, 1, 2]]
    assert x[[True, False]].tolist() == [[0, 1, 2]]
    assert x[x > 3].tolist() == [4, 5]
    assert x[None, ..., 0].tolist() == [[0, 3]]
    assert x[[]].shape == (0, 3) and x[True].shape == (1, 2, 3)
    assert x[np.int64(1), np.array([0, 2])].tolist() == [3, 5]
    assert x[fl.tensor(0) : fl.tensor(1)].shape == (1, 3)


def test_what_is_assigned_is_cast_and_broadcast() -> None:
    x = fl.zeros(2, 3, dtype=np.int64)
    x[0] = 1.7
    x[1, :2] = fl.tensor([[2.5, 3.5]])
    assert x.tolist() == [[1, 1, 1], [2, 3, 0]]


def test_a_refused_assignment_changes_nothing() -> None:
    x = fl.arange(6.0).reshape(2, 3)
    before, version = x.tolist(), x._version
    with pytest.raises(RuntimeError, match="shape mismatch"):
        x[:, 1:] = fl.ones(3)
    with pytest.raises(IndexError, match="fit shape"):
        x[[0, 5]] = 1
    with pytest.raises(TypeError, match="tensor or a number"):
        x[0] = "a"
    assert x.tolist() == before and x._version == version


@pytest.mark.parametrize(
    ("index", "text"),
    [
        (2, "range"),
        ((0, 0, 0), "too many indices"),
        ([0, 5], "out of bounds"),
        (1.0, "integers"),
        ("a", "integers"),
        (fl.tensor([1], dtype=np.int16), "int16"),
        (fl.tensor([1.0]), "float32"),
        (fl.tensor([True, False, True]), "boolean index"),
    ],
)
def test_indices_that_are_refused(index: Any, text: str) -> None:
    with pytest.raises(IndexError, match=text):
        fl.zeros(2, 3)[index]


def test_indices_twice_count_twice() -> None:
    x = fl.zeros(3, requires_grad=True)
    x[[0, 2, 0]].sum().backward()
    assert x.grad is not None and x.grad.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda x: x.gather(1, fl.tensor([[3]])), RuntimeError, "out of bounds"),
        (lambda x: x.gather(1, fl.tensor([[0.0]])), RuntimeError, "int64 or int32"),
        (lambda x: x.gather(1, fl.tensor([0])), RuntimeError, "dimensions"),
        (lambda x: x.scatter(1, fl.tensor([[0]]), fl.ones(1, 1).double()), RuntimeError, "dtype"),
        (lambda x: x.scatter(1, fl.tensor([[0]])), TypeError, "src and value"),
        (lambda x: x.scatter(1, fl.tensor([[0]]), 1, reduce="min"), RuntimeError, "reduce"),
        (lambda x: x.scatter_add(1, fl.tensor([[0]]), 1.0), TypeError, "src"),
        (lambda x: x.index_select(1, fl.tensor([[0]])), IndexError, "vector"),
        (lambda x: x.index_select(1, fl.tensor([-1])), RuntimeError, "out of bounds"),
        (lambda x: x.index_add(0, fl.tensor([0]), fl.ones(1, 1)), RuntimeError, "source"),
        (lambda x: x.index_copy(0, fl.tensor([5]), fl.ones(1, 3)), IndexError, "bounds"),
        (lambda x: x.index_fill(0, fl.zeros(1).int(), 1), IndexError, "int64"),
        (lambda x: x.masked_fill(fl.ones(2, 3), 1), RuntimeError, "boolean"),
        (lambda x: x.masked_fill(x > 1, fl.ones(1)), RuntimeError, "0-dimensional"),
        (lambda x: x.long().masked_fill(x > 1, float("inf")), RuntimeError, "overflow"),
        (lambda x: x.masked_select(x), RuntimeError, "boolean"),
        (lambda x: x.take(fl.tensor([6])), IndexError, "bounds"),
        (lambda x: x.bincount(), RuntimeError, "1-d"),
        (lambda x: one_hot(x), RuntimeError, "int64"),
        (lambda x: one_hot(fl.tensor([5]), 3), RuntimeError, "smaller"),
        (lambda x: one_hot(fl.tensor([-1])), RuntimeError, "non-negative"),
    ],
)
def test_what_is_refused(call: Any, error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        call(fl.arange(6.0).reshape(2, 3))


def test_scatter_reduces() -> None:
    x, index = fl.full((1, 3), 2.0), fl.tensor([[0, 0]])
    assert x.scatter(1, index, 3, reduce="add").tolist() == [[8, 2, 2]]
    assert x.scatter(1, index, 3, reduce="multiply").tolist() == [[18, 2, 2]]
    assert x.scatter_(1, index, value=5) is x and x.tolist() == [[5, 2, 2]]


def test_in_place_forms_have_gradients() -> None:
    x = fl.ones(3, requires_grad=True)
    source = fl.ones(2, requires_grad=True)
    y = (
        (x * 1)
        .index_add_(0, fl.tensor([0, 0]), source)
        .masked_fill_(fl.tensor([False, True, False]), 0)
    )
    assert y.tolist() == [3, 0, 1]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [1, 0, 1]
    assert source.grad is not None and source.grad.tolist() == [1, 1]


def test_one_hot_and_nonzero() -> None:
    hot = one_hot(fl.tensor([[1], [0]]), 3)
    assert hot.tolist() == [[[0, 1, 0]], [[1, 0, 0]]] and hot.dtype == np.int64
    assert [i.tolist() for i in hot.nonzero(as_tuple=True)] == [[0, 1], [0, 0], [1, 0]]
    assert isinstance(hot.nonzero(), Tensor)


def test_what_is_put_into_integers_gets_no_gradient() -> None:
    x, w = fl.zeros(3, dtype=np.int64), Tensor([1.5], requires_grad=True)
    x[0] = w[0]
    assert x.tolist() == [1, 0, 0]
    assert not x.requires_grad
