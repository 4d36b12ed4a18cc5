import itertools

import numpy as np
import pytest
from cases import DTYPES, Case, check_exact, check_threads, compare
from specs.linear import LARGE, RELU

from fastlayers import ops
from fastlayers.ops.linear import large, small
from fastlayers.ops.linear.algorithm import Algorithm, LinearShape, Pass
from fastlayers.ops.linear.routes import ROUTES, algorithms, reasons
from fastlayers.ops.routes import route
from fastlayers.runtime.threads import set_num_threads


@pytest.fixture(params=["by size", "as large"])
def weights(request, monkeypatch):
    """Take weights for what they are, or all for larger than the caches."""
    if request.param == "by size":
        yield
        return
    algorithms.cache_clear()
    monkeypatch.setattr(small, "SMALL", 0)
    yield
    algorithms.cache_clear()


@pytest.mark.parametrize("size", LARGE, ids=str)
@pytest.mark.parametrize("threads", [1, 2])
def test_large_integers_are_exact(size, threads, weights):
    set_num_threads(threads)
    batch, k, n = size
    check_exact(Case("linear", {"input": (batch, k), "weight": (n, k), "bias": (n,)}))


@pytest.mark.parametrize("size", LARGE, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_large_results(size, dtype, weights):
    batch, k, n = size
    check_threads(Case("linear", {"input": (batch, k), "weight": (n, k), "bias": (n,)}), dtype)


@pytest.mark.parametrize("batch", [1, 3, 4, 5, 300])
@pytest.mark.parametrize("dtype", DTYPES)
def test_streamed_weight_gradient(batch, dtype, monkeypatch):
    case = Case("linear", {"input": (batch, 528), "weight": (197, 528)})
    expected = case.run(ops, case.arrays(dtype))
    monkeypatch.setattr(large, "STREAMED", 1 << 15)
    compare(case.run(ops, case.arrays(dtype)), expected, (0, 0))


@pytest.fixture
def many_tasks(monkeypatch):
    """Cut small work into many tasks."""
    algorithms.cache_clear()
    monkeypatch.setattr("fastlayers.runtime.threads.SERIAL_WORK", 100)
    monkeypatch.setattr(small, "TASK", 1000)
    yield
    algorithms.cache_clear()


@pytest.mark.parametrize("size", RELU, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("fits", [True, False])
@pytest.mark.parametrize("threads", [1, 2])
def test_relu_equals_relu_apart(size, dtype, fits, threads, many_tasks, monkeypatch):
    if not fits:
        monkeypatch.setattr(small, "SMALL", 0)
    set_num_threads(threads)
    (batch, k, n), rng = size, np.random.default_rng(0)
    shapes = (batch, n), (batch, k), (n, k), (n,)
    dy, x, weight, bias = (rng.standard_normal(shape).astype(dtype) for shape in shapes)
    y = ops.linear(x, weight, bias, activation="relu")
    np.testing.assert_array_equal(y, ops.relu(ops.linear(x, weight, bias)))
    expected = ops.linear_backward(ops.relu_backward(dy, y), x, weight)
    given = dy.copy()
    for needs in [(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 0, 0)]:
        got = ops.linear_backward(dy, x, weight, needs, activation="relu", output=y)
        for needed, gradient, wanted in zip(needs, got, expected, strict=True):
            np.testing.assert_array_equal(gradient, wanted if needed else None)
    np.testing.assert_array_equal(dy, given)


@pytest.mark.parametrize("size", RELU, ids=str)
@pytest.mark.parametrize("dtype", DTYPES)
def test_threads_do_not_change_small_results(size, dtype, many_tasks):
    batch, k, n = size
    check_threads(Case("linear", {"input": (batch, k), "weight": (n, k), "bias": (n,)}), dtype)


def test_relu_of_other_layouts_and_ranks():
    rng = np.random.default_rng(0)
    x, weight, dy = (rng.standard_normal(shape) for shape in ((2, 3, 5), (4, 5), (2, 3, 4)))
    y = ops.linear(x, weight, activation="relu")
    np.testing.assert_allclose(y, np.maximum(x @ weight.T, 0))
    relu = {"activation": "relu", "output": y[:, ::-1].copy()[:, ::-1]}
    dx, dweight, dbias = ops.linear_backward(dy, x, weight, **relu)
    masked = np.where(y > 0, dy, 0)
    np.testing.assert_allclose(dx, masked @ weight)
    np.testing.assert_allclose(dweight, np.einsum("abn,abk->nk", masked, x))
    np.testing.assert_allclose(dbias, masked.sum((0, 1)))


@pytest.mark.parametrize("size", [(2, 300, 9), (64, 20, 9)], ids=str)
def test_relu_keeps_nan(size):
    batch, k, n = size
    x, weight = np.ones((batch, k), np.float32), np.full((n, k), -1, np.float32)
    x[1, 3] = np.nan
    y = ops.linear(x, weight, activation="relu")
    expected = np.zeros((batch, n))
    expected[1] = np.nan
    np.testing.assert_array_equal(y, expected)
    dy = np.ones((batch, n), np.float32)
    dbias = ops.linear_backward(dy, x, weight, activation="relu", output=y)[2]
    np.testing.assert_array_equal(dbias, np.ones(n))  # as of `relu_backward`


@pytest.mark.parametrize("batch", [3, 7, 20])
def test_infinity_stays_infinite(batch):
    dy, weight = np.ones((batch, 5), np.float32), np.ones((5, 37), np.float32)
    weight[4, 3] = np.inf
    dx, dweight, _ = ops.linear_backward(dy, np.ones((batch, 37), np.float32), weight)
    expected = np.full((batch, 37), 5, np.float32)
    expected[:, 3] = np.inf
    np.testing.assert_array_equal(dx, expected)
    np.testing.assert_array_equal(dweight, np.full((5, 37), batch))


@pytest.mark.parametrize("size", [(0, 3, 4), (5, 0, 4), (9, 3, 0), (2, 0, 0), (600, 0, 3)], ids=str)
def test_empty_sizes(size):
    batch, k, n = size
    check_exact(Case("linear", {"input": (batch, k), "weight": (n, k), "bias": (n,)}))


def test_hand_computed_example():
    x, weight = np.array([[1.0, 2]]), np.array([[3.0, 4], [5, 6], [0, -1]])
    np.testing.assert_array_equal(ops.linear(x, weight, np.array([1.0, 0, 0])), [[12, 17, -2]])
    dx, dweight, dbias = ops.linear_backward(np.array([[1.0, 2, 3]]), x, weight)
    np.testing.assert_array_equal(dx, [[13, 13]])
    np.testing.assert_array_equal(dweight, [[1, 2], [2, 4], [3, 6]])
    np.testing.assert_array_equal(dbias, [1, 2, 3])


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0)])
def test_needs(needs):
    rng = np.random.default_rng(0)
    given = rng.standard_normal((4, 5)), rng.standard_normal((4, 3)), rng.standard_normal((5, 3))
    everything = ops.linear_backward(*given)
    chosen = ops.linear_backward(*given, needs=tuple(map(bool, needs)))
    for needed, gradient, expected in zip(needs, chosen, everything, strict=True):
        if needed:
            np.testing.assert_array_equal(gradient, expected)
        else:
            assert gradient is None


