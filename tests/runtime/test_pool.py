"""The library's own threads: random regions, nested and at once, forks, interrupts and exits."""

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import ops
from fastlayers.runtime import parallel
from fastlayers.runtime.system import has_futex

pytestmark = pytest.mark.skipif(not has_futex(), reason="needs Linux on a CPU of 64 bits")
START = """
import os, resource, signal, sys, threading, time, warnings
from concurrent.futures import ThreadPoolExecutor
import numpy as np
import fastlayers as fl
from fastlayers import ops
from fastlayers.runtime import parallel
from runtime.regions import Region, launch, launches, nested, signal_masks, workers

"""


@pytest.fixture(scope="module")
def code_folder(tmp_path_factory):
    return tmp_path_factory.mktemp("code")


@pytest.fixture
def passes(run, code_folder):
    """Give a function that asserts that code ends well, in a process without other threads."""

    def passes(code):
        variables = {"FASTLAYERS_THREADING": "pool", "OPENBLAS_NUM_THREADS": 1}
        result = run(START + code, NUMBA_CACHE_DIR=code_folder, **variables)
        assert result.returncode == 0 and not result.stderr, result.stderr

    return passes


LAUNCHES = """
launch(3, 2)
with ThreadPoolExecutor(4) as pool:
    list(pool.map(launches, range(4), [{number}] * 4))
"""


def test_random_regions_of_four_callers(passes, effort):
    passes(LAUNCHES.format(number=effort(2500, 50_000)))


# At once there are more callers than places for jobs, and more workers wanted than a job has.
CROWDS = """
def nap(_):
    for _ in range(20):
        launch(12, 5, [100, -100, 100])

def nest(_):
    for _ in range(20):
        nested(3)

with ThreadPoolExecutor(12) as pool:
    list(pool.map(nest, range(12)))
    list(pool.map(nap, range(12)))
assert workers() == 4
region = Region(500, 100, [-50] * 100)
region.run()
region.check()
assert not region.visits[:, 64:].any()
assert workers() == 63
fl.set_num_threads(100)
x = np.arange(-10**6, 10**6, dtype=np.float32)
assert np.array_equal(ops.relu(x), np.maximum(x, 0))
"""


def test_crowds_and_nested_regions(passes):
    passes(CROWDS)


# Each child computes with threads of its own, and so do Python threads of it.
FORKS = """
warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside threads
stop = False

def beside(seed):
    while not stop:
        launches(seed, 20)

def forks(number):
    for i in range(number):
        pid = os.fork()
        if pid == 0:
            try:
                signal.alarm(100)
                assert len(signal_masks()) == 1
                launch(10, 3, [-100])
                assert workers() == 2
                launches(i, 20)
                with ThreadPoolExecutor(2) as pool:
                    list(pool.map(launches, range(2), [10] * 2))
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

launch(10, 4)
with ThreadPoolExecutor(4) as pool:
    callers = [pool.submit(beside, seed) for seed in range(2)]
    forking = pool.submit(forks, {number})
    try:
        forks({number})
        forking.result()
    finally:
        stop = True
    for caller in callers:
        caller.result()
launches(0, 20)
"""


def test_forks_beside_launches(passes, effort):
    passes(FORKS.format(number=effort(25, 500)))


