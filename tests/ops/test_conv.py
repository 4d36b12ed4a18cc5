import numpy as np
import pytest
from cases import conv
from specs.conv import DIFFERENCES

from fastlayers import ops, reference
from fastlayers.ops.conv import gather, prepare


@pytest.mark.parametrize("case", DIFFERENCES, ids=lambda c: c.id)
def test_fewest_terms_are_those_of_the_shortest_sums(case):
    x, weight = (np.ones((1,) * (4 - len(s)) + s) for s in list(case.shapes.values())[:2])
    options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | case.options
    shape = prepare("conv2d", x, weight, **options, algorithm="direct")[2].shape
    y = reference.conv2d(x, weight, np.zeros(len(weight)), **options)
    dx, dw, _ = reference.conv2d_backward(np.ones_like(y), x, weight, **options)
    least = [int(a.min(initial=1 << 30)) for a in (y, dx, dw)]
    assert shape.fewest == tuple(least)


def test_hand_computed_example():
    x = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4)
    weight = np.array([[[[1, 2], [3, 4]]]], np.float32)
    y = ops.conv2d(x, weight, np.array([1], np.float32), stride=(1, 2))
    # 1 + 1 * 1 + 2 * 2 + 3 * 5 + 4 * 6, and so on
    np.testing.assert_array_equal(y, [[[45, 65], [85, 105]]])
    dx, dweight, dbias = ops.conv2d_backward(np.ones_like(y), x, weight, stride=(1, 2))
    np.testing.assert_array_equal(dx, [[[1, 2, 1, 2], [4, 6, 4, 6], [3, 4, 3, 4]]])
    np.testing.assert_array_equal(dweight, [[[[16, 20], [32, 36]]]])
    np.testing.assert_array_equal(dbias, [4])


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (1, 0, 1)])
def test_needs(needs):
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((2, 3, 5, 5)), rng.standard_normal((4, 3, 3, 3))
    dy = rng.standard_normal((2, 4, 3, 3))
    everything = ops.conv2d_backward(dy, x, weight)
    chosen = ops.conv2d_backward(dy, x, weight, needs=tuple(map(bool, needs)))
    for needed, gradient, expected in zip(needs, chosen, everything, strict=True):
        if needed:
            np.testing.assert_array_equal(gradient, expected)
        else:
            assert gradient is None


def test_bias_gradient_of_few_channels_and_many_pixels():
    x, w = np.zeros((2, 1, 128, 130), np.float32), np.zeros((3, 1, 1, 1), np.float32)
    dy = np.random.default_rng(0).integers(-4, 5, (2, 3, 128, 130)).astype(np.float32)
    *others, db = ops.conv2d_backward(dy, x, w, needs=(False, False, True))
    assert others == [None, None]
    np.testing.assert_array_equal(db, dy.sum(axis=(0, 2, 3), dtype=float))


def test_options_may_be_integers_of_numpy():
    x, w = np.ones((1, 2, 6, 6)), np.ones((2, 2, 3, 3))
    y = ops.conv2d(x, w, stride=np.int64(2), padding=(np.uint8(1), 1))
    np.testing.assert_array_equal(y, ops.conv2d(x, w, stride=2, padding=1))


def test_nan_stays_in_the_windows_that_hold_it():
    x = np.ones((1, 1, 4, 4), np.float32)
    x[..., 0, 0] = np.nan
    y = ops.conv2d(x, np.ones((1, 1, 2, 2), np.float32))
    np.testing.assert_array_equal(np.isnan(y[0, 0]), np.arange(9).reshape(3, 3) == 0)


# Direct in place, direct padded, Winograd, and few channels a group.
PATHS = [
    conv((2, 6, 5, 7), (5, 6, 1, 1)),
    conv((2, 3, 6, 5), (20, 3, 3, 3), padding=1, stride=2),
    conv((2, 16, 9, 6), (17, 16, 3, 3), padding=1),
    conv((2, 6, 5, 7), (6, 1, 3, 3), groups=6, padding=1),
]


@pytest.mark.parametrize("case", PATHS, ids=lambda case: case.id)
def test_relu_in_the_same_pass(case):
    arrays, options = case.arrays(np.float32), case.options
    x, weight, bias = (arrays[name] for name in ("input", "weight", "bias"))
    x[0, 0, 0, 0] = np.nan
    y = ops.conv2d(x, weight, bias, **options)
    fused = ops.conv2d(x, weight, bias, **options, activation="relu")
    assert np.isnan(y).any()
    np.testing.assert_array_equal(fused, np.where(y < 0, 0, y))


@pytest.mark.parametrize("algorithm", ["direct", "winograd"])
def test_algorithms_agree(algorithm):
    case = conv((2, 17, 9, 6), (33, 17, 3, 3), padding=(1, 2))
    arrays, options = case.arrays(np.float64), case.options
    x, weight, bias = (arrays[name] for name in ("input", "weight", "bias"))
    y = ops.conv2d(x, weight, bias, **options, algorithm=algorithm)
    np.testing.assert_allclose(y, reference.conv2d(x, weight, bias, **options), rtol=1e-11)
    grads = ops.conv2d_backward(y, x, weight, **options, algorithm=algorithm)
    expected = reference.conv2d_backward(y, x, weight, **options)
    for grad, other in zip(grads, expected, strict=True):
        np.testing.assert_allclose(grad, other, rtol=1e-10, atol=1e-10)


def test_images_larger_than_the_caches(monkeypatch):
    monkeypatch.setattr(gather, "STREAM_BYTES", 32 * 1024)
    arrays = conv((1, 16, 24, 25), (32, 16, 1, 1)).arrays(np.float32, "integers")
    x, weight, bias = (arrays[name] for name in ("input", "weight", "bias"))
    y = ops.conv2d(x, weight, bias, algorithm="direct", activation="relu")
    np.testing.assert_array_equal(y, np.maximum(reference.conv2d(x, weight, bias), 0))


def test_direct_gives_an_image_the_same_bits_in_every_batch():
    arrays = conv((5, 16, 8, 8), (24, 16, 3, 3)).arrays(np.float32)
    x, weight, bias = (arrays[name] for name in ("input", "weight", "bias"))
    all_of_them = ops.conv2d(x, weight, bias, padding=1, algorithm="direct")
    one = ops.conv2d(x[3], weight, bias, padding=1, algorithm="direct")
    np.testing.assert_array_equal(all_of_them[3], one)
