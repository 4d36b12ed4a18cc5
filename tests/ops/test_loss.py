import numpy as np
import pytest
from cases import DTYPES, check_threads, labelled

from fastlayers import ops
from fastlayers.runtime.threads import set_num_threads

LABELLED = ("cross_entropy", "nll_loss")


def test_hand_computed_examples():
    x, target = np.log([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7]]), np.array([0, 2])
    losses = -np.log([0.5, 0.7])
    for op in (ops.cross_entropy, ops.nll_loss):
        np.testing.assert_allclose(op(x, target, reduction="none"), losses)
        np.testing.assert_allclose(op(x, target), losses.mean())
        weighted = op(x, target, np.array([3.0, 1, 1]))
        np.testing.assert_allclose(weighted, (3 * losses[0] + losses[1]) / 4)
        np.testing.assert_allclose(op(x, np.array([0, 9]), ignore_index=9), losses[0])
    dx = ops.cross_entropy_backward(np.array(1.0), x, target)
    np.testing.assert_allclose(dx, np.array([[-0.5, 0.25, 0.25], [0.1, 0.2, -0.3]]) / 2)
    smooth = ops.cross_entropy(x[:1], target[:1], label_smoothing=0.3)
    np.testing.assert_allclose(smooth, -0.8 * np.log(0.5) - 0.2 * np.log(0.25))
    t = np.array([1.0, 5])
    np.testing.assert_array_equal(ops.mse_loss(np.array([3.0, 4]), t), 2.5)
    two = np.array(2.0)
    np.testing.assert_array_equal(ops.mse_loss_backward(two, np.array([3.0, 4]), t), [4, -2])
    zeros = np.zeros(3)
    loss = ops.binary_cross_entropy_with_logits(zeros, np.array([0, 0.3, 1]))
    np.testing.assert_allclose(loss, np.log(2))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("op", LABELLED)
def test_all_ignored(op, dtype):
    x, target = np.ones((3, 4), dtype), np.full(3, -100)
    loss, gradient = getattr(ops, op), getattr(ops, f"{op}_backward")
    assert np.isnan(loss(x, target)) and loss(x, target).dtype == dtype
    assert loss(x, target, reduction="sum") == 0
    np.testing.assert_array_equal(loss(x, target, reduction="none"), np.zeros(3))
    np.testing.assert_array_equal(gradient(np.array(1, dtype), x, target), np.zeros((3, 4)))


def test_empty_batch():
    x, target = np.ones((0, 4), np.float32), np.ones(0, int)
    for op in (ops.cross_entropy, ops.nll_loss):
        assert np.isnan(op(x, target)) and op(x, target, reduction="sum") == 0
    assert ops.cross_entropy_backward(np.float32(1), x, target).shape == (0, 4)
    for op in (ops.mse_loss, ops.binary_cross_entropy_with_logits):
        assert np.isnan(op(x, x)) and op(x, x, reduction="sum") == 0


@pytest.mark.parametrize("dtype", [np.int8, np.int16, np.int32, np.uint8])
def test_labels_of_any_integer_type(dtype):
    x = np.random.default_rng(0).standard_normal((5, 4))
    target = np.array([3, 0, 1, 1, 2])
    for op in (ops.cross_entropy, ops.nll_loss):
        assert op(x, target.astype(dtype)) == op(x, target)


