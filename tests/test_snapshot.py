"""Trainings that are stopped and go on: the bits of one that was not."""

import contextlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from trust import test_concurrency as interrupts

import fastlayers as fl
from fastlayers import nn, optim
from fastlayers.data import DataLoader, RandomShift, TensorDataset
from fastlayers.state.snapshot import pack, unpack
from fastlayers.training import fit

EPOCHS, BATCHES = 4, 3
OPTIMIZERS = {
    "SGD": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
    "AdamW": lambda p: optim.AdamW(p, 1e-2),
}
# Seeds of a loader and its shifts; without one manual_seed governs them.
SEEDS = ((None, None), (3, None), (3, 4))


def bits(tree):
    """What differs wherever two trees differ by a bit, or by a type."""
    if isinstance(tree, dict):
        return {key: bits(value) for key, value in tree.items()}
    if isinstance(tree, list | tuple):
        return type(tree), [bits(value) for value in tree]
    if isinstance(tree, np.ndarray | np.generic):
        return type(tree), tree.dtype, tree.shape, tree.tobytes()
    return type(tree), repr(tree)


class Run:
    """A training of a net with dropout and batch norm, on random images."""

    def __init__(self, optimizer="AdamW", seeds=SEEDS[0], seed=0, epochs=EPOCHS):
        fl.manual_seed(seed)
        self.model = nn.Sequential(
            nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
            nn.Dropout2d(0.2), nn.Flatten(), nn.Linear(36, 8), nn.Dropout(0.5), nn.Linear(8, 3),
        )  # fmt: skip
        rng = np.random.default_rng(0)
        images = rng.standard_normal((22, 1, 6, 6), np.float32)
        data = TensorDataset(images, rng.integers(0, 3, 22))
        self.loader = DataLoader(data, 8, shuffle=True, seed=seeds[0])
        self.shifted = RandomShift(self.loader, 1, seed=seeds[1])
        self.held_out = DataLoader(data, 5, shuffle=True)
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = optim.OneCycleLR(self.optimizer, 0.05, total_steps=EPOCHS * BATCHES)
        self.epochs = epochs

    def fit(self, path=None, reached=lambda place: None, **options):
        """Train; `reached` is told of each batch and each epoch."""

        def loss(output, target):
            reached("batch" if self.model.training else "validation")
            return nn.functional.cross_entropy(output, target)

        given = {"scheduler": self.scheduler, "schedule_every": "batch", "progress": False}
        given |= {"on_epoch": lambda figures: reached("on_epoch"), "resume": path} | options
        data = self.shifted, self.held_out
        self.history = fit(self.model, loss, self.optimizer, *data, self.epochs, **given)
        return self

    def state(self):
        """All that the training changed."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "scheduler": self.scheduler.state_dict(),
            "random": fl.random.get_rng_state(),
            "epoch": self.loader.epoch,
            "best": (self.history.best_epoch, self.history.best_state),
            "figures": [
                {k: v for k, v in figures.items() if k not in ("seconds", "images_per_second")}
                for figures in self.history.epochs
            ],
        }

    def changeable(self):
        """The state of the parts, which a call that fails must not change."""
        self.history = fl.training.History()
        return bits(self.state())


class Stop:
    """Stops a run at the visit of a place with a number, from 1."""

    def __init__(self, place, number, action):
        self.place, self.left, self.action = place, number, action

    def __call__(self, place):
        self.left -= place == self.place
        if not self.left and place == self.place:
            self.action()


def interrupted():
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def whole():
    """The state that a run which is not stopped ends with; a function of its options."""
    known = {}

    def end(*options):
        if options not in known:
            known[options] = bits(Run(*options).fit().state())
        return known[options]

    return end


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_file_changes_no_bit(optimizer, seeds, suffix, tmp_path, whole):
    run = Run(optimizer, seeds).fit(tmp_path / f"last.{suffix}")
    assert bits(run.state()) == whole(optimizer, seeds)
    assert os.listdir(tmp_path) == [f"last.{suffix}"]


@pytest.mark.parametrize("anew", [True, False], ids=["new objects", "same objects"])
@pytest.mark.parametrize("seeds", SEEDS)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_interrupted_run_ends_as_a_whole_one(optimizer, seeds, anew, tmp_path, whole, effort):
    """Stopped in the middle of each epoch, in its validation and at its end."""
    places = [("batch", 2), ("batch", BATCHES + 2), ("validation", 2), ("on_epoch", 1)]
    suffixes = ("npz", "safetensors")
    both = effort(zip(places, itertools.cycle(suffixes)), itertools.product(places, suffixes))
    for number, (place, suffix) in enumerate(both):
        path, run = tmp_path / f"{number}.{suffix}", Run(optimizer, seeds)
        for again in range(2):
            with pytest.raises(KeyboardInterrupt):
                run.fit(path, Stop(*place, interrupted))
            if anew:
                run = Run(optimizer, seeds, seed=again + 7)
        assert bits(run.fit(path).state()) == whole(optimizer, seeds), (place, suffix)


# Processes that kill themselves, one after the other; what they need is imported once.
KILLED = """
import os, signal, sys
sys.path[:0] = {paths!r}
import test_snapshot as t

