"""The same bits again: `docs/reproducibility.md` names these tests beside what it promises."""

import hashlib
import itertools
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import cases
import numpy as np
import pytest

import fastlayers as fl
from fastlayers import Tensor, nn, ops, optim
from fastlayers.lazy import set_fusion_enabled
from fastlayers.nn import functional as F
from fastlayers.nn.fuse import chains
from fastlayers.ops.linear.small import SHORT_DOT
from fastlayers.runtime.threads import get_num_threads, set_num_threads
from fastlayers.vision import models

Arrays = dict[str, np.ndarray]

CHAPTER = "reproducibility"
THREADS = (1, 2, 4)
DOCUMENT = Path(__file__).parents[2] / "docs" / "reproducibility.md"
RNG = np.random.default_rng


@pytest.fixture(autouse=True)
def restored():
    threads = get_num_threads()
    yield
    set_num_threads(threads)
    set_fusion_enabled(True)


def bits(results: Mapping[str, Any]) -> dict[str, bytes]:
    """The bytes of arrays, in the order of their shapes; NaN has bits too."""
    return {name: np.asarray(a).tobytes() for name, a in results.items() if a is not None}


def same(got: dict[str, bytes], want: dict[str, bytes], what: str) -> None:
    differing = [name for name in want if got.get(name) != want[name]]
    assert got.keys() == want.keys() and not differing, f"{what}: other bits in {differing}"


# Convolutions and linear maps whose kernels the common table, of small shapes, does not reach.
KERNELS = (
    cases.conv((2, 32, 20, 20), (32, 32, 3, 3), padding=1),  # Winograd, tiles of 4x4 and of 2x2
    cases.conv((2, 16, 7, 7), (16, 16, 3, 3), padding=1),
    cases.conv((4, 128, 8, 8), (256, 128, 3, 3), padding=1),  # by panels
    cases.conv((48, 3, 32, 32), (6, 3, 5, 5)),  # Winograd along rows
    cases.conv((3, 3, 28, 28), (6, 3, 3, 3)),  # lanes over pixels
    cases.conv((4, 3, 40, 40), (16, 3, 7, 7), stride=2, padding=3),
    cases.conv((4, 64, 14, 14), (64, 8, 3, 3), groups=8, stride=2, padding=1),
    cases.conv((4, 128, 14, 14), (64, 128, 1, 1)),
    cases.conv((4, 8, 64, 64), (16, 8, 1, 1)),  # sums over many pixels
    cases.norm((8, 24, 48, 48), training=True),
    cases.labelled("cross_entropy", (4000, 31), True),
    cases.labelled("nll_loss", (30000, 5), True),
    cases.paired("mse_loss", (700, 301)),
    cases.paired("binary_cross_entropy_with_logits", (700, 301)),
    cases.Case("linear", {"input": (9000, 12), "weight": (20, 12), "bias": (20,)}),
    *(
        cases.Case("linear", {"input": (n, k), "weight": (m, k), "bias": (m,)})
        for n, k, m in [
            (4, 900, 700),
            (60, 900, 700),
            (600, 40, 70),
            (128, 400, 120),
            (5, 300, 600),
        ]
    ),
)
TABLE = [*cases.CASES, *KERNELS]


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c.id)
def test_ops_repeat(case, effort, figures):
    """Alternately on 1, 2 and 4 threads, each time in other memory."""
    arrays = case.arrays(np.float32)
    repeats, first, held = effort(24, 1000), None, None
    for i in range(repeats):
        set_num_threads(THREADS[i % 3])
        results = case.run(ops, arrays)
        first, held = first or bits(results), (results, held and held[0])
        same(bits(results), first, f"run {i} on {THREADS[i % 3]} threads")
    figures.count(CHAPTER, "ops x options with the same bits in all runs on 1, 2 and 4 threads")


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c.id)
def test_ops_take_any_memory(case, figures):
    """The order and strides of the arguments' memory change no bit, in float32 and float64."""
    for dtype in cases.DTYPES:
        arrays = case.arrays(dtype)
        want = bits(case.run(ops, arrays))
        for layout, threads in zip(cases.LAYOUTS, itertools.cycle(THREADS), strict=False):
            set_num_threads(threads)
            given = {name: layout(a) for name, a in arrays.items()}
            same(bits(case.run(ops, given)), want, f"{layout.__name__} {dtype.__name__}")
    figures.count(CHAPTER, "ops x options x layouts", 2 * len(cases.LAYOUTS))


