"""Tensors and modules through `copy` and `pickle`, as PyTorch 2.13 does it."""

import copy
import pickle

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn

LEAVES = r"[Oo]nly Tensors created explicitly by the user \(graph leaves\) support the deepcopy"


def values(tensor):
    return np.asarray(tensor.detach())


def trained_leaf(kind=fl.Tensor):
    leaf = kind(np.array([1.0, 2.0], np.float32), requires_grad=True)
    (leaf * 3.0).sum().backward()
    return leaf


def pickled(tensor):
    return pickle.loads(pickle.dumps(tensor))


class Keeping(nn.Module):
    """A module that keeps an activation, for a user to look at."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 2)

    def forward(self, x):
        self.last = nn.functional.relu(self.linear(x))
        return self.last


def test_deepcopy_of_a_leaf_has_its_gradient():
    leaf = trained_leaf()
    other = copy.deepcopy(leaf)
    assert type(other) is fl.Tensor and other.requires_grad
    assert values(other).tolist() == [1, 2] and np.asarray(other.grad).tolist() == [3, 3]
    assert not np.shares_memory(values(other), values(leaf))
    assert not np.shares_memory(np.asarray(other.grad), np.asarray(leaf.grad))


def test_deepcopy_of_a_parameter_has_no_gradient():
    other = copy.deepcopy(trained_leaf(nn.Parameter))
    assert type(other) is nn.Parameter and other.requires_grad and other.grad is None
    assert values(other).tolist() == [1, 2]


def test_deepcopy_keeps_what_is_shared():
    leaf = trained_leaf()
    first, second = copy.deepcopy([leaf, leaf])
    assert first is second


@pytest.mark.parametrize("kind", [fl.Tensor, nn.Parameter])
def test_pickled_leaves_have_no_gradient(kind):
    other = pickled(trained_leaf(kind))
    assert type(other) is kind and other.requires_grad and other.grad is None
    assert values(other).tolist() == [1, 2]


def test_a_result_cannot_be_copied_deeply():
    result = trained_leaf() * 2.0
    with pytest.raises(RuntimeError, match=LEAVES):
        copy.deepcopy(result)
    assert values(copy.deepcopy(result.detach())).tolist() == [2, 4]


def test_a_pickled_result_is_a_leaf():
    other = pickled(trained_leaf() * 2.0)
    assert values(other).tolist() == [2, 4] and other.requires_grad
    (other * 1.0).sum().backward()
    assert np.asarray(other.grad).tolist() == [1, 1]


def test_a_result_without_a_gradient_can_be_copied():
    leaf = trained_leaf()
    with fl.no_grad():
        result = leaf * 2.0
    assert values(copy.deepcopy(result)).tolist() == [2, 4]
    assert not pickled(result).requires_grad


def test_a_module_that_keeps_an_activation_says_why_it_cannot_be_copied():
    module = Keeping()
    copy.deepcopy(module)
    module(fl.Tensor(np.ones((1, 2), np.float32)))
    with pytest.raises(RuntimeError, match=LEAVES):
        copy.deepcopy(module)
    module.last = module.last.detach()
    copy.deepcopy(module)
