"""An array of a user, of channels-first memory, becomes channels-last once in a step."""

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, nn
from fastlayers.nn import functional as F
from fastlayers.ops import layout

RNG = np.random.default_rng(0)
IMAGES = RNG.standard_normal((2, 24, 6, 6)).astype("f4")


@pytest.fixture
def conversions(monkeypatch):
    """Shapes of what was converted to channels-last memory."""
    shapes, convert = [], layout.swapped

    def count(x, shape):
        shapes.append(shape)
        return convert(x, shape)

    monkeypatch.setattr(layout, "swapped", count)
    return shapes


class Residual(nn.Module):
    """Its input goes into a convolution, a normalisation and a pooling."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(24, 24, 3, padding=1), nn.BatchNorm2d(24)

    def forward(self, x):
        return self.norm(x) + self.conv(x) + F.avg_pool2d(x, 3, 1, 1)


def small_cnn():
    return nn.Sequential(
        nn.Conv2d(24, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.MaxPool2d(2)
    )


LAYERS = {
    "BatchNorm2d": lambda: nn.BatchNorm2d(24),
    "Conv2d": lambda: nn.Conv2d(24, 16, 3, padding=1),
    "Conv2d, depthwise": lambda: nn.Conv2d(24, 24, 3, groups=24),
    "Conv2d, 1x1": lambda: nn.Conv2d(24, 40, 1),
    "MaxPool2d": lambda: nn.MaxPool2d(2),
    "AvgPool2d": lambda: nn.AvgPool2d(2),
    "AdaptiveAvgPool2d": lambda: nn.AdaptiveAvgPool2d(1),
    "CNN": small_cnn,
    "Residual": Residual,
}


def step(model, x):
    """Forward and backward, with a gradient that needs no conversion of its own."""
    y = model(x)
    y.backward(np.ones_like(y.detach().numpy()))  # in the layout of y
    return y


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_a_step_converts_once(name, fused, conversions):
    model = LAYERS[name]()
    fl.set_fusion_enabled(fused)
    try:
        step(model, Tensor(IMAGES, requires_grad=True))
    finally:
        fl.set_fusion_enabled(True)
    assert conversions == [(2, 6, 6, 24)]


def test_channels_last_memory_is_not_converted(conversions):
    x = np.ascontiguousarray(IMAGES.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    step(Residual(), Tensor(x, requires_grad=True))
    assert conversions == []


@pytest.mark.skipif(fl.runtime.backend.NUMPY, reason="kernels that read any layout")
def test_a_first_convolution_of_few_channels_reads_images_as_they_are(conversions):
    x = Tensor(RNG.standard_normal((64, 1, 28, 28)).astype("f4"))
    with fl.no_grad():
        nn.Conv2d(1, 4, 3)(x)
    assert conversions == []


def test_images_without_a_batch_are_converted_once(conversions):
    layer = nn.Conv2d(24, 16, 3)
    y = layer(Tensor(IMAGES[0]))
    y.backward(np.ones_like(y.detach().numpy()))
    assert conversions == [(1, 6, 6, 24)]


class Changing(nn.Module):
    """Changes its input between two layers, in one of several ways."""

    def __init__(self, change):
        super().__init__()
        self.norm, self.change = nn.BatchNorm2d(24, affine=False), change

    def forward(self, x):
        before = self.norm(x)
        before.array()
        x = self.change(x)
        return before, self.norm(x)


def data_is(x, array):
    x.data = array
    return x


CHANGES = {
    "in place": lambda x: x.mul_(x),
    "by a view": lambda x: (x[:, :1].zero_(), x)[1],
    "an assignment": lambda x: (x.__setitem__((0, 3), 7.0), x)[1],
    "another tensor of the memory": lambda x: (Tensor(x).exp_(), x)[1],
    "detached": lambda x: (x.detach().exp_(), x)[1],
    "new data": lambda x: data_is(x, np.sqrt(np.abs(x.numpy()))),
    "another shape": lambda x: x.transpose_(2, 3),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_is_changed_is_converted_again(change):
    x = Tensor(IMAGES.copy())
    before, after = Changing(CHANGES[change])(x)
    again = Tensor(IMAGES.copy())
    norm = nn.BatchNorm2d(24, affine=False)
    np.testing.assert_array_equal(before, norm(Tensor(IMAGES)))
    np.testing.assert_array_equal(after, norm(CHANGES[change](again)))


def test_an_array_that_is_changed_between_calls_is_converted_again():
    array, model = IMAGES.copy(), nn.BatchNorm2d(24, affine=False)
    x, kept = Tensor(array, requires_grad=True), []
    for scale in (1, 3):
        array[...] = IMAGES**scale
        kept.append(model(x))  # it keeps what it has saved alive
        np.testing.assert_array_equal(kept[-1].detach(), model(Tensor(IMAGES**scale)).detach())
        np.testing.assert_array_equal(
            F.max_pool2d(x, 2).detach(), F.max_pool2d(Tensor(IMAGES**scale), 2).detach()
        )


def test_a_change_before_the_backward_pass_is_an_error():
    x = Tensor(IMAGES.copy())
    x = (x * 1).requires_grad_()
    y = nn.Conv2d(24, 16, 1)(x)
    with fl.no_grad():
        x.mul_(2)
    with pytest.raises(RuntimeError, match="must be unchanged"):
        y.sum().backward()


def test_what_was_converted_lives_as_long_as_what_has_saved_it():
    x = Tensor(IMAGES)
    y = nn.BatchNorm2d(24)(x)
    images = x._images[2]
    assert images() is not None
    y.sum().backward()
    assert images() is None
    with fl.no_grad():
        nn.BatchNorm2d(24)(x)
    assert x._images[2]() is None


def test_arrays_of_another_byte_order_are_converted_once(conversions):
    x = Tensor(IMAGES.astype(">f4"))
    step(nn.Conv2d(24, 16, 1), x)
    assert conversions == [(2, 6, 6, 24)]