t.fl.ops.relu(t.np.ones(3))

def reaching(name, call):
    return lambda *args: (stop(name), call(*args), stop("after " + name))[1]

for place, number in {places!r}:
    if os.fork() == 0:
        stop = t.Stop(place, number, lambda: os.kill(os.getpid(), signal.SIGKILL))
        for name in ("fsync", "replace"):
            setattr(os, name, reaching(name, getattr(os, name)))
        t.Run({optimizer!r}, {seeds!r}).fit({path!r}, stop)
        os._exit(0)
    code = os.waitstatus_to_exitcode(os.wait()[1])
    assert code == -signal.SIGKILL, (place, number, code)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork")
@pytest.mark.parametrize(
    ("optimizer", "seeds", "name"),
    [("AdamW", SEEDS[0], "last.npz"), ("SGD", SEEDS[2], "last.safetensors")],
)
def test_a_killed_run_ends_as_a_whole_one(optimizer, seeds, name, tmp_path, whole):
    """Each process goes on from what the one before left."""
    path, tests = tmp_path / name, Path(__file__).parent
    # The first file is of no epoch, and each write calls fsync for the file and for its folder.
    places = [("fsync", 1), ("batch", 2), ("batch", BATCHES + 2), ("replace", 1)]
    places += [("after replace", 1), ("after fsync", 1), ("validation", 1)]
    program = KILLED.format(
        paths=[str(tests), str(tests.parent)], places=places, optimizer=optimizer, seeds=seeds,
        path=str(path),
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    run = Run(optimizer, seeds, seed=7)
    seen = []
    assert bits(run.fit(path, seen.append).state()) == whole(optimizer, seeds)
    assert 0 < seen.count("on_epoch") < EPOCHS
    assert name in os.listdir(tmp_path)
    assert all(other.endswith(".part") for other in os.listdir(tmp_path) if other != name)


# A file that an interrupt finds between open() and its block.
@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_an_interrupt_at_any_point_of_a_run_and_of_one_that_goes_on(tmp_path, effort, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    path, data = tmp_path / "last.npz", TensorDataset(*[np.zeros((4, 1), np.float32)] * 2)
    files = [sys.modules["fastlayers.state.snapshot"].__file__, *interrupts.SOURCES]

    class Start:
        def __init__(self):
            self.model = interrupts.Improving()
            self.optimizer = optim.SGD(self.model.parameters(), 0.1, momentum=0.9)

        def __call__(self):
            loader = DataLoader(data, 2)
            self.history = fit(
                self.model, nn.MSELoss(), self.optimizer, loader, loader, 2, progress=False,
                resume=path,
            )  # fmt: skip

        def end(self):
            best = self.history.best_epoch, self.history.best_state
            return bits((self.model.state_dict(), self.optimizer.state_dict(), best))

    run = Start()
    total = interrupts.at_points(run, files, lambda seen: None)
    end = run.end()
    assert total > 300
    for at in range(1, total + 1, effort(31, 1)):
        path.unlink(missing_ok=True)
        run = Start()
        with pytest.raises(KeyboardInterrupt):
            interrupts.at_points(run, files, interrupts.interrupt_at(at))
        with contextlib.suppress(KeyboardInterrupt):
            interrupts.at_points(run, files, interrupts.interrupt_at(7 * at % total))
        run()
        assert run.end() == end, at
        assert os.listdir(tmp_path) == ["last.npz"], at


def test_more_epochs(tmp_path):
    def run(epochs, *path):
        found = Run(epochs=epochs)
        found.scheduler = optim.StepLR(found.optimizer, 2)
        return bits(found.fit(*path, schedule_every="epoch").state())

    path = tmp_path / "last.npz"
    assert run(2, path) != run(4)
    assert run(4, path) == run(4)


def test_a_finished_run_is_over_at_once(tmp_path):
    path, best, seen = tmp_path / "last.npz", tmp_path / "best.npz", []
    first = Run().fit(path, checkpoint=best)
    content = best.read_bytes()
    best.unlink()
    second = Run(seed=1).fit(path, seen.append, checkpoint=best)
    assert bits(second.state()) == bits(first.state()) and not seen
    assert second.history.epochs == first.history.epochs
    assert best.read_bytes() == content


def test_the_checkpoint_is_that_of_a_whole_run(tmp_path):
    paths = [tmp_path / f"{name}.npz" for name in ("last", "best", "whole")]
    Run().fit(checkpoint=paths[2])
    with pytest.raises(KeyboardInterrupt):
        Run().fit(paths[0], Stop("batch", 5, interrupted), checkpoint=paths[1])
    Run(seed=1).fit(paths[0], checkpoint=paths[1])
    assert bits(fl.load(paths[1])) == bits(fl.load(paths[2]))


class Other:
    """A scheduler that has no state."""

    def step(self):
        pass


def changed(tree, *keys, value):
    """A file's content with another value somewhere."""
    tree = unpack(tree)
    place = tree
    for key in keys[:-1]:
        place = place[key]
    if value is None:
        del place[keys[-1]]
    else:
        place[keys[-1]] = value
    return pack(tree)


# How the run differs that goes on from a file, and what is said.
def another_model(run):
    run.model[6] = nn.Linear(36, 8, bias=False)
    run.optimizer = OPTIMIZERS["AdamW"](run.model.parameters())
    run.scheduler = optim.OneCycleLR(run.optimizer, 0.05, total_steps=EPOCHS * BATCHES)


def another_optimizer(run):
    run.optimizer = optim.Adam(run.model.parameters(), 1e-2)
    run.scheduler = optim.OneCycleLR(run.optimizer, 0.05, total_steps=EPOCHS * BATCHES)


def other_parameters(run):
    run.optimizer = optim.AdamW(list(run.model.parameters())[:3], 1e-2)
    run.scheduler = optim.OneCycleLR(run.optimizer, 0.05, total_steps=EPOCHS * BATCHES)


def another_schedule(run):
    run.scheduler = optim.StepLR(run.optimizer, 2)


def another_length(run):
    run.scheduler = optim.OneCycleLR(run.optimizer, 0.05, total_steps=7)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (another_model, r"model's 6.bias is 'float32 \(8,\)' there and None here"),
        (lambda run: run.model.to("float64"), r"model's 0.bias is 'float32 .* and 'float64 "),
        (another_optimizer, "optimizer is 'AdamW' there and 'Adam' here"),
        (other_parameters, "AdamW: state_dict must have groups"),
        (another_schedule, "scheduler is 'OneCycleLR' there and 'StepLR' here"),
        (
            lambda run: setattr(run, "scheduler", None),
            "scheduler is 'OneCycleLR' there and None here",
        ),
        (another_length, "scheduler's total_steps is 12 there and 7 here"),
        (lambda run: setattr(run.loader, "seed", 1), "data is .* there and .*'seed': 1.* here"),
        (lambda run: setattr(run, "epochs", 1), "it has 2 epochs, more than 1"),
        (lambda run: setattr(run, "shifted", run.loader), "data is .* there and .* here"),
    ],
)
def test_of_another_training(change, message, tmp_path):
    path = tmp_path / "last.npz"
    Run(epochs=2).fit(path)
    content, run = path.read_bytes(), Run(seed=1)
    change(run)
    check_nothing_changes(run, path, f"^fit: resume must be .*, got .*last.npz: {message}")
    assert path.read_bytes() == content


