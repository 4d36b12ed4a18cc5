import numpy as np
import pytest

from fastlayers import Tensor, nn

LAYERS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d((2, 3), stride=1, padding=1, dilation=(2, 1)),
    nn.MaxPool2d(3, 2, ceil_mode=True),
    nn.AvgPool2d(2),
    nn.AvgPool2d((3, 2), (2, 1), 1, ceil_mode=True),
    nn.AvgPool2d(3, padding=1, count_include_pad=False),
    nn.AvgPool2d(2, divisor_override=3),
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((3, None)),
    nn.AdaptiveAvgPool2d(7),
]


@pytest.mark.parametrize("shape", [(2, 3, 5, 6), (3, 6, 5)])
@pytest.mark.parametrize("layer", LAYERS, ids=repr)
def test_gradients(check_layer, layer, shape):
    distinct = np.random.default_rng(0).permutation(np.prod(shape)).reshape(shape) / 10
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
    flat = np.take_along_axis(x.data.reshape(2, 3, -1), indices.data.reshape(2, 3, -1), 2)
    np.testing.assert_array_equal(flat.reshape(y.shape), y.data)
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
