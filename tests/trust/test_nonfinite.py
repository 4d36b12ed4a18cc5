"""NaN and infinity at every position: where they go, and that they go nowhere else.

What is not reached keeps its bits: a run with a NaN is compared with the run without it.
`tests/parity/test_nonfinite.py` compares with PyTorch.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import DTYPES, compare, like, pool
from specs import SPECS
from specs.spec import of_output

import fastlayers as fl
from fastlayers import nn, ops, optim, reference
from fastlayers.kernels.conv.winograd import rows as winograd_rows
from fastlayers.ops.conv import Convolution, prepare
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.routes import ROUTES
from fastlayers.ops.conv.winograd import Winograd

CHAPTER = "nonfinite"
NAN, INF = np.nan, np.inf
VALUES = (NAN, INF, -INF)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=["f4", "f8"])


def spoiled(shape: tuple[int, ...], dtype: Any, integers: bool = True) -> np.ndarray:
    """Images of small integers, one for each value and pixel: there it is, in a channel in turn."""
    c, h, w = shape
    count = h * w * len(VALUES)
    rng = np.random.default_rng(h * w)
    one = rng.integers(-4, 5, shape) if integers else rng.standard_normal(shape)
    x = np.repeat(one[None].astype(dtype), count, axis=0)
    k = np.arange(count)
    pixel = k // len(VALUES)
    x[k, pixel % c, pixel // w, pixel % w] = np.array(VALUES)[k % len(VALUES)]
    return x


def same_bits(a: Any, b: Any, where: Any = True) -> bool:
    """Whether two arrays are equal where asked, NaN to NaN and zeros by their sign."""
    a, b = np.broadcast_arrays(a, b)
    equal = (a == b) & (np.signbit(a) == np.signbit(b)) | (np.isnan(a) & np.isnan(b))
    return bool(np.all(equal | ~np.broadcast_to(where, a.shape)))


# Windows side by side, overlapping, apart; padded, dilated, cut off; one cell and the whole image.
WINDOWS: list[dict[str, Any]] = [
    {"kernel_size": 1},
    {"kernel_size": 2},
    {"kernel_size": 3},
    {"kernel_size": (3, 2), "stride": (2, 1), "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1, "ceil_mode": True},
    {"kernel_size": 2, "stride": 3},
    {"kernel_size": (7, 8)},
    {"kernel_size": 5, "stride": 2, "padding": 2, "ceil_mode": True},
]
MAX_ONLY: list[dict[str, Any]] = [
    {"kernel_size": 3, "stride": 1, "padding": 1, "dilation": 2},
    {"kernel_size": 2, "stride": 2, "dilation": (3, 1), "ceil_mode": True},
]
AVG_ONLY: list[dict[str, Any]] = [
    {"kernel_size": 3, "stride": 2, "padding": 1, "count_include_pad": False},
    {"kernel_size": 2, "divisor_override": 3},
]
POOLS = [
    pool(op, (c, 7, 8), **options)
    for c in (1, 5, 17)
    for op, more in (("max_pool2d", MAX_ONLY), ("avg_pool2d", AVG_ONLY))
    for options in WINDOWS + more
] + [
    pool("adaptive_avg_pool2d", (c, 7, 8), output_size=size)
    for c in (1, 17)
    for size in (1, (3, 2), (7, 8), (9, 4))
]


@dtypes
@pytest.mark.parametrize("case", POOLS, ids=lambda case: case.id)
def test_pooling(case, dtype, figures):
    x = spoiled(case.shapes["input"], dtype)
    with np.errstate(all="ignore"):
        want = case.run(reference, {"input": x}, "integers")
    got = case.run(ops, {"input": x}, "integers")
    tolerance = (0, 0) if case.op == "max_pool2d" else None
    compare(got, want, tolerance)
    # The gradient of a window that is NaN, and gradients that are.
    _, c, oh, ow = got["y"].shape
    dy = spoiled((c, oh, ow), dtype)
    options = dict(case.options)
    saved: tuple[Any, ...] = ((len(dy), *x.shape[1:]),)
    if case.op == "max_pool2d":
        ceil_mode = options.pop("ceil_mode", False)
        plain = np.random.default_rng(1).integers(-4, 5, saved[0]).astype(dtype)
        saved = (ops.max_pool2d_forward(plain, **options, ceil_mode=ceil_mode)[1], *saved)
    options.pop("output_size", None)
    with np.errstate(all="ignore"):
        wanted = getattr(reference, f"{case.op}_backward")(dy, *saved, **options)
    found = getattr(ops, f"{case.op}_backward")(dy, *saved, **options)
    compare({"dx": found}, {"dx": wanted}, tolerance)
    figures.count(CHAPTER, "positions of pooling windows", len(x) + len(dy))


@dtypes
@pytest.mark.parametrize("options", WINDOWS + MAX_ONLY, ids=str)
def test_max_pooling_with_relu(options, dtype):
    """NaN passes through a ReLU, in value and gradient; infinities are cut off below."""
    x = spoiled((5, 7, 8), dtype)
    got = ops.max_pool2d_forward(x, **options, activation="relu")
    want = reference.max_pool2d_forward(x, **options, activation="relu")
    for value, expected in zip(got, want, strict=True):
        assert same_bits(value, expected)
    options = {k: v for k, v in options.items() if k != "ceil_mode"}
    y, offsets = ops.max_pool2d_forward(x, **options)
    dy = like(y)
    found = ops.max_pool2d_backward(dy, offsets, x.shape, **options, output=np.maximum(y, 0))
    dy = np.where((y > 0) | np.isnan(y), dy, 0).astype(dtype)
    wanted = reference.max_pool2d_backward(dy, offsets, x.shape, **options)
    compare({"dx": found}, {"dx": wanted})


def test_the_first_of_several_nans_is_the_maximum():
    x = np.array([[[[1, NAN], [NAN, INF]], [[-INF, -INF], [-INF, -INF]]]])
    y, indices = ops.max_pool2d(x, 2, return_indices=True)
    assert same_bits(y.ravel(), [NAN, -INF])
    assert indices.ravel().tolist() == [1, 0]
    # Minus infinity in the corner of a padded image is a cell, the padding is none.
    y, indices = ops.max_pool2d(x[:, 1:], 2, padding=1, return_indices=True)
    assert (y == -INF).all() and indices.ravel().tolist() == [0, 1, 2, 3]


@dtypes
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("channels", [3, 5, 17])
@pytest.mark.parametrize("window", [(2,), (3,), ((2, 3),), (3, 2, 1), (2, 1)], ids=str)
def test_batch_norm_with_pooling(window, channels, activation, dtype, figures):
    x = spoiled((channels, 6, 7), dtype, integers=False)
    rng = np.random.default_rng(3)
    mean, weight, bias = (rng.standard_normal(channels).astype(dtype) for _ in range(3))
    invstd = np.abs(mean) + dtype(0.5)
    arguments = (mean, invstd, weight, bias)
    y, offsets = ops.batch_norm_max_pool2d(x, *arguments, *window, activation=activation)
    normal = ops.batch_norm_apply(x, *arguments, activation=activation)
    want, cells = ops.max_pool2d_forward(normal, *window)
    assert same_bits(y, want)
    passing = np.ones(y.shape, bool) if activation is None else (y > 0) | np.isnan(y)
    np.testing.assert_array_equal(offsets[passing], cells[passing])
    dy = spoiled(y.shape[1:], dtype)
    saved = (y[: len(dy)], offsets[: len(dy)], x[: len(dy)], weight, mean, invstd)
    masked = np.where(passing[: len(dy)], dy, dtype(0))
    spread = ops.max_pool2d_backward(masked, saved[1], saved[2].shape, *window)
    for training in (False, True):
        rest = (training, (True, True, True), *window)
        got = ops.batch_norm_max_pool2d_backward(dy, *saved, *rest, activation=activation)
        with np.errstate(all="ignore"):
            want = reference.batch_norm_backward(spread, *saved[2:], training)
        for name, found, expected in zip(("dx", "dw", "db"), got, want, strict=True):
            spoilt, meant = ~np.isfinite(found), ~np.isfinite(expected)
            assert not (spoilt & ~meant).any(), name
            # What the pooling dropped is not multiplied by 0, so dweight may be finite.
            if name == "db" or (name == "dx" and not training):
                assert np.array_equal(spoilt, meant), name
    figures.count(CHAPTER, "positions of fused pooling windows", len(x) + len(dy))


SHAPES = [(9, 3), (6, 17), (3, 5, 4), (2, 3, 3, 4), (2, 130, 2, 2)]


def places(shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """All positions of the first channel, of the last and of one between."""
    for channel in sorted({0, shape[1] // 2, shape[1] - 1}):
        for n, *rest in np.ndindex(shape[0], *shape[2:]):
            yield n, channel, *rest


@dtypes
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm_stays_in_its_channel(shape, activation, dtype, figures):
    rng = np.random.default_rng(4)
    x, dy = (rng.standard_normal(shape).astype(dtype) for _ in range(2))
    weight, bias, mean = rng.standard_normal((3, shape[1])).astype(dtype)
    var = np.abs(mean) + dtype(1)

    def run(x: np.ndarray, dy: np.ndarray, training: bool) -> dict[str, np.ndarray]:
        running = mean.copy(), var.copy()
        options = {"activation": activation}
        y, *saved = ops.batch_norm_forward(x, *running, weight, bias, training, **options)
        grads = ops.batch_norm_backward(dy, x, weight, *saved, training, bias=bias, **options)
        names = ("y", "dx", "dweight", "dbias", "running_mean", "running_var")
        return dict(zip(names, (y, *grads, *running), strict=True))

    plain = {training: run(x, dy, training) for training in (False, True)}
    for place in places(shape):
        here = np.arange(shape[1]) == place[1]
        channel = here.reshape(-1, *[1] * (len(shape) - 2))
        for value in VALUES:
            figures.count(CHAPTER, "positions in batch norm")
            bad = x.copy()
            bad[place] = value
            got = run(bad, dy, True)
            for name in ("y", "dx"):
                assert np.isnan(got[name][:, place[1]]).all(), name
            for name in ("dweight", "running_mean", "running_var"):
                assert not np.isfinite(got[name][place[1]]), name
            if activation is None:
                assert same_bits(got["dbias"], plain[True]["dbias"])
            for name, value_of in got.items():
                where = ~(channel if value_of.ndim > 1 else here)
                assert same_bits(value_of, plain[True][name], where), name
            got = run(bad, dy, False)
            y = value * np.sign(weight[place[1]])
            assert same_bits(got["y"][place], y if activation is None or not y < 0 else 0)
            passes = activation is None or not y < 0
            slope = weight[place[1]] / np.sqrt(var[place[1]] + 1e-5)
            np.testing.assert_allclose(got["dx"][place], dy[place] * slope * passes, 1e-5)
            for name in ("y", "dx"):
                got[name][place] = plain[False][name][place]
            for name, value_of in got.items():
                where = here if name in ("dweight", "dbias") else False
                assert same_bits(value_of, plain[False][name], ~np.asarray(where)), name
            assert not np.isfinite(got["dweight"][place[1]])
            assert np.isfinite(got["dbias"][place[1]])

            bad = dy.copy()
            bad[place] = value
            for training in (True, False):
                if activation and plain[training]["y"][place] == 0:  # no gradient passes
                    bad[place] = dy[place]
                    continue
                bad[place] = value
                got = run(x, bad, training)
                for name in ("dweight", "dbias"):
                    assert not np.isfinite(got[name][place[1]])
                    assert same_bits(got[name], plain[training][name], ~here)
                reached = channel if training else bad != dy
                assert not np.isfinite(got["dx"][np.broadcast_to(reached, shape)]).any()
                assert same_bits(got["dx"], plain[training]["dx"], ~reached)


@dtypes
def test_running_statistics_that_are_nan_stay_in_their_channel(dtype):
    x = np.random.default_rng(5).standard_normal((4, 5, 3, 3)).astype(dtype)
    mean, var = np.zeros(5, dtype), np.ones(5, dtype)
    plain = ops.batch_norm(x, mean, var)
    for value in VALUES:
        for of_mean in (True, False):
            running = mean.copy(), var.copy()
            running[0 if of_mean else 1][2] = value
            y = ops.batch_norm(x, *running)
            expected = -value if of_mean else (0 if value == INF else NAN)
            with np.errstate(all="ignore"):
                expected = (x[:, 2] - running[0][2]) / np.sqrt(running[1][2])
            assert same_bits(np.isnan(y[:, 2]), np.isnan(expected))
            assert same_bits(y, plain, (np.arange(5) != 2)[:, None, None])


@dtypes
@pytest.mark.parametrize("p", [0.0, 0.25, 0.3, 0.5, 1.0])
def test_what_dropout_drops_is_zero_whatever_it_was(p, dtype, figures):
    shape = (6, 17, 5, 4)
    x = np.resize(np.array([NAN, INF, -INF, 2.0], dtype), shape)
    scale = dtype(1 / (1 - p)) if p < 1 else dtype(0)
    for channels in (False, True):
        fl.manual_seed(9)
        forward = ops.feature_dropout_forward if channels else ops.dropout_forward
        y, mask = forward(x, p)
        if channels:
            kept = np.broadcast_to(mask[:, :, None, None] != 0, shape)
            dx = ops.feature_dropout_backward(x, mask)
        else:
            found = np.unpackbits(mask, count=x.size, bitorder="little").astype(bool)
            kept = np.moveaxis(found.reshape(6, 5, 4, 17), -1, 1)
            dx = ops.dropout_backward(x, mask, p)
        assert (0 < kept.mean() < 1) == (0 < p < 1)
        with np.errstate(invalid="ignore"):
            want = np.where(kept, x * scale, dtype(0))
        assert same_bits(y, want) and same_bits(dx, want)
        figures.count(CHAPTER, "cells of dropout", x.size)
    assert same_bits(ops.dropout(x, p, training=False), x)
    rows = x[:, :, 0, 0]
    fl.manual_seed(9)
    dropped = nn.Dropout1d(p)(fl.Tensor(x[:, :, 0])).array() == 0
    assert dropped.all((1, 2)).all() == (p == 1) and rows.size


# Input, weight and options.
CONVOLUTIONS: Any = {
    "direct": ((1, 3, 7, 8), (5, 3, 3, 3), {"padding": 1, "algorithm": "direct"}),
    "strided": ((2, 17, 7, 8), (33, 17, 3, 2), {"stride": 2, "padding": (1, 0)}),
    "dilated": ((1, 5, 9, 8), (3, 5, 3, 2), {"dilation": (2, 3), "padding": 2}),
    "pointwise": ((2, 20, 5, 4), (19, 20, 1, 1), {}),
    "groups": ((1, 12, 6, 5), (6, 6, 3, 3), {"groups": 2, "padding": 1}),
    "few": ((1, 16, 6, 5), (16, 1, 3, 3), {"groups": 16, "padding": 1}),
    "planar": ((1, 2, 11, 12), (3, 2, 5, 5), {"padding": 2}),
    "winograd": ((2, 32, 9, 8), (32, 32, 3, 3), {"padding": 1, "algorithm": "winograd"}),
    "panels": ((2, 272, 6, 5), (288, 272, 3, 3), {"padding": 1, "algorithm": "winograd"}),
    "rows": ((16, 2, 7, 9), (6, 2, 5, 5), {"padding": 1}),
}


def tiles(reached: np.ndarray, tile: tuple[int, int]) -> np.ndarray:
    """All of the tiles (..., H, W) of which something is reached."""
    out = np.zeros_like(reached)
    for i in range(0, reached.shape[-2], tile[0]):
        for j in range(0, reached.shape[-1], tile[1]):
            part = (..., slice(i, i + tile[0]), slice(j, j + tile[1]))
            out[part] = reached[part].any((-2, -1), keepdims=True)
    return out


def planned(name: str, dtype: Any) -> Convolution:
    """What serves a convolution, which depends on the CPU's vectors."""
    x_shape, w_shape, options = CONVOLUTIONS[name]
    known = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "algorithm": "auto"} | options
    return prepare("conv2d", np.ones(x_shape, dtype), np.ones(w_shape, dtype), **known)[2]


