import math

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, nn
from fastlayers.nn import init

SHAPES = {"linear": (300, 200), "conv": (60, 40, 3, 5)}
FANS = {"linear": (200, 300), "conv": (600, 900)}


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    [
        (nn.Linear(400, 500), 400),
        (nn.Conv2d(30, 500, (3, 5)), 450),
        (nn.Conv2d(32, 400, 3, groups=4), 72),
    ],
    ids=repr,
)
def test_defaults_are_uniform(layer, fan_in):
    bound = 1 / math.sqrt(fan_in)
    for values in (layer.weight.array(), layer.bias.array()):
        assert values.dtype == np.float32
        assert np.abs(values).max() <= bound * (1 + 1e-6)
        # the mean, and the mean of squares, within 5 standard deviations
        assert abs(values.mean()) < 5 * bound / math.sqrt(3 * values.size)
        spread = bound**2 * math.sqrt(4 / 45 / values.size)
        assert abs(np.mean(values**2) - bound**2 / 3) < 5 * spread


@pytest.mark.parametrize("make", [lambda: nn.Linear(7, 5), lambda: nn.Conv2d(2, 3, 3)])
def test_seed_decides(make):
    def draw(seed):
        fl.manual_seed(seed)
        return np.concatenate([p.array().ravel() for p in make().parameters()])

    np.testing.assert_array_equal(draw(3), draw(3))
    assert (draw(3) != draw(4)).any()
    layer = make()
    before = layer.weight.array().copy()
    layer.reset_parameters()
    assert (layer.weight.array() != before).any()


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize(
    ("function", "options", "deviation"),
    [
        ("uniform_", {"a": -1, "b": 2}, lambda i, o: 3 / math.sqrt(12)),
        ("normal_", {"mean": 0.5, "std": 2}, lambda i, o: 2),
        ("xavier_uniform_", {"gain": 2}, lambda i, o: 2 * math.sqrt(2 / (i + o))),
        ("xavier_normal_", {}, lambda i, o: math.sqrt(2 / (i + o))),
        ("kaiming_uniform_", {"nonlinearity": "relu"}, lambda i, o: math.sqrt(2 / i)),
        ("kaiming_normal_", {"mode": "fan_out", "a": 1}, lambda i, o: math.sqrt(1 / o)),
        ("kaiming_normal_", {"nonlinearity": "tanh"}, lambda i, o: 5 / 3 / math.sqrt(i)),
    ],
)
def test_deviations(kind, function, options, deviation):
    t = Tensor(np.zeros(SHAPES[kind], np.float32))
    data = t.array()
    assert getattr(init, function)(t, **options) is t and t.array() is data
    std, mean = deviation(*FANS[kind]), {"uniform_": 0.5, "normal_": 0.5}.get(function, 0)
    # 5 standard deviations of the estimates, the normal distribution's, which is the wider one
    assert abs(data.std() / std - 1) < 5 / math.sqrt(2 * data.size)
    assert abs(data.mean() - mean) < 5 * std / math.sqrt(data.size)
    if "uniform" in function:
        assert np.abs(data - mean).max() <= std * math.sqrt(3) * (1 + 1e-6)


def test_constants():
    t = Tensor(np.zeros(3))
    for function, value in [(init.ones_, 1), (init.zeros_, 0)]:
        np.testing.assert_array_equal(function(t).array(), [value] * 3)
    np.testing.assert_array_equal(init.constant_(t, 2.5).array(), [2.5] * 3)


# PyTorch's table
@pytest.mark.parametrize(
    ("name", "gain"),
    [
        (("linear",), 1),
        (("conv2d",), 1),
        (("sigmoid",), 1),
        (("tanh",), 5 / 3),
        (("relu",), 2**0.5),
        (("leaky_relu",), (2 / (1 + 0.01**2)) ** 0.5),
        (("leaky_relu", 1), 1),
        (("selu",), 0.75),
    ],
)
def test_gains(name, gain):
    assert init.calculate_gain(*name) == pytest.approx(gain, rel=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: init.calculate_gain("swish"), "calculate_gain: nonlinearity.*'swish'"),
        (lambda t: init.kaiming_uniform_(t, mode="fan"), "kaiming_uniform_: mode.*'fan'"),
        (lambda t: init.xavier_normal_(Tensor(np.ones(3))), r"tensor must have.*\(3,\)"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call(Tensor(np.ones((2, 2))))


def test_fans_by_pytorch_s_name():
    fans = init._calculate_fan_in_and_fan_out(nn.Conv2d(3, 4, (5, 2)).weight)
    assert fans == (30, 40)
    with pytest.raises(ValueError, match="_calculate_fan_in_and_fan_out: tensor must have at"):
        init._calculate_fan_in_and_fan_out(nn.Linear(2, 2).bias)
