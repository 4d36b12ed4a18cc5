"""Arrays and layers that the benchmarks share."""

from __future__ import annotations

import numpy as np

__all__ = ["CONVOLUTIONS", "IMAGES", "LINEARS", "images"]

# N, C, H, W -> M, kernel, stride, padding, groups: layers of the networks that they are named by.
CONVOLUTIONS = {
    "cifar-cnn-1": ((128, 3, 32, 32), 6, 5, 1, 0, 1),
    "cifar-cnn-2": ((128, 6, 14, 14), 16, 5, 1, 0, 1),
    "resnet20-1": ((64, 16, 32, 32), 16, 3, 1, 1, 1),
    "vgg16-2": ((16, 64, 56, 56), 64, 3, 1, 1, 1),
    "resnet18-3": ((16, 128, 28, 28), 128, 3, 1, 1, 1),
    "resnet18-4-1x1": ((16, 128, 28, 28), 256, 1, 2, 0, 1),
    "mobilenet-depthwise": ((8, 64, 28, 28), 64, 3, 1, 1, 64),
}
# N, C, H, W of what memory-bound layers get.
IMAGES = {
    "128x6x28x28": (128, 6, 28, 28),
    "128x16x32x32": (128, 16, 32, 32),
    "32x64x56x56": (32, 64, 56, 56),
}
# N, in, out
LINEARS = {
    "400-120-batch-4": (4, 400, 120),
    "400-120-batch-128": (128, 400, 120),
    "2048-256-batch-32": (32, 2048, 256),
    "2048-256-batch-128": (128, 2048, 256),
    "4096-4096-batch-4": (4, 4096, 4096),
    "4096-4096-batch-128": (128, 4096, 4096),
}


def images(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    """Normal numbers in float32, with channels-last memory as ops return it."""
    n, c, *spatial = shape
    values = np.random.default_rng(seed).standard_normal((n, *spatial, c), np.float32)
    return np.moveaxis(values, -1, 1)
