import itertools

import numpy as np
import pytest
from cases import DTYPES
from specs.batchnorm_pool import CASES

from fastlayers import ops, reference
from fastlayers.runtime.threads import set_num_threads


def images(shape, dtype, seed=0):
    """Random values with channels-last memory, as ops return them."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)


def vectors(channels, dtype):
    rng = np.random.default_rng(1)
    return rng.uniform(-1.5, 1.5, channels).astype(dtype), rng.standard_normal(channels).astype(
        dtype
    )


def close(value, expected, dtype):
    scale = max(1, np.abs(expected).max(initial=0))
    tolerance = {np.float32: 2e-5, np.float64: 1e-12}[dtype]
    assert value.dtype == dtype and value.shape == expected.shape
    np.testing.assert_allclose(value, expected, tolerance, tolerance * scale)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_agrees_with_separate_passes(case, activation, dtype):
    shape, *window, ceil = case
    x = images(shape, dtype)
    weight, bias = vectors(shape[1], dtype)
    mean, invstd = ops.batch_norm_statistics(x, training=True)
    statistics = mean, invstd, weight, bias
    y, offsets = ops.batch_norm_max_pool2d(x, *statistics, *window, ceil, activation=activation)
    normal = ops.batch_norm_apply(x, *statistics, activation=activation)
    expected, cells = ops.max_pool2d_forward(normal, *window, ceil)
    np.testing.assert_array_equal(y, expected)
    assert offsets.dtype == cells.dtype
    if activation is None:
        np.testing.assert_array_equal(offsets, cells)
    dy = images(y.shape, dtype, 1)
    masked = dy if activation is None else ops.relu_backward(dy, y)
    spread = ops.max_pool2d_backward(masked, offsets, shape, *window)
    saved = weight, mean, invstd
    for training in (False, True):
        want = reference.batch_norm_backward(spread, x, *saved, training)
        everything = None
        for needs in itertools.product((True, False), repeat=3):
            got = ops.batch_norm_max_pool2d_backward(
                *(dy, y, offsets, x, *saved, training, needs, *window), activation=activation
            )
            everything = everything or got
            for needed, value, known, expected in zip(needs, got, everything, want, strict=True):
                if needed:
                    close(value, expected, dtype)
                    np.testing.assert_array_equal(value, known)
                else:
                    assert value is None


def test_threads_do_not_change_results():
    x, dy = images((37, 16, 33, 31), np.float32), images((37, 16, 16, 15), np.float32, 1)
    weight, bias = vectors(16, np.float32)
    mean, invstd = ops.batch_norm_statistics(x, training=True)
    known = None
    for threads in (1, 2, 3):
        set_num_threads(threads)
        y, offsets = ops.batch_norm_max_pool2d(x, mean, invstd, weight, bias, 2, activation="relu")
        gradients = ops.batch_norm_max_pool2d_backward(
            *(dy, y, offsets, x, weight, mean, invstd, True, (True,) * 3, 2), activation="relu"
        )
        results = y, offsets, *gradients
        known = known or results
        for value, expected in zip(results, known, strict=True):
            np.testing.assert_array_equal(value, expected)


def test_nan_wins():
    x = images((2, 3, 4, 4), np.float32)
    x[0, 1, 2, 3] = np.nan
    y, offsets = ops.batch_norm_max_pool2d(
        x, np.zeros(3, "f4"), np.ones(3, "f4"), None, None, 2, activation="relu"
    )
    assert np.isnan(y[0, 1, 1, 1]) and offsets[0, 1, 1, 1] == 1
    assert np.isnan(y).sum() == 1


def test_empty_batch():
    x, v = np.ones((0, 3, 4, 4), np.float32), np.ones(3, np.float32)
    y, offsets = ops.batch_norm_max_pool2d(x, v, v, v, v, 2)
    assert y.shape == offsets.shape == (0, 3, 2, 2)
    dx, dweight, dbias = ops.batch_norm_max_pool2d_backward(
        y, y, offsets, x, v, v, v, True, (True,) * 3, 2
    )
    assert dx.shape == x.shape
    np.testing.assert_array_equal([dweight, dbias], np.zeros((2, 3)))