# A region that was begun is finished before the interrupt is seen.
INTERRUPTS = """
region, armed, seen = Region(8, 3, [-50, 150, 50, -100]), False, 0

def interrupt(number, frame):
    global seen
    seen += 1
    if armed:
        raise KeyboardInterrupt

def pester():
    main = threading.main_thread().ident
    for i in range({number}):
        if i % 2:
            signal.pthread_kill(main, signal.SIGINT)
        else:
            os.kill(os.getpid(), signal.SIGINT)
        while seen == i:
            time.sleep(1e-5)
        time.sleep(1e-6 * (37 * i % 400))

signal.signal(signal.SIGINT, interrupt)
while not region.visits.any(0).all():  # until all workers have begun
    region.run()
own = {{signal.SIGILL, signal.SIGABRT, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV}}
masks = signal_masks()
assert len(masks) == 3 and masks.pop(os.getpid()) == 0
for mask in masks.values():
    blocked = {{number for number in range(1, 32) if mask >> (number - 1) & 1}}
    assert {{signal.SIGINT, signal.SIGTERM, signal.SIGALRM}} <= blocked and not own & blocked

thread, times, caught = threading.Thread(target=pester), int(region.visits[0].sum()), 0
thread.start()
while seen < {number}:
    try:
        armed = True
        region.run()
        armed = False
    except KeyboardInterrupt:
        caught += 1
    armed = False
    after = int(region.visits[0].sum())
    assert after in (times, times + 1)
    region.check(after)
    times = after
thread.join()
assert caught > {number} // 2, caught
"""


def test_interrupts(passes, effort):
    passes(INTERRUPTS.format(number=effort(1000, 20_000)))


# Children, and at last the process itself, end while a daemon thread launches.
EXITS = """
warnings.simplefilter("ignore", DeprecationWarning)
begun = threading.Event()

def forever():
    while True:
        launches(0, 10)
        begun.set()

launch(10, 3)
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        signal.alarm(100)
        break
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
threading.Thread(target=forever, daemon=True).start()
begun.wait()
launch(10, 2)
"""


def test_exits_with_a_daemon_thread(passes):
    passes(EXITS)


# The stacks of threads need more address space than there is.
NO_THREADS = """
parallel._region._resolve()
launch(10, 1)
with open("/proc/self/statm") as file:
    size = int(file.read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (size + (2 << 20), resource.RLIM_INFINITY))
for _ in range(3):
    launch(50, 8, [-10, 10])
assert workers() == 0
resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
launch(50, 8, [-10, 10])
"""


def test_no_more_threads(passes):
    passes(NO_THREADS)


# CPU time of all threads, 50 ms after the last region; one that looks for the next one uses 0.3 s.
IDLE = """
for _ in range(100):
    launch(10, 3)
time.sleep(0.05)
used = time.process_time()
time.sleep(0.3)
used = time.process_time() - used
assert used < 0.05, used
"""


def test_idle(passes):
    passes(IDLE)


def test_numbers_of_threads_give_the_same_bits():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((4, 16, 30, 30), np.float32)
    weight = rng.standard_normal((24, 16, 3, 3), np.float32)
    dy = rng.standard_normal((4, 24, 28, 28), np.float32)

    def results():
        return ops.conv2d(x, weight), *ops.conv2d_backward(dy, x, weight)[:2]

    fl.set_num_threads(1)
    expected = results()
    for n in (2, 8, 3, 1, 5, 2, 1, 8, 5, 3):
        fl.set_num_threads(n)
        for found, want in zip(results(), expected, strict=True):
            assert found.tobytes() == want.tobytes()


@pytest.mark.parametrize(
    ("asked", "futex", "used"),
    [(None, True, True), ("", False, False), ("auto", True, True), ("pool", True, True)]
    + [("auto", False, False), ("numba", True, False), ("numba", False, False)],
)
def test_choice(monkeypatch, asked, futex, used):
    monkeypatch.delenv("FASTLAYERS_THREADING", raising=False)
    if asked is not None:
        monkeypatch.setenv("FASTLAYERS_THREADING", asked)
    monkeypatch.setattr(parallel, "has_futex", lambda: futex)
    assert parallel._uses_pool() is used


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ("omp", "FASTLAYERS_THREADING: expected auto, numba or pool, got 'omp'"),
        ("pool", "FASTLAYERS_THREADING: the pool needs Linux on a CPU of 64 bits"),
    ],
)
def test_wrong_choice(monkeypatch, asked, message):
    monkeypatch.setenv("FASTLAYERS_THREADING", asked)
    monkeypatch.setattr(parallel, "has_futex", lambda: False)
    with pytest.raises(ValueError, match=f"^{message}$"):
        parallel._uses_pool()
