import itertools

import numpy as np
import pytest
from cases import DTYPES

from fastlayers import kernels, ops, reference
from fastlayers.ops.norm import layout
from fastlayers.ops.norm.normalisation import prepare
from fastlayers.runtime.threads import set_num_threads


def test_four_line_formula():
    x = np.random.default_rng(0).standard_normal((3, 2, 4, 5)) * 3 + 1
    weight, bias = np.array([2.0, 0.5]), np.array([-1.0, 3.0])
    running_mean, running_var = np.zeros(2), np.ones(2)
    y = ops.batch_norm(x, running_mean, running_var, weight, bias, True, 0.1, 1e-5)
    for c in range(2):
        mean = x[:, c].sum() / 60
        var = ((x[:, c] - mean) ** 2).sum() / 60
        xhat = (x[:, c] - mean) / np.sqrt(var + 1e-5)
        np.testing.assert_allclose(y[:, c], weight[c] * xhat + bias[c], 1e-10, 1e-10)
        np.testing.assert_allclose(running_mean[c], 0.1 * mean, 1e-12)
        np.testing.assert_allclose(running_var[c], 0.9 + 0.1 * var * 60 / 59, 1e-12)


def test_evaluation_uses_running_statistics_and_keeps_them():
    x = np.array([[1.0, 2], [3, 4]])
    mean, var = np.array([1.0, 0]), np.array([4.0, 1])
    y = ops.batch_norm(x, mean, var, eps=0.0)
    np.testing.assert_array_equal(y, [[0, 2], [1, 4]])
    np.testing.assert_array_equal([mean, var], [[1, 0], [4, 1]])


def test_momentum_one_forgets_the_past():
    x = np.array([[1.25], [1.75]], np.float32)
    mean, var = np.full(1, 1e8, np.float32), np.full(1, 1e8, np.float32)
    ops.batch_norm(x, mean, var, training=True, momentum=1.0)
    np.testing.assert_array_equal([mean, var], [[1.5], [0.125]])


def test_running_statistics_that_are_views_are_updated():
    statistics = np.zeros((2, 6), np.float32)
    x = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    ops.batch_norm(x, statistics[0, ::2], statistics[1, ::-2], training=True)
    np.testing.assert_allclose(statistics[0, ::2], 0.1 * x.mean(0), 1e-5)
    np.testing.assert_allclose(statistics[1, ::-2], 0.1 * x.var(0, ddof=1), 1e-5)


def test_variance_survives_a_large_mean():
    x = np.random.default_rng(0).standard_normal((64, 3, 5, 5))
    y = ops.batch_norm((x + 1e3).astype(np.float32), training=True)
    np.testing.assert_allclose(y, ops.batch_norm(x, training=True), atol=1e-3)


def test_constant_channel_gives_its_bias():
    bias = np.array([2, -3], np.float32)
    y = ops.batch_norm(np.full((4, 2, 3), 7, np.float32), bias=bias, training=True)
    np.testing.assert_array_equal(y, np.broadcast_to(bias[:, None], y.shape))


def test_nan_stays_in_its_channel():
    x = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    x[1, 2, 0, 1] = np.nan
    y, mean, invstd = ops.batch_norm_forward(x, training=True)
    assert np.isnan(y[:, 2]).all() and np.isfinite(y[:, :2]).all()
    np.testing.assert_array_equal(np.isnan([mean, invstd]), [[False, False, True]] * 2)


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
@pytest.mark.parametrize("training", [False, True])
def test_needs(needs, training):
    x, dy = np.random.default_rng(0).standard_normal((2, 5, 3, 4))
    saved = np.ones(3), np.zeros(3), np.ones(3), training
    everything = ops.batch_norm_backward(dy, x, *saved)
    chosen = ops.batch_norm_backward(dy, x, *saved, needs=tuple(map(bool, needs)))
    for needed, gradient, expected in zip(needs, chosen, everything, strict=True):
        if needed:
            np.testing.assert_array_equal(gradient, expected)
        else:
            assert gradient is None


