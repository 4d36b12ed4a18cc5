import numpy as np
import pytest

from fastlayers import reference
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.depthwise import Depthwise
from fastlayers.ops.conv.shape import conv_shape
from fastlayers.ops.layout import from_channels_last, to_channels_last
from fastlayers.runtime import cpu
from fastlayers.runtime.threads import set_num_threads


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
    *(config(17, size=size, stride=2) for size in ((1, 1), (2, 3), (9, 12), (12, 29))),
    *(config(17, size=(9, 11), stride=s, padding=p) for s in (2, 3, (1, 2)) for p in (0, 1, 3)),
    *(config(33, size=(9, 11), kernel=k, stride=2, padding=2) for k in (1, 2, 5, (3, 1), (1, 8))),
    config(17, size=(9, 11), dilation=(2, 3), stride=2, padding=3),
    config(512, size=(4, 14), stride=2),
    config(4, kernel=1, stride=2, padding=0),
    config(4, size=(1, 1)),
    config(4, size=(1, 1), kernel=1, padding=3),
    config(16, 4, 4, size=(7, 30)),
    config(32, 1, 2, size=(19, 17), images=3),
    config(64, size=(40, 41)),  # pieces of an image, and chunks of the weight gradient
]


def draw(shape, dtype, seed):
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def arrays(case, dtype):
    groups, depth, each, images, size, kernel, *_ = case
    x = draw((images, groups * depth, *size), dtype, 0)
    return x, draw((groups * each, depth, *kernel), dtype, 1), draw(groups * each, dtype, 2)


def run(case, x, weight, bias, dy=None, relu=False):
    """y, dy, dx, dw and db in the reference's layout; dy is drawn where none is given."""
    groups, *_, stride, padding, dilation = case
    options = (stride, padding, dilation, groups, x.itemsize)
    algorithm = Depthwise(conv_shape("conv2d", x.shape, weight.shape, *options))
    y = algorithm.forward(x, weight, bias, relu)
    dy = draw(y.shape, x.dtype, 3) if dy is None else to_channels_last(dy)
    dx = algorithm.backward_input(dy, weight)
    dw, db = algorithm.backward_weight(x, dy)
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


@pytest.mark.parametrize(
    ("groups", "depth", "each", "served", "words"),
    [
        (32, 1, 1, True, "32 groups of 1 channel"),
        (16, 2, 4, True, "16 groups of 2 channels to 4"),
        (2, 64, 64, False, "2 groups of 64 channels"),
        (1, 1, 1, False, "1 groups of 1 channel"),
    ],
)
def test_serves_few_channels_a_group(groups, depth, each, served, words):
    images, weight = (2, groups * depth, 6, 5), (groups * each, depth, 3, 3)
    shape = conv_shape("conv2d", images, weight, (1, 1), (1, 1), (1, 1), groups, 4)
    for which in Pass:
        if cpu.lanes(4) >= 8:
            assert Depthwise.serves(shape, which) == served
        assert Depthwise(shape).describe(which) == f"depthwise, lanes over the groups, {words}"


def test_relu_keeps_nan():
    case = config(3, size=(1, 1), kernel=1, padding=0, images=1)
    x, weight, bias = arrays(case, np.float32)
    y = run(case, np.full_like(x, np.nan), weight, bias, relu=True)[0]
    assert np.isnan(y).all()


@pytest.mark.parametrize(
    ("options", "in_place"),
    [
        ({"stride": 2}, True),
        ({"stride": 1}, False),
        ({"stride": 2, "kernel": 5, "padding": 2}, False),  # more taps than packing costs
        ({"stride": 2, "groups": 4096}, False),  # pixels share too few sets of L1
        ({"stride": 2, "groups": 1}, False),  # lanes are left over
    ],
)
def test_few_taps_at_a_stride_read_in_place(options, in_place):
    x, weight, _ = arrays(case := config(**{"groups": 64, "size": (9, 12)} | options), np.float32)
    groups, *_, stride, padding, dilation = case
    shape = conv_shape("conv2d", x.shape, weight.shape, stride, padding, dilation, groups, 4)
    assert (Depthwise(shape)._plan.rings == 0) == in_place
