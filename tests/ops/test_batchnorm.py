import numpy as np
import pytest
from cases import DTYPES, check, check_error, check_gradients, check_threads, params

from fastlayers import ops


@pytest.mark.parametrize("dtype", DTYPES)
@params("batch_norm")
def test_agrees_with_reference(case, dtype):
    check(case, dtype)


@params("batch_norm", least=1, most=500)
def test_gradients_are_central_differences(case):
    check_gradients(case)


@params("batch_norm", least=10000)
def test_threads_do_not_change_results(case):
    check_threads(case)


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
ERRORS = [
    (ValueError, "input", X[0, 0], {}),
    (ValueError, "input", np.ones((1,) * 6, np.float32), {}),
    (ValueError, "input", X[:, :0], {"running_mean": None, "running_var": None}),
    (ValueError, "input", X[:1, :, 0], {}),
    (ValueError, "input", X[:0], {}),
    (TypeError, "input", X.astype(int), {}),
    (TypeError, "input", X.astype(complex), {}),
    (TypeError, "input", X.tolist(), {}),
    (ValueError, "running_mean", X, {"running_mean": V[:2]}),
    (TypeError, "running_var", X, {"running_var": V.astype(float)}),
    (TypeError, "running_var", X, {"running_var": [1.0, 1.0, 1.0]}),
    (ValueError, "weight", X, {"weight": V[:2]}),
    (TypeError, "weight", X, {"weight": V.astype(float)}),
    (ValueError, "bias", X, {"bias": X}),
    (ValueError, "momentum", X, {"momentum": 1.5}),
    (ValueError, "momentum", X, {"momentum": np.nan}),
    (TypeError, "momentum", X, {"momentum": "0.1"}),
    (ValueError, "eps", X, {"eps": -1e-5}),
    (ValueError, "eps", X, {"eps": np.inf}),
    (TypeError, "eps", X, {"eps": None}),
]


@pytest.mark.parametrize(("error", "argument", "x", "options"), ERRORS)
def test_errors_leave_running_statistics_alone(error, argument, x, options):
    mean, var = np.array([1.5, -0.0, np.nan], np.float32), V / 3
    before = mean.tobytes(), var.tobytes()
    options = {"running_mean": mean, "running_var": var, "training": True} | options
    check_error("batch_norm", error, argument, x, **options)
    assert (mean.tobytes(), var.tobytes()) == before


def test_running_statistics_come_in_pairs():
    with pytest.raises(ValueError, match=r"batch_norm: running_mean and running_var"):
        ops.batch_norm(X, V, None)


def test_read_only_running_statistics_cannot_be_trained():
    mean, var = V.copy(), V.copy()
    var.flags.writeable = False
    with pytest.raises(ValueError, match=r"batch_norm: running_var"):
        ops.batch_norm(X, mean, var, training=True)
    np.testing.assert_array_equal(mean, V)
    ops.batch_norm(X, mean, var)


@pytest.mark.parametrize(
    ("error", "argument", "options"),
    [
        (ValueError, "grad_output", {"grad_output": X[1:]}),
        (TypeError, "grad_output", {"grad_output": X.astype(float)}),
        (ValueError, "mean", {"mean": V[:2]}),
        (TypeError, "invstd", {"invstd": V.astype(float)}),
        (ValueError, "weight", {"weight": V[:1]}),
    ],
)
def test_backward_errors(error, argument, options):
    given = {"grad_output": X, "input": X, "weight": V, "mean": V, "invstd": V, "training": True}
    check_error("batch_norm_backward", error, argument, **given | options)