# What may follow the head of a chain, and whether gradients have the same bits too if it runs as
# one; and what is not promised, beside convolutions that took in a batch norm.
UNPROMISED = {("conv2d", ("pool",)), ("conv2d", ("relu", "pool"))}
FUSED = {
    ("conv2d", ("relu",)): True,
    ("linear", ("relu",)): True,
    ("batch_norm", ("relu",)): True,
    ("batch_norm", ("add",)): True,
    ("batch_norm", ("add", "relu")): True,
    ("batch_norm", ("pool",)): False,
    ("batch_norm", ("relu", "pool")): False,
}


def test_every_chain_is_promised_or_not():
    """But for convolutions that took in a batch norm."""

    def walk(op: str, state: str, steps: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
        for (before, step), after in chains._NEXT.items():
            if before == state and step != "normalise":
                yield op, (*steps, step)
                yield from walk(op, after, (*steps, step))

    heads = {"conv2d": "conv", "linear": "linear", "batch_norm": "norm"}
    assert {c for op, kind in heads.items() for c in walk(op, kind, ())} == (
        FUSED.keys() | UNPROMISED
    )


def of_chain(case: cases.Case, steps: tuple[str, ...], fused: bool) -> Arrays:
    """Output, gradients and running statistics of a chain."""
    set_fusion_enabled(fused)
    arrays = case.arrays(np.float32)
    kept = {k: a.copy() for k, a in arrays.items() if k.startswith("running")}
    if case.op == "batch_norm" and not kept:
        kept = {"running_mean": None, "running_var": None}
    learnt = {k: fl.tensor(a, requires_grad=True) for k, a in arrays.items() if k not in kept}
    y = getattr(F, case.op)(**learnt, **kept, **case.options)
    for step in steps:
        if step == "add":
            learnt["residual"] = fl.tensor(
                RNG(1).standard_normal(y.shape, np.float32), requires_grad=True
            )
            y = y + learnt["residual"]
        else:
            y = F.relu(y) if step == "relu" else F.max_pool2d(y, 2)
    assert (y.deferred is not None) is fused
    y.backward(cases.like(y.array()))
    return {"y": y.array()} | kept | {f"d{k}": t.grad for k, t in learnt.items()}


@pytest.mark.parametrize(("op", "steps"), FUSED, ids=str)
def test_fused_or_not(op, steps, figures):
    for case in TABLE:
        shape = case.shapes["input"]
        if case.op != op or ("pool" in steps and len(shape) != 4) or min(shape) == 0:
            continue
        fused, single = (bits(of_chain(case, steps, fused)) for fused in (True, False))
        if not FUSED[op, steps]:
            fused, single = ({"y": a.pop("y")} for a in (fused, single))
        same(fused, single, f"{case.id} {steps}")
        figures.count(CHAPTER, "chains x options, fused or not")


@pytest.mark.parametrize("steps", [steps for op, steps in FUSED if op == "batch_norm"], ids=str)
def test_infinity_gives_the_same_gradient_fused_or_not(steps, monkeypatch):
    """In evaluation the gradient is not by the input, so an infinite one gives no NaN."""
    case, draw = cases.norm((2, 3, 4, 4)), cases.Case.arrays
    infinite = {(0, 1, 0, 0): np.inf, (1, 2, 3, 3): -np.inf}

    def arrays(self: cases.Case, dtype: Any) -> Arrays:
        found = draw(self, dtype)
        for at, value in infinite.items():
            found["input"][at] = value
        return found

    monkeypatch.setattr(cases.Case, "arrays", arrays)
    fused, single = (of_chain(case, steps, fused)["dinput"] for fused in (True, False))
    np.testing.assert_array_equal(fused, single)
    assert np.isfinite(fused).all()


# Models, and the shape of a batch.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "CIFAR CNN": (lambda: models.CifarCNN(batch_norm=True, dropout=0.2), (32, 3, 32, 32)),
    "CIFAR CNN, plain": (models.CifarCNN, (4, 3, 32, 32)),
    "ResNet-20": (models.resnet20, (8, 3, 16, 16)),
    "MLP": (lambda: models.MLP(100), (16, 100)),
}
OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "SGD": lambda p: optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3, nesterov=True),
    "Adam": lambda p: optim.Adam(p, 1e-3, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, 1e-3),
    "Adadelta": lambda p: optim.Adadelta(p, 0.1),
}
BATCHES = 3


