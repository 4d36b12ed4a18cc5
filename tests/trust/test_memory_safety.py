"""Nothing is read or written outside of arrays, nor before it is written; sizes do not wrap."""

import gc
import math
import os
import signal
import subprocess
import sys
import tracemalloc
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from cases import DTYPES, compare, conv
from churn import Churn
from guards import CALLS, POISONS, Endless, Guarded, channels_last, served
from specs import SPECS

from fastlayers import nn, ops
from fastlayers.ops import arithmetic, layout
from fastlayers.ops.conv import direct
from fastlayers.ops.conv.shape import conv_shape
from fastlayers.ops.norm.layout import layout_of
from fastlayers.ops.pool import max_pool as pool
from fastlayers.runtime import memory, threads

CHAPTER = "memory safety"
TESTS = Path(__file__).parent.parent
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="maps memory as Linux does")


@pytest.fixture(scope="module", autouse=True)
def always_parallel() -> Iterator[None]:
    """Let two threads work on whatever there is, so that all is used that a worker has."""
    before = threads.get_num_threads()
    threads.set_num_threads(2)
    layout_of.cache_clear()
    with mock.patch.object(threads, "SERIAL_WORK", 1):
        yield
    layout_of.cache_clear()
    threads.set_num_threads(before)


def assert_same_bits(got, expected):
    assert got.keys() == expected.keys()
    for name, a in expected.items():
        b = got[name]
        assert (b.dtype, b.shape) == (a.dtype, a.shape), name
        assert b.tobytes() == a.tobytes(), f"other bits of {name}"


# Both types go through all ops, and in the long form through all shapes.
def dtypes_of(name):
    return DTYPES[zlib.crc32(name.encode()) % 2 :][:1]


@pytest.mark.parametrize("name", CALLS)
def test_nothing_is_written_beyond_arrays_or_read_before_it_is_written(name, effort, figures):
    for dtype in effort(dtypes_of(name), DTYPES):
        expected = CALLS[name](np.copy, dtype)
        for poison in POISONS:
            guarded = Guarded(poison)
            with served(guarded.empty):
                assert_same_bits(CALLS[name](np.copy, dtype), expected)
            figures.count(CHAPTER, "arrays between guard bytes", guarded.check())
        figures.count(CHAPTER, "calls with guard bytes and poison", len(POISONS))


# Winograd's blocks and chunks, and panels, that many threads share; a direct convolution's blocks.
@pytest.mark.parametrize(
    ("x", "weight", "options"),
    [
        ((8, 40, 17, 18), (72, 40, 3, 3), {"padding": 1, "algorithm": "winograd"}),
        ((16, 48, 6, 7), (272, 48, 3, 3), {"padding": 1, "algorithm": "winograd"}),
        ((4, 72, 14, 14), (200, 72, 3, 3), {"padding": 1, "stride": 2}),
    ],
)
def test_many_threads_stay_inside_of_arrays(x, weight, options):
    case = conv(x, weight, **options)
    arrays = case.arrays(np.float32)
    expected = case.run(ops, arrays)
    threads.set_num_threads(11)
    try:
        for poison in POISONS:
            guarded = Guarded(poison)
            with served(guarded.empty):
                assert_same_bits(case.run(ops, arrays), expected)
            guarded.check()
    finally:
        threads.set_num_threads(2)


