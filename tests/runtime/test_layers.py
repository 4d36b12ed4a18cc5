"""The pool and each threading layer of Numba: threads at once, nested, fork, spawn, and idle."""

import importlib
import os

import pytest

from fastlayers.runtime.system import has_futex

# The library's own threads, and Numba's layers with their modules.
LAYERS = {"pool": None, "omp": "omppool", "tbb": "tbbpool", "workqueue": "workqueue"}
# All three ops ask for two threads.
OPS = """
import multiprocessing, os, signal, sys, threading, time
from concurrent.futures import ThreadPoolExecutor
import numba
import numpy as np
import fastlayers as fl
from fastlayers import ops
from fastlayers.runtime.parallel import threading_layer

fl.set_num_threads(2)
rng = np.random.default_rng(0)
x = rng.integers(-3, 4, (2, 16, 64, 64)).astype(np.float32)
image, weight = x[:, :, :20, :20].copy(), rng.standard_normal((16, 16, 3, 3), np.float32)
mean, var = np.ones(16, np.float32), np.full(16, 4 - 1e-5, np.float32)

def call():
    return ops.conv2d(image, weight), ops.relu(x), ops.batch_norm(x, mean, var)

def agree(results):
    return all(map(np.array_equal, results, expected))

"""
USED = """
expected = call()
from fastlayers.reference import conv2d
np.testing.assert_allclose(expected[0], conv2d(image, weight), rtol=1e-4, atol=1e-3)
assert np.array_equal(expected[1], np.maximum(x, 0))
np.testing.assert_allclose(expected[2], (x - 1) / 2, rtol=1e-5)
assert threading_layer() == os.environ["LAYER"]
"""
THREADS = """
with ThreadPoolExecutor(8) as pool:
    assert all(pool.map(lambda _: all(agree(call()) for _ in range({calls})), range(8)))
"""
FORK = """
def forked():
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)
        with ThreadPoolExecutor(2) as pool:  # the child's own threads, and its own child
            right = all(pool.map(lambda _: agree(call()), range(8)))
        again = os.fork() if right else 1
        if again == 0:
            os._exit(not agree(call()))
        os._exit(not right or os.waitstatus_to_exitcode(os.waitpid(again, 0)[1]))
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

assert forked() == 0
assert agree(call())
with ThreadPoolExecutor(1) as pool:  # from a thread that is not the first, while regions run
    future = pool.submit(forked)
    while not future.done():
        assert agree(call())
assert future.result() == 0
assert agree(call())
"""
POOL = """
def in_child(_):
    return agree(call())

if __name__ == "__main__":
    for method in sys.argv[1:]:
        with multiprocessing.get_context(method).Pool(2) as pool:
            assert all(pool.map(in_child, range(4)))
        assert agree(call())
"""
NESTED = """
from fastlayers import kernels
from fastlayers.runtime.parallel import parallel_for

relu = kernels.activation.relu

@numba.njit
def task(i, worker, x, y):
    relu(x[i], 2, y[i])

@numba.njit(nogil=True)
def outer(x, workers, y):
    parallel_for(task, len(x), workers, (x, y))

def nested(_):
    y = np.empty_like(rows)
    for _ in range(20):
        y[:] = -1
        outer(rows, 2, y)
        if not np.array_equal(y, np.maximum(rows, 0)):
            return False
    return agree(call())

rows = x.reshape(32, -1)
assert nested(0)
with ThreadPoolExecutor(4) as pool:
    assert all(pool.map(nested, range(4)))
"""
# CPU time that other threads use while this one sleeps, which NumPy's BLAS could have. Those of the
# pool look for the next region for 1 ms, those of GNU OpenMP for 3 ms, others not; one that did so
# for good would use 0.5 s, and what a busy machine counts besides was 0.1.
IDLE = """
ops.relu(x)
used = time.process_time()
time.sleep(0.5)
used = time.process_time() - used
assert used < 0.3, used
"""


@pytest.fixture(params=LAYERS)
def layer(request):
    if request.param == "pool":
        if not has_futex():
            pytest.skip("needs Linux on a CPU of 64 bits")
        return {"LAYER": "pool", "FASTLAYERS_THREADING": "pool"}
    try:
        importlib.import_module(f"numba.np.ufunc.{LAYERS[request.param]}")
    except ImportError as error:
        pytest.skip(str(error))
    return {
        "LAYER": request.param,
        "FASTLAYERS_THREADING": "numba",
        "NUMBA_THREADING_LAYER": request.param,
        "NUMBA_NUM_THREADS": 2,
    }


def check(run, layer, code):
    result = run(OPS + USED + code, **layer)
    assert result.returncode == 0, result.stderr
    # Numba warns of a fork from a second thread with TBB, which is not used in the child.
    lines = [
        line for line in result.stderr.splitlines() if "fork from a non-main thread" not in line
    ]
    assert not lines, result.stderr


def test_threads_at_once_nested_calls_and_fork_after_use(run, layer, effort):
    threads = THREADS.format(calls=effort(20, 100))
    check(run, layer, IDLE + threads + NESTED + FORK * hasattr(os, "fork"))


def test_pools(run, layer, tmp_path):
    methods = ["fork", "forkserver", "spawn"] if hasattr(os, "fork") else ["spawn"]
    (tmp_path / "pool.py").write_text(OPS + USED + POOL)
    main = f"import runpy, sys; sys.argv[1:] = {methods}\n"
    main += f"runpy.run_path({str(tmp_path / 'pool.py')!r}, run_name='__main__')"
    result = run(main, **layer)
    assert result.returncode == 0 and not result.stderr, result.stderr
