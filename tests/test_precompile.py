import json

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import __main__ as cli
from fastlayers import nn


def model():
    return nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(), nn.Flatten())


def test_model_and_random_state_stay():
    fl.manual_seed(1)
    net = model()
    net.eval()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    expected = fl.random.numpy_generator().bit_generator.state, fl.random.dropout_stream()[1]
    fl.warmup(net, (3, 2, 6, 6))
    assert fl.random.numpy_generator().bit_generator.state == expected[0]
    assert fl.random.dropout_stream()[1] == expected[1] + 1
    for key, value in net.state_dict().items():
        np.testing.assert_array_equal(value, before[key])
    assert not net.training and all(p.grad is None for p in net.parameters())


def test_nothing_is_left_to_compile():
    fl.warmup(model(), (3, 2, 6, 6))
    assert fl.warmup(model(), [3, 2, 6, 6]) == (0, 0)


@pytest.mark.parametrize(
    "net",
    [nn.ReLU(), nn.Linear(4, 3).requires_grad_(False), nn.Linear(4, 3, dtype="f8")],
    ids=["no parameters", "frozen", "float64"],
)
def test_any_model(net):
    fl.warmup(net, (2, 4))


@pytest.mark.parametrize("shape", [(), (0, 4), (2.0, 4), (True, 4), "24"])
def test_wrong_shape(shape):
    with pytest.raises(ValueError, match="^warmup: input_shape must be positive integers, got"):
        fl.warmup(nn.ReLU(), shape)


def test_wrong_model():
    with pytest.raises(TypeError, match="^warmup: model must be a Module, got function"):
        fl.warmup(lambda x: x, (2, 4))
    with pytest.raises(ValueError, match="^linear: "):
        fl.warmup(nn.Linear(5, 3), (2, 4))


def test_command(capsys):
    assert cli.main(["warmup", "--model", "mlp", "--input-shape", "4", "1", "8", "8"]) == 0
    assert "kernels compiled in" in capsys.readouterr().out
    for wrong, text in (
        (["--model", "mlp"], "--model needs --input-shape"),
        (["--model", "mlp", "--input-shape", "4", "1", "8", "9"], "square images, got 8x9"),
    ):
        assert cli.main(["warmup", *wrong]) == 1
        assert text in capsys.readouterr().err


def test_info(capsys):
    assert cli.main(["info", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["threads"] == fl.get_num_threads()
    assert facts["cached kernels"] > 0
    assert cli.main(["info"]) == 0
    assert f"{facts['CPU']}\n" in capsys.readouterr().out