def python(*arguments, **variables):
    """A process that finds the library and what lies beside the tests."""
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS)))
    path = os.pathsep.join([path, os.environ.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, *map(str, arguments)],
        env=os.environ | {"PYTHONPATH": path} | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def apart(mode, dtype, names, folder, **variables):
    """Results of calls in a process of their own, which tells what it runs."""
    results, name = folder / "results.npz", np.dtype(dtype).name
    variables |= {"GUARDS_RESULTS": str(results)}
    done = python(TESTS / "guards.py", mode, name, *names, **variables)
    (last,) = done.stdout.splitlines()[-1:] or [""]
    prefix = " ".join(f"{key}={value}" for key, value in variables.items())
    assert last == "done", (
        f"{prefix} python tests/guards.py {mode} {name} {last!r} ends with {done.returncode}\n"
        f"{done.stderr[-3000:]}"
    )
    with np.load(results) as found:
        return dict(found)


def here(names, dtype):
    found = {}
    for name in names:
        for order, place in (("first", np.copy), ("last", channels_last(np.copy))):
            results = CALLS[name](place, dtype)
            found |= {f"{name} {order} {key}": np.asarray(a) for key, a in results.items()}
    return found


# In the short form one of so many calls of an op beside pages without access, and one type of each.
EVERY = {"conv2d": 12, "linear": 3}


@linux
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("mode", ["ends", "starts"])
def test_nothing_is_touched_beyond_pages_at_which_arrays_end(
    mode, dtype, effort, figures, tmp_path
):
    some = {op: [n for n in CALLS if op in n][::every] for op, every in EVERY.items()}
    few = [n for n in CALLS if all(op not in n or n in some[op] for op in EVERY)]
    names = effort([name for name in few if dtype in dtypes_of(name)], list(CALLS))
    got = apart(mode, dtype, names, tmp_path)
    del got["kernels"]
    assert_same_bits(got, here(names, dtype))
    figures.count(CHAPTER, "calls beside pages without access", 2 * len(names))


@linux
@pytest.mark.parametrize(("at_end", "index"), [(True, 100), (False, -1)])
def test_a_fence_ends_a_process(at_end, index):
    code = (
        "import ctypes, numpy as np; from guards import Fenced;"
        f"a = Fenced({at_end}).empty(100, np.float32); a[:] = 1; print(a.sum(), flush=True);"
        f"ctypes.c_float.from_address(a.ctypes.data + 4 * {index}).value"
    )
    done = python("-c", code)
    assert (done.returncode, done.stdout) == (-signal.SIGSEGV, "100.0\n")


def test_the_cache_tells_checked_kernels_from_others():
    code = "from fastlayers.runtime.cache import sources_hash; print(sources_hash())"
    without, checked = (python("-c", code, NUMBA_BOUNDSCHECK=value).stdout for value in "01")
    assert len(without) == len(checked) == 17 and without != checked


# In the short form one call of each, in float32, since all of it is compiled for this alone.
SOME = (
    "max_pool2d",
    "avg_pool2d",
    "batch_norm",
    "cross_entropy",
    "dropout",
    "relu",
    "SGD",
    "arithmetic",
)
SOME += ("conv2d-1x3x1x1-45x1x3x1-45-groups=3",)


@pytest.mark.parametrize("dtype", DTYPES)
def test_kernels_never_index_beyond_arrays(dtype, effort, figures, tmp_path):
    if effort(dtype is np.float64, False):
        pytest.skip("in the long form")
    some = [next(name for name in CALLS if name.startswith(op)) for op in SOME]
    names = effort(some, list(CALLS))
    got = apart("checked", dtype, names, tmp_path, NUMBA_BOUNDSCHECK="1")
    kernels = got.pop("kernels")
    figures.count(CHAPTER, "calls with bounds checks", 2 * len(names))
    figures.most(CHAPTER, "kernels with bounds checks, beside those that they call", len(kernels))
    assert len(kernels) >= effort(10, 60)
    compare(got, here(names, dtype))


# In the short form a few with many tasks, each in one type; all of it is compiled for this alone.
TASKS = {
    np.float32: ("relu-pool ((64", "linear-301x65"),
    np.float64: ("max_pool2d ((64", "avg_pool2d ((64", "batch_norm-16x33"),
}


@pytest.mark.parametrize("dtype", DTYPES)
def test_tasks_may_run_in_any_order(dtype, effort, figures, tmp_path):
    """A task that writes where another one does shows where that has been before.

    Not to the bit: a task that is inlined knows its constants, and may be contracted otherwise.
    """
    some = [next(name for name in CALLS if name.startswith(call)) for call in TASKS[dtype]]
    names = effort(some, list(CALLS))
    got = apart("reversed", dtype, names, tmp_path, FASTLAYERS_CACHE_DIR=str(tmp_path))
    del got["kernels"]
    expected = here(names, dtype)
    assert got.keys() == expected.keys()
    for name, a in expected.items():
        largest = float(np.abs(a, where=np.isfinite(a), out=np.zeros(a.shape)).max(initial=0))
        bound = 64 * np.finfo(dtype).eps * largest
        np.testing.assert_allclose(got[name], a, rtol=0, atol=bound, err_msg=name)
    figures.count(CHAPTER, "calls with tasks from the last to the first", 2 * len(names))


def test_bounds_checks_find_what_is_wrong():
    code = """if True:
        import guards, numpy as np
        x = np.ones(3)
        for call in (
            lambda: guards.element(x, 2), lambda: guards.element(x, 3),
            lambda: guards.element(x, -4), lambda: guards.set_ones(x, 3, 2),
            lambda: guards.set_ones(x, 4, 1), lambda: guards.set_ones(x, 4, 2),
        ):
            try:
                call()
                print("right")
            except IndexError:
                print("IndexError")
    """
    done, right, wrong = python("-c", code, NUMBA_BOUNDSCHECK="1"), "right", "IndexError"
    assert done.stdout.split() == [right, wrong, wrong, right, wrong, wrong], done.stderr


@pytest.fixture(scope="module")
def loaded():
    """Take the memory of all imports and kernels that `refused` calls need."""
    ops.conv2d_max_pool2d(IMAGES, WEIGHT, pool=(2, None, 0, 1, False))
    for op in (ops.max_pool2d, ops.avg_pool2d, ops.adaptive_avg_pool2d):
        op(IMAGES, 2)
    ops.batch_norm(IMAGES, np.zeros(3, np.float32), np.ones(3, np.float32))


@pytest.fixture
def refused(figures, loaded):
    """Assert that a call ends soon with an error, and without memory."""

    def late(*_):
        raise AssertionError("still not done")

    def kept():
        stats = memory.memory_stats()
        return stats["used_bytes"] + stats["free_bytes"]

    if not hasattr(signal, "SIGALRM"):
        pytest.skip("nothing ends what hangs")

    def check(call, *errors, match):
        used = kept()
        before = signal.signal(signal.SIGALRM, late)
        signal.alarm(20)
        tracemalloc.start()
        try:
            with pytest.raises(errors or (MemoryError, ValueError), match=match):
                call()
            peak = tracemalloc.get_traced_memory()[1]
            # NumPy counts what it has asked for in vain, too.
            assert peak < 1 << 21 or peak > memory.largest()
        finally:
            tracemalloc.stop()
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)
        assert kept() - used < 1 << 20
        figures.count(CHAPTER, "calls with huge sizes refused")

    return check


