import numpy as np
import pytest

from fastlayers import Tensor, nn, ops


def images(*shape):
    return Tensor(np.random.default_rng(0).standard_normal(shape), True)


@pytest.mark.parametrize(
    ("shape", "args", "options"),
    [
        ((2, 2, 4, 5), (2, 3, 3), {}),
        ((2, 4, 5), (2, 3, 2), {"bias": False}),
        ((2, 2, 5, 4), (2, 3, (3, 2)), {"stride": (2, 1), "padding": (1, 0)}),
        ((1, 2, 5, 6), (2, 2, 2), {"dilation": (2, 3)}),
        ((2, 4, 3, 3), (4, 6, 2), {"groups": 2, "padding": 1}),
        ((2, 3, 3, 4), (3, 3, 3), {"groups": 3, "padding": "same"}),
        ((1, 2, 3, 4), (2, 1, (2, 3)), {"padding": "valid"}),
    ],
)
def test_values_and_gradients(check_layer, shape, args, options):
    layer, x = nn.Conv2d(*args, **options, dtype=np.float64), images(*shape)
    groups = options.get("groups", 1)
    assert layer.weight.shape == (args[1], args[0] // groups, *layer.kernel_size)
    assert (layer.bias is None) == (options.get("bias") is False)
    bias = None if layer.bias is None else layer.bias.array()
    expected = ops.conv2d(x.array(), layer.weight.array(), **{**options, "bias": bias})
    np.testing.assert_array_equal(layer(x).array(), expected)
    check_layer(layer, x)


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_algorithm(algorithm):
    layer, x = nn.Conv2d(16, 16, 3, algorithm=algorithm), Tensor(np.ones((1, 16, 6, 6), np.float32))
    expected = ops.conv2d(x.array(), layer.weight.array(), layer.bias.array(), algorithm=algorithm)
    np.testing.assert_array_equal(layer(x).array(), expected)
    assert f"algorithm={algorithm}" in repr(layer)


def test_relu_in_the_same_pass():
    layer, x = nn.Conv2d(2, 3, 3, dtype=np.float64), images(2, 2, 5, 4)
    y = nn.functional.conv2d(x, layer.weight, layer.bias, activation="relu")
    y.sum().backward()
    grads = [p.grad for p in (x, layer.weight, layer.bias)]
    x.grad = None
    layer.zero_grad()
    expected = nn.functional.relu(layer(x))
    expected.sum().backward()
    np.testing.assert_array_equal(y.array(), expected.array())
    for p, grad in zip((x, layer.weight, layer.bias), grads, strict=True):
        np.testing.assert_array_equal(p.grad, grad)


def test_unbatched_images():
    layer, x = nn.Conv2d(2, 3, 3, dtype=np.float64), images(2, 5, 4)
    np.testing.assert_array_equal(layer(x).array(), layer(Tensor(x.array()[None])).array()[0])


@pytest.mark.parametrize(
    ("error", "argument", "args", "options"),
    [
        (ValueError, "in_channels", (0, 1, 1), {}),
        (TypeError, "in_channels", (1.0, 1, 1), {}),
        (ValueError, "out_channels", (1, -1, 1), {}),
        (ValueError, "kernel_size", (1, 1, 0), {}),
        (TypeError, "kernel_size", (1, 1, (1, 2, 3)), {}),
        (TypeError, "kernel_size", (1, 1, "33"), {}),
        (ValueError, "stride", (1, 1, 1), {"stride": (0, 1)}),
        (ValueError, "dilation", (1, 1, 1), {"dilation": 0}),
        (ValueError, "padding", (1, 1, 1), {"padding": -1}),
        (ValueError, "padding", (1, 1, 1), {"padding": "full"}),
        (ValueError, "padding", (1, 1, 1), {"padding": "same", "stride": 2}),
        (ValueError, "groups", (4, 6, 1), {"groups": 4}),
        (ValueError, "groups", (4, 6, 1), {"groups": 0}),
        (TypeError, "groups", (4, 6, 1), {"groups": 2.0}),
        (ValueError, "padding_mode", (1, 1, 1), {"padding_mode": "circular"}),
        (ValueError, "algorithm", (1, 1, 1), {"algorithm": "fft"}),
    ],
)
def test_errors(error, argument, args, options):
    with pytest.raises(error, match=rf"^Conv2d: .*\b{argument}\b.*\bgot\b"):
        nn.Conv2d(*args, **options)


@pytest.mark.parametrize(
    ("error", "x"),
    [
        (ValueError, np.ones((1, 3, 5, 5), np.float32)),
        (ValueError, np.ones((2, 5), np.float32)),
        (TypeError, np.ones((1, 2, 5, 5))),
        (TypeError, np.ones((1, 2, 5, 5), int)),
    ],
)
def test_errors_of_the_input(error, x):
    with pytest.raises(error, match=r"^conv2d: .*\b(input|weight)\b.*\bgot\b"):
        nn.Conv2d(2, 3, 3)(x)
