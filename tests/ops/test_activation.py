import numpy as np
import pytest
from cases import DTYPES
from specs import STEMS

from fastlayers import ops, reference

ELEMENTWISE = [spec.op for spec in STEMS["activation"] if spec.nonfinite]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ELEMENTWISE)
def test_nan_propagates(op, dtype):
    y = getattr(ops, op)(np.array([np.nan, 1], dtype))
    np.testing.assert_array_equal(np.isnan(y), [True, False])


def test_gradient_of_relu_is_zero_at_zero_and_passes_nan():
    y = ops.relu(np.array([-1, -0.0, 0.0, 2, np.nan, np.inf]))
    np.testing.assert_array_equal(y, [0, 0, 0, 2, np.nan, np.inf])
    dy = np.arange(1.0, 7)
    np.testing.assert_array_equal(ops.relu_backward(dy, y), [0, 0, 0, 4, 5, 6])
    # A gradient that is not finite does not leak through a dead unit.
    np.testing.assert_array_equal(ops.relu_backward(dy * np.nan, y)[:3], 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_values(dtype):
    x = np.array([-np.inf, -1e4, -90, 0, 90, 1e4, np.inf], dtype)
    y = ops.sigmoid(x)
    np.testing.assert_array_equal(y[[0, 1, 3, 5, 6]], [0, 0, 0.5, 1, 1])
    np.testing.assert_allclose(y[2], np.exp(dtype(-90)), 1e-4)
    np.testing.assert_array_equal(ops.tanh(x), [-1, -1, -1, 0, 1, 1, 1])
    finite = x[1:-1]
    for approximate in ("none", "tanh"):
        np.testing.assert_array_equal(ops.gelu(finite, approximate), [0, 0, 0, 90, 1e4])
        slopes = ops.gelu_backward(np.ones_like(finite), finite, approximate)
        np.testing.assert_array_equal(slopes, [0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", ["tanh", "sigmoid", "gelu"])
def test_digits_near_zero(op, dtype):
    x = np.array([-1e-3, -1e-8, 1e-20, 1e-5], dtype)
    np.testing.assert_allclose(getattr(ops, op)(x), getattr(reference, op)(x), 1e-6)


def test_gradient_of_sigmoid_keeps_its_digits_near_one():
    y = np.linspace(0.99, 0.9999, 50, dtype=np.float32)
    exact = y.astype(np.float64) * (1 - y.astype(np.float64))
    np.testing.assert_allclose(ops.sigmoid_backward(np.ones_like(y), y), exact, 1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_does_not_overflow(axis, dtype):
    x = np.array([[1e4, 1e4 - 1, -np.inf], [-1e4, -1e4 - 1, -np.inf]], dtype)
    small = np.array([0, -1, -np.inf], dtype)
    x = x if axis else x.T
    for op in (ops.softmax, ops.log_softmax):
        expected = np.broadcast_to(op(small, 0), (2, 3))
        np.testing.assert_allclose(op(x, axis), expected if axis else expected.T, 1e-6)
    assert ops.softmax(small, 0).sum() == pytest.approx(1)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_softmax_keeps_nan_in_its_row(value):
    for op in (ops.softmax, ops.log_softmax):
        y = op(np.array([[0, value, 1], [1, 2, 3]], np.float32), 1)
        assert np.isnan(y[0, 1]) and np.isfinite(y[1]).all()
    assert np.isnan(ops.softmax(np.full((1, 3), -np.inf), 1)).all()