IMAGES, WEIGHT = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)
HUGE = (2**31, 2**40, 2**63, 2**70)
SIDES = {"both": lambda n: n, "rows": lambda n: (n, 1), "columns": lambda n: (1, n)}
# What is given an option in pixels.
OPTIONS = {name: call for spec in SPECS.values() for name, call in spec.huge.items()}


@pytest.mark.parametrize("n", HUGE)
@pytest.mark.parametrize("side", SIDES.values(), ids=SIDES)
@pytest.mark.parametrize("call", OPTIONS.values(), ids=OPTIONS)
def test_options_beyond_31_bits_are_refused(call, side, n, refused):
    refused(lambda: call(side(n)), ValueError, match=rf"must be at most 2147483647, got {n}")


# Products beyond the memory, 2**31, 2**63 or what tables can be made of; and what the error says.
LARGE = 2**31 - 1
PRODUCTS = {
    **{name: row for spec in SPECS.values() for name, row in spec.too_large.items()},
    **{
        name: (call, ".")
        for name, call in {
            "Linear": lambda: nn.Linear(2**40, 2**40),
            "Conv2d": lambda: nn.Conv2d(2**20, 2**20, 2**20),
            "BatchNorm2d": lambda: nn.BatchNorm2d(2**70),
            "empty": lambda: memory.empty((2**40, 2**40), np.float32),
            "empty of 2**62": lambda: memory.empty(2**60, np.float32),
            "zeros": lambda: memory.zeros(2**70, np.float64),
            "scratch": lambda: memory.scratch((2**62, 2**62), np.float64),
            "negative": lambda: memory.empty((-1, 5), np.float32),
        }.items()
    },
}


