import numpy as np
import pytest

from fastlayers import Tensor, nn


@pytest.mark.parametrize("shape", [(4, 3), (3,), (2, 4, 3), (0, 3)])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients(check_layer, shape, bias):
    layer = nn.Linear(3, 5, bias=bias, dtype=np.float64)
    assert layer.weight.shape == (5, 3) and (layer.bias is None) == (not bias)
    x = Tensor(np.random.default_rng(0).standard_normal(shape), True)
    np.testing.assert_allclose(
        layer(x).array(), x.array() @ layer.weight.array().T + (layer.bias.array() if bias else 0)
    )
    check_layer(layer, x)


def test_flatten(check_layer):
    x = Tensor(np.random.default_rng(0).standard_normal((2, 4, 5, 3)).transpose(0, 3, 1, 2), True)
    np.testing.assert_array_equal(nn.Flatten()(x).array(), x.array().reshape(2, 60))
    assert nn.Flatten(0, 1)(x).shape == (6, 4, 5)
    check_layer(nn.Flatten(), x)


@pytest.mark.parametrize(
    ("error", "argument", "args"),
    [
        (ValueError, "in_features", (0, 1)),
        (TypeError, "in_features", (2.0, 1)),
        (ValueError, "out_features", (1, -2)),
        (TypeError, "out_features", (1, None)),
    ],
)
def test_errors(error, argument, args):
    with pytest.raises(error, match=f"^Linear: {argument} must be .*got"):
        nn.Linear(*args)


@pytest.mark.parametrize(
    ("error", "x"),
    [
        (ValueError, np.ones((2, 4), np.float32)),
        (ValueError, np.ones((), np.float32)),
        (TypeError, np.ones((2, 3))),
        (TypeError, np.ones((2, 3), int)),
    ],
)
def test_errors_of_the_input(error, x):
    with pytest.raises(error, match=r"^linear: .*\b(input|weight)\b.*\bgot\b"):
        nn.Linear(3, 2)(x)
