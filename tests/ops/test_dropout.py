import numpy as np
import pytest
from cases import unpacked

from fastlayers import ops, random
from fastlayers.nn import functional as F


@pytest.fixture(autouse=True)
def seeded():
    random.manual_seed(0)


def test_kept_values_are_doubled_at_one_half():
    x = np.arange(1, 1001, dtype=np.float32)
    y = ops.dropout(x)
    kept = y != 0
    np.testing.assert_array_equal(y[kept], 2 * x[kept])
    assert 400 < kept.sum() < 600


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_share_of_dropped_elements(p):
    y = ops.dropout(np.ones((100, 1000)), p)
    assert abs((y == 0).mean() - p) < 5 * np.sqrt(p * (1 - p) / y.size)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - p))


def test_masks_are_seeded_and_differ_between_calls():
    x = np.ones(1000, np.float32)
    first, second = ops.dropout(x), ops.dropout(x)
    assert (first != second).any()
    random.manual_seed(0)
    np.testing.assert_array_equal(ops.dropout(x), first)
    random.manual_seed(1)
    assert (ops.dropout(x) != first).any()


@pytest.mark.parametrize("op", [ops.dropout, ops.dropout1d, ops.dropout2d])
def test_p_zero_keeps_and_p_one_drops_everything(op):
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 1)[: 3 + (op is ops.dropout2d)])
    x[0, 0, 0] = np.nan
    np.testing.assert_array_equal(op(x, 0), x)
    np.testing.assert_array_equal(op(x, 1), np.zeros_like(x))
    np.testing.assert_array_equal(op(x, 0.5, training=False), x)


def test_dropped_cells_are_zero_even_if_not_finite():
    x = np.full((50, 20), np.nan, np.float32)
    x[::2] = -np.inf
    y, mask = ops.dropout_forward(x, 0.5)
    kept = unpacked(mask, x.shape)
    assert mask.dtype == np.uint8 and 0 < kept.mean() < 1
    np.testing.assert_array_equal(y, np.where(kept, x, 0))
    dx = ops.dropout_backward(x, mask, 0.5)
    np.testing.assert_array_equal(dx, np.where(kept, x, 0))
    y, scale = ops.feature_dropout_forward(x[..., None], 0.5, 1)
    np.testing.assert_array_equal(y[..., 0], np.where(scale, x, 0))


@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (ops.dropout1d, (40, 5, 3)),
        (ops.dropout1d, (200, 3)),
        (ops.dropout2d, (40, 5, 3, 2)),
    ],
)
def test_whole_channels_are_dropped(op, shape):
    channels = shape[: len(shape) - (1 if op is ops.dropout1d else 2)]
    y = op(np.ones(shape, np.float32), 0.5).reshape(*channels, -1)
    assert set(np.unique(y)) == {0, 2}
    np.testing.assert_array_equal(y, np.broadcast_to(y[..., :1], y.shape))
    assert 0.3 < (y[..., 0] == 0).mean() < 0.7


@pytest.mark.parametrize("op", [ops.dropout2d, F.dropout2d])
def test_three_axes_of_dropout2d_are_those_of_dropout1d(op):
    x = np.ones((40, 5, 3), np.float32)
    random.manual_seed(0)
    want = ops.dropout1d(x)
    random.manual_seed(0)
    with pytest.warns(UserWarning, match=r"dropout2d: input of three axes is \(N, C, L\)"):
        np.testing.assert_array_equal(np.asarray(op(x)), want)