@pytest.mark.parametrize(("call", "message"), PRODUCTS.values(), ids=PRODUCTS)
def test_sizes_beyond_all_memory_are_refused(call, message, refused):
    refused(call, match=message)


def test_huge_options_without_an_effect_have_none():
    for n in (8, 2**20, LARGE):
        np.testing.assert_array_equal(
            ops.conv2d(IMAGES, WEIGHT, stride=n), ops.conv2d(IMAGES, WEIGHT)[..., :1, :1]
        )
        np.testing.assert_array_equal(
            ops.conv2d(IMAGES, WEIGHT[..., :1, :1], dilation=n), np.full((1, 4, 8, 8), 3)
        )
        np.testing.assert_array_equal(ops.avg_pool2d(IMAGES, 1, n), IMAGES[..., :1, :1])
        y, cells = ops.max_pool2d_forward(IMAGES, 1, n)
        np.testing.assert_array_equal(y, IMAGES[..., :1, :1])
        dx = ops.max_pool2d_backward(y, cells, IMAGES.shape, 1, n)
        assert dx.sum() == 3 and (dx[..., 0, 0] == 1).all()


def endless_or_not(shape, dtype):
    """Real memory up to 1 GiB, so that what is summed up is not one with other sums."""
    size = math.prod(shape if isinstance(shape, tuple) else (shape,))
    large = size * np.dtype(dtype).itemsize > 1 << 30
    return (Endless().empty if large else np.empty)(shape, dtype)


def zeros_and_tail(shape):
    """More than 2**31 elements, of which the last 2**20 are not 0; and a generator."""
    x, rng = Endless().empty(shape, np.float32), np.random.default_rng(0)
    assert x.size > 2**31
    x.reshape(-1)[-(2**20) :] = rng.standard_normal(2**20)
    return x, rng


def large_relu():
    x, _ = zeros_and_tail((2**20 + 3, 2**11 + 1))
    dy, y = zeros_and_tail(x.shape)[0], ops.relu(x)
    np.testing.assert_array_equal(y[-100:], np.maximum(x[-100:], 0))
    dx = ops.relu_backward(dy, y)
    np.testing.assert_array_equal(dx[-100:], np.where(x[-100:] > 0, dy[-100:], 0))


IMAGE = (2**14, 2**13 + 1, 16)


def large_pool():
    last, _ = zeros_and_tail((1, *IMAGE))
    x = last.transpose(0, 3, 1, 2)
    y, cells = ops.max_pool2d_forward(x, 8)
    expected, places = ops.max_pool2d_forward(x[:, :, -8:].copy(), 8)
    np.testing.assert_array_equal(y[:, :, -1:], expected)
    np.testing.assert_array_equal(cells[:, :, -1:], places)
    np.testing.assert_array_equal(
        ops.avg_pool2d(x, 8)[:, :, -1:], ops.avg_pool2d(x[:, :, -8:].copy(), 8)
    )
    dx = ops.max_pool2d_backward(y, cells, x.shape, 8)
    np.testing.assert_array_equal(
        dx[:, :, -8:], ops.max_pool2d_backward(expected, places, (1, 16, 8, IMAGE[1]), 8)
    )


def large_conv():
    last, rng = zeros_and_tail((1, *IMAGE))
    x, few = last.transpose(0, 3, 1, 2), last.transpose(0, 3, 1, 2)[:, :, -8:].copy()
    weight = rng.standard_normal((3, 16, 1, 1)).astype(np.float32)
    y, expected = (ops.conv2d(a, weight, stride=8) for a in (x, few))
    np.testing.assert_array_equal(y[:, :, -1:], expected)
    dy = np.zeros_like(y)
    dy[:, :, -1] = rng.standard_normal(y.shape[3])
    dx, dw, _ = ops.conv2d_backward(dy, x, weight, stride=8)
    dx_few, dw_few, _ = ops.conv2d_backward(dy[:, :, -1:].copy(), few, weight, stride=8)
    np.testing.assert_array_equal(dx[:, :, -8:], dx_few)
    np.testing.assert_allclose(dw, dw_few, 1e-4, 1e-4)


