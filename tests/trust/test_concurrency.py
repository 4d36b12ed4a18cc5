"""Threads, processes and interrupts."""

import contextlib
import dis
import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import lazy, nn, optim
from fastlayers import random as fl_random
from fastlayers.autograd import is_grad_enabled
from fastlayers.data import DataLoader, Dataset, TensorDataset
from fastlayers.data.threads import THREAD_NAME
from fastlayers.runtime.memory import empty_cache
from fastlayers.training import evaluate, fit

CHAPTER = "concurrency"
PREFETCHES = (1, 2, 5)
LOSS = nn.CrossEntropyLoss()
PATHS = (Path(fl.__file__).parents[1], Path(__file__).parents[1])
# What no step of a test takes; a thread that takes longer hangs.
PATIENCE = 120


@pytest.fixture(autouse=True)
def restored():
    before = fl.get_num_threads(), fl.is_fusion_enabled()
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # for 5 ms, in which a thread does all that is done here
    yield
    sys.setswitchinterval(interval)
    fl.set_num_threads(before[0])
    fl.set_fusion_enabled(before[1])


def workers():
    return [thread for thread in threading.enumerate() if thread.name == THREAD_NAME]


def check_no_worker_is_left():
    for thread in workers():
        thread.join(PATIENCE)
        assert not thread.is_alive()


@pytest.fixture
def no_worker_is_left(young_heap):
    check_no_worker_is_left()
    yield
    gc.collect()
    check_no_worker_is_left()


def ahead(batches):
    """Options of a loader with one worker that prepares so many, or with none."""
    return {"num_workers": 1, "prefetch_factor": batches} if batches else {}


def in_threads(*functions):
    """Call functions at once, each in a thread of its own, and give what they return."""
    results, barrier = [None] * len(functions), threading.Barrier(len(functions))

    def run(number):
        barrier.wait(PATIENCE)
        try:
            results[number] = functions[number](), None
        except BaseException as error:
            results[number] = None, error

    threads = [threading.Thread(target=run, args=(n,)) for n in range(len(functions))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
        assert not thread.is_alive()
    for _, error in results:
        if error is not None:
            raise error
    return [value for value, _ in results]


# Models that are trained at once.


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2),
        nn.Dropout2d(0.3), nn.Conv2d(8, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Dropout(0.5), nn.Linear(16 * 16, 4),
    )  # fmt: skip


def mlp():
    return nn.Sequential(
        nn.Flatten(), nn.Linear(256, 300), nn.BatchNorm1d(300), nn.ReLU(), nn.Dropout(0.5),
        nn.Linear(300, 4),
    )  # fmt: skip


def depthwise():
    return nn.Sequential(
        nn.Conv2d(1, 16, 1), nn.Conv2d(16, 16, 3, groups=16, stride=2), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(0.2), nn.Linear(64, 4),
    )  # fmt: skip


def sgd(parameters):
    return optim.SGD(parameters, 0.05, momentum=0.9, weight_decay=1e-4)


KINDS = [(cnn, sgd), (mlp, optim.Adam), (depthwise, optim.AdamW), (cnn, optim.Adam)]


def images(count, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 4, count)
    x = rng.standard_normal((count, 1, 16, 16)).astype(np.float32)
    return TensorDataset(x + labels[:, None, None, None].astype(np.float32), labels)


def trained(number, count=48, epochs=2):
    """Train a model of a kind from a seed; all that it became."""
    kind, method = KINDS[number % len(KINDS)]
    with fl_random.fork_rng():
        fl.manual_seed(number)
        model = kind()
        optimizer = method(model.parameters())
        train = DataLoader(images(count), 16, shuffle=True)
        history = fit(model, LOSS, optimizer, train, images_loader(), epochs, progress=False)
        state = [value.numpy().tobytes() for value in model.state_dict().values()]
        state += [
            a.tobytes() for e in optimizer.state.values() for a in map(np.asarray, e.values())
        ]
        losses = [epoch["valid_loss"] for epoch in history.epochs]
        return state, losses, int(fl_random.dropout_stream()[1])


def images_loader():
    return DataLoader(images(20, 1), 10)


@contextlib.contextmanager
def meanwhile(function):
    """Call a function again and again in a thread, while the block runs."""
    done, failed = threading.Event(), []

    def repeat():
        while not done.is_set():
            try:
                function()
            except BaseException as error:
                failed.append(error)
                return

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(PATIENCE)
    assert not thread.is_alive()
    if failed:
        raise failed[0]


