import inspect

import numpy as np
import pytest
from specs import SPECS

import fastlayers as fl
from fastlayers import Tensor, nn, ops
from fastlayers.nn import functional as F
from fastlayers.testing import gradcheck

X = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
V = np.array([0.5, 1, 2])
# Some calls of each function: of arguments that are learnt, and others.
CALLS = {
    name: [(learnt, options) for learnt, options in calls() if not options.get("inplace")]
    for spec in SPECS.values()
    for name, calls in spec.functions.items()
}
MOST = {name: max(calls, key=lambda call: len(call[0])) for name, calls in CALLS.items()}


def test_every_function_is_called():
    assert CALLS.keys() | {"one_hot", "pad"} == set(F.__all__)


@pytest.mark.parametrize("name", CALLS)
def test_is_the_op_on_arrays_and_tensors(name):
    known = inspect.signature(getattr(ops, name)).parameters.keys()
    for learnt, options in [MOST[name], *CALLS[name][:: 1 + len(CALLS[name]) // 4]]:
        given = {key: value for key, value in options.items() if key in known}
        fl.manual_seed(0)
        expected = getattr(ops, name)(**learnt, **given)
        for make in (np.asarray, Tensor):
            fl.manual_seed(0)
            y = getattr(F, name)(**{key: make(a) for key, a in learnt.items()}, **options)
            for found, want in zip(
                *(r if isinstance(r, tuple) else (r,) for r in (y, expected)), strict=True
            ):
                assert isinstance(found, Tensor) and not found.requires_grad
                np.testing.assert_array_equal(found.array(), want)


@pytest.mark.parametrize("name", sorted(CALLS.keys() - {"flatten"}))
def test_defaults_are_those_of_the_op(name):
    ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (F, ops))
    assert [p for p in ours if p != "inplace"] == list(theirs)
    for key, parameter in theirs.items():
        assert ours[key].default in (parameter.default, inspect.Parameter.empty)


@pytest.mark.parametrize("name", CALLS)
def test_gradients_of_all_inputs(name):
    learnt, options = MOST[name]

    def function(*tensors):
        fl.manual_seed(0)
        return getattr(F, name)(**dict(zip(learnt, tensors, strict=True)), **options)

    gradcheck(function, [Tensor(a, True) for a in learnt.values()])


def test_flatten():
    assert F.flatten(X, 1).shape == (2, 48)
    gradcheck(lambda x: F.flatten(x, 1, 2), [Tensor(X, True)])


def test_frozen_inputs_get_no_gradient():
    layer, x = nn.Conv2d(3, 2, 2, dtype=np.float64), Tensor(X)
    layer.weight.requires_grad = False
    layer(x).sum().backward()
    assert x.grad is layer.weight.grad is None
    np.testing.assert_allclose(layer.bias.grad, [18, 18])


def test_running_statistics_are_updated_in_place():
    mean, var = np.zeros(3), Tensor(np.ones(3))
    F.batch_norm(X, mean, var, training=True, momentum=1.0)
    np.testing.assert_allclose(mean, X.mean((0, 2, 3)))
    np.testing.assert_allclose(var.array(), X.var((0, 2, 3), ddof=1))


def test_dropout_in_training():
    x = Tensor(np.ones((50, 40)), True)
    for ndim, function in enumerate((F.dropout, F.dropout1d, F.dropout2d)):
        given = x.reshape(50, 40, *(1,) * ndim)
        assert set(np.unique(function(given, 0.75).array())) == {0, 4}