def large_image():
    """Gradient by an image of one channel, all of which is cleared in one run."""
    x = Endless().empty((1, 1, 2**16 + 2, 2**15 + 1), np.float32)
    weight, rng = np.ones((1, 1, 2, 2), np.float32), np.random.default_rng(0)
    dy = np.zeros((1, 1, 2**10 + 1, 2**9), np.float32)
    dy[..., -1, :] = rng.standard_normal(2**9)
    with mock.patch.object(memory, "empty", dirty):
        dx, _, _ = ops.conv2d_backward(dy, x, weight, 64, needs=(True, False, False))
    assert (dx[0, 0, :40] == 0).all() and (dx[0, 0, -40:-2] == 0).all()
    np.testing.assert_array_equal(dx[0, 0, -2:, :-1:64], dy[0, 0, [-1, -1]])


def dirty(shape, dtype):
    array = endless_or_not(shape, dtype)
    array[:, :40], array[:, -40:] = 7, 7
    return array


def large_linear():
    x, rng = zeros_and_tail((2**20 + 1, 2**11))
    weight = rng.standard_normal((3, 2**11)).astype(np.float32)
    y = ops.linear(x, weight)
    np.testing.assert_allclose(y[-500:], ops.linear(x[-500:].copy(), weight), 1e-4, 1e-3)
    dy = np.zeros_like(y)
    dy[-500:] = rng.standard_normal((500, 3))
    dx, dw, _ = ops.linear_backward(dy, x, weight)
    few = ops.linear_backward(dy[-500:].copy(), x[-500:].copy(), weight)
    np.testing.assert_allclose(dx[-500:], few[0], 1e-4, 1e-4)
    np.testing.assert_allclose(dw, few[1], 1e-4, 1e-3)


