import numpy as np
import pytest

from fastlayers import Tensor, nn, ops

LAYERS = [
    ("MaxPool2d", {"kernel_size": 2}),
    ("MaxPool2d", {"kernel_size": (2, 3), "stride": 1, "padding": 1, "dilation": (2, 1)}),
    ("MaxPool2d", {"kernel_size": 3, "stride": 2, "ceil_mode": True}),
    ("AvgPool2d", {"kernel_size": 2}),
    ("AvgPool2d", {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1, "ceil_mode": True}),
    ("AvgPool2d", {"kernel_size": 3, "padding": 1, "count_include_pad": False}),
    ("AvgPool2d", {"kernel_size": 2, "divisor_override": 3}),
    ("AdaptiveAvgPool2d", {"output_size": 1}),
    ("AdaptiveAvgPool2d", {"output_size": (3, None)}),
    ("AdaptiveAvgPool2d", {"output_size": 7}),
]
OPS = {
    "MaxPool2d": ops.max_pool2d,
    "AvgPool2d": ops.avg_pool2d,
    "AdaptiveAvgPool2d": ops.adaptive_avg_pool2d,
}


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (3, 6, 5)])
@pytest.mark.parametrize(("name", "options"), LAYERS)
def test_values_and_gradients(check_layer, name, options, shape):
    layer = getattr(nn, name)(**options)
    distinct = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / 10
    np.testing.assert_array_equal(layer(distinct).array(), OPS[name](distinct, **options))
    check_layer(layer, Tensor(distinct, True))


def test_sizes():
    x = np.zeros((2, 3, 8, 6), np.float32)
    assert nn.MaxPool2d(2, 2)(x).shape == (2, 3, 4, 3)
    assert nn.MaxPool2d(3, 2, 1)(x).shape == (2, 3, 4, 3)
    assert nn.AvgPool2d(3, ceil_mode=True)(x).shape == (2, 3, 3, 2)
    assert nn.AdaptiveAvgPool2d((None, 2))(x).shape == (2, 3, 8, 2)


def test_indices_are_positions_in_the_image():
    x = Tensor(np.random.default_rng(0).standard_normal((2, 3, 4, 6)), True)
    y, indices = nn.MaxPool2d(2, return_indices=True)(x)
    assert not indices.requires_grad
    flat = np.take_along_axis(x.array().reshape(2, 3, -1), indices.array().reshape(2, 3, -1), 2)
    np.testing.assert_array_equal(flat.reshape(y.shape), y.array())
    y.sum().backward()
    assert x.grad.sum() == y.numel()


X = np.ones((1, 1, 4, 4), np.float32)


@pytest.mark.parametrize(
    ("error", "op", "argument", "call"),
    [
        (ValueError, "max_pool2d", "kernel_size", lambda: nn.MaxPool2d(0)(X)),
        (TypeError, "max_pool2d", "stride", lambda: nn.MaxPool2d(2, 1.5)(X)),
        (ValueError, "max_pool2d", "padding", lambda: nn.MaxPool2d(2, padding=2)(X)),
        (ValueError, "max_pool2d", "dilation", lambda: nn.MaxPool2d(2, dilation=0)(X)),
        (ValueError, "max_pool2d", "input", lambda: nn.MaxPool2d(2)(X[0, 0])),
        (ValueError, "max_pool2d", "kernel_size", lambda: nn.MaxPool2d(5)(X)),
        (TypeError, "avg_pool2d", "input", lambda: nn.AvgPool2d(2)(X.astype(int))),
        (ValueError, "avg_pool2d", "padding", lambda: nn.AvgPool2d(2, padding=2)(X)),
        (
            ValueError,
            "avg_pool2d",
            "divisor_override",
            lambda: nn.AvgPool2d(2, divisor_override=0)(X),
        ),
        (ValueError, "adaptive_avg_pool2d", "output_size", lambda: nn.AdaptiveAvgPool2d(0)(X)),
        (TypeError, "adaptive_avg_pool2d", "output_size", lambda: nn.AdaptiveAvgPool2d("1")(X)),
    ],
)
def test_errors(error, op, argument, call):
    with pytest.raises(error, match=rf"(?s)^{op}: .*\b{argument}\b.*\bgot\b"):
        call()
