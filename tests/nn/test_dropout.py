import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, nn

LAYERS = {nn.Dropout: (6, 5, 4, 3), nn.Dropout1d: (60, 40, 3), nn.Dropout2d: (60, 40, 3, 2)}
DROPOUTS = pytest.mark.parametrize(("layer", "shape"), LAYERS.items())


def ones(shape, dtype=np.float32):
    return Tensor(np.ones(shape, dtype), True)


@DROPOUTS
def test_kept_values_are_doubled(layer, shape):
    x = np.random.default_rng(0).uniform(1, 2, shape).astype(np.float32)
    y = layer()(x).array()
    kept = y != 0
    assert kept.any() and not kept.all()
    np.testing.assert_array_equal(y[kept], 2 * x[kept])


@pytest.mark.parametrize(
    ("layer", "shape", "channels"),
    [(nn.Dropout1d, (60, 40, 3), 2), (nn.Dropout1d, (40, 3), 1), (nn.Dropout2d, (60, 40, 3, 2), 2)],
)
def test_whole_channels_are_zeroed(layer, shape, channels):
    y = layer()(ones(shape)).array().reshape(*shape[:channels], -1)
    assert set(y.ravel()) == {0, 2}
    assert (y == y[..., :1]).all()


@DROPOUTS
@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_of_dropped_cells(layer, shape, p):
    shape = (100, 1000) if layer is nn.Dropout else (250, 400, *(1,) * (len(shape) - 2))
    dropped = (layer(p)(ones(shape)).array() == 0).mean()
    assert abs(dropped - p) < 5 * np.sqrt(p * (1 - p) / 1e5)


@DROPOUTS
def test_identity_in_evaluation(layer, shape):
    x = ones(shape)
    np.testing.assert_array_equal(layer().eval()(x).array(), x.array())
    np.testing.assert_array_equal(layer(0.0)(x).array(), x.array())
    np.testing.assert_array_equal(layer(1)(x).array(), np.zeros(shape))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [(nn.Dropout, (300, 1000)), (nn.Dropout1d, (100, 60, 50)), (nn.Dropout2d, (100, 60, 10, 5))],
)
def test_masks_depend_on_the_seed_and_not_on_threads(restored_threads, layer, shape):
    def masks():
        fl.manual_seed(7)
        drop = layer()
        return [drop(ones(shape)).array() for _ in range(2)]

    results = []
    for threads in (1, 2, 4):
        fl.set_num_threads(threads)
        results.append(masks())
    np.testing.assert_array_equal(results[0], results[1])
    np.testing.assert_array_equal(results[0], results[2])
    assert (results[0][0] != results[0][1]).any()
    fl.manual_seed(8)
    assert (layer()(ones(shape)).array() != results[0][0]).any()


@DROPOUTS
@pytest.mark.parametrize("p", [0.25, 0.5, 1.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_gradient_is_the_scaled_mask(layer, shape, p, dtype):
    x = ones(shape, dtype)
    y = layer(p)(x)
    gradient = np.random.default_rng(0).uniform(1, 2, shape).astype(dtype)
    y.backward(gradient)
    scale = dtype(0 if p == 1 else 1 / (1 - p))
    np.testing.assert_allclose(x.grad, (y.array() != 0) * gradient * scale, rtol=1e-6)


def test_evaluation_passes_the_gradient():
    x = ones((2, 3))
    (nn.Dropout().eval()(x) * 3).sum().backward()
    np.testing.assert_array_equal(x.grad, np.full((2, 3), 3))


@DROPOUTS
def test_initialisation_does_not_move_the_masks(layer, shape):
    fl.manual_seed(0)
    first = layer()(ones(shape)).array()
    fl.manual_seed(0)
    nn.Linear(3, 3)
    np.testing.assert_array_equal(layer()(ones(shape)).array(), first)


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize(
    ("error", "p"),
    [(ValueError, -0.1), (ValueError, 1.1), (ValueError, np.nan), (TypeError, "0.5")],
)
def test_probability(layer, error, p):
    with pytest.raises(error, match=rf"^{layer.__name__}: p must be .*got"):
        layer(p)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("layer", "shape"), [(nn.Dropout1d, (2,)), (nn.Dropout1d, (2,) * 4), (nn.Dropout2d, (2, 2))]
)
def test_ranks(layer, shape, training):
    with pytest.raises(ValueError, match=rf"^{layer.__name__.lower()}: input must have .*got"):
        layer().train(training)(ones(shape))