def check_nothing_changes(run, path, message):
    scheduler, run.scheduler = run.scheduler, run.scheduler or Run().scheduler
    before = run.changeable()
    with pytest.raises(ValueError, match=message):
        run.fit(path, scheduler=scheduler)
    assert run.changeable() == before


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
def test_a_damaged_file(suffix, tmp_path, effort):
    path = tmp_path / f"last.{suffix}"
    Run(epochs=1).fit(path)
    content, run = path.read_bytes(), Run(seed=1)
    for at in range(0, len(content), effort(301, 13)):
        for damaged in (content[:at], content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :]):
            path.write_bytes(damaged)
            try:
                # Not all of zip's bytes tell of the arrays, but dates and attributes.
                found = unpack(fl.load(path))
            except ValueError:
                check_nothing_changes(run, path, "^(fit|load): .*last")
            else:
                path.write_bytes(content)
                assert suffix == "npz" and bits(found) == bits(unpack(fl.load(path)))
    path.write_bytes(b"")
    check_nothing_changes(run, path, "^load: .*last")


@pytest.mark.parametrize(
    ("keys", "value", "message"),
    [
        (["model"], None, r"it has no \['model'\]"),
        (["format"], 2, "format is 2 there and 1 here"),
        (["schedule_every"], "epoch", "schedule_every is 'epoch' there and 'batch' here"),
        (["optimizer", "state", "state", 0, "step"], -1, "AdamW: step must be"),
        (["scheduler", "state", "last_epoch"], None, "OneCycleLR: state_dict must have"),
        (["random", "calls"], "many", "set_rng_state: state must be"),
        (["random"], {}, "set_rng_state: state must be"),
        (["history", "best_epoch"], 9, r"history has epochs \[1\], the best 9"),
        (["history", "epochs"], [{"epoch": 2}], r"history has epochs \[2\], the best 1"),
        (["history", "best_state"], None, "history is "),
        (["data"], 3, "'int' object is not iterable"),
    ],
)
def test_a_file_that_was_made_up(keys, value, message, tmp_path):
    path = tmp_path / "last.npz"
    Run(epochs=1).fit(path)
    fl.save(changed(fl.load(path), *keys, value=value), path)
    check_nothing_changes(Run(seed=1), path, f"^fit: resume must be .*: {message}")


