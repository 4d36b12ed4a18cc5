"""Random changes of training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.data.checks import whole_number
from fastlayers.data.loader import DataLoader

__all__ = ["RandomShift"]


class RandomShift:
    """The batches of a loader, with each image moved by a random number of pixels.

    The edge that comes into the picture is 0. Shifts are drawn as batches are taken, so that they
    do not depend on what a loader prefetches.

    Parameters
    ----------
    loader : DataLoader
        Batches are lists whose first item is a Tensor of images (N, C, H, W).
    pixels : int
        Largest shift up, down, left and right.
    seed : int, optional
        Makes the shifts a function of the seed and the loader's epoch; otherwise they come from
        the generator of `fastlayers.manual_seed`.

    Raises
    ------
    ValueError
        If `pixels` is not a non-negative integer.
    """

    def __init__(self, loader: DataLoader, pixels: int = 1, seed: int | None = None) -> None:
        self.loader = loader
        self.pixels = whole_number("RandomShift", "pixels", pixels, 0)
        self.seed = seed

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Any]]:
        """Give the batches of one epoch."""
        if self.seed is None:
            generator = random.numpy_generator()
        else:
            generator = np.random.default_rng((self.seed, self.loader.epoch))
        for images, *rest in self.loader:
            yield [Tensor(self._shifted(images.data, generator)), *rest]

    def _shifted(self, images: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Images (N, C, H, W), cut out of a frame of zeros at random places."""
        n, _, height, width = images.shape
        frame = ((0, 0), (0, 0), (self.pixels, self.pixels), (self.pixels, self.pixels))
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(images, frame), (height, width), (2, 3)
        )
        down, right = generator.integers(0, 2 * self.pixels + 1, (2, n))
        return np.ascontiguousarray(windows[np.arange(n), :, down, right])