def test_large_logits_keep_their_digits():
    small = np.array([[1, 0, -2], [0, 3, 4]], np.float32)
    target, one = np.array([0, 1]), np.float32(1)
    large = small + np.float32(8192)
    expected = ops.cross_entropy(small, target, reduction="none")
    np.testing.assert_allclose(ops.cross_entropy(large, target, reduction="none"), expected, 1e-5)
    expected = ops.cross_entropy_backward(one, small, target)
    np.testing.assert_allclose(ops.cross_entropy_backward(one, large, target), expected, 1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_extreme_logits(dtype):
    x, target = np.array([[1e4, -1e4], [-np.inf, 0]], dtype), np.array([1, 1])
    np.testing.assert_array_equal(ops.cross_entropy(x, target, reduction="none"), [2e4, 0])
    dx = ops.cross_entropy_backward(np.ones(2, dtype), x, target, reduction="none")
    np.testing.assert_array_equal(dx, [[1, -1], [0, 0]])
    x, t = np.array([1e4, -1e4, 1e4, -1e4], dtype), np.array([1, 0, 0, 1], dtype)
    loss = ops.binary_cross_entropy_with_logits(x, t, reduction="none")
    np.testing.assert_array_equal(loss, [0, 0, 1e4, 1e4])
    dx = ops.binary_cross_entropy_with_logits_backward(np.ones_like(x), x, t, reduction="none")
    np.testing.assert_array_equal(dx, [0, 0, 1, -1])


@pytest.mark.parametrize("op", LABELLED)
def test_nan_stays_in_its_sample(op):
    x = np.zeros((2, 3), np.float32)
    x[0] = np.nan
    losses = getattr(ops, op)(x, np.array([1, 2]), reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), [True, False])
    losses = getattr(ops, op)(x, np.array([-100, 2]), reduction="none")
    assert losses[0] == 0


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(5, 4), (4,), (2, 37, 3, 2), (200, 10), (3, 1)])
@pytest.mark.parametrize("options", [{}, {"label_smoothing": 0.1}, {"ignore_index": 1}])
@pytest.mark.parametrize("weighted", [False, True])
def test_forward_gives_the_gradient_too(shape, reduction, options, weighted, dtype):
    rng = np.random.default_rng(0)
    x, classes = rng.standard_normal(shape).astype(dtype), shape[min(1, len(shape) - 1)]
    target = np.asarray(rng.integers(0, classes, shape[:1] + shape[2:] if shape[1:] else ()))
    weight = rng.uniform(0.5, 1.5, classes).astype(dtype) if weighted else None
    arguments = {"weight": weight, "reduction": reduction} | options
    loss, slopes = ops.cross_entropy_forward(x, target, **arguments)
    np.testing.assert_array_equal(loss, ops.cross_entropy(x, target, **arguments))
    assert ops.cross_entropy_forward(x, target, **arguments, needs_grad=False)[1] is None
    assert slopes.shape == x.shape and slopes.dtype == dtype
    dy = rng.standard_normal(loss.shape).astype(dtype)
    expected = ops.cross_entropy_backward(dy, x, target, **arguments)
    np.testing.assert_array_equal(ops.cross_entropy_apply(dy, slopes), expected)
    kept = slopes.copy()
    one = np.ones(loss.shape, dtype)
    assert not np.shares_memory(ops.cross_entropy_apply(one, slopes), slopes)
    if one.ndim == 0:
        assert ops.cross_entropy_apply(one, slopes, reuse=True) is slopes
    np.testing.assert_array_equal(slopes, kept)
    np.testing.assert_array_equal(ops.cross_entropy_apply(one, slopes, reuse=True), kept)


@pytest.mark.parametrize("dtype", DTYPES)
def test_exponential_is_within_an_ulp_and_a_half(dtype):
    """The slopes of a sum over two classes are the probabilities, ``exp(d) / (1 + exp(d))``."""
    d = np.concatenate([-np.logspace(-8, 2, 3001), [-0.0, -1e4, -np.inf]]).astype(dtype)
    x = np.stack([np.zeros_like(d), d], 1)
    target = np.zeros(len(d), int)
    probability = ops.cross_entropy_forward(x, target, reduction="sum")[1][:, 1]
    wide = np.exp(d.astype(np.longdouble))
    expected = (wide / (1 + wide)).astype(dtype)
    ulps = np.abs(probability - expected) / np.spacing(np.maximum(expected, np.finfo(dtype).tiny))
    assert ulps.max() <= 3  # exponential, sum, quotient and product
    assert probability[-1] == probability[-2] == 0 and probability[-3] == 0.5


def test_threads_share_the_check_of_many_targets():
    check_threads(labelled("cross_entropy", (20000, 3), True))
    x, target = np.zeros((20000, 3)), np.zeros(20000, np.int64)
    target[19990] = 3
    for threads in (1, 3):
        set_num_threads(threads)
        with pytest.raises(ValueError, match="target must"):
            ops.cross_entropy(x, target)
