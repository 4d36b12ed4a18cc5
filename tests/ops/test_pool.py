import numpy as np
import pytest
from cases import DTYPES, compare, pool

from fastlayers import ops, reference
from fastlayers.ops.pool import avg_pool, max_pool
from fastlayers.runtime import backend, memory
from fastlayers.runtime.threads import set_num_threads


def test_hand_computed_example():
    x = np.arange(1, 13, dtype=np.float32).reshape(1, 3, 4)
    y, indices = ops.max_pool2d(x, 2, (1, 2), return_indices=True)
    np.testing.assert_array_equal(y, [[[6, 8], [10, 12]]])
    np.testing.assert_array_equal(indices, [[[5, 7], [9, 11]]])
    np.testing.assert_array_equal(ops.avg_pool2d(x, 2, (1, 2)), [[[3.5, 5.5], [7.5, 9.5]]])
    np.testing.assert_array_equal(ops.adaptive_avg_pool2d(x, (1, 2)), [[[5.5, 7.5]]])
    y, offsets = ops.max_pool2d_forward(x, 2, (1, 2))
    dx = ops.max_pool2d_backward(np.full_like(y, 2), offsets, x.shape, 2, (1, 2))
    np.testing.assert_array_equal(dx, 2 * np.isin(x, [6, 8, 10, 12]))


def test_overlapping_windows_add_their_gradients_at_a_shared_maximum():
    x = np.zeros((1, 1, 3, 3))
    x[..., 1, 1] = 1
    y, offsets = ops.max_pool2d_forward(x, 2, 1)
    dx = ops.max_pool2d_backward(np.arange(1.0, 5).reshape(y.shape), offsets, x.shape, 2, 1)
    np.testing.assert_array_equal(dx, 10 * x)


@pytest.mark.parametrize("value", [0.0, -np.inf, np.inf])
def test_first_of_equals_wins(value):
    x = np.full((2, 17, 4, 6), value, np.float32)
    y, indices = ops.max_pool2d(x, 3, 1, padding=1, return_indices=True)
    np.testing.assert_array_equal(y, value)
    rows, columns = np.maximum(np.arange(4) - 1, 0), np.maximum(np.arange(6) - 1, 0)
    np.testing.assert_array_equal(indices[1, 16], rows[:, None] * 6 + columns)


def test_minus_zero_equals_zero():
    x = np.array([-0.0, 0.0, 0.0, -0.0], np.float32).reshape(1, 1, 2, 2)
    assert ops.max_pool2d(x, 2, return_indices=True)[1] == 0


@pytest.mark.parametrize("channels", [1, 3, 16, 35])
def test_first_nan_wins(channels):
    x = np.random.default_rng(0).standard_normal((2, channels, 4, 4)).astype(np.float32)
    x[..., 0, 1] = x[..., 1, 0] = np.nan
    x[..., 2, 2] = np.inf
    y, indices = ops.max_pool2d(x, 2, return_indices=True)
    assert np.isnan(y[..., 0, 0]).all() and (indices[..., 0, 0] == 1).all()
    assert np.isfinite(y[..., 0, 1]).all() and (y[..., 1, 1] == np.inf).all()
    y, offsets = ops.max_pool2d_forward(x, 2)
    dx = ops.max_pool2d_backward(np.ones_like(y), offsets, x.shape, 2)
    assert (dx[..., 0, 1] == 1).all() and (dx[..., 1, 0] == 0).all()