@pytest.mark.usefixtures("no_worker_is_left")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_models_trained_in_threads_get_the_bits_of_one_after_the_other(threads, figures, effort):
    fl.set_num_threads(threads)
    numbers = range(2 * len(KINDS))
    expected = [trained(number) for number in numbers]
    assert len({str(state) for state, _, _ in expected}) == len(numbers)
    for _ in range(rounds := effort(1, 50)):
        found = in_threads(*(lambda n=n: trained(n) for n in numbers))
        for number in numbers:
            assert found[number] == expected[number], KINDS[number % len(KINDS)]
    figures.count(CHAPTER, "models trained at once with others", rounds * len(numbers))
    figures.most(CHAPTER, "models at once", len(numbers))


def test_the_number_of_threads_may_change_meanwhile(figures, effort):
    expected = [trained(number) for number in range(4)]

    def change():
        for n in (1, 2, 3, 4):
            fl.set_num_threads(n)
            assert fl.get_num_threads() >= 1

    for _ in range(rounds := effort(1, 50)):
        with meanwhile(change):
            assert in_threads(*(lambda n=n: trained(n) for n in range(4))) == expected
    figures.count(CHAPTER, "models trained while the number of threads changed", 4 * rounds)


def test_memory_may_be_given_back_meanwhile(figures, effort):
    expected = [trained(number, epochs=1) for number in range(4)]
    for _ in range(rounds := effort(3, 100)):
        with meanwhile(empty_cache):  # while threads begin to have some
            assert in_threads(*(lambda n=n: trained(n, epochs=1) for n in range(4))) == expected
    figures.count(CHAPTER, "models trained while free memory was given back", 4 * rounds)


def test_fusion_may_change_meanwhile(figures, effort):
    """Losses are the same within rounding, as the promise for fusion is."""
    expected = [trained(number, epochs=1) for number in range(4)]

    def change():
        fl.set_fusion_enabled(not fl.is_fusion_enabled())

    for _ in range(rounds := effort(1, 50)):
        with meanwhile(change):
            found = in_threads(*(lambda n=n: trained(n, epochs=1) for n in range(4)))
        for (_, losses, stream), (_, want, same) in zip(found, expected, strict=True):
            np.testing.assert_allclose(losses, want, rtol=1e-3)
            assert stream == same
    figures.count(CHAPTER, "models trained while fusion was turned on and off", 4 * rounds)


def test_one_model_serves_many_threads(figures, effort):
    fl.manual_seed(0)
    model = cnn()
    batches = [images(16, seed)[:][0] for seed in range(8)]

    def serve():
        model.eval()
        with fl.no_grad():
            return [model(x).array().tobytes() for x in batches]

    expected = serve()
    for _ in range(rounds := effort(5, 200)):
        assert in_threads(*[serve] * 4) == [expected] * 4
    figures.count(CHAPTER, "batches served by one model to four threads", 4 * rounds * len(batches))


def test_an_attribute_is_never_missing_while_it_is_set():
    """Threads may call `eval` of a model that others are in."""
    model, seen = cnn(), set()
    names = {*vars(model)}

    def visit(number):
        seen.add(model.training)
        assert {*vars(model)} == names

    assert at_points(model.eval, [sys.modules["fastlayers.nn.module"].__file__], visit) > 10
    assert seen == {True, False}


FIRST = """
import sys
from trust import test_concurrency as t
found = t.in_threads(*(lambda n=n: t.trained(n) for n in range(4)))
assert found == [t.trained(n) for n in range(4)]
"""


def run(code, *arguments):
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, PATHS))}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(
        command, env=env, capture_output=True, text=True, timeout=PATIENCE, check=False
    )


def test_the_first_steps_of_a_process_may_be_in_threads():
    result = run(FIRST)
    assert result.returncode == 0, result.stderr


# The random state.


def test_threads_never_share_a_dropout_stream():
    fl.manual_seed(0)
    found = in_threads(*[lambda: [fl_random.dropout_stream() for _ in range(1000)]] * 4)
    assert sorted(int(stream) for some in found for _, stream in some) == list(range(4000))


def test_a_fork_is_this_thread_s_alone():
    """What other threads draw meanwhile is not drawn again."""
    fl.manual_seed(0)
    first = fl_random.dropout_stream()
    with fl_random.fork_rng():
        own = fl_random.dropout_stream()
        fl.manual_seed(7)
        inner = fl_random.dropout_stream(), fl_random.numpy_generator().random()
        (outer,) = in_threads(fl_random.dropout_stream)
        with fl_random.fork_rng():
            fl.manual_seed(9)
        assert fl_random.dropout_stream() == (inner[0][0], 1)
    assert (first[1], own[1], outer[1]) == (0, 1, 1) and own[0] == outer[0] == first[0]
    assert fl_random.dropout_stream() == (first[0], 2)
    fl.manual_seed(7)
    assert inner == (fl_random.dropout_stream(), fl_random.numpy_generator().random())


