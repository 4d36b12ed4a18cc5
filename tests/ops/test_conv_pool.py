import numpy as np
import pytest
from cases import DTYPES, LAYOUTS, like
from specs.conv_pool import CASES, POOL

from fastlayers import ops, reference
from fastlayers.ops.conv import prepare
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.pooled import PooledConvolution
from fastlayers.runtime import threads

cases = pytest.mark.parametrize(("x", "weight", "options", "pool"), CASES, ids=map(str, CASES))


def draw(x, weight, dtype, kind="normal"):
    rng = np.random.default_rng(sum(x) + sum(weight))
    shapes = (x, weight, weight[:1])
    if kind == "integers":
        return [rng.integers(-4, 5, shape).astype(dtype) for shape in shapes]
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def expected(x, weight, bias, options, pool, relu, kind):
    """Output, offsets and gradients of the reference, one op after the other."""
    z = reference.conv2d(x, weight, bias, **options)
    z = np.maximum(z, 0) if relu else z
    y, offsets = reference.max_pool2d_forward(z, *pool)
    dy = like(y, kind)
    passed = np.where(y > 0, dy, 0) if relu else dy
    dz = reference.max_pool2d_backward(passed, offsets, z.shape, *pool[:4])
    return y, offsets, dy, reference.conv2d_backward(dz, x, weight, **options)


def compare(got, want, exact):
    for value, other in zip(got, want, strict=True):
        assert value.shape == other.shape
        assert value.dtype == other.dtype
        tolerance = 0 if exact else {4: 2e-5, 8: 1e-11}[other.itemsize]
        scale = tolerance * np.abs(other).max(initial=1)
        np.testing.assert_allclose(value, other, tolerance, scale)


@pytest.mark.parametrize("activation", [None, "relu"])
@pytest.mark.parametrize("kind", ["normal", "integers"])
@pytest.mark.parametrize("dtype", DTYPES)
@cases
def test_agrees_with_reference(x, weight, options, pool, dtype, kind, activation):
    arrays = draw(x, weight, dtype, kind)
    exact = kind == "integers"
    fused = options | {"pool": pool, "activation": activation}
    if exact:
        fused["algorithm"] = "direct"
    want = expected(*arrays, options, pool, activation == "relu", kind)
    y, offsets = ops.conv2d_max_pool2d(*arrays, **fused)
    compare([y], [want[0]], exact)
    np.testing.assert_array_equal(offsets, want[1])
    grads = ops.conv2d_max_pool2d_backward(want[2], y, offsets, *arrays[:2], **fused)
    compare(grads, want[3], exact)


def test_cases_reach_every_path():
    found = set()
    for x, weight, options, pool in CASES:
        options = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1} | options
        a, b, _ = draw(x, weight, np.float32)
        convolution = prepare("conv2d", a, b, **options, algorithm="auto")[2]
        pooled = PooledConvolution("conv2d", convolution, pool, False)
        found |= {pooled.algorithm(which).name for which in Pass}
    assert found >= {"planar", "direct by image", "sparse", "separate"}


def reasons(x, weight, options, pool):
    a, b, _ = draw(x, weight, np.float32)
    o = {"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "algorithm": "auto"} | options
    convolution = prepare("conv2d", a, b, **o)[2]
    found = PooledConvolution("conv2d", convolution, pool, False).reasons()
    assert [which for which, _, _ in found] == ["forward", "backward_input", "backward_weight"]
    return found


def test_reasons():
    _, (_, *by_input), (_, *by_weight) = reasons(*CASES[1])
    assert by_input == by_weight
    assert by_input[0] == "sparse, 2x2 windows"
    assert "fewer products" in by_input[1]
    (_, forward, why), (_, backward, _), _ = reasons(*CASES[12])
    assert forward.startswith("separate, ")
    assert forward.endswith(", then max_pool2d")
    assert backward.startswith("separate, max_pool2d, then ")
    assert why.startswith("any shape")
    tiles = reasons((4, 64, 32, 32), (64, 64, 3, 3), {"padding": 1}, POOL)
    assert all("Winograd's tiles" in why for _, _, why in tiles)


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_layouts(case):
    arrays = draw(*case[:2], np.float32)
    y, offsets = ops.conv2d_max_pool2d(*arrays, pool=POOL)
    dy = like(y)
    grads = ops.conv2d_max_pool2d_backward(dy, y, offsets, *arrays[:2], pool=POOL)
    for layout in LAYOUTS:
        given = [layout(a) for a in arrays]
        got = ops.conv2d_max_pool2d(*given, pool=POOL)
        compare(got, (y, offsets), True)
        saved = [layout(a) for a in (dy, y, offsets)]
        got = ops.conv2d_max_pool2d_backward(*saved, *given[:2], pool=POOL)
        compare(got, grads, True)
        for before, after in zip(arrays, given, strict=True):
            np.testing.assert_array_equal(before, after)


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_threads_and_batches_do_not_change_results(case, monkeypatch):
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    (_, *size), weight, *_ = case
    arrays, results = draw((37, *size), weight, np.float32), []
    options = {"pool": POOL, "activation": "relu"}
    for count in (1, 2, 3):
        threads.set_num_threads(count)
        y, offsets = ops.conv2d_max_pool2d(*arrays, **options)
        grads = ops.conv2d_max_pool2d_backward(like(y), y, offsets, *arrays[:2], **options)
        results.append((y, offsets, *grads))
    for other in results[1:]:
        compare(other, results[0], True)
    one = ops.conv2d_max_pool2d(arrays[0][5], *arrays[1:], **options, algorithm="direct")
    all_of_them = ops.conv2d_max_pool2d(*arrays, **options, algorithm="direct")
    compare(one, [result[5] for result in all_of_them], True)


@pytest.mark.parametrize("case", [CASES[0], CASES[1]], ids=str)
def test_nan_and_the_first_of_equal_maxima(case):
    x, weight, bias = draw(*case[:2], np.float32)
    x[:, :, :6] = 0
    x[0, 0, 8, 8] = np.nan
    y, offsets = ops.conv2d_max_pool2d(x, weight, bias, pool=POOL, activation="relu")
    z = np.asarray(ops.conv2d(x, weight, bias, activation="relu", algorithm="direct"))
    want, cells = reference.max_pool2d_forward(z, *POOL)
    assert np.isnan(y).any()
    np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(offsets, cells)


@pytest.mark.parametrize("needs", [(1, 0, 0), (0, 1, 0), (0, 0, 1), (0, 0, 0), (1, 0, 1)])
def test_needs(needs):
    arrays = draw(*CASES[1][:2], np.float32)
    y, offsets = ops.conv2d_max_pool2d(*arrays, pool=POOL)
    saved = (like(y), y, offsets, *arrays[:2])
    everything = ops.conv2d_max_pool2d_backward(*saved, pool=POOL)
    chosen = ops.conv2d_max_pool2d_backward(*saved, needs=tuple(map(bool, needs)), pool=POOL)
    for needed, gradient, other in zip(needs, chosen, everything, strict=True):
        assert needed or gradient is None
        if needed:
            np.testing.assert_array_equal(gradient, other)