X, V = np.ones((4, 3, 2), np.float32), np.ones(3, np.float32)


def test_read_only_running_statistics_cannot_be_trained():
    mean, var = V.copy(), V.copy()
    var.flags.writeable = False
    with pytest.raises(ValueError, match=r"batch_norm: running_var"):
        ops.batch_norm(X, mean, var, training=True)
    np.testing.assert_array_equal(mean, V)
    ops.batch_norm(X, mean, var)


def images(shape, dtype, seed=0):
    """Random values with channels-last memory, as ops return them."""
    values = np.random.default_rng(seed).standard_normal(shape).astype(dtype)
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(values, 1, -1)), -1, 1)


def vectors(channels, dtype):
    rng = np.random.default_rng(1)
    return rng.uniform(0.5, 1.5, channels).astype(dtype), rng.standard_normal(channels).astype(
        dtype
    )


def close(value, expected, dtype):
    scale = max(1, np.abs(expected).max(initial=0))
    tolerance = {np.float32: 2e-5, np.float64: 1e-12}[dtype]
    assert value.dtype == dtype
    np.testing.assert_allclose(value, expected, tolerance, tolerance * scale)


SHAPES = [(61, c) for c in (1, 3, 6, 16, 17, 64, 100, 130, 1500)]
SHAPES += [(3, c, 7) for c in (1, 6, 17, 130)]
SHAPES += [(5, c, 9, 7) for c in (1, 3, 6, 16, 17, 64, 100, 130)]
SHAPES += [(2, 3, 5, 1), (1, 16, 1, 3), (67, 6, 23, 21), (9, 100, 13, 17)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_fused_agrees_with_reference(shape, dtype):
    x, residual, dy = (images(shape, dtype, seed) for seed in range(3))
    weight, bias = vectors(shape[1], dtype)
    mean, invstd = ops.batch_norm_statistics(x, training=True)
    wide = x.astype(np.float64)
    _, *expected = reference.batch_norm_forward(wide, training=True)
    close(mean, expected[0], dtype)
    close(invstd, expected[1], dtype)
    affine = reference.batch_norm_forward(wide, None, None, weight, bias, True)[0]
    for other in (None, residual):
        for activation in (None, "relu"):
            y = ops.batch_norm_apply(
                x, mean, invstd, weight, bias, residual=other, activation=activation
            )
            want = affine if other is None else affine + other
            close(y, want if activation is None else np.maximum(want, 0), dtype)
            # The masks of float64 may differ where the sum is nearly 0.
            masked = dy if activation is None else ops.relu_backward(dy, y)
            saved = weight, mean, invstd
            want = reference.batch_norm_backward(masked, x, *saved, True)
            got = ops.batch_norm_backward(
                dy,
                x,
                *saved,
                True,
                (True,) * (3 if other is None else 4),
                bias=bias,
                activation=activation,
                output=y,
            )
            for value, gradient in zip(got, want, strict=False):
                close(value, gradient, dtype)
            if other is not None:
                np.testing.assert_array_equal(got[3], masked)


@pytest.mark.parametrize("shape", [(64, 3), (4, 17, 6, 5), (67, 6, 23, 21), (16, 64, 32, 32)])
@pytest.mark.parametrize("start", [1e4, 0.0])
def test_statistics_are_stable(shape, start):
    """Means far larger than the deviation, and a first row far from all others."""
    x = (images(shape, np.float64) + 1e4).astype(np.float32)
    x[0] = start
    mean, invstd = ops.batch_norm_statistics(x, training=True)
    _, wanted, expected = reference.batch_norm_forward(x.astype(np.float64), training=True)
    np.testing.assert_allclose(mean, wanted, 4e-7)
    np.testing.assert_allclose(invstd, expected, 2e-5)


@pytest.mark.parametrize(("rows", "folds"), [(100, 1), (100, 8), (64, 8), (65, 32), (3, 1)])
def test_merged_moments_are_those_of_all(rows, folds):
    values = np.random.default_rng(0).standard_normal((rows, 5)) + 1e3
    span, long_rows = 3, rows // folds
    chunks = -(-long_rows // span)
    facts = layout.layout_of((rows, 5), 8).facts
    facts = (rows, 5, folds, 5 * folds, span, chunks, *facts[6:])
    starts = [min(k * span, long_rows) * folds for k in range(chunks + 1)]
    parts = np.full((chunks + 1, 10), np.nan)
    for part, block in zip(parts, np.split(values, starts[1:]), strict=True):
        if len(block):
            part[:5], part[5:] = block.mean(0), block.var(0) * len(block)
    merge = kernels.norm.batchnorm.merge_moments
    for first, size in ((0, 2), (2, 3)):
        merge(parts.reshape(-1), facts, first, size)
    np.testing.assert_allclose(parts[0, :5], values.mean(0), 1e-14)
    np.testing.assert_allclose(parts[0, 5:], values.var(0) * rows, 1e-9)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_needs_of_the_fused(residual, activation, training):
    x, dy, other = (images((4, 6, 5, 3), np.float32, seed) for seed in range(3))
    (weight, bias), mean, invstd = vectors(6, np.float32), np.zeros(6, "f4"), np.ones(6, "f4")
    y = ops.batch_norm_apply(
        x, mean, invstd, weight, bias, residual=other if residual else None, activation=activation
    )
    arguments = dy, x, weight, mean, invstd, training
    options = {"bias": bias, "activation": activation, "output": y}
    count = 3 + residual
    everything = ops.batch_norm_backward(*arguments, (True,) * count, **options)
    masked = dy if activation is None else ops.relu_backward(dy, y)
    expected = reference.batch_norm_backward(masked, *arguments[1:])
    for value, gradient in zip(everything, expected, strict=False):
        close(value, gradient, np.float32)
    for needs in itertools.product((False, True), repeat=count):
        chosen = ops.batch_norm_backward(*arguments, needs, **options)
        for needed, gradient, known in zip(needs, chosen, everything, strict=True):
            if needed:
                np.testing.assert_array_equal(gradient, known)
            else:
                assert gradient is None


@pytest.mark.parametrize("shape", [(67, 6, 23, 21), (3000, 64), (40, 16, 57, 59), (1200, 530)])
def test_fused_results_do_not_depend_on_threads(shape):
    x, dy, other = (images(shape, np.float32, seed) for seed in range(3))
    weight, bias = vectors(shape[1], np.float32)
    known = None
    for threads in (1, 2, 3):
        set_num_threads(threads)
        y, mean, invstd = ops.batch_norm_forward(
            x, None, None, weight, bias, True, residual=other, activation="relu"
        )
        z = ops.batch_norm_apply(x, mean, invstd, weight, bias, activation="relu")
        saved = dy, x, weight, mean, invstd, True
        relu = {"bias": bias, "activation": "relu"}
        results = (
            *(y, mean, invstd, z),
            *ops.batch_norm_backward(*saved, (True,) * 4, **relu, output=y),
            *ops.batch_norm_backward(*saved, **relu),
        )
        known = known or results
        for value, expected in zip(results, known, strict=True):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((4, 6, 28, 28), 1),
        ((64, 512), 1),
        ((128, 16, 32, 32), 128),
        ((128, 64, 8, 8), 32),
        ((16, 64, 56, 56), 128),
        ((16, 512, 7, 7), 16),
        ((2, 2048, 7, 7), 6),  # of 16 rows at least
    ],
)
def test_chunks_of_layers(shape, chunks):
    found = layout.layout_of(shape, 4)
    assert found.chunks == chunks
    assert found.span * chunks <= 1.1 * found.rows // found.folds


