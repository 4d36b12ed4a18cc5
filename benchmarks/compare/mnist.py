"""Training on MNIST in fastlayers and in torch: wall time of an epoch, and to 99 % accuracy.

    python -m benchmarks.compare.mnist --data-dir FOLDER [--epochs 3] [--threads 1 2] [--seed 0]

The network, loss, optimiser and schedule are those of `python -m fastlayers train --data mnist`,
with the same initial weights; batches and their random shifts come from the same loader. The
contestants take turns of a quarter of an epoch each, after which they are tested; the times are
those of training, including the making of batches, and both start warm.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.compare.cases import initial_value
from benchmarks.compare.harness import Contestant, table

__all__ = ["main", "prepare"]

BATCH = 64
LR = 0.01
DECAY = 0.05
SMOOTHING = 0.1
GOAL = 0.99
PARTS = 4  # of an epoch, each followed by a test
WARM_STEPS = 20

Turn = Callable[[], dict[str, Any]]


@dataclass(frozen=True)
class Library:
    """What differs between torch and fastlayers."""

    root: Any  # nn, optim and no_grad
    schedulers: Any
    model: Any
    options: dict[str, Any]  # of the optimiser
    parameter: Callable[[np.ndarray], Any]
    tensor: Callable[[np.ndarray], Any]
    array: Callable[[Any], np.ndarray]


def _fastlayers(threads: int) -> Library:
    import fastlayers as fl

    fl.set_num_threads(threads)
    model = fl.models.CNN(10, 1, 28)
    return Library(fl, fl.optim, model, {}, lambda v: v, fl.tensor, lambda y: y.data)


def _torch(threads: int, channels_last: bool, seed: int) -> Library:
    import torch

    from benchmarks.compare.torch_models import torch_models

    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = torch_models()["CNN"](10, 1, 28).to(memory_format=layout)

    def tensor(array: np.ndarray) -> Any:
        value = torch.from_numpy(array)
        return value.contiguous(memory_format=layout) if value.ndim == 4 else value

    schedulers, fused = torch.optim.lr_scheduler, {"fused": True}
    return Library(torch, schedulers, model, fused, torch.from_numpy, tensor, torch.Tensor.numpy)


class Run:
    """Training from an initial state, the same in every library, to the schedule's end."""

    def __init__(self, library: Library, steps: int, seed: int) -> None:
        self.library, self.model = library, library.model
        shapes = {name: tuple(v.shape) for name, v in self.model.state_dict().items()}
        values = {name: initial_value(f"{seed}.{name}", shape) for name, shape in shapes.items()}
        self.model.load_state_dict({name: library.parameter(v) for name, v in values.items()})
        self.loss = library.root.nn.CrossEntropyLoss(label_smoothing=SMOOTHING)
        parameters = self.model.parameters()
        adam = library.root.optim.AdamW
        self.optimizer = adam(parameters, lr=LR, weight_decay=DECAY, **library.options)
        self.scheduler = library.schedulers.OneCycleLR(self.optimizer, LR, total_steps=steps)

    def train(self, batches: Iterable[Any]) -> dict[str, float]:
        """Steps on these batches: their seconds and mean loss."""
        self.model.train()
        begin, losses = time.perf_counter(), []
        for images, targets in batches:
            inputs, wanted = self.library.tensor(images.data), self.library.tensor(targets.data)
            self.optimizer.zero_grad()
            loss = self.loss(self.model(inputs), wanted)
            loss.backward()
            self.optimizer.step()
            self.scheduler.step()
            losses.append(float(loss.item()))
        return {"seconds": time.perf_counter() - begin, "loss": float(np.mean(losses))}

    def accuracy(self, batches: Iterable[Any]) -> float:
        """Accuracy in evaluation mode."""
        self.model.eval()
        right = count = 0
        with self.library.root.no_grad():
            for images, targets in batches:
                output = self.library.array(self.model(self.library.tensor(images.data)))
                right += int((output.argmax(1) == targets.data).sum())
                count += len(output)
        return right / count