def test_a_warmup_draws_nothing_twice():
    """Its random state is set back, while another thread goes on."""
    fl.manual_seed(0)
    drawn = []

    class Drawing(nn.Module):
        def forward(self, x):
            if not drawn:
                drawn.extend(in_threads(fl_random.dropout_stream))
            return nn.functional.dropout(x)

    fl.warmup(Drawing(), (2, 3))
    assert drawn == [(drawn[0][0], 0)]
    assert fl_random.dropout_stream() == (drawn[0][0], 1)


@pytest.mark.parametrize("prefetch", [0, *PREFETCHES])
def test_a_loader_draws_by_the_random_state_of_who_asks(prefetch):
    class Noise(Dataset):
        def __len__(self):
            return 6

        def __getitem__(self, index):
            return fl_random.numpy_generator().random()

    def drawn():
        with fl_random.fork_rng():
            fl.manual_seed(3)
            loader = DataLoader(Noise(), 2, **ahead(prefetch))
            return [np.asarray(batch).tolist() for batch in loader]

    fl.manual_seed(1)
    generator = np.random.default_rng(3)
    seed = generator.integers(2**63)  # of the epoch, and of its only worker
    generator = np.random.default_rng(seed) if prefetch else generator
    expected = generator.random(6).astype(np.float32).reshape(3, 2).tolist()
    assert in_threads(drawn, drawn) == [expected] * 2
    assert fl_random.numpy_generator().random() == np.random.default_rng(1).random()


# Loaders that are stopped half way.


class Numbers(Dataset):
    """Calls `visit` with each index that is read."""

    def __init__(self, visit=lambda index: None):
        self.visit = visit

    def __len__(self):
        return 8

    def __getitem__(self, index):
        self.visit(index)
        return float(index)


# Each takes some batches, calls `ready`, and stops.


def taken(loader, count, ready):
    batches = iter(loader)
    for _ in range(count):
        next(batches)
    ready()
    return batches


def by_break(loader, count, ready):
    for number, _ in enumerate(loader, 1):
        if number == count:
            ready()
            break


def by_exception(loader, count, ready):
    with pytest.raises(ZeroDivisionError):
        for number, _ in enumerate(loader, 1):
            if number == count:
                ready()
                raise ZeroDivisionError
        raise ZeroDivisionError


def by_del(loader, count, ready):
    taken(loader, count, ready)


def by_close(loader, count, ready):
    batches = taken(loader, count, ready)
    batches.close()
    assert not list(batches)


def by_throw(loader, count, ready):
    batches = taken(loader, count, ready)
    with pytest.raises(KeyboardInterrupt):
        batches.throw(KeyboardInterrupt)


def by_a_cycle(loader, count, ready):
    cycle = [taken(loader, count, ready)]
    cycle.append(cycle)
    del cycle
    gc.collect()


def by_another_thread(loader, count, ready):
    in_threads(taken(loader, count, ready).close)


STOPS = (by_break, by_exception, by_del, by_close, by_throw, by_a_cycle, by_another_thread)


@pytest.mark.usefixtures("no_worker_is_left")
@pytest.mark.parametrize("prefetch", [0, *PREFETCHES])
@pytest.mark.parametrize("stop", STOPS)
def test_a_loader_stopped_half_way(stop, prefetch, figures):
    """When the thread waits for somebody to take what it has prepared."""
    visits = threading.Semaphore(0)
    loader = DataLoader(Numbers(lambda index: visits.release()), **ahead(prefetch))

    def prepared(count):
        for _ in range(min(count + prefetch, 8) if count else 0):
            assert visits.acquire(timeout=PATIENCE)

    for count in range(len(loader) + 1):
        stop(loader, count, functools.partial(prepared, count))
        check_no_worker_is_left()
        while visits.acquire(blocking=False):
            pass
        assert [batch.item() for batch in loader] == list(range(8))  # and begins anew
        prepared(8)
        figures.count(CHAPTER, "loaders stopped")


