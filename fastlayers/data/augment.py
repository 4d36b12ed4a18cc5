"""Random changes of training images."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.data.checks import whole_number
from fastlayers.data.dataset import Dataset, MapStyle, fetch_batch

__all__ = ["RandomShift"]


class RandomShift(Dataset):
    """A dataset of images, each moved by a random number of pixels whenever it is read.

    The edge that comes into the picture is 0. Shifts are drawn in the order of reading from the
    generator of `fastlayers.manual_seed`, or from one of their own.

    Parameters
    ----------
    dataset : Dataset, or any object with ``__len__`` and ``__getitem__``
        Samples are sequences whose first item is an image (C, H, W).
    pixels : int
        Largest shift up, down, left and right.
    seed : int, optional
        Seed of a generator of their own.

    Raises
    ------
    TypeError, ValueError
        If `pixels` is not a non-negative integer.
    """

    def __init__(self, dataset: MapStyle, pixels: int = 1, seed: int | None = None) -> None:
        self.dataset = dataset
        self.pixels = whole_number("RandomShift", "pixels", pixels, 0)
        self._generator = None if seed is None else np.random.default_rng(seed)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: Any) -> Any:
        """Give the sample at an int, shifted."""
        image, *rest = self.dataset[index]
        return self._shifted(np.asarray(image)[None])[0], *rest

    def batch(self, indices: Any) -> Any:
        """Give the samples at `indices`, each shifted on its own."""
        images, *rest = fetch_batch(self.dataset, indices)
        return self._shifted(np.asarray(images)), *rest

    def _shifted(self, images: np.ndarray) -> np.ndarray:
        """Images (N, C, H, W), cut out of a frame of zeros at random places."""
        n, _, height, width = images.shape
        frame = ((0, 0), (0, 0), (self.pixels, self.pixels), (self.pixels, self.pixels))
        windows = np.lib.stride_tricks.sliding_window_view(
            np.pad(images, frame), (height, width), (2, 3)
        )
        generator = self._generator or random.numpy_generator()
        down, right = generator.integers(0, 2 * self.pixels + 1, (2, n))
        return np.ascontiguousarray(windows[np.arange(n), :, down, right])