@pytest.mark.parametrize("rows", [0, 3])
@pytest.mark.parametrize("needs", list(itertools.product([True, False], repeat=3)))
def test_needs_of_long_weights(rows, needs):
    rng = np.random.default_rng(0)
    sizes = (rows, (1 << 16) + 1), (rows, 1), ((1 << 16) + 1, 1)
    dy, x, w = (rng.integers(-4, 5, size).astype(np.float32) for size in sizes)
    expected = dy.astype(float) @ w, dy.T.astype(float) @ x, dy.sum(axis=0, dtype=float)
    grads = ops.linear_backward(dy, x, w, needs)
    for needed, grad, value in zip(needs, grads, expected, strict=True):
        assert needed == (grad is not None)
        if needed:
            np.testing.assert_array_equal(grad, value)


def test_nan_stays_in_its_row():
    x = np.ones((14, 20), np.float32)
    x[3, 5] = np.nan
    y = ops.linear(x, np.ones((9, 20), np.float32))
    np.testing.assert_array_equal(np.isnan(y).all(1), np.arange(14) == 3)
    assert np.isfinite(np.delete(y, 3, 0)).all()


# Sizes, and what computes each pass of them.
CHOSEN = {
    (100, 40, 10): ("Short", "Small", "Small"),
    (4, 784, 100): ("Dots", "Small", "Small"),
    (4, 4096, 512): ("Dots", "Ranks", "Ranks"),
    (8, 4096, 512): ("Dots", "Ranks", "Blocks"),
    (128, 4096, 512): ("Dots", "Blocks", "Blocks"),
    (0, 4096, 512): ("Dots", "Ranks", "Blocks"),
}


