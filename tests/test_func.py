import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn
from fastlayers.func import functional_call

X = np.ones((1, 2), np.float32)


def test_values_take_the_places_for_the_call():
    layer = nn.Linear(2, 2)
    before = dict(layer.named_parameters())
    leaf = fl.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    out = functional_call(layer, {"weight": leaf * 2, "bias": fl.tensor([0.0, 1.0])}, X)
    np.testing.assert_array_equal(out.detach().numpy(), [[6, 15]])
    out.sum().backward()
    np.testing.assert_array_equal(np.asarray(leaf.grad), np.full((2, 2), 2))
    assert dict(layer.named_parameters()) == before and layer.weight.grad is None
    two = functional_call(
        layer, ({"weight": leaf}, {"bias": fl.tensor([0.0, 0.0])}), (), {"input": X}
    )
    np.testing.assert_array_equal(two.detach().numpy(), [[3, 7]])


def test_the_module_is_as_before_after_an_error():
    layer = nn.Linear(2, 2)
    weight = layer.weight
    with pytest.raises(ValueError):
        functional_call(layer, {"weight": fl.tensor(np.ones((3, 5), np.float32))}, X)
    assert layer.weight is weight is layer._parameters["weight"]


def test_buffers_are_updated_where_they_are_given():
    norm = nn.BatchNorm1d(2)
    mean = np.zeros(2, np.float32)
    functional_call(norm, {"running_mean": mean}, np.float32([[1, 2], [3, 6]]))
    np.testing.assert_allclose(mean, [0.2, 0.4])
    np.testing.assert_array_equal(np.asarray(norm.running_mean), [0, 0])


@pytest.mark.parametrize("tie_weights, want", [(True, 4.0), (False, 3.0)])
def test_tied_weights(tie_weights, want):
    layer = nn.Linear(1, 1, bias=False)
    layer.weight = nn.Parameter(np.float32([[1.5]]))
    module = nn.Sequential(layer, nn.Linear(1, 1, bias=False))
    module[1].weight = layer.weight
    values = {"0.weight": fl.tensor([[2.0]])}
    out = functional_call(module, values, np.ones((1, 1), np.float32), tie_weights=tie_weights)
    assert out.item() == want


def test_bad_names_and_values():
    layer = nn.Linear(2, 2)
    value = fl.tensor(np.ones((2, 2), np.float32))
    for given, error, message in [
        (({"weight": value}, {"weight": value}), ValueError, "must hold a name once"),
        ({"weight": np.ones((2, 2))}, TypeError, "'weight' of Linear must be a tensor"),
        ({"other": value}, AttributeError, "names of parameters and buffers, got 'other'"),
        ({"a.weight": value}, AttributeError, "must name a submodule, got 'a'"),
    ]:
        with pytest.raises(error, match=message):
            functional_call(layer, given, X)
    with pytest.raises(ValueError, match=r"missing names \['bias'\] and unexpected names \['a'\]"):
        functional_call(layer, {"weight": value, "a": value}, X, strict=True)
