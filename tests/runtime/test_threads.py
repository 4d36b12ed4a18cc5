import json
import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numba import njit

import fastlayers as fl
from fastlayers import ops
from fastlayers.__main__ import main
from fastlayers.runtime import cores, threads, topology
from fastlayers.runtime.parallel import POOL, parallel_for
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


IGNORED = ("abc", "0", "-1", "1.5", "2,x", "2,", ",")
VARIABLES = ("FASTLAYERS_NUM_THREADS", "OMP_NUM_THREADS", "NUMBA_NUM_THREADS")


@pytest.fixture
def undecided(monkeypatch):
    """Nobody has said how many threads there are, on a machine that has 6."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(threads, "_num_threads", 0)
    monkeypatch.setattr(threads, "_origin", "")
    monkeypatch.setattr(threads, "_chosen", False)
    monkeypatch.setattr(threads.cores, "available", lambda: (6, "affinity"))


@pytest.mark.parametrize(
    ("own", "openmp", "numba", "number", "origin"),
    [
        (None, None, None, 6, "affinity"),
        ("", "", "", 6, "affinity"),
        ("3", "2", "1", 3, VARIABLES[0]),
        (None, "2", None, 2, VARIABLES[1]),
        (None, "8", None, 8, VARIABLES[1]),
        (None, " 4 , 2", None, 4, VARIABLES[1]),
        (None, "4", "2", 2, VARIABLES[2]),
        (None, "2", "4", 2, VARIABLES[1]),
        (None, None, "8", 8, VARIABLES[2]),
        *[
            (None, text, None, 6, "affinity")
            for text in ("abc", "0", "-1", "1.5", "2,x", "2,", ",")
        ],
    ],
)
@pytest.mark.usefixtures("undecided")
def test_environment(monkeypatch, own, openmp, numba, number, origin):
    for name, value in zip(VARIABLES, (own, openmp, numba), strict=True):
        if value is not None:
            monkeypatch.setenv(name, value)
    assert threads.is_chosen() == (origin in VARIABLES)
    assert threads.origin() == origin
    assert fl.get_num_threads() == number
    fl.set_num_threads(1)
    assert threads.is_chosen() and threads.origin() == "set_num_threads"


def test_a_process_follows_its_environment(run):
    code = "import fastlayers as fl; print(fl.get_num_threads())"
    assert run(code, FASTLAYERS_NUM_THREADS=None, OMP_NUM_THREADS="3,1").stdout == "3\n"


@pytest.mark.parametrize("value", ["many", "0", "1.5"])
@pytest.mark.parametrize("name", [VARIABLES[0], VARIABLES[2]])
@pytest.mark.usefixtures("undecided")
def test_wrong_environment(monkeypatch, name, value):
    monkeypatch.setenv(name, value)
    with pytest.raises(ValueError, match=f"^{name}: expected a positive integer, got {value!r}$"):
        fl.get_num_threads()


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
def test_nested_regions(workers):
    out = np.zeros((50, 10), np.int64)
    nested(out, workers)
    if workers == 2 and not POOL:  # the inner region's only worker is 0
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
CHILDREN = """
with multiprocessing.get_context({method!r}).Pool(1) as pool:
    sys.exit(not np.array_equal(pool.apply(ops.conv2d, (x, w)), want))
"""


@pytest.mark.parametrize(
    "code",
    [FORK, CHILDREN.format(method="fork"), CHILDREN.format(method="spawn")],
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


def test_info_says_what_set_the_number(capsys):
    fl.set_num_threads(2)
    assert main(["info"]) == 0
    assert "2 (set_num_threads)" in capsys.readouterr().out
    assert main(["info", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["threads"], found["threads set by"]) == (2, "set_num_threads")


def test_info_says_what_the_machine_has(capsys, monkeypatch):
    levels = [topology.Cache("L1d", 49152, 1), topology.Cache("L2", 2 << 20, 4)]
    monkeypatch.setattr(topology, "caches", lambda: levels)
    monkeypatch.setattr(topology, "online", lambda: set(range(8)))
    monkeypatch.setattr(topology, "physical", lambda logical: len(logical) // 2)
    monkeypatch.setattr(cores, "affinity", lambda: {0, 1, 4, 5})
    monkeypatch.setattr(cores, "quota", lambda: 3)
    main(["info"])
    out = capsys.readouterr().out
    for line in (
        r"^caches +L1d 48 KiB, L2 2048 KiB shared by 4 logical cores$",
        r"^cache sizes used +L1 \d+ KiB, L2 \d+ KiB, last level \d+ KiB$",
        r"^free masks +(loads and stores|loads|none)$",
        r"^cores +8 logical, 4 physical; this process may use 4 logical, 2 physical$",
        r"^CPU quota +3 cores$",
    ):
        assert re.search(line, out, re.MULTILINE), out
    main(["info", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["caches"] == {
        "L1d": {"bytes": 49152, "cores": 1},
        "L2": {"bytes": 2 << 20, "cores": 4},
    }
    count = {"logical": 8, "physical": 4, "allowed": 4, "allowed physical": 2}
    assert found["cores"] == count and found["CPU quota"] == 3


def test_info_where_the_system_says_nothing(capsys, monkeypatch):
    monkeypatch.setattr(topology, "caches", list)
    for name in ("online", "physical"):
        monkeypatch.setattr(topology, name, lambda *logical: None)
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    monkeypatch.setattr(cores, "affinity", lambda: {0})
    monkeypatch.setattr(cores, "quota", lambda: None)
    main(["info"])
    out = capsys.readouterr().out
    for line in (
        r"^caches +unknown$",
        r"^cores +2 logical, unknown physical; this process may use 1 logical, unknown physical$",
        r"^CPU quota +none$",
    ):
        assert re.search(line, out, re.MULTILINE), out