@pytest.mark.parametrize("size", CHOSEN, ids=str)
def test_routes(size):
    chosen = algorithms(*size, np.dtype(np.float32), 1)
    assert tuple(type(algorithm).__name__ for algorithm in chosen[:3]) == CHOSEN[size]
    assert chosen.backward is (chosen[1] if "Small" in CHOSEN[size] else None)


def test_routes_have_reasons():
    x, weight = np.zeros((4, 784), np.float32), np.zeros((100, 784), np.float32)
    words = dict(zip(Pass, reasons(x, weight), strict=True))
    assert words["forward"][:2] == ("forward", "dot products, 4 rows a batch")
    assert words["backward_input"][1] == "GEMM in place, all gradients at once, 4 rows a batch"
    assert all(reason in {row.reason for row in ROUTES} for _, _, reason in words.values())


def test_passes_that_an_algorithm_does_not_offer():
    x = np.zeros((4, 4))
    algorithm = Algorithm(LinearShape(4, 4, 4, x.dtype), 1)
    for name, *arguments in (
        ("serves", algorithm.shape, Pass.FORWARD),
        ("forward", x, x, None, False),
        ("backward_input", x, x),
        ("backward_weight", x, x),
        ("backward", x, None, x, x, (True, True, True)),
    ):
        with pytest.raises(NotImplementedError):
            getattr(algorithm, name)(*arguments)


def test_numpy_serves_all_without_numba(monkeypatch):
    monkeypatch.setattr("fastlayers.runtime.backend.NUMPY", True)
    shape = LinearShape(4, 3, 2, np.dtype(np.float64))
    assert {route(ROUTES, shape, which) for which in Pass} == {ROUTES[0]}
    assert ROUTES[0].algorithm(shape, 1).describe(Pass.FORWARD) == "NumPy"


@pytest.mark.parametrize("row", ROUTES[1:], ids=lambda row: row.algorithm.__name__)
def test_passes_apart(row):
    """Each pass that an algorithm serves, by itself."""
    rng, k, n = np.random.default_rng(0), 20, 9
    rows = 4 if row.algorithm.__name__ == "Ranks" else 60
    x, weight, dy = (rng.standard_normal(size) for size in ((rows, k), (n, k), (rows, n)))
    shape = LinearShape(rows, k, n, x.dtype)
    algorithm, served = row.algorithm(shape, 1), [p for p in Pass if row.algorithm.serves(shape, p)]
    if Pass.FORWARD in served:
        y = algorithm.forward(x, weight, None, False)
        np.testing.assert_allclose(y, x @ weight.T, 1e-12)
    if Pass.BACKWARD_INPUT in served:
        np.testing.assert_allclose(algorithm.backward_input(dy, weight), dy @ weight, 1e-12)
    if Pass.BACKWARD_WEIGHT in served:
        dw, db = algorithm.backward_weight(x, dy)
        np.testing.assert_allclose(dw, dy.T @ x, 1e-12)
        assert db is None or np.allclose(db, dy.sum(0), 1e-12)
    assert served
