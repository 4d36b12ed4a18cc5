"""Arguments of layers in the forms that programs written for PyTorch give them."""

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn

X = np.random.default_rng(0).standard_normal((2, 4, 8, 8)).astype(np.float32)


def numbers(value):
    """A number as all that programs have for it."""
    kinds = (np.int64, np.int32) if isinstance(value, int) else (np.float32, np.float64)
    return [value, *(kind(value) for kind in kinds), np.array(value), fl.tensor(np.array(value))]


FORMS = range(5)


@pytest.mark.parametrize("form", FORMS)
def test_numbers_of_any_type(form):
    def of(value):
        return numbers(value)[form]

    fl.manual_seed(0)
    plain = [nn.Conv2d(4, 6, 3, 2, 1, 1, 2), nn.Linear(8, 3), nn.BatchNorm2d(4, 0.5, 0.25)]
    plain += [nn.MaxPool2d(2, 1, 1), nn.AvgPool2d(2, 2, 0), nn.AdaptiveAvgPool2d(2), nn.Flatten(2)]
    plain += [nn.Softmax(1), nn.LogSoftmax(2), nn.LeakyReLU(0.5), nn.Dropout(0.0)]
    fl.manual_seed(0)
    other = [nn.Conv2d(*map(of, (4, 6, 3, 2, 1, 1, 2))), nn.Linear(of(8), of(3))]
    other += [nn.BatchNorm2d(of(4), of(0.5), of(0.25)), nn.MaxPool2d(*map(of, (2, 1, 1)))]
    other += [nn.AvgPool2d(*map(of, (2, 2, 0))), nn.AdaptiveAvgPool2d(of(2)), nn.Flatten(of(2))]
    other += [nn.Softmax(of(1)), nn.LogSoftmax(of(2)), nn.LeakyReLU(of(0.5)), nn.Dropout(of(0.0))]
    for one, two in zip(plain, other, strict=True):
        got, want = two(X), one(X)
        np.testing.assert_array_equal(np.asarray(got.detach()), np.asarray(want.detach()))


@pytest.mark.parametrize("one", [(2,), [2], (np.int64(2),)])
def test_one_number_for_both_axes(one):
    for make in (nn.MaxPool2d, nn.AvgPool2d, lambda size: nn.Conv2d(4, 4, 3, size, (1,), (1,))):
        assert make(one)(X).shape == (2, 4, 4, 4)
    assert nn.Conv2d(3, 6, (5,)).kernel_size == (5, 5)
    for wrong in ((), (1, 2, 3), "2", [[2]]):
        with pytest.raises(TypeError, match="stride must be an integer"):
            nn.Conv2d(3, 6, 5, wrong)


@pytest.mark.parametrize("device", ["cpu", "cpu:0", None, type("Device", (), {"type": "cpu"})()])
def test_devices_and_dtypes(device):
    """In PyTorch's positions."""
    layers = [
        nn.Linear(2, 3, True, device, np.float64),
        nn.Conv2d(2, 3, 1, 1, 0, 1, 1, True, "zeros", device, np.float64),
        nn.BatchNorm2d(2, 1e-5, 0.1, True, True, device, np.float64),
        nn.SyncBatchNorm(2, device=device, dtype=np.float64),
    ]
    assert {p.dtype for layer in layers for p in layer.parameters()} == {np.dtype(np.float64)}


@pytest.mark.parametrize("device", ["cuda", "cuda:1", "meta", 0, np.float64])
def test_other_devices(device):
    for make in (nn.Linear, nn.BatchNorm2d, lambda *a, **k: nn.Conv2d(2, 3, 1, **k)):
        with pytest.raises(RuntimeError, match="device must be 'cpu', the only device, got"):
            make(2, *[3][: make is nn.Linear], device=device)


@pytest.mark.parametrize("layer", [nn.Linear(8, 3), nn.Conv2d(4, 6, 3), nn.BatchNorm2d(4)])
def test_an_input_of_another_precision_is_what_to_convert(layer):
    with pytest.raises(TypeError, match=r"input\.float\(\), or \.astype\(np\.float32\) of an arr"):
        layer(X.astype(np.float64))
    with pytest.raises(TypeError, match=r"input\.double\(\), or \.astype\(np\.float64\) of an a"):
        layer.double()(X)
    layer.float()