class Training:
    """A model, its optimiser and schedule, and shuffled batches."""

    def __init__(self, name: str, optimizer: str = "SGD", seed: int = 0) -> None:
        fl.manual_seed(seed)
        make, shape = MODELS[name]
        self.model = make()
        self.optimizer = OPTIMIZERS[optimizer](self.model.parameters())
        self.scheduler = optim.CosineAnnealingLR(self.optimizer, 4)
        self.images = RNG(1).standard_normal((BATCHES * shape[0], *shape[1:]), np.float32)
        data = fl.data.TensorDataset(self.images, np.arange(len(self.images)) % 10)
        self.loader = fl.data.DataLoader(data, shape[0], shuffle=True, seed=seed)
        self.losses: list[np.ndarray] = []

    def epoch(self) -> None:
        fl.manual_seed(self.loader.epoch)  # of the masks of dropout
        for x, labels in self.loader:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), labels)
            loss.backward()
            self.optimizer.step()
            self.losses.append(loss.array())
        self.scheduler.step()

    def bits(self) -> dict[str, bytes]:
        """Of the losses, the parameters, their gradients, the buffers and the optimiser's state."""
        found = {"losses": np.array(self.losses)} | self.model.state_dict()
        found |= {f"{n}.grad": p.grad for n, p in self.model.named_parameters()}
        for number, entry in self.optimizer.state_dict()["state"].items():
            found |= {f"{number}.{name}": value for name, value in entry.items()}
        return bits(found)


def trained(name: str, optimizer: str = "SGD", epochs: int = 1) -> dict[str, bytes]:
    training = Training(name, optimizer)
    for _ in range(epochs):
        training.epoch()
    return training.bits()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_training_repeats(name, optimizer, effort, figures):
    """Forward, backward and steps, on 1, 2 and 4 threads in turn."""
    want = trained(name, optimizer)
    for run in range(effort(3, 100)):
        set_num_threads(THREADS[run % 3])
        same(trained(name, optimizer), want, f"run {run} on {THREADS[run % 3]} threads")
        figures.count(CHAPTER, "training runs with the same bits on 1, 2 and 4 threads")


@pytest.mark.parametrize("name", ["ResNet-20", "MLP"])
def test_training_without_pooling_is_the_same_fused_or_not(name):
    set_fusion_enabled(False)
    single = trained(name)
    set_fusion_enabled(True)
    same(trained(name), single, "fused")


def test_training_in_threads_of_python_is_as_alone():
    alone, found = trained("CIFAR CNN, plain"), []
    trainings = [Training("CIFAR CNN, plain") for _ in range(3)]
    workers = [threading.Thread(target=t.epoch) for t in trainings]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = [t.bits() for t in trainings]
    for got in found:
        same(got, alone, "beside two others")


def recipe() -> dict[str, Any]:
    """The functions that the document shows."""
    (code,) = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    return names


@pytest.mark.parametrize("suffix", ["npz", "safetensors"])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", MODELS)
def test_a_resumed_training_is_one_that_was_not_stopped(name, optimizer, suffix, tmp_path, figures):
    path, functions = tmp_path / f"state.{suffix}", recipe()
    whole = Training(name, optimizer)
    whole.epoch()
    parts = whole.model, whole.optimizer, whole.scheduler
    functions["save_training"](path, *parts)
    whole.losses.clear()
    whole.epoch()

    resumed = Training(name, optimizer, seed=7)
    resumed.loader.seed, resumed.loader.epoch = 0, 1
    functions["load_training"](path, resumed.model, resumed.optimizer, resumed.scheduler)
    resumed.epoch()
    same(resumed.bits(), whole.bits(), "resumed")
    figures.count(CHAPTER, "resumed trainings with the same bits")


PROGRAM = """
import hashlib, sys
sys.path[:0] = {paths!r}
from trust.test_reproducibility import trained
for name in ("CIFAR CNN", "ResNet-20"):
    print(hashlib.sha256(b"".join(trained(name).values())).hexdigest())
"""


