import numpy as np
import pytest
from specs import SPECS, STEMS

import fastlayers as fl
from fastlayers import Tensor, nn

LAYERS = {name: layer for spec in STEMS["activation"] for name, layer in spec.layers.items()}
# Each with the values of each of its options.
MADE = [
    getattr(nn, name)(**{key: value})
    for name, layer in LAYERS.items()
    for key, values in (layer.options or {"inplace": []}).items()
    for value in values
    if key != "inplace"
]
MADE += [getattr(nn, name)() for name, layer in LAYERS.items() if "dim" not in layer.options]
VALUES = [
    (getattr(nn, name)(**options), x, y)
    for name, layer in LAYERS.items()
    for options, x, y in layer.values
]


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)])
@pytest.mark.parametrize("layer", MADE, ids=repr)
def test_gradients(check_layer, layer, shape):
    x = np.random.default_rng(0).standard_normal(shape)
    kept = x.copy()
    check_layer(layer, Tensor(x, True))
    np.testing.assert_array_equal(x, kept)


@pytest.mark.parametrize(("layer", "x", "y"), VALUES)
def test_values(layer, x, y):
    np.testing.assert_allclose(layer(np.array([x, x], float)).array(), [y, y], rtol=1e-12)


def test_probabilities():
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


IN_PLACE = [
    (name, layer)
    for spec in SPECS.values()
    for name, layer in spec.layers.items()
    if "inplace" in layer.options
]


@pytest.mark.parametrize(("name", "layer"), IN_PLACE, ids=[name for name, _ in IN_PLACE])
def test_in_place_layers_change_their_input(name, layer):
    kind, given = getattr(nn, name), layer.inputs[0]
    x, other = (fl.tensor(given, requires_grad=True) for _ in range(2))
    h = x * 1
    fl.manual_seed(0)
    y = kind(inplace=True)(h)
    assert y is h and "inplace=True" in repr(kind(inplace=True))
    fl.manual_seed(0)
    expected = kind()(other * 1)
    np.testing.assert_array_equal(h.array(), expected.array())
    assert (h.array() != given).any()
    h.sum().backward()
    expected.sum().backward()
    np.testing.assert_array_equal(np.asarray(x.grad), np.asarray(other.grad))
    with pytest.raises(RuntimeError, match="leaf"):
        kind(inplace=True)(x)


def test_in_place_layers_name_the_option():
    assert repr(nn.LeakyReLU(0.2, True)) == "LeakyReLU(negative_slope=0.2, inplace=True)"