def large_norm():
    last, rng = zeros_and_tail((1, *IMAGE))
    x, weight = last.transpose(0, 3, 1, 2), rng.standard_normal(16).astype(np.float32)
    y, mean, invstd = ops.batch_norm_forward(x, weight=weight, training=True)
    tail = last.reshape(-1, 16)[-(2**16) :].astype(np.float64)
    np.testing.assert_allclose(mean, tail.sum(0) / (last.size // 16), 1e-3, 1e-9)
    variance = (tail**2).sum(0) / (last.size // 16)
    np.testing.assert_allclose(invstd, 1 / np.sqrt(variance + 1e-5), 1e-3)
    expected = (x[:, :, -1] - mean[:, None]) * (invstd * weight)[:, None]
    np.testing.assert_allclose(y[:, :, -1], expected, 1e-4, 1e-4)
    dx, _, dbias = ops.batch_norm_backward(y, x, weight, mean, invstd, False)
    np.testing.assert_allclose(dx[:, :, -1], y[:, :, -1] * (invstd * weight)[:, None], 1e-4, 1e-4)
    assert np.isfinite(dbias).all()


def large_dropout():
    x, _ = zeros_and_tail((2**20 + 3, 2**11 + 1))
    y, mask = ops.dropout_forward(x, 0.5)
    bits = np.unpackbits(mask[-4096:], bitorder="little")
    bits = bits[: bits.size - (mask.size * 8 - x.size)][-20000:]
    expected = np.where(bits, 2 * x.reshape(-1)[-20000:], 0)
    np.testing.assert_array_equal(y.reshape(-1)[-20000:], expected)
    assert 0.4 < bits.mean() < 0.6


def large_loss():
    x, rng = zeros_and_tail((2**21 + 1, 2**10))
    target = np.zeros(len(x), np.int64)
    target[-500:] = rng.integers(0, 2**10, 500)
    losses = ops.cross_entropy(x, target, reduction="none")
    np.testing.assert_allclose(
        losses[-500:], ops.cross_entropy(x[-500:].copy(), target[-500:], reduction="none"), 1e-5
    )
    np.testing.assert_allclose(losses[:500], np.log(2**10), 1e-5)


def large_layout():
    x = zeros_and_tail((1, *IMAGE))[0].reshape(1, 16, *IMAGE[:2])
    y = layout.to_channels_last(x)
    np.testing.assert_array_equal(y[0, -1, -1000:, -1], x[0, -1, -1, -1000:])
    np.testing.assert_array_equal(arithmetic.add(x, x)[0, -1, -9:], 2 * x[0, -1, -9:])


@linux
@pytest.mark.parametrize(
    "large",
    [
        *(large_image, large_pool),
        *(large_relu, large_conv, large_linear, large_norm, large_dropout, large_loss),
        large_layout,
    ],
)
def test_arrays_of_more_than_31_bits(large, effort, figures):
    if large not in effort((large_image,), (large,)):
        pytest.skip("in the long form")
    with served(endless_or_not):
        large()
    figures.count(CHAPTER, "ops on more than 2**31 elements")


def test_tables_hold_offsets_of_more_than_31_bits():
    """Of images that nobody has, as Python's integers tell them."""
    h, w, c, m = 60_000, 50_000, 2, 3
    shape = conv_shape("conv2d", (2, c, h, w), (m, c, 3, 3), (1, 1), (1, 1), (1, 1), 1, 4)
    assert shape.out_shape == (2, m, h, w) and shape.pixels == 2 * h * w > 2**31
    plan = direct.Direct(shape)
    for gather in (plan.forward_gather, plan.input_gather):
        targets = gather.facts[-2]
        per, band = gather.slabs.per, gather.slabs.band
        last = (((per - 1) * h + band - 1) * w + w - 1) * gather.out_shape[3]
        assert (targets.dtype, targets.min(), targets.max()) == (np.int64, 0, last)
    pooled = pool._forward_shape("max_pool2d", (2, h, w, c), False, 2, 2, 0, 1)
    assert pooled.out_shape == (2, h // 2, w // 2, c)
    row = pooled.forward.table[: h // 2 * 5].reshape(-1, 5)[-1].tolist()
    assert row == [1, (h - 2) * w * c, (h - 1) * w * c, 0, 2]


def test_live_views_are_never_handed_out(effort, figures, young_heap):
    steps, before = effort(2000, 40_000), memory.memory_stats()["used_blocks"]
    with ThreadPoolExecutor(4) as pool:
        checked = list(pool.map(lambda seed: Churn(seed).run(steps), range(1, 5)))
    gc.collect()
    gc.collect()  # what came back to life
    assert memory.memory_stats()["used_blocks"] <= before + 4  # of the threads' `scratch`
    assert sum(checked) >= effort(6000, 100_000)
    figures.count(CHAPTER, "lent arrays checked", sum(checked))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_live_views_are_kept_over_a_fork(figures):
    done = python(TESTS / "churn.py", 1)
    assert done.returncode == 0, done.stderr
    figures.count(CHAPTER, "lent arrays checked over forks", int(done.stdout))


def test_a_slice_of_a_loan_is_no_loan():
    a = memory.empty(memory.SMALLEST_BLOCK, np.uint8)
    a.fill(7)
    kept = a.base[1:]
    del a
    memory.empty(memory.SMALLEST_BLOCK, np.uint8).fill(9)
    assert (kept == 7).all()
    before = memory.memory_stats()["free_blocks"]
    del kept
    assert memory.memory_stats()["free_blocks"] == before + 1


def test_memory_that_is_taken_while_another_thread_empties_the_cache():
    """That is: between the lines of `_Arena.clear`."""
    arena, taken = memory._local.arena, []

    class Emptied(dict):
        def clear(self):
            super().clear()
            if not taken:
                taken.append(())
                taken[0] = memory.scratch((100, 200), np.float64)

    memory.scratch((5,), np.float64)
    arena.arrays = Emptied(arena.arrays)
    arena.clear()
    inner = memory.scratch((100, 200), np.float64)
    assert not any(np.shares_memory(a, b) for a in inner for b in taken[0])
    arena.arrays = dict(arena.arrays)