def reach(convolution: Convolution, which: Pass) -> tuple[int, int]:
    """How far a NaN goes: outputs of a tile."""
    served = convolution.algorithm(which)
    if isinstance(served, Winograd):
        tile = served.input_tile if which is Pass.BACKWARD_INPUT else served.tile
        return tile, tile
    return (1, winograd_rows.STEP) if served.name == "winograd rows" else (1, 1)


def test_every_path_of_a_convolution_is_taken():
    plans = [planned(name, dtype) for name in CONVOLUTIONS for dtype in DTYPES]
    for which in Pass:
        names = {row.algorithm.name for row in ROUTES} - {"NumPy"}
        if which is not Pass.FORWARD:
            names.remove("planar")
        assert {plan.algorithm(which).name for plan in plans} == names


@dtypes
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution(name, dtype, figures, effort):
    """NaN reaches the outputs whose windows see it, or all of their tile by Winograd's algorithm.

    The gradient by the input alike; by the weight all of a channel's taps, or of a filter's.
    """
    x_shape, w_shape, options = CONVOLUTIONS[name]
    rng = np.random.default_rng(6)
    x, w = rng.standard_normal(x_shape).astype(dtype), rng.standard_normal(w_shape).astype(dtype)
    bias = rng.standard_normal(w_shape[0]).astype(dtype)
    plan = planned(name, dtype)
    forward, backward = reach(plan, Pass.FORWARD), reach(plan, Pass.BACKWARD_INPUT)
    y = ops.conv2d(x, w, bias, **options)
    dy = like(y)
    dx, dw, db = ops.conv2d_backward(dy, x, w, **options)
    ones, windows = np.ones_like(w), {k: v for k, v in options.items() if k != "algorithm"}
    group = w_shape[0] // options.get("groups", 1), w_shape[1]
    every = effort(3, 1) if name == "panels" else 1  # large, so the short form takes a third
    pixels = list(np.ndindex(*x_shape[2:]))[::every]
    for number, pixel in enumerate(pixels):
        place = (number % x_shape[0], number % x_shape[1], *pixel)
        mark = np.zeros_like(x)
        mark[place] = 1
        reached = reference.conv2d(mark, ones, **windows) > 0
        relevant = np.zeros_like(dw, bool)
        first = place[1] // group[1] * group[0]
        relevant[first : first + group[0], place[1] % group[1]] = True
        for value in VALUES if number % effort(3, 1) == 0 else (NAN,):
            figures.count(CHAPTER, "positions in convolutions")
            bad = x.copy()
            bad[place] = value
            for activation in (None, "relu"):
                got = ops.conv2d(bad, w, bias, **options, activation=activation)
                want = y if activation is None else np.maximum(y, 0)
                assert same_bits(got, want, ~tiles(reached, forward))
                if np.isnan(value):
                    assert np.isnan(got[reached]).all()
            if activation is None:
                assert not np.isfinite(got[reached]).any()
            got = ops.conv2d_backward(dy, bad, w, **options)
            assert same_bits(got[0], dx) and same_bits(got[2], db)
            assert same_bits(got[1], dw, ~relevant)
            if reached.any():
                assert not np.isfinite(got[1][relevant]).all()
    outputs = list(np.ndindex(*y.shape[2:]))[::every]
    for number, pixel in enumerate(outputs):
        place = (number % x_shape[0], number % w_shape[0], *pixel)
        mark = np.zeros_like(y)
        mark[place] = 1
        reached = reference.conv2d_backward(mark, x, ones, **windows)[0] > 0
        here = np.arange(w_shape[0]) == place[1]
        for value in VALUES if number % effort(3, 1) == 0 else (NAN,):
            figures.count(CHAPTER, "positions in convolutions")
            bad = dy.copy()
            bad[place] = value
            got = ops.conv2d_backward(bad, x, w, **options)
            assert same_bits(got[0], dx, ~tiles(reached, backward))
            assert not np.isfinite(got[0][reached]).any()
            assert same_bits(got[1], dw, ~here[:, None, None, None])
            assert not np.isfinite(got[1][here]).all()
            assert same_bits(got[2], db, ~here) and not np.isfinite(got[2][here]).any()