CHANNELS = (1, 2, 3, 4, 5, 6, 8, 9, 16, 17, 24, 64, 130)
GEOMETRIES = (
    {"kernel_size": 2},
    {"kernel_size": 3},
    {"kernel_size": (1, 2)},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "ceil_mode": True},
    {"kernel_size": 2, "dilation": 2, "stride": 1, "padding": 1},
    {"kernel_size": (8, 2), "ceil_mode": True},  # of more rows than there are
    {"kernel_size": 2, "dilation": (1, 10), "stride": 1, "padding": (0, 1)},  # in padding alone
)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("window", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_ties_and_values_that_are_not_finite(channels, window, dtype):
    rng = np.random.default_rng(channels)
    x = rng.choice([-np.inf, -1, -0.0, 0, 1, 1, 2, np.inf, np.nan], (3, channels, 7, 9))
    case = pool("max_pool2d", x.shape, **window)
    given = {"input": x.astype(dtype)}
    got, want = (case.run(module, given, "integers") for module in (ops, reference))
    compare(got, want, (0, 0))


@pytest.mark.parametrize("window", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels", CHANNELS)
def test_fused_relu_is_pooling_of_the_relu(channels, window):
    rng = np.random.default_rng(channels)
    x = rng.choice([-3.0, -1, -0.0, 0, 1, 2, np.nan], (3, channels, 7, 9), p=[0.4] + [0.1] * 6)
    y, offsets = ops.max_pool2d_forward(x, **window, activation="relu")
    want, whole = ops.max_pool2d_forward(ops.relu(x), **window)
    np.testing.assert_array_equal(y, np.where(want == -np.inf, 0, want))
    assert (offsets[y == 0] == 255).all()
    dy = rng.integers(-4, 5, y.shape).astype(float)
    options = {name: value for name, value in window.items() if name != "ceil_mode"}
    dx = ops.max_pool2d_backward(dy, offsets, x.shape, **options)
    unfused = ops.max_pool2d_backward(dy, whole, x.shape, **options)
    np.testing.assert_array_equal(dx, ops.relu_backward(unfused, ops.relu(x)))
    # What passes is decided by the output where the offsets don't say it.
    masked = ops.max_pool2d_backward(dy, whole, x.shape, **options, output=want)
    np.testing.assert_array_equal(masked, dx)


@pytest.mark.parametrize("window", GEOMETRIES, ids=str)
@pytest.mark.parametrize("channels", [1, 3, 6, 12, 16, 33])
def test_threads_write_their_own_rows_only(channels, window):
    case, results = pool("max_pool2d", (5, channels, 61, 47), **window), []
    given = case.arrays(np.float32)
    for threads in (1, 2, 3):
        set_num_threads(threads)
        results.append(case.run(ops, given))
    compare(results[0], case.run(reference, given))
    for other in results[1:]:
        compare(other, results[0], (0, 0))


@pytest.mark.parametrize("channels", [3, 33])
@pytest.mark.parametrize("window", [{"kernel_size": 3, "stride": 2, "padding": 1}, None], ids=str)
def test_threads_share_the_rows_of_an_image(channels, window):
    shape = (2, channels, 91, 47)
    dy = np.ones((2, channels, *((46, 24) if window else (1, 1))), np.float32)
    name = "avg_pool2d_backward" if window else "adaptive_avg_pool2d_backward"
    want = getattr(reference, name)(dy, shape, **(window or {}))
    for threads in (1, 2, 3):
        set_num_threads(threads)
        compare({"dx": getattr(ops, name)(dy, shape, **(window or {}))}, {"dx": want})


@pytest.mark.parametrize("channels", CHANNELS)
def test_nothing_is_written_beside_the_results(channels, monkeypatch):
    guarded = []

    def empty(shape, dtype):
        size = int(np.prod(shape))
        whole = np.full(size + 128, 77, dtype)
        guarded.append(whole)
        return whole[64 : 64 + size].reshape(shape)

    monkeypatch.setattr(memory, "empty", empty)
    x = np.random.default_rng(0).standard_normal((2, channels, 7, 9))
    for window in GEOMETRIES:
        options = {name: value for name, value in window.items() if name != "ceil_mode"}
        y, offsets = ops.max_pool2d_forward(x, **window)
        ops.max_pool2d_backward(y, offsets, x.shape, **options)
    for whole in guarded:
        assert (whole[:64] == 77).all() and (whole[-64:] == 77).all()


def test_window_of_padding_alone_is_empty():
    x = np.full((1, 1, 1, 5), 7, np.float32)  # the two rows of each window are -1 and 1
    y, offsets = ops.max_pool2d_forward(x, 2, stride=1, padding=1, dilation=2)
    np.testing.assert_array_equal(y, np.full((1, 1, 1, 5), -np.inf))
    dx = ops.max_pool2d_backward(np.ones_like(y), offsets, x.shape, 2, 1, 1, 2)
    np.testing.assert_array_equal(dx, np.zeros_like(x))


@pytest.mark.parametrize("kernel", [3, 7, 11])
def test_mean_of_a_constant_is_near_it(kernel):
    x = np.full((1, 2, kernel, kernel), 3.0)
    np.testing.assert_array_max_ulp(ops.avg_pool2d(x, kernel), x[..., :1, :1], 1)


@pytest.mark.parametrize(
    "call", [lambda x: ops.avg_pool2d(x, 2), lambda x: ops.adaptive_avg_pool2d(x, 2)]
)
def test_means_keep_nan_in_its_window(call):
    x = np.ones((1, 1, 4, 4), np.float32)
    x[..., 3, 0] = np.nan
    np.testing.assert_array_equal(call(x)[0, 0], [[1, 1], [np.nan, 1]])


TILES, UNROLLED, LOOP = "tiles", "unrolled cells", "a loop over the cells"
SUMS, PAIRS, GATHER = "sums of rows of vectors", "pairs of rows", "gather"


@pytest.mark.parametrize(
    ("reasons", "given", "windows", "forward", "backward"),
    [
        (max_pool.reasons, (2,), "2x2 windows side by side", UNROLLED, TILES),
        (max_pool.reasons, (3, [2, 2], 1), "3x3 windows at stride 2", UNROLLED, PAIRS),
        (max_pool.reasons, (3, 2, 1, 1, True), "3x3 windows at stride 2", UNROLLED, GATHER),
        (max_pool.reasons, (5, (2, 1)), "5x5 windows at stride 2x1", LOOP, GATHER),
        (max_pool.reasons, ((1, 5),), "1x5 windows side by side", LOOP, TILES),
        (max_pool.reasons, (5, None, 1), "5x5 windows side by side", LOOP, GATHER),
        (avg_pool.reasons, (2,), "2x2 windows side by side", UNROLLED, TILES),
        (avg_pool.reasons, (3,), "3x3 windows side by side", LOOP, TILES),
        (avg_pool.reasons, (3, 2, 1), "5x6 windows of an image", LOOP, GATHER),
        (avg_pool.reasons, ((10, 12),), "windows of whole images", SUMS, GATHER),
        (avg_pool.reasons_adaptive, ((5, 6),), "2x2 windows side by side", UNROLLED, TILES),
    ],
)
def test_what_computes_each_pass_and_why(reasons, given, windows, forward, backward, monkeypatch):
    want = [("forward", f"{forward}, {windows}"), ("backward", f"{backward}, {windows}")]
    found = reasons((3, 10, 12), *given)
    assert [row[:2] for row in found] == want and all(row[2] for row in found)
    assert reasons((2, 3, 10, 12), *given) == found
    monkeypatch.setattr(backend, "NUMPY", True)
    found = reasons((17, 3, 10, 12), *given)  # of a shape that no test computes
    assert {row[1:] for row in found} == {("NumPy", "there is no Numba")}


@pytest.mark.parametrize("channels", [16, 24])
@pytest.mark.parametrize(
    "window", [{"kernel_size": 3, "stride": 2, "padding": 1}, {"kernel_size": 2}]
)
def test_large_gradients_are_those_of_their_parts(channels, window):
    # Written by non-temporal stores, unlike those of one image.
    x = np.random.default_rng(0).standard_normal((14, channels, 203, 202)).astype(np.float32)
    y, offsets = ops.max_pool2d_forward(x, **window)
    dx = ops.max_pool2d_backward(y, offsets, x.shape, **window)
    mean = ops.avg_pool2d_backward(y[..., :101, :101], x.shape, 2)
    for n in range(len(x)):
        one = (x[n].shape, *window.values())
        np.testing.assert_array_equal(dx[n], ops.max_pool2d_backward(y[n], offsets[n], *one))
        part = ops.avg_pool2d_backward(y[n, :, :101, :101], x[n].shape, 2)
        np.testing.assert_array_equal(mean[n], part)