def prepare(
    threads: int, name: str, folder: str, epochs: int, seed: int
) -> tuple[Turn, tuple[int, int]]:
    """A function that trains a part of an epoch and tests, and how many parts and batches."""
    import fastlayers as fl

    fl.manual_seed(seed)  # of the dropout
    ours = name == "fastlayers"
    library = _fastlayers(threads) if ours else _torch(threads, name == "channels_last", seed)
    train, tests = (
        fl.vision.datasets.MNIST(folder),
        fl.data.DataLoader(fl.vision.datasets.MNIST(folder, train=False), 250, num_workers=1),
    )

    def shifted() -> Any:
        loader = fl.data.DataLoader(train, BATCH, True, seed=seed, num_workers=1)
        return fl.data.RandomShift(loader, 1, seed=seed)

    steps = epochs * len(shifted())
    warm = list(itertools.islice(shifted(), WARM_STEPS))
    last = len(train) % BATCH  # rows of an epoch's last batch
    warm += [[fl.tensor(field.data[:last]) for field in warm[0]]] if last else []
    first = Run(library, steps, seed)
    first.train(warm)
    first.accuracy(itertools.islice(tests, 2))

    run = Run(library, steps, seed)
    loader = shifted()
    batches = itertools.chain.from_iterable(itertools.repeat(loader, epochs))
    part = -(-len(loader) // PARTS)

    def turn() -> dict[str, Any]:
        return run.train(itertools.islice(batches, part)) | {"accuracy": run.accuracy(tests)}

    return turn, (-(-steps // part), part)


def compare(
    names: list[str], threads: int, folder: str, epochs: int, seed: int
) -> dict[str, list[dict[str, Any]]]:
    """The turns of every contestant: seconds, loss and accuracy, with the seconds so far."""
    history: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    with ExitStack() as stack:
        contestants = []
        for name in names:
            contestant = Contestant(name, prepare, threads, name)
            stack.callback(contestant.close)
            contestant.prepare(folder, epochs, seed)
            contestants.append(contestant)
        turns, _ = contestants[0].value
        for _ in range(turns):
            for contestant in contestants:
                turn, turns_so_far = contestant.call(), history[contestant.name]
                before = turns_so_far[-1]["total"] if turns_so_far else 0.0
                turns_so_far.append(turn | {"total": before + turn["seconds"]})
                print(
                    f"{contestant.name}, {threads} threads: {before + turn['seconds']:.1f} s, "
                    f"loss {turn['loss']:.4f}, accuracy {turn['accuracy']:.2%}",
                    file=sys.stderr,
                    flush=True,
                )
    return history


def lines(history: dict[str, list[dict[str, Any]]], threads: int, epochs: int) -> list[list[str]]:
    """For each contestant the seconds of its epochs and to 99 %, and its accuracies."""
    found = []
    for name, turns in history.items():
        times = [
            sum(turn["seconds"] for turn in turns[i : i + PARTS])
            for i in range(0, len(turns), PARTS)
        ]
        reached = next((t["total"] for t in turns if t["accuracy"] >= GOAL), None)
        found.append(
            [
                *(name, str(threads), *(f"{seconds:.1f}" for seconds in times)),
                f"{reached:.1f}" if reached is not None else "not reached",
                " ".join(f"{turn['accuracy']:.2%}" for turn in turns),
            ]
        )
    return found


def main() -> None:
    """Print a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    names = ["fastlayers", "torch", "channels_last"]
    add("--data-dir", required=True, help="folder of MNIST's IDX files")
    add("--epochs", type=int, default=3)
    add("--threads", nargs="+", type=int, default=[1, 2])
    add("--contestants", nargs="+", choices=names, default=names)
    add("--seed", type=int, default=0)
    add("--markdown", type=Path, help="a file for the tables")
    options = parser.parse_args()
    header = ["contestant", "threads", *(f"epoch {i + 1} s" for i in range(options.epochs))]
    header += ["s to 99 %", f"accuracy after each of {PARTS} parts of an epoch"]
    found = []
    for threads in options.threads:
        arguments = threads, options.data_dir, options.epochs, options.seed
        found += lines(compare(options.contestants, *arguments), threads, options.epochs)
        shown = table(header, found).splitlines()
        fresh = shown if threads == options.threads[0] else shown[-len(options.contestants) :]
        print("\n".join(fresh), flush=True)
    if options.markdown:
        options.markdown.write_text(table(header, found) + "\n")


if __name__ == "__main__":
    main()
