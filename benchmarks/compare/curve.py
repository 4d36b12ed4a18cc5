"""The loss in ResNet-20's first steps, in fastlayers and in both of torch's memory formats.

    python -m benchmarks.compare.curve [--steps 200] [--seeds 0 1 2] [--lr 0.02] [--data digits]

All runs start from the same state and take the same batches. Training amplifies rounding errors, so
the gap between two of torch's own runs (memory formats, numbers of threads) shows how far runs of
the same mathematics diverge; fastlayers follows torch if its gap is no larger.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.cases import MOMENTUM, Batches, initial_value
from benchmarks.compare.harness import Contestant, table

__all__ = ["gap", "judge", "main", "make_batches"]

BATCH = 32

Curves = dict[str, np.ndarray]


def make_batches(data: str, steps: int, seed: int) -> Batches:
    """Images (32, 3, 32, 32): the bundled digits, enlarged, or noise; with their labels."""
    generator = np.random.default_rng(seed)
    if data == "random":
        return [
            (
                generator.standard_normal((BATCH, 3, 32, 32), np.float32),
                generator.integers(0, 10, BATCH),
            )
            for _ in range(steps)
        ]
    from fastlayers.data import Digits

    images, labels = Digits(train=True)[:]
    orders = [generator.permutation(len(labels)) for _ in range(steps * BATCH // len(labels) + 1)]
    chosen = np.concatenate(orders)[: steps * BATCH].reshape(steps, BATCH)
    enlarge = np.ones((1, 3, 4, 4), np.float32)
    return [(np.kron(images[rows], enlarge), labels[rows]) for rows in chosen]


def prepare_fastlayers(threads: int, data: str, steps: int, seed: int, lr: float) -> Any:
    """A function of nothing, and the losses."""
    import fastlayers as fl

    fl.set_num_threads(threads)
    model = fl.vision.models.resnet20()
    state = {k: _value(k, np.shape(v), seed) for k, v in model.state_dict().items()}
    model.load_state_dict(state)
    optimizer = fl.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    batches = [(fl.tensor(x), fl.tensor(y)) for x, y in make_batches(data, steps, seed)]
    return _train(model, fl.nn.CrossEntropyLoss(), optimizer, batches)


def prepare_torch(
    threads: int, channels_last: bool, data: str, steps: int, seed: int, lr: float
) -> Any:
    """A function of nothing, and the losses."""
    import torch

    from benchmarks.compare.torch_models import torch_models

    torch.set_num_threads(threads)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_models()["resnet20"]()
    shapes = {k: tuple(v.shape) for k, v in model.state_dict().items()}
    model.load_state_dict({k: torch.from_numpy(_value(k, s, seed)) for k, s in shapes.items()})
    model = model.to(memory_format=layout)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=MOMENTUM)
    batches = [
        (torch.from_numpy(x).contiguous(memory_format=layout), torch.from_numpy(y))
        for x, y in make_batches(data, steps, seed)
    ]
    return _train(model, torch.nn.CrossEntropyLoss(), optimizer, batches)


def _value(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """An initial value, different for each seed; the end of the name gives the kind."""
    return initial_value(f"{seed}.{name}", shape)


def _train(model: Any, loss: Any, optimizer: Any, batches: Any) -> Any:
    losses = []
    for inputs, targets in batches:
        optimizer.zero_grad()
        value = loss(model(inputs), targets)
        value.backward()
        optimizer.step()
        losses.append(float(value.item()))
    return (lambda: None), np.array(losses)


def curves(data: str, steps: int, seed: int, lr: float) -> Curves:
    """The losses of every run, by its name."""
    found: Curves = {}
    runs = [("fastlayers", threads, prepare_fastlayers, ()) for threads in (1, 2)]
    for threads in (1, 2):
        runs += [("torch NCHW", threads, prepare_torch, (False,))]
        runs += [("torch channels_last", threads, prepare_torch, (True,))]
    for name, threads, prepare, options in runs:
        with ExitStack() as stack:
            contestant = Contestant(name, prepare, threads, *options)
            stack.callback(contestant.close)
            contestant.prepare(data, steps, seed, lr)
            found[f"{name}, {threads} threads"] = contestant.value
    return found


def agreement(one: np.ndarray, other: np.ndarray) -> int:
    """Steps until the curves differ by 0.001."""
    return int(np.argmax([*(np.abs(one - other) > 1e-3), True]))


def gap(one: np.ndarray, other: np.ndarray) -> tuple[float, float]:
    """Largest and mean distance of two curves."""
    distance = np.abs(one - other)
    return float(distance.max()), float(distance.mean())


def judge(found: Curves) -> tuple[list[list[str]], bool]:
    """Lines for all relevant pairs, and whether fastlayers is as close to torch as torch itself.

    It is if, for every run of fastlayers, the largest and mean gap to torch's closest run are no
    larger than those between torch's two most distant runs.
    """
    theirs = [name for name in found if name.startswith("torch")]
    ours = [name for name in found if name not in theirs]
    own = {pair: gap(*(found[name] for name in pair)) for pair in combinations(theirs, 2)}
    mixed = {(a, b): gap(found[a], found[b]) for a in ours for b in theirs}
    lines = [
        [*pair, f"{largest:.2e}", f"{mean:.2e}"] for pair, (largest, mean) in (own | mixed).items()
    ]
    spread = np.max(list(own.values()), axis=0)
    nearest = [np.min([mixed[a, b] for b in theirs], axis=0) for a in ours]
    return lines, bool(all((gaps <= spread).all() for gaps in nearest))


def main() -> None:
    """Print a table per seed and the verdict."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--steps", type=int, default=200)
    add("--seeds", nargs="+", type=int, default=[0])
    add("--lr", type=float, default=0.02)
    add("--data", choices=("digits", "random"), default="digits")
    add("--markdown", type=Path, help="a file for what is printed")
    options = parser.parse_args()
    parts = []
    for seed in options.seeds:
        found = curves(options.data, options.steps, seed, options.lr)
        lines, follows = judge(found)
        ends = {
            name: f"{losses[0]:.4f} -> {losses[-10:].mean():.4f}" for name, losses in found.items()
        }
        threads_agree = np.array_equal(*(found[n] for n in found if n.startswith("fastlayers")))
        parts += [
            f"Seed {seed}, {options.steps} steps; the first loss and the mean of the last ten:",
            table(["run", "loss"], [[name, text] for name, text in ends.items()]),
            table(["run", "beside", "largest gap", "mean gap", "steps within 0.001"], lines),
            f"fastlayers {'follows' if follows else 'DOES NOT follow'} torch within torch's own "
            f"spread; its runs with 1 and 2 threads are {'equal' if threads_agree else 'NOT equal'}"
            " to the bit.",
        ]
        print("\n\n".join(parts[-4:]), end="\n\n", flush=True)
        if options.markdown:
            options.markdown.write_text("\n\n".join(parts) + "\n")


if __name__ == "__main__":
    main()
