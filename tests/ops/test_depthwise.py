import numpy as np
import pytest

from fastlayers import reference
from fastlayers.ops.conv import depthwise
from fastlayers.ops.layout import from_channels_last, to_channels_last
from fastlayers.runtime import cpu
from fastlayers.runtime.threads import set_num_threads


def geometry(size, kernel, stride, padding, dilation):
    axes = zip(size, kernel, stride, padding, dilation, strict=True)
    out = tuple((a + 2 * p - d * (k - 1) - 1) // s + 1 for a, k, s, p, d in axes)
    return kernel, stride, padding, dilation, out


def config(
    groups, depth=1, each=1, size=(6, 5), kernel=3, stride=1, padding=1, dilation=1, images=2
):
    pairs = [v if isinstance(v, tuple) else (v, v) for v in (kernel, stride, padding, dilation)]
    return groups, depth, each, images, size, *pairs


CONFIGS = [
    *(config(groups) for groups in (1, 3, 15, 16, 17, 33, 64)),
    *(config(7, depth, each) for depth in (1, 2, 3, 4, 5) for each in (1, 2, 3)),
    *(config(9, depth, depth, stride=2) for depth in (2, 3, 4, 5)),
    *(config(3, size=(3, pixels), images=1) for pixels in (1, 2, 5, 9, 10, 13, 14, 15, 29)),
    *(config(5, size=(9, 11), stride=s, padding=p) for s in (2, 3, (1, 2)) for p in (0, 1, 3)),
    *(config(5, size=(9, 11), dilation=d, stride=s) for d in (2, (2, 1)) for s in (1, 2, 3)),
    *(config(5, size=(9, 12), kernel=k, padding=2) for k in (1, 2, 5, (3, 1), (1, 8))),
    config(4, kernel=1, stride=2, padding=0),
    config(4, size=(1, 1)),
    config(4, size=(1, 1), kernel=1, padding=3),
    config(4, images=0),
    config(16, 4, 4, size=(7, 30)),
    config(32, 1, 2, size=(19, 17), images=3),
]


def draw(shape, dtype, seed):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def arrays(case, dtype):
    groups, depth, each, images, size, kernel, *_ = case
    x = draw((images, groups * depth, *size), dtype, 0)
    return x, draw((groups * each, depth, *kernel), dtype, 1), draw(groups * each, dtype, 2)


def run(case, x, weight, bias, dy=None, relu=False):
    """y, dy, dx, dw and db in the reference's layout; dy is drawn where none is given."""
    groups, *_, size, kernel, stride, padding, dilation = case
    places = geometry(size, kernel, stride, padding, dilation)
    x = to_channels_last(x)
    y = depthwise.forward(x, weight, bias, places, groups, relu)
    dy = draw(y.shape, x.dtype, 3) if dy is None else to_channels_last(dy)
    dx = depthwise.input_gradient(dy, weight, places, size, groups)
    dw, db = depthwise.weight_gradient(x, dy, places, groups)
    return from_channels_last(y), from_channels_last(dy), from_channels_last(dx), dw, db


def fits(case, dtype):
    _, depth, each, *_ = case
    return max(depth, each) <= cpu.lanes(np.dtype(dtype).itemsize)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CONFIGS, ids=str)
def test_integers_are_exact(case, dtype):
    if not fits(case, dtype):
        pytest.skip("a group has more channels than a vector has lanes")
    groups, *_, stride, padding, dilation = case
    x, weight, bias = arrays(case, dtype)
    y, dy, dx, dw, db = run(case, x, weight, bias)
    options = (stride, padding, dilation, groups)
    want = reference.conv2d(x, weight, bias, *options)
    np.testing.assert_array_equal(y, want)
    np.testing.assert_array_equal(run(case, x, weight, bias, relu=True)[0], np.maximum(want, 0))
    want_dx, want_dw, want_db = reference.conv2d_backward(dy, x, weight, *options)
    np.testing.assert_array_equal(dx, want_dx)
    np.testing.assert_array_equal(dw, want_dw)
    np.testing.assert_array_equal(db, want_db)


@pytest.mark.parametrize("case", [config(40, size=(33, 31)), config(8, 4, 4, (33, 31), stride=2)])
def test_threads_do_not_change_results(case):
    if not fits(case, np.float32):
        pytest.skip("a group has more channels than a vector has lanes")
    values = [np.random.default_rng(4).standard_normal(a.shape) for a in arrays(case, np.float32)]
    given, results = [np.asarray(a, np.float32) for a in values], []
    for threads in (1, 2, 4):
        set_num_threads(threads)
        results.append(run(case, *given))
    for other in results[1:]:
        for got, want in zip(other, results[0], strict=True):
            np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("width", [4, 15])
def test_nan_stays_in_its_windows(width):
    case = config(3, size=(4, width), images=1)
    x, weight, bias = arrays(case, np.float32)
    weight[:] = 1
    x[0, 1, 0, width - 1] = np.nan
    y, dy, _, dw, _ = run(case, x, weight, bias)
    want = reference.conv2d(x, weight, bias, 1, 1, 1, 3)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(want))
    want = reference.conv2d_backward(dy, x, weight, 1, 1, 1, 3)[1]
    np.testing.assert_array_equal(np.isnan(dw), np.isnan(want))


def test_relu_keeps_nan():
    case = config(3, size=(1, 1), kernel=1, padding=0, images=1)
    x, weight, bias = arrays(case, np.float32)
    y = run(case, np.full_like(x, np.nan), weight, bias, relu=True)[0]
    assert np.isnan(y).all()
