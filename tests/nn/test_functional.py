import inspect

import numpy as np
import pytest

from fastlayers import Tensor, nn, ops
from fastlayers.nn import functional as F
from fastlayers.testing import gradcheck

X = np.random.default_rng(0).standard_normal((2, 3, 4, 4))
V = np.array([0.5, 1, 2])
LABELS = np.zeros((2, 4, 4), int)
CALLS = {
    "adaptive_avg_pool2d": (X, 2),
    "avg_pool2d": (X, 2),
    "batch_norm": (X, V, V, V, V),
    "binary_cross_entropy_with_logits": (X, abs(X)),
    "conv2d": (X, X[:1, :, :2], V[:1], 1, 1),
    "cross_entropy": (X, LABELS, V),
    "dropout": (X, 0.5, False),
    "dropout1d": (X[0], 0.5, False),
    "dropout2d": (X, 0.5, False),
    "gelu": (X,),
    "leaky_relu": (X, 0.1),
    "linear": (X, X[0, 0], X[0, 0, 0]),
    "log_softmax": (X, 1),
    "max_pool2d": (X, 2),
    "mse_loss": (X, -X),
    "nll_loss": (X, LABELS),
    "relu": (X,),
    "sigmoid": (X,),
    "softmax": (X, 1),
    "tanh": (X,),
}


def test_every_function_is_called():
    assert CALLS.keys() | {"flatten", "one_hot", "pad"} == set(F.__all__)


@pytest.mark.parametrize(("name", "args"), CALLS.items(), ids=CALLS)
def test_is_the_op_on_arrays_and_tensors(name, args):
    expected = getattr(ops, name)(*args)
    wrapped = [Tensor(a) if isinstance(a, np.ndarray) else a for a in args]
    for given in (args, wrapped):
        y = getattr(F, name)(*given)
        assert isinstance(y, Tensor) and not y.requires_grad
        np.testing.assert_array_equal(y.array(), expected)


@pytest.mark.parametrize("name", CALLS)
def test_defaults_are_those_of_the_op(name):
    ours, theirs = (inspect.signature(getattr(m, name)).parameters for m in (F, ops))
    assert [p for p in ours if p != "inplace"] == list(theirs)
    for key, parameter in theirs.items():
        assert ours[key].default in (parameter.default, inspect.Parameter.empty)


@pytest.mark.parametrize(("name", "args"), CALLS.items(), ids=CALLS)
def test_gradients_of_all_inputs(name, args):
    parameters = list(inspect.signature(getattr(F, name)).parameters)
    learnt = ["input"] if "reduction" in parameters else ["input", "weight", "bias"]
    where = [i for i, key in enumerate(parameters[: len(args)]) if key in learnt]

    def function(*tensors):
        given = list(args)
        for i, t in zip(where, tensors, strict=True):
            given[i] = t
        return getattr(F, name)(*given)

    gradcheck(function, [Tensor(args[i], True) for i in where])


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
