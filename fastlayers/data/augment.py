"""Random changes of training images."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.data.checks import whole_number
from fastlayers.data.loader import DataLoader, part_of

__all__ = ["RandomShift"]


class RandomShift:
    """The batches of a loader, with each image moved by a random number of pixels.

    The uncovered edge is 0. Shifts are drawn when batches are taken, so that they do not depend on
    what workers prepare in advance.

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

    @property
    def is_distributed(self) -> bool:
        """Whether the loader gives the samples of one rank."""
        return self.loader.is_distributed

    def __iter__(self) -> Iterator[list[Any]]:
        """Return the batches of one epoch."""
        return self.part(0, 1)

    def part(self, rank: int, ranks: int) -> Iterator[list[Any]]:
        """Begin an epoch in which only a part of each batch is returned; see `DataLoader.part`.

        The images of all parts together move as those of the whole batch would.
        """
        if self.seed is None:
            generator = random.numpy_generator()
        else:
            generator = np.random.default_rng((self.seed, self.loader.epoch))
        for number, (images, *rest) in enumerate(self.loader.part(rank, ranks)):
            samples = self.loader.samples(number) if ranks > 1 else len(images)
            shifts = generator.integers(0, 2 * self.pixels + 1, (2, samples))
            mine = shifts[:, part_of(samples, rank, ranks)]
            yield [Tensor(self._shifted(images.array(), mine)), *rest]

    def _shifted(self, images: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """Images (N, C, H, W), cut out of a frame of zeros at `shifts` (2, N)."""
        n, _, height, width = images.shape
        frame = ((0, 0), (0, 0), (self.pixels, self.pixels), (self.pixels, self.pixels))
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(images, frame), (height, width), (2, 3)
        )
        return np.ascontiguousarray(windows[np.arange(n), :, shifts[0], shifts[1]])