@pytest.mark.usefixtures("no_worker_is_left")
@pytest.mark.parametrize("prefetch", PREFETCHES)
@pytest.mark.parametrize("stop", STOPS)
def test_stopping_does_not_wait_for_a_sample(stop, prefetch):
    """The thread ends after the sample that it is at, without another one."""
    at_it, free, seen = threading.Event(), threading.Event(), []

    def visit(index):
        seen.append(index)
        if index == 1:
            at_it.set()
            assert free.wait(PATIENCE)

    stop(DataLoader(Numbers(visit), **ahead(prefetch)), 1, lambda: at_it.wait(PATIENCE))
    assert len(workers()) == 1
    free.set()
    check_no_worker_is_left()
    assert seen == [0, 1]


@pytest.mark.usefixtures("no_worker_is_left")
@pytest.mark.parametrize(
    "error", [KeyError("broken"), SystemExit(3), KeyboardInterrupt(), MemoryError()]
)
@pytest.mark.parametrize("prefetch", [0, *PREFETCHES])
def test_an_exception_of_a_dataset_passes_through_fit_with_its_traceback(error, prefetch):
    def visit(index):
        if index == 5:
            raise error

    data = DataLoader(Numbers(visit), 2, **ahead(prefetch))
    model = nn.Linear(1, 1)
    batches = ((x.reshape(-1, 1), x.reshape(-1, 1)) for x in data)
    with pytest.raises(type(error)) as caught:
        fit(model, nn.MSELoss(), optim.SGD(model.parameters()), batches, progress=False)
    found = caught.value
    if prefetch and isinstance(error, Exception):
        assert found.__cause__ is error and "in visit" in str(found)
        frames = traceback.extract_tb(found.__traceback__) + traceback.extract_tb(
            error.__traceback__
        )
    else:
        assert found is error
        frames = traceback.extract_tb(error.__traceback__)
    names = [frame.name for frame in frames]
    assert names.index("fit") < names.index("__getitem__") < names.index("visit")
    error.__traceback__ = None


AT_EXIT = """
import sys, threading
from fastlayers.data import DataLoader
from trust import test_concurrency as t

stuck = threading.Event()
numbers = t.Numbers(lambda index: index < 3 or stuck.wait())
batches = iter(DataLoader(numbers, num_workers=1, prefetch_factor={prefetch}))
next(batches)
{end}
"""


@pytest.mark.parametrize(
    "end", ["", "sys.exit()", "del batches", "keep = [batches]; keep.append(keep)"]
)
def test_a_process_ends_with_loaders_half_way(end):
    result = run(AT_EXIT.format(prefetch=3, end=end))
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


# Interrupts.


@functools.cache
def switch_points(code):
    """Where a function may be interrupted, or another thread may run: the interpreter looks for
    signals and for other threads at its begin, after calls and when it jumps back."""
    points = set()
    for before, after in itertools.pairwise(dis.get_instructions(code)):
        if before.opname == "RESUME" or before.opname.startswith("CALL"):
            points.add(after.offset)
        elif "JUMP_BACKWARD" in before.opname and "NO_INTERRUPT" not in before.opname:
            points.add(before.argval)
    return points


def at_points(action, files, visit):
    """Call `visit` with the number of each such point of some files that an action passes."""
    before, seen = sys.gettrace(), 0

    def trace(frame, event, argument):
        nonlocal seen
        if frame.f_code.co_filename not in files:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode" and frame.f_lasti in switch_points(frame.f_code):
            seen += 1
            visit(seen)
        return trace

    sys.settrace(trace)
    try:
        action()
    finally:
        sys.settrace(before)
    return seen


def interrupt_at(number):
    def visit(seen):
        if seen == number:
            raise KeyboardInterrupt

    return visit


