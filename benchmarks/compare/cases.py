"""The models of the comparisons, and their initial values and batches, the same in every library.

Nothing here imports a library of layers, so that it does not count as a contestant's memory.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

__all__ = ["CASES", "LR", "MOMENTUM", "MORE", "Batches", "Case", "initial_value"]

# Learning rate of SGD in all comparisons of a step; at 0.001 VGG-16 already overshoots, to a loss
# of 55.
LR = 1e-4
MOMENTUM = 0.9

Batches = list[tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True)
class Case:
    """One row of a comparison: a factory of `fastlayers.vision.models` or `networks`; its input."""

    name: str
    factory: str
    options: dict[str, Any]
    shape: tuple[int, ...]
    batch: int
    classes: int = 10

    def at(self, batch: int) -> Case:
        """The same model at another batch size."""
        return replace(self, batch=batch)

    def batches(self, count: int = 4) -> Batches:
        """Random images (N, C, H, W) and class indices (N)."""
        generator = np.random.default_rng(0)
        return [
            (
                generator.standard_normal((self.batch, *self.shape), np.float32),
                generator.integers(0, self.classes, self.batch),
            )
            for _ in range(count)
        ]


_CIFAR, _IMAGENET = (3, 32, 32), (3, 224, 224)

CASES = [
    Case("CIFAR CNN", "CifarCNN", {}, _CIFAR, 4),
    Case("CIFAR CNN", "CifarCNN", {}, _CIFAR, 128),
    Case("CIFAR CNN, batch norm", "CifarCNN", {"batch_norm": True}, _CIFAR, 128),
    Case("MLP, batch norm, dropout", "MLP", {}, (1, 28, 28), 64),
    Case("VGG-small", "vgg_small", {}, _CIFAR, 32),
    Case("VGG-small", "vgg_small", {}, _CIFAR, 128),
    Case("ResNet-20", "resnet20", {}, _CIFAR, 32),
    Case("ResNet-20", "resnet20", {}, _CIFAR, 128),
    Case("ResNet-18", "resnet18", {}, _IMAGENET, 16, 1000),
    Case("VGG-16", "vgg16", {}, _IMAGENET, 4, 1000),
]
# Measured by `models` if they are named.
MORE = [
    Case("mobile (depthwise)", "mobile", {}, _CIFAR, 32),
    Case("DenseNet-121", "densenet121", {}, _CIFAR, 64),
]


def initial_value(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """The value of a parameter or buffer by its name in a state dict, the same in every process.

    Weights are uniform with He's variance, so that a deep network's loss depends on all its layers.
    """
    kind = name.rpartition(".")[2]
    if kind == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if kind == "running_mean":
        return np.zeros(shape, np.float32)
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):  # of a batch norm
        return np.ones(shape, np.float32)
    bound = np.sqrt(6 / np.prod(shape[1:])) if kind == "weight" else 0.05
    values = np.random.default_rng(zlib.crc32(name.encode())).random(shape, np.float32)
    values -= np.float32(0.5)
    values *= np.float32(2 * bound)
    return values