def test_a_model_that_takes_no_values(tmp_path):
    path, run = tmp_path / "last.npz", Run(seed=1)
    Run(epochs=1).fit(path)
    run.model[0].bias.array().flags.writeable = False
    check_nothing_changes(run, path, "the model's '0.bias' must be writable")


def test_a_file_of_a_model(tmp_path):
    path, run = tmp_path / "model.npz", Run(seed=1)
    fl.save(run.model.state_dict(), path)
    check_nothing_changes(run, path, "fit: resume .*it has no tree and checksum, but")


def test_parts_without_a_state(tmp_path):
    run, path = Run(), tmp_path / "last.npz"
    with pytest.raises(TypeError, match="fit: scheduler must have state_dict.*got Other"):
        run.fit(path, scheduler=Other())
    run.optimizer.param_groups[0]["note"] = {1}
    with pytest.raises(TypeError, match=r"fit: state\['optimizer'\]\['state'\].*\['note'\] must"):
        run.fit(path)
    assert os.listdir(tmp_path) == []


def test_trees_keep_every_bit(tmp_path):
    tree = {
        "a/b": np.arange(6, dtype=np.int16).reshape(2, 3).T,
        "a": {"b": np.array(2.5), 3: (1, [2.0, ()], None), None: True, "": "größe \ud800"},
        "floats": [0.1, 1e-320, -0.0, float("inf"), float("nan"), 2**200, np.float32(0.1)],
        "empty": [{}, [], np.zeros((0, 2)), np.True_],
    }
    for suffix in ("npz", "safetensors"):
        path = tmp_path / f"tree.{suffix}"
        fl.save(pack(tree), path)
        assert bits(unpack(fl.load(path))) == bits(tree)