def step(number):
    """One step of a new model; all that it became."""
    kind, method = KINDS[number]
    with fl_random.fork_rng():
        fl.manual_seed(number)
        model = kind()
        optimizer = method(model.parameters())
        x, y = images(8)[:]
        LOSS(model(x), y).backward()
        optimizer.step()
        model.eval()
        with fl.no_grad():
            output = model(x).array().tobytes()
        return output, [value.numpy().tobytes() for value in model.state_dict().values()]


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_another_thread_may_train_at_any_point_of_a_step(number, figures, effort):
    other, every = (number + 1) % len(KINDS), effort(60, 1)
    expected, found = [step(number), step(other)], []
    # Not the random state, which has a lock that the other thread would wait for.
    files = {m.__file__ for name, m in sys.modules.items() if name.startswith("fastlayers.")}
    files -= {fl_random.__file__}

    def visit(seen):
        if (seen + number) % every == 0:
            assert in_threads(lambda: step(other)) == expected[1:]

    points = at_points(lambda: found.append(step(number)), files, visit)
    assert found == expected[:1]
    figures.count(CHAPTER, "points of a step at which another thread did one", points // every)


class Improving(nn.Module):
    """A model whose validation loss falls with each epoch."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(np.zeros(1, np.float32))

    def forward(self, x):
        if self.training:
            self.weight.data += 1
        return x * 0 + 1 / (1 + self.weight)


SOURCES = [
    sys.modules[module].__file__
    for module in (
        "fastlayers.training", "fastlayers.state", "fastlayers.state.files",
        "fastlayers.state.nested", "fastlayers.state.npz", "fastlayers.data.loader",
        "fastlayers.data.iteration", "fastlayers.data.threads", "fastlayers.data.dataset",
        "fastlayers.data.collate",
        "fastlayers.nn.module",
    )
]  # fmt: skip


# A file that an interrupt finds between open() and its block.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
@pytest.mark.parametrize("prefetch", [0, 2])
def test_an_interrupt_at_any_point_of_fit(prefetch, tmp_path, figures, effort, monkeypatch):
    """The checkpoint is that of the last epoch or, while that is being kept, of the one before."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # 1,000 of them take a second
    path = tmp_path / "best.npz"
    data = TensorDataset(np.zeros((4, 1), np.float32), np.zeros((4, 1), np.float32))
    saved, model = [], Improving()

    def action():
        model.weight.data[:] = 0
        saved.clear()
        loader = DataLoader(data, 2, **ahead(prefetch))
        optimizer = optim.SGD(model.parameters(), 0.0)
        fit(model, nn.MSELoss(), optimizer, loader, loader, 2, progress=False, checkpoint=path,
            on_epoch=lambda figures: saved.append(2 * figures["epoch"]))  # fmt: skip

    total = at_points(action, SOURCES, lambda seen: None)
    assert saved == [2, 4] and total > 300
    points = range(1, total + 1, effort(9, 1))
    for at in points:
        path.unlink(missing_ok=True)
        with pytest.raises(KeyboardInterrupt):
            at_points(action, SOURCES, interrupt_at(at))
        last = saved[-1] if saved else 0
        if path.exists():
            assert fl.load(path)["weight"].item() in (last, last + 2), at
        else:
            assert not saved, at
        assert os.listdir(tmp_path) == ["best.npz"] * path.exists(), at
        assert is_grad_enabled() and lazy.state.call == 0, at
        check_no_worker_is_left()
    figures.count(CHAPTER, "points of fit that were interrupted", len(points))


def test_an_interrupt_of_evaluate_restores_the_modes():
    class Interrupted(Improving):
        def eval(self):
            super().eval()
            raise KeyboardInterrupt

    model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        evaluate(model, nn.MSELoss(), [])
    assert model.training


def press_ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def interruptible():
    """Python's handler, which a shell's background job doesn't begin with."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible", "no_worker_is_left")
@pytest.mark.parametrize("place", ["batch", "validation", "fsync", "replace", "on_epoch", "sample"])
@pytest.mark.parametrize("epoch", [1, 2, 3])
def test_ctrl_c(place, epoch, tmp_path, figures, monkeypatch):
    path, seen = tmp_path / "best.npz", []
    model = Improving()

    def reached(here):
        if here == place and model.weight.array()[0] >= 2 * epoch - 1 and not seen:
            seen.append(here)
            press_ctrl_c()

    def reaching(name, call):
        return lambda *args: (reached(name), call(*args))[1]

    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, reaching(name, getattr(os, name)))

    def loss(output, target):
        reached("batch" if model.training else "validation")
        return nn.functional.mse_loss(output, target)

    class Samples(Numbers):
        def __getitem__(self, index):
            if index == 0:  # for which the main thread waits
                reached("sample")
            return np.zeros(1, np.float32), np.zeros(1, np.float32)

    kept = []

    def on_epoch(figures):
        kept.append(2.0 * figures["epoch"])
        reached("on_epoch")

    loader = DataLoader(Samples(), 4, num_workers=1)
    optimizer = optim.SGD(model.parameters(), 0.0)
    with pytest.raises(KeyboardInterrupt):
        fit(
            model,
            loss,
            optimizer,
            loader,
            loader,
            4,
            progress=False,
            checkpoint=path,
            on_epoch=on_epoch,
        )
    assert seen == [place]
    last = kept[-1] if kept else 0
    if path.exists():
        assert fl.load(path)["weight"].item() in (last, last + 2)
    assert path.exists() >= bool(kept)
    assert os.listdir(tmp_path) == ["best.npz"] * path.exists()
    assert is_grad_enabled() and lazy.state.call == 0
    figures.count(CHAPTER, "interrupts by a signal")