@dtypes
@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize(
    ("c", "m", "kernel", "options", "window"),
    [
        (3, 5, 5, {}, (2, 2, 0, 1, False)),  # pixels in the lanes
        (3, 33, 3, {"padding": 1}, (3, 2, 1, 1, False)),  # from L2
        (2, 17, 3, {"stride": (1, 2)}, (3, 2, 0, 1, True)),
        (4, 6, 3, {"groups": 2}, (2, 2, 0, 1, False)),  # one op after the other
    ],
)
def test_convolution_with_pooling(c, m, kernel, options, window, activation, dtype, figures):
    """Integers are exact, so all agrees with one op after the other."""
    x = spoiled((c, 9, 12), dtype)
    groups = options.get("groups", 1)
    rng = np.random.default_rng(7)
    w = rng.integers(1, 5, (m, c // groups, kernel, kernel)).astype(dtype)
    options = options | {"algorithm": "direct"}
    fused = options | {"pool": window, "activation": activation}
    y, cells = ops.conv2d_max_pool2d(x, w, **fused)
    z = ops.conv2d(x, w, **options, activation=activation)
    want, expected = ops.max_pool2d_forward(z, *window)
    assert same_bits(y, want) and np.array_equal(cells, expected)
    figures.count(CHAPTER, "positions of fused pooling windows", len(x))
    # What the pooling dropped takes no part in the gradients, NaN or not.
    few = slice(0, len(x), 11)
    dy = like(y[few], "integers")
    dx, dw, db = ops.conv2d_max_pool2d_backward(dy, y[few], cells[few], x[few], w, **fused)
    spread = ops.max_pool2d_backward(
        *(dy, cells[few], z[few].shape, *window[:4]), output=y[few] if activation else None
    )
    wanted = ops.conv2d_backward(spread, x[few], w, **options)
    assert same_bits(dx + 0, wanted[0] + 0) and same_bits(db + 0, wanted[2] + 0)
    assert not (np.isfinite(wanted[1]) & ~np.isfinite(dw)).any()


@dtypes
@pytest.mark.parametrize(
    ("rows", "k", "n"), [(3, 7, 5), (60, 20, 9), (3, 900, 700), (20, 900, 700)], ids=str
)
def test_linear_map(rows, k, n, dtype):
    rng = np.random.default_rng(8)
    x, w = rng.standard_normal((rows, k)).astype(dtype), rng.standard_normal((n, k)).astype(dtype)
    dy = rng.standard_normal((rows, n)).astype(dtype)
    y, grads = ops.linear(x, w), ops.linear_backward(dy, x, w)
    for value in VALUES:
        for i, j, p in {(0, 0, 0), (rows // 2, n // 3, k // 2), (rows - 1, n - 1, k - 1)}:
            row, column = np.arange(rows)[:, None] == i, np.arange(n) == j
            bad = x.copy()
            bad[i, p] = value
            got = ops.linear(bad, w)
            assert same_bits(got, y, ~row) and not np.isfinite(got[i]).any()
            dx, dw, db = ops.linear_backward(dy, bad, w)
            assert same_bits(dx, grads[0]) and same_bits(db, grads[2])
            assert same_bits(dw, grads[1], np.arange(k) != p) and not np.isfinite(dw[:, p]).any()
            bad = w.copy()
            bad[j, p] = value
            got = ops.linear(x, bad)
            assert same_bits(got, y, ~column) and not np.isfinite(got[:, j]).any()
            bad = dy.copy()
            bad[i, j] = value
            dx, dw, db = ops.linear_backward(bad, x, w)
            assert same_bits(dx, grads[0], ~row) and not np.isfinite(dx[i]).any()
            assert same_bits(dw, grads[1], ~column[:, None]) and not np.isfinite(dw[j]).any()
            assert same_bits(db, grads[2], ~column) and not np.isfinite(db[j])


@dtypes
@pytest.mark.parametrize(
    ("spec", "row"),
    [
        pytest.param(spec, row, id=f"{spec.op}-{row}")
        for spec in SPECS.values()
        for row in spec.nonfinite
    ],
)
def test_elements(spec, row, dtype):
    for size in (3, 300):  # in one vector, and in the rest behind whole ones
        x = np.resize(np.array(VALUES, dtype), size)
        y = getattr(ops, spec.op)(x, **row.options)
        assert same_bits(np.abs(y), np.abs(np.resize(np.array(row.outputs, dtype), size)))
        saved = y if spec.run is of_output else x
        dx = getattr(ops, f"{spec.op}_backward")(np.ones_like(x), saved, **row.options)
        assert same_bits(np.abs(dx), np.resize(np.array(row.slopes, dtype), size))


@dtypes
def test_nothing_passes_where_a_relu_is_0(dtype):
    x = np.resize(np.array(VALUES, dtype), 300)
    assert same_bits(ops.relu_backward(x, np.zeros_like(x)), np.zeros_like(x))


# Logits; their softmax, its logarithm, the loss for label 0 and its gradient.
HALF, TWO = 0.5, np.log(2)
ROWS: Any = [
    ([NAN, 0, 0], [NAN] * 3, [NAN] * 3, NAN, [NAN] * 3),
    ([0, NAN, 0], [NAN] * 3, [NAN] * 3, NAN, [NAN] * 3),
    ([INF, 0, 0], [NAN, 0, 0], None, NAN, [NAN] * 3),
    ([0, INF, 0], [0, NAN, 0], None, NAN, [NAN] * 3),
    ([0, INF, INF], None, None, NAN, [NAN] * 3),
    ([-INF, 0, 0], [0, HALF, HALF], [-INF, -TWO, -TWO], INF, [-1, HALF, HALF]),
    ([0, -INF, 0], [HALF, 0, HALF], [-TWO, -INF, -TWO], TWO, [-HALF, 0, HALF]),
    ([0, -INF, -INF], [1, 0, 0], [0, -INF, -INF], 0, [0, 0, 0]),
    ([-INF, -INF, -INF], [NAN] * 3, [NAN] * 3, NAN, [NAN] * 3),
    ([INF, -INF, 0], None, None, NAN, [NAN] * 3),
]


@dtypes
@pytest.mark.parametrize(("logits", "share", "logarithm", "loss", "slopes"), ROWS, ids=str)
def test_logits(logits, share, logarithm, loss, slopes, dtype):
    x = np.array([logits, [1, 2, 3]], dtype)
    for op, want in (("softmax", share), ("log_softmax", logarithm)):
        y = getattr(ops, op)(x, 1)
        want = [NAN] * 3 if INF in logits else want
        np.testing.assert_allclose(y[0], want, 1e-6)
        assert same_bits(y[1], getattr(ops, op)(x[1:], 1)[0])
    labels = np.zeros(2, int)
    got, dx = ops.cross_entropy_forward(x, labels, reduction="none")
    np.testing.assert_allclose(got[0], loss, 1e-6)
    np.testing.assert_allclose(dx[0], slopes, 1e-6)
    alone, slopes_alone = ops.cross_entropy_forward(x[1:], labels[1:], reduction="none")
    assert same_bits(got[1], alone[0]) and same_bits(dx[1], slopes_alone[0])
    # By log_softmax and nll_loss the same.
    parts = ops.nll_loss(ops.log_softmax(x, 1), labels, reduction="none")
    np.testing.assert_allclose(parts, got, 1e-6)
    # Whatever an ignored sample holds, it counts for nothing.
    for reduction in ("mean", "sum", "none"):
        for smoothing in (0.0, 0.1):
            options = {"reduction": reduction, "label_smoothing": smoothing}
            got, dx = ops.cross_entropy_forward(x, np.array([-100, 0]), **options)
            alone, slopes_alone = ops.cross_entropy_forward(x[1:], labels[1:], **options)
            assert same_bits(np.atleast_1d(got)[-1], np.atleast_1d(alone)[-1])
            assert same_bits(dx[0], np.zeros(3)) and same_bits(dx[1], slopes_alone[0])
        got = ops.nll_loss(x, np.array([-100, 0]), reduction=reduction)
        assert same_bits(np.atleast_1d(got)[-1], -x[1, 0])
        dy = np.ones(2 if reduction == "none" else (), dtype)
        dx = ops.nll_loss_backward(dy, x, np.array([-100, 0]), reduction=reduction)
        assert same_bits(dx[0] + 0, np.zeros(3))


@dtypes
def test_nll_loss_sees_the_targets_alone(dtype):
    x = np.array([[NAN, -1, INF], [-INF, 0, NAN]], dtype)
    np.testing.assert_array_equal(ops.nll_loss(x, np.array([1, 0]), reduction="none"), [1, INF])
    dx = ops.nll_loss_backward(dtype(1), x, np.array([1, 0]), reduction="sum")
    np.testing.assert_array_equal(dx, [[0, -1, 0], [-1, 0, 0]])


@dtypes
def test_squared_error(dtype):
    x, t = np.array([NAN, INF, INF, -INF, 1, 1], dtype), np.array([0, 0, INF, INF, NAN, 3], dtype)
    loss = ops.mse_loss(x, t, reduction="none")
    np.testing.assert_array_equal(loss, [NAN, INF, NAN, INF, NAN, 4])
    dx = ops.mse_loss_backward(np.ones_like(x), x, t, reduction="none")
    np.testing.assert_array_equal(dx, [NAN, INF, NAN, -INF, NAN, -4])
    assert ops.mse_loss(x[1:2], t[1:2]) == INF and np.isnan(ops.mse_loss(x, t, reduction="sum"))


@dtypes
def test_binary_cross_entropy(dtype):
    """Infinite logits: no loss is sure, as 0 times infinity is NaN; the gradient is finite."""
    x = np.array([INF, INF, INF, -INF, -INF, -INF, NAN, NAN], dtype)
    t = np.array([0, 0.5, 1, 0, 0.5, 1, 0, 1], dtype)
    loss = ops.binary_cross_entropy_with_logits(x, t, reduction="none")
    np.testing.assert_array_equal(loss, [INF, INF, NAN, NAN, INF, INF, NAN, NAN])
    dx = ops.binary_cross_entropy_with_logits_backward(np.ones_like(x), x, t, reduction="none")
    np.testing.assert_array_equal(dx, [1, 0.5, 0, 0, -0.5, -1, NAN, NAN])


# What a step makes of a gradient of NaN, infinity and minus infinity: the parameter, its state.
OPTIMIZERS: Any = {
    "sgd": (lambda p: optim.SGD(p, 0.1), (NAN, -INF, INF), {}),
    "momentum": (
        lambda p: optim.SGD(p, 0.1, 0.9, nesterov=True),
        (NAN, -INF, INF),
        {"momentum_buffer": (NAN, INF, -INF)},
    ),
    "adam": (
        lambda p: optim.Adam(p, 0.1),
        (NAN, NAN, NAN),
        {"exp_avg": (NAN, INF, -INF), "exp_avg_sq": (NAN, INF, INF)},
    ),
    "amsgrad": (
        lambda p: optim.AdamW(p, 0.1, amsgrad=True),
        (NAN, NAN, NAN),
        {
            "exp_avg": (NAN, INF, -INF),
            "exp_avg_sq": (NAN, INF, INF),
            "max_exp_avg_sq": (NAN, INF, INF),
        },
    ),
    "adadelta": (
        lambda p: optim.Adadelta(p, 0.1),
        (NAN, NAN, NAN),
        {"square_avg": (NAN, INF, INF), "acc_delta": (NAN, NAN, NAN)},
    ),
}


@dtypes
@pytest.mark.parametrize(("make", "values", "state"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_optimisers(make, values, state, dtype, figures):
    """An element's NaN stays in the element, for ever."""

    def run(grad: np.ndarray, steps: int) -> dict[str, np.ndarray]:
        p = nn.Parameter(np.arange(1, 40, dtype=dtype))
        optimizer = make([p])
        for i in range(steps):
            p.grad = grad if i == 0 else np.ones_like(grad)
            optimizer.step()
        found = {n: a for n, a in optimizer.state[p].items() if isinstance(a, np.ndarray)}
        return {"p": p.array(), **found}

    plain = {steps: run(np.ones(39, dtype), steps) for steps in (1, 3)}
    for at in (0, 17, 38):
        for k, value in enumerate(VALUES):
            figures.count(CHAPTER, "gradients of optimisers")
            grad = np.ones(39, dtype)
            grad[at] = value
            for steps in (1, 3):
                got = run(grad, steps)
                for name, array in got.items():
                    assert same_bits(array, plain[steps][name], np.arange(39) != at), name
                    assert not np.isfinite(array[at]), name
                    if steps == 1:
                        assert same_bits(array[at], (values if name == "p" else state[name])[k])
            assert got.keys() == {"p", *state}


def test_a_chain_of_layers_keeps_nan_in_its_channel():
    """In evaluation the normalisation is in the convolution's weight, also one that is NaN."""
    fl.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2)).eval()
    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    with fl.no_grad():
        plain = model(fl.tensor(x)).array().copy()
        for value in VALUES:
            mean, var = model[1].running_mean, model[1].running_var
            for buffers in ((mean,), (var,), (mean, var)):
                kept = [buffer[2] for buffer in buffers]
                for buffer in buffers:
                    buffer[2] = value
                y = model(fl.tensor(x)).array()
                for buffer, number in zip(buffers, kept, strict=True):
                    buffer[2] = number
                assert same_bits(y, plain, (np.arange(4) != 2)[:, None, None])
                assert np.isnan(y[:, 2]).all() or not np.isnan(value)


def test_windows_in_the_padding():
    """A window that lies in the padding alone gives minus infinity, and no gradient."""
    options = {"kernel_size": 2, "stride": 1, "padding": 1, "dilation": 2}
    for shape in ((1, 1, 1, 1), (2, 3, 7, 1), (2, 17, 1, 7)):
        ops.relu(np.ones(shape))  # no minus infinity is left in memory
        y, offsets = ops.max_pool2d_forward(np.full(shape, NAN), **options)
        assert (y == -INF).all()
        dx = ops.max_pool2d_backward(np.ones_like(y), offsets, shape, **options)
        assert not dx.any()