def test_relu_keeps_nan():
    x = np.array([[1, np.nan], [-1, 2.0]])
    y = ops.batch_norm_apply(x, np.zeros(2), np.ones(2), activation="relu")
    np.testing.assert_array_equal(y, [[1, np.nan], [0, 2]])
    assert not np.signbit(
        ops.batch_norm_apply(-0.0 * x, *np.zeros((2, 2)), activation="relu")[0, 0]
    )


def test_empty_batch():
    x, v = np.ones((0, 3, 4, 5), np.float32), np.ones(3, np.float32)
    assert ops.batch_norm(x, v, v).shape == x.shape
    dx, dweight, dbias = ops.batch_norm_backward(x, x, v, v, v, False)
    assert dx.shape == x.shape
    np.testing.assert_array_equal([dweight, dbias], np.zeros((2, 3)))


def test_other_layouts_and_read_only_arrays():
    x, other = (images((3, 6, 5, 4), np.float32, seed) for seed in range(2))
    weight, bias = vectors(6, np.float32)
    known = ops.batch_norm_forward(x, None, None, weight, bias, True, residual=other)
    for change in (np.ascontiguousarray, np.asfortranarray, lambda a: a.repeat(2, axis=0)[::2]):
        got = ops.batch_norm_forward(
            change(x), None, None, change(weight), bias, True, residual=change(other)
        )
        for value, expected in zip(got, known, strict=True):
            np.testing.assert_array_equal(value, expected)
    for array in (x, other, weight, bias):
        array.flags.writeable = False
    got = ops.batch_norm_forward(x, None, None, weight, bias, True, residual=other)
    np.testing.assert_array_equal(got[0], known[0])


