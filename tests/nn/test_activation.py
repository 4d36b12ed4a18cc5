import math

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, nn

LAYERS = [
    nn.ReLU(),
    nn.LeakyReLU(),
    nn.LeakyReLU(0.3),
    nn.Sigmoid(),
    nn.Tanh(),
    nn.GELU(),
    nn.GELU("tanh"),
    nn.Softmax(dim=1),
    nn.Softmax(-1),
    nn.LogSoftmax(dim=0),
    nn.LogSoftmax(1),
]


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_gradients(check_layer, layer, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    kept = x.copy()
    check_layer(layer, Tensor(x, True))
    np.testing.assert_array_equal(x, kept)


# (layer, input, output)
VALUES = [
    (nn.ReLU(), -2, 0),
    (nn.ReLU(), 3, 3),
    (nn.LeakyReLU(), -2, -0.02),
    (nn.LeakyReLU(0.5), -2, -1),
    (nn.Sigmoid(), math.log(3), 0.75),
    (nn.Tanh(), math.atanh(0.5), 0.5),
    (nn.GELU(), 1, 0.8413447460685429),
    (nn.GELU("tanh"), 1, 0.8411919906082768),
]


@pytest.mark.parametrize(("layer", "x", "y"), VALUES)
def test_values(layer, x, y):
    np.testing.assert_allclose(layer(np.array([x, x], float)).array(), [y, y], rtol=1e-12)


def test_shares():
    x = np.log(np.array([[1.0, 3], [2, 2]]))
    np.testing.assert_allclose(nn.Softmax(1)(x).array(), [[0.25, 0.75], [0.5, 0.5]])
    np.testing.assert_allclose(np.exp(nn.LogSoftmax(0)(x).array()), [[1 / 3, 0.6], [2 / 3, 0.4]])


def test_errors():
    with pytest.raises(ValueError, match=r"^GELU: approximate must be .*'erf'"):
        nn.GELU("erf")
    with pytest.raises(TypeError):
        nn.Softmax()
    for layer, op in [(nn.Softmax(2), "softmax"), (nn.LogSoftmax(-3), "log_softmax")]:
        with pytest.raises(ValueError, match=rf"^{op}: dim .*got"):
            layer(np.ones((2, 2)))
    for layer, op in [(nn.ReLU(), "relu"), (nn.LeakyReLU(), "leaky_relu"), (nn.GELU(), "gelu")]:
        with pytest.raises(TypeError, match=rf"^{op}: input must be float32 or float64"):
            layer(np.ones(3, int))
    with pytest.raises(TypeError, match=r"^leaky_relu: negative_slope"):
        nn.LeakyReLU("0.1")(np.ones(3))


IN_PLACE = {
    nn.ReLU: ([-2.0, 3.0], [0, 3]),
    nn.LeakyReLU: ([-2.0, 3.0], [-0.02, 3]),
    nn.Dropout: ([1.0, 1.0], [0, 0]),
    nn.Dropout1d: ([[[1.0]]], [[[0]]]),
    nn.Dropout2d: ([[[[1.0]]]], [[[[0]]]]),
}


@pytest.mark.parametrize(("kind", "values"), IN_PLACE.items())
def test_in_place_layers_change_their_input(kind, values):
    given, expected = values
    options = {"p": 1.0} if "Dropout" in kind.__name__ else {}
    x = fl.tensor(given, requires_grad=True)
    h = x * 1
    y = kind(**options, inplace=True)(h)
    assert y is h
    np.testing.assert_allclose(np.asarray(h.detach()), expected)
    h.sum().backward()
    other = fl.tensor(given, requires_grad=True)
    kind(**options)(other * 1).sum().backward()
    np.testing.assert_array_equal(np.asarray(x.grad), np.asarray(other.grad))
    with pytest.raises(RuntimeError, match="leaf"):
        kind(**options, inplace=True)(x)


def test_in_place_layers_name_the_option():
    assert repr(nn.LeakyReLU(0.2, True)) == "LeakyReLU(negative_slope=0.2, inplace=True)"
