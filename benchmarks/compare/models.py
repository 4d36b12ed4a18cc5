"""Training steps of the same models in fastlayers and in torch, alternating in one run.

    python -m benchmarks.compare.models [--models ...] [--threads 1 2] [--quick]

Every contestant has a process of its own and starts from the same weights and batches. Torch's
models are the sources of `fastlayers.models` with only the imports changed.
"""

from __future__ import annotations

import argparse
import inspect
import types
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.compare.harness import Contestant, alternate

__all__ = ["CASES", "compare", "main", "torch_models"]


# Losses of the first step, of the same weights and batch, agree to float32 rounding.
LOSS_GAP = 1e-4


@dataclass(frozen=True)
class Case:
    """One row of the comparison: a factory in `fastlayers.models` and its input."""

    name: str
    factory: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    batch: int
    classes: int = 10
    dropout: bool = False  # then the losses of two libraries are not comparable


CASES = [
    Case("CIFAR CNN", "CifarCNN", {}, (3, 32, 32), 4),
    Case("CIFAR CNN", "CifarCNN", {}, (3, 32, 32), 128),
    Case("CIFAR CNN, batch norm", "CifarCNN", {"batch_norm": True}, (3, 32, 32), 128),
    Case("MLP, batch norm, dropout", "MLP", {}, (1, 28, 28), 64, dropout=True),
    Case("VGG-small", "vgg_small", {}, (3, 32, 32), 32, dropout=True),
    Case("VGG-small", "vgg_small", {}, (3, 32, 32), 128, dropout=True),
    Case("ResNet-20", "resnet20", {}, (3, 32, 32), 32),
    Case("ResNet-20", "resnet20", {}, (3, 32, 32), 128),
]


def torch_models() -> dict[str, Callable[..., Any]]:
    """The models of `fastlayers.models`, from the same sources, on torch."""
    from fastlayers.models import cnn, mlp, resnet, vgg

    found: dict[str, Callable[..., Any]] = {}
    for module in (cnn, mlp, resnet, vgg):
        source = inspect.getsource(module)
        source = source.replace("from fastlayers import nn", "from torch import nn")
        source = source.replace("from fastlayers.autograd import", "from torch import")
        # torch's view refuses channels-last memory
        source = source.replace(".view(", ".reshape(")
        namespace = types.ModuleType(f"torch_{module.__name__}").__dict__
        exec(compile(source, module.__file__ or "", "exec"), namespace)
        found |= {name: namespace[name] for name in module.__all__}
    return found


def _batches(case: Case, count: int = 8) -> list[tuple[np.ndarray, np.ndarray]]:
    generator = np.random.default_rng(0)
    return [
        (
            generator.standard_normal((case.batch, *case.shape), np.float32),
            generator.integers(0, case.classes, case.batch),
        )
        for _ in range(count)
    ]


def _initial_state(case: Case) -> dict[str, np.ndarray]:
    import fastlayers as fl

    fl.manual_seed(0)
    return getattr(fl.models, case.factory)(**case.options).state_dict()


def prepare_fastlayers(threads: int, case: Case) -> tuple[Callable[[], float], float]:
    """A function that does one training step of fastlayers, and the first step's loss."""
    import fastlayers as fl

    fl.set_num_threads(threads)
    model = getattr(fl.models, case.factory)(**case.options)
    model.load_state_dict(_initial_state(case))
    loss = fl.nn.CrossEntropyLoss()
    optimizer = fl.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    batches = [(fl.tensor(x), fl.tensor(y)) for x, y in _batches(case)]
    return _stepper(model, loss, optimizer, batches)


def prepare_torch(
    threads: int, channels_last: bool, case: Case
) -> tuple[Callable[[], float], float]:
    """A function that does one training step of torch, and the first step's loss."""
    import torch

    torch.set_num_threads(threads)
    model = torch_models()[case.factory](**case.options)
    state = {k: torch.from_numpy(np.asarray(v)) for k, v in _initial_state(case).items()}
    model.load_state_dict(state)
    batches = [(torch.from_numpy(x), torch.from_numpy(y)) for x, y in _batches(case)]
    if channels_last:
        model = model.to(memory_format=torch.channels_last)
        batches = [(x.to(memory_format=torch.channels_last), y) for x, y in batches]
    loss = torch.nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.001, momentum=0.9)
    return _stepper(model, loss, optimizer, batches)


def _stepper(
    model: Any, loss: Any, optimizer: Any, batches: list[Any]
) -> tuple[Callable[[], float], float]:
    """The training step, word for word the same in both libraries, and the first one's loss."""
    steps = 0

    def step() -> float:
        nonlocal steps
        inputs, targets = batches[steps % len(batches)]
        steps += 1
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        optimizer.step()
        return float(value.item())

    return step, step()


def compare(case: Case, threads: int, rounds: int) -> dict[str, Any]:
    """Median milliseconds of a step for each contestant, and torch's best over fastlayers'."""
    contestants = [
        Contestant("fastlayers", prepare_fastlayers, threads),
        Contestant("torch", prepare_torch, threads, False),
        Contestant("torch channels_last", prepare_torch, threads, True),
    ]
    try:
        for contestant in contestants:
            contestant.prepare(case)
        alternate(contestants, rounds, repetitions=20 if case.batch < 32 else 3)
        medians = {c.name: 1e3 * c.median for c in contestants}
        first, others = contestants[0], contestants[1:]
        gap = max(abs(first.value - c.value) for c in others)
        if gap > LOSS_GAP and not case.dropout:
            raise RuntimeError(f"{case.name}: first losses differ by {gap}, so the work does too")
        ratio = min(c.median for c in others) / first.median
        return {**medians, "ratio": ratio}
    finally:
        for contestant in contestants:
            contestant.close()


def main() -> None:
    """Print a line a model, batch size and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=None, help="names, such as 'CIFAR CNN'")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="few rounds")
    options = parser.parse_args()
    cases = [c for c in CASES if options.models is None or c.name in options.models]
    print("| model | batch | threads | fastlayers ms | torch ms | channels_last ms | ratio |")
    print("|---|---|---|---|---|---|---|")
    for case in cases:
        for threads in options.threads:
            row = compare(case, threads, rounds=3 if options.quick else 15)
            print(
                f"| {case.name} | {case.batch} | {threads} | {row['fastlayers']:.2f} | "
                f"{row['torch']:.2f} | {row['torch channels_last']:.2f} | {row['ratio']:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