def test_another_process_gives_the_same_bits(tmp_path, effort, figures):
    """With other threads and another hash seed; in the long form with newly compiled kernels."""
    want = [
        hashlib.sha256(b"".join(trained(name).values())).hexdigest()
        for name in ("CIFAR CNN", "ResNet-20")
    ]
    tests = Path(__file__).parents[1]
    program = PROGRAM.format(paths=[str(tests), str(tests.parent)])
    fresh = [{"FASTLAYERS_CACHE_DIR": str(tmp_path)}]
    for settings in [{"FASTLAYERS_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}, *effort([], fresh)]:
        command = [sys.executable, "-c", program]
        environment = os.environ | settings
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert done.stdout.split() == want, settings
        figures.count(CHAPTER, "other processes with the same bits")


@pytest.mark.parametrize("p", [0.5, 0.3, 0.1])
@pytest.mark.parametrize(
    ("op", "shape"),
    [
        (F.dropout, (300, 500)),
        (F.dropout, (4, 3, 9, 7)),
        (F.dropout1d, (40, 30, 3)),
        (F.dropout2d, (40, 30, 3, 2)),
    ],
)
def test_dropout_follows_the_seed(op, shape, p, figures):
    """The mask is that of seed and call, for any threads, and of a prefix of the batch."""
    x = np.ones(shape, np.float32)

    def masks(seed: int, count: int = 2, n: int | None = None) -> list[np.ndarray]:
        fl.manual_seed(seed)
        return [op(x[:n], p).array() for _ in range(count)]

    first, second = masks(3)
    for threads in THREADS:
        set_num_threads(threads)
        for got, want in zip(masks(3), (first, second), strict=True):
            np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(masks(3, 1, 3)[0], first[:3])
    for other in (second, *masks(4)):
        assert (other != first).any()
    figures.count(CHAPTER, "dropout calls x seeds", 2)


def of_batch(case: cases.Case, n: int) -> cases.Case | None:
    """A case of `n` images or rows, of which each has an output of its own; None for others."""
    shape, o = case.shapes["input"], dict(case.options)
    if len(shape) < (4 if "2d" in case.op else 2) or not hasattr(F, case.op):
        return None
    if "target" in case.shapes and (o.get("reduction") != "none" or case.op == "mse_loss"):
        return None
    if case.op == "batch_norm" and (o.get("training") or "running_mean" not in case.shapes):
        return None
    if case.op == "dropout" or o.get("dim") == 0:
        return None
    if case.op == "linear" and case.shapes["weight"][1] <= SHORT_DOT:
        return None  # many rows are summed in another order than few
    if case.op == "conv2d":
        o["algorithm"] = "direct"
    batched = {k: (n, *v[1:]) for k, v in case.shapes.items() if k in ("input", "target")}
    return cases.Case(case.op, {**case.shapes, **batched}, o)


BATCHED = {c.id: c for case in TABLE if (c := of_batch(case, 35 if case.size < 50000 else 9))}


@pytest.mark.parametrize("case", BATCHED.values(), ids=BATCHED)
def test_a_slice_of_a_batch_is_as_in_the_batch(case, figures):
    """Outputs and gradients by the input, alone, in the middle and at the end of a batch."""
    for dtype in cases.DTYPES:
        arrays = case.arrays(dtype)
        n = len(arrays["input"])

        def run(part: slice, dy: np.ndarray | None, arrays: Arrays = arrays) -> Arrays:
            given = {k: a[part] if k in ("input", "target") else a for k, a in arrays.items()}
            x = Tensor(given.pop("input"), True)
            y = getattr(F, case.op)(x, **given, **case.options)
            y.backward(cases.like(y.array()) if dy is None else dy)
            return {"y": y.array(), "dx": x.grad}

        whole = run(slice(None), None)
        dy = cases.like(whole["y"])
        parts = [slice(0, 1), slice(1, 4), slice(n // 2, None), slice(n - 1, None), slice(0, 8)]
        for part, threads in zip(parts, itertools.cycle(THREADS), strict=False):
            set_num_threads(threads)
            want = {name: a[part] for name, a in whole.items()}
            same(bits(run(part, dy[part])), bits(want), f"{part} {dtype.__name__}")
            figures.count(CHAPTER, "ops x options x slices of a batch")


@pytest.mark.parametrize("grad", [True, False])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_in_evaluation_tells_the_same_of_an_image_in_any_batch(name, grad):
    """With direct convolutions; in training batch norm looks at the whole batch."""
    training = Training(name)
    training.epoch()
    model, images = training.model.eval(), training.images[:16]
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.algorithm = "direct"
    with nullcontext() if grad else fl.no_grad():
        whole = model(images).array()
        for part in (slice(0, 1), slice(5, 8), slice(9, None)):
            assert model(images[part]).array().tobytes() == whole[part].tobytes()
