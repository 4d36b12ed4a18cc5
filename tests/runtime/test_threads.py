import os
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit

import fastlayers as fl
from fastlayers import ops
from fastlayers.runtime.parallel import parallel_for
from fastlayers.runtime.threads import workers_for


@pytest.mark.parametrize("n", [0, -1, 1.5, "2", True, None])
def test_errors(n):
    before = fl.get_num_threads()
    with pytest.raises(ValueError, match=r"^set_num_threads: n must be a positive integer, got"):
        fl.set_num_threads(n)
    assert fl.get_num_threads() == before


def test_number_of_threads():
    for n in (1, 2, 1000):
        fl.set_num_threads(n)
        assert fl.get_num_threads() == n
        assert workers_for(1e9) == n
        assert workers_for(10) == 1


@pytest.mark.parametrize(("value", "output"), [("3", "3\n"), ("", f"{os.cpu_count()}\n")])
def test_environment(run, value, output):
    code = "import fastlayers as fl; print(fl.get_num_threads())"
    given = {"FASTLAYERS_NUM_THREADS": value, "NUMBA_NUM_THREADS": os.cpu_count()}
    assert run(code, **given).stdout == output


@pytest.mark.parametrize("value", ["many", "0", "1.5"])
def test_wrong_environment(run, value):
    result = run("import fastlayers as fl; fl.get_num_threads()", FASTLAYERS_NUM_THREADS=value)
    message = f"ValueError: FASTLAYERS_NUM_THREADS: expected a positive integer, got {value!r}"
    assert message in result.stderr


@njit
def count_task(i, worker, visits, workers):
    visits[i, worker] += 1


@njit
def count(n, workers, visits):
    parallel_for(count_task, n, workers, (visits, workers))


@pytest.mark.parametrize("workers", [1, 2, 7])
@pytest.mark.parametrize("n", [0, 1, 1000])
def test_every_index_is_visited_once(n, workers):
    visits = np.zeros((n, workers), np.int64)
    count(n, workers, visits)
    np.testing.assert_array_equal(visits.sum(1), np.ones(n))


@njit
def inner_task(j, worker, i, out):
    out[i, j] += 10 * i + j + worker


@njit
def outer_task(i, worker, out):
    parallel_for(inner_task, out.shape[1], 2, (i, out))


@njit
def nested(out, workers):
    parallel_for(outer_task, out.shape[0], workers, (out,))


@pytest.mark.parametrize("workers", [1, 2])
def test_nested_regions_run_serially(workers):
    out = np.zeros((50, 10), np.int64)
    nested(out, workers)
    if workers == 2:  # the inner region's only worker is 0
        np.testing.assert_array_equal(out.ravel(), np.arange(500))
    assert (out - np.arange(500).reshape(50, 10) <= 1).all()


@njit
def failing_task(i, worker, out):
    if i == 3:
        raise ValueError("three")
    out[i] = 1


@njit
def failing(out, workers):
    parallel_for(failing_task, out.size, workers, (out,))


@pytest.mark.parametrize("workers", [1, 2])
def test_failing_task(workers):
    out = np.zeros(10)
    for _ in range(2):  # the region is left in order
        with pytest.raises(IndexError, match="a parallel task failed"):
            failing(out, workers)
    np.testing.assert_array_equal(out, np.arange(10) != 3)


def test_python_threads_call_kernels_at_once():
    fl.set_num_threads(2)
    rng = np.random.default_rng(0)
    weight = rng.integers(-3, 4, (16, 8, 3, 3)).astype(np.float32)
    images = rng.integers(-3, 4, (40, 4, 8, 20, 20)).astype(np.float32)
    expected = [ops.conv2d(x, weight, padding=1) for x in images]

    def step(x):
        y = ops.conv2d(x, weight, padding=1)
        return y, ops.relu(y)

    with ThreadPoolExecutor(4) as pool:
        for (y, positive), want in zip(pool.map(step, images), expected, strict=True):
            np.testing.assert_array_equal(y, want)
            np.testing.assert_array_equal(positive, np.maximum(want, 0))


CONV = """
import multiprocessing, os, sys
import numpy as np
import fastlayers as fl
from fastlayers import ops

fl.set_num_threads(2)
rng = np.random.default_rng(0)
x = rng.standard_normal((8, 16, 20, 20)).astype(np.float32)
w = rng.standard_normal((16, 16, 3, 3)).astype(np.float32)
want = ops.conv2d(x, w)  # starts the threads
"""
FORK = """
pid = os.fork()
if pid == 0:
    os._exit(0 if np.array_equal(ops.conv2d(x, w), want) else 3)
code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
sys.exit(code or not np.array_equal(ops.conv2d(x, w), want))
"""
POOL = """
with multiprocessing.get_context({method!r}).Pool(1) as pool:
    sys.exit(not np.array_equal(pool.apply(ops.conv2d, (x, w)), want))
"""


@pytest.mark.parametrize(
    "code",
    [FORK, POOL.format(method="fork"), POOL.format(method="spawn")],
    ids=["os", "fork", "spawn"],
)
def test_child_processes(run, code):
    if not hasattr(os, "fork") and "spawn" not in code:
        pytest.skip("needs os.fork")
    result = run(CONV + code)
    assert result.returncode == 0, result.stderr


COMPILING = """
import os, signal, sys, threading, time
import numpy as np
from fastlayers import kernels, ops
from numba.core.compiler_lock import global_compiler_lock

kernels.activation.relu  # the code that is to be compiled or loaded
held = threading.Event()

def compilation():
    with global_compiler_lock:
        held.set()
        time.sleep(0.2)

thread = threading.Thread(target=compilation)
thread.start()
held.wait()
pid = os.fork()
if pid == 0:
    signal.alarm(60)
    os._exit(ops.relu(np.array([-1, 2], np.float32)).tolist() != [0, 2])
thread.join()
sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
def test_fork_while_another_thread_compiles(run):
    result = run(COMPILING)
    assert result.returncode == 0, result.stderr
