"""Images made of random numbers."""

from __future__ import annotations

import numpy as np

from fastlayers.vision.datasets.base import Function, VisionDataset

__all__ = ["FakeData"]


class FakeData(VisionDataset):
    """Images and labels made of random numbers, always the same, to try out a program.

    As `torchvision.datasets.FakeData
    <https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.FakeData.html>`_, with
    other numbers.

    Parameters
    ----------
    size : int
        Number of images.
    image_size : (int, int, int)
        Channels, height and width.
    num_classes : int
    transform, target_transform : callable, optional
        Called with each image, uint8 of shape (H, W, C), and each label, an int.
    random_offset : int
        Other numbers give other images.
    """

    def __init__(
        self,
        size: int = 1000,
        image_size: tuple[int, int, int] = (3, 224, 224),
        num_classes: int = 10,
        transform: Function | None = None,
        target_transform: Function | None = None,
        random_offset: int = 0,
    ) -> None:
        super().__init__(None, transform, target_transform)
        channels, height, width = image_size
        generator = np.random.default_rng(random_offset)
        shape = (size, height, width, channels)
        self.data = generator.integers(0, 256, shape, dtype=np.uint8)
        self.targets = generator.integers(0, num_classes, size).tolist()
        self.classes = tuple(map(str, range(num_classes)))