def test_backward_behind_a_residual_needs_the_output():
    with pytest.raises(ValueError, match=r"batch_norm_backward: output"):
        ops.batch_norm_backward(X, X, V, V, V, True, (True,) * 4, activation="relu")


def test_wrong_residual_leaves_running_statistics_alone():
    mean, var = V.copy(), V.copy()
    with pytest.raises(ValueError, match=r"batch_norm: residual"):
        ops.batch_norm_forward(X, mean, var, training=True, residual=X[1:])
    np.testing.assert_array_equal([mean, var], [V, V])


@pytest.mark.parametrize("shape", [(0, 3), (0, 3, 4), (2, 3, 0, 5)])
def test_batch_without_values_in_training(shape):
    mean, var = np.float32([1, 2, 3]), np.float32([4, 5, 6])
    x = np.zeros(shape, np.float32)
    y, *statistics = ops.batch_norm_forward(x, mean, var, training=True)
    assert y.shape == shape
    np.testing.assert_array_equal(statistics, [[0] * 3, [1] * 3])
    np.testing.assert_array_equal([mean, var], [[1, 2, 3], [4, 5, 6]])


def test_an_input_of_another_layout_is_converted_once(monkeypatch):
    seen, convert = [], layout.to_channels_last
    monkeypatch.setattr(layout, "to_channels_last", lambda x: seen.append(x) or convert(x))
    x = np.random.default_rng(0).standard_normal((2, 3, 4, 5))
    norm = prepare("batch_norm", x, None, None, None, None, True, 0.1, 1e-5)
    dy = norm.layout.flat(norm.forward(None, True))
    norm.backward(dy, (True, True, True), True)
    assert len(seen) == 1 and seen[0] is x


@pytest.mark.parametrize("missing", ["running", "weight", "bias"])
def test_ready_arrays_and_others_give_the_same(missing):
    """Whether arguments pass the quick test or are checked one by one."""
    x, (weight, bias) = images((4, 3, 5, 2), np.float32), vectors(3, np.float32)
    known = {"weight": weight, "bias": bias, "running_mean": V.copy(), "running_var": V.copy()}
    known = {name: value for name, value in known.items() if not name.startswith(missing)}
    other = {name: value.repeat(2)[::2] for name, value in known.items()}
    results = []
    for vectors_, momentum in ((known, 0.5), (other, np.float32(0.5))):
        y = ops.batch_norm_forward(x, training=True, momentum=momentum, **vectors_)
        results.append((*y, *vectors_.values()))
    for value, expected in zip(*results, strict=True):
        np.testing.assert_array_equal(value, expected)
