"""What a call costs besides its arithmetic: layers on arrays of a few elements, in microseconds.

    python -m benchmarks.compare.calls

Forward is the layer's call within a model, backward its share of `Tensor.backward`; both are the
difference between a chain of many such layers and one of few, one thread, best of many runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np

import fastlayers as fl
from fastlayers import nn

__all__ = ["LAYERS", "main", "measure"]

IMAGES, ROWS = (2, 2, 4, 4), (2, 4)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Conv2d": (lambda: nn.Conv2d(2, 2, 3, padding=1), IMAGES),
    "Conv2d, ReLU": (lambda: nn.Sequential(nn.Conv2d(2, 2, 3, padding=1), nn.ReLU()), IMAGES),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(2), IMAGES),
    "BatchNorm2d, ReLU": (lambda: nn.Sequential(nn.BatchNorm2d(2), nn.ReLU()), IMAGES),
    "MaxPool2d": (lambda: nn.MaxPool2d(3, 1, 1), IMAGES),
    "ReLU": (nn.ReLU, IMAGES),
    "Dropout": (nn.Dropout, IMAGES),
    "Dropout2d": (nn.Dropout2d, IMAGES),
    "Linear": (lambda: nn.Linear(4, 4), ROWS),
    "Linear, ReLU": (lambda: nn.Sequential(nn.Linear(4, 4), nn.ReLU()), ROWS),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(4), ROWS),
}


def _times(layers: list[nn.Module], x: fl.Tensor, rounds: int) -> tuple[float, float]:
    """Best times of forward and backward of the chain, in seconds."""
    model, forward, backward = nn.Sequential(*layers), np.inf, np.inf
    seed = np.ones(x.shape, np.float32)
    for _ in range(rounds):
        begin = time.perf_counter()
        y = model(x)
        middle = time.perf_counter()
        y.backward(seed)
        end = time.perf_counter()
        forward, backward = min(forward, middle - begin), min(backward, end - middle)
    return forward, backward


def measure(name: str, rounds: int = 2000) -> tuple[float, float]:
    """Microseconds of one layer, forward and backward."""
    make, shape = LAYERS[name]
    x = fl.tensor(np.random.default_rng(0).standard_normal(shape, np.float32), requires_grad=True)
    many, few = 11, 1
    long, short = (_times([make() for _ in range(n)], x, rounds) for n in (many, few))
    return tuple(1e6 * (a - b) / (many - few) for a, b in zip(long, short, strict=True))  # type: ignore[return-value]


def main() -> None:
    """Print a row per layer."""
    fl.set_num_threads(1)
    print("| layer | forward us | backward us |")
    print("|---|---|---|")
    for name in LAYERS:
        forward, backward = measure(name)
        print(f"| {name} | {forward:.1f} | {backward:.1f} |", flush=True)


if __name__ == "__main__":
    main()
