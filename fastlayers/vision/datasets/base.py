"""What image datasets have in common."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlayers.autograd import Tensor
from fastlayers.data.checks import Indices, callable_or_none, first_axis_index
from fastlayers.data.collate import collate
from fastlayers.data.dataset import Dataset
from fastlayers.vision.transforms.batches import transformed_batch
from fastlayers.vision.transforms.convert import unit_images

__all__ = ["VisionDataset"]

Function = Callable[[Any], Any]


class VisionDataset(Dataset):
    """Labelled images; without a transform float32 (C, H, W) in [0, 1], ready for a network.

    As `torchvision.datasets.VisionDataset
    <https://docs.pytorch.org/vision/stable/generated/torchvision.datasets.VisionDataset.html>`_,
    which returns PIL images instead of arrays. Samples are pairs of an image and an int.

    Parameters
    ----------
    root : path, optional
        Where the files are.
    transform : callable, optional
        Called with each image as uint8 of shape (H, W, C), or (H, W) if it is grey. A loader
        applies the last parts that need no random numbers to whole batches, with the same result.
    target_transform : callable, optional
        Called with each label, an int.

    Attributes
    ----------
    data : uint8 of shape (N, H, W, C) or (N, H, W)
    targets : sequence of int
    classes : sequence of str
        The name of each label.
    train : bool
        Whether these are the training images.

    Raises
    ------
    TypeError
        A transform cannot be called.
    """

    classes: Any = ()
    data: Any
    targets: Any
    train: bool

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        transform: Function | None = None,
        target_transform: Function | None = None,
    ) -> None:
        op = type(self).__name__
        self.root = None if root is None else os.path.expanduser(root)
        self.transform = callable_or_none(op, "transform", transform)
        self.target_transform = callable_or_none(op, "target_transform", target_transform)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: Indices) -> tuple[Any, Any]:
        """Return the sample at an int, or images and labels at a slice or a 1-d integer array."""
        key = first_axis_index(type(self).__name__, index, len(self))
        if not isinstance(key, int):
            images, labels = self._fetch(np.arange(len(self))[key])
            return images, labels
        image = self._pixels()[key]
        (label,) = self._labels_at(np.array([key]))
        if self.target_transform is not None:
            label = self.target_transform(label)
        if self.transform is None:
            return unit_images(_with_channels(image[np.newaxis]))[0], label
        return self.transform(image.copy("C")), label

    def fetch_batch(self, indices: NDArray[np.int64]) -> Any:
        """Return the batch of samples at `indices`, int64 of shape (B,), as [images, labels]."""
        # An overridden __getitem__ was written for one sample at a time.
        if type(self).__getitem__ is not VisionDataset.__getitem__:
            return super().fetch_batch(indices)
        first_axis_index(type(self).__name__, indices, len(self))
        return self._fetch(indices)

    def _fetch(self, indices: NDArray[np.int64]) -> list[Any]:
        labels = self._labels_at(indices)
        if self.target_transform is not None:
            labels = [self.target_transform(label) for label in labels]
        images = self._pixels()[indices]
        targets = collate(labels) if labels else np.zeros(0, np.int64)
        if self.transform is None:
            return [unit_images(_with_channels(images)), targets]
        return [transformed_batch(self.transform, images), targets]

    def _labels_at(self, indices: NDArray[np.int64]) -> list[Any]:
        targets = self.targets.array() if isinstance(self.targets, Tensor) else self.targets
        if isinstance(targets, np.ndarray):
            return [int(label) for label in targets[indices]]
        return [int(targets[i]) for i in indices.tolist()]

    def _pixels(self) -> NDArray[np.uint8]:
        return self.data.array() if isinstance(self.data, Tensor) else np.asarray(self.data)

    @property
    def images(self) -> NDArray[np.float32]:
        """All images as float32 of shape (N, C, H, W), in [0, 1], computed at each call."""
        return unit_images(_with_channels(self._pixels()))

    @property
    def labels(self) -> NDArray[np.int64]:
        """All labels, int64 of shape (N,)."""
        return np.asarray(self.targets, dtype=np.int64)

    @property
    def class_to_idx(self) -> dict[str, int]:
        """The label of each class."""
        return {name: label for label, name in enumerate(self.classes)}

    def extra_repr(self) -> str:
        """More lines of the representation."""
        return f"Split: {'Train' if self.train else 'Test'}" if hasattr(self, "train") else ""

    def __repr__(self) -> str:
        body = [f"Number of datapoints: {len(self)}"]
        body += [] if self.root is None else [f"Root location: {self.root}"]
        body += self.extra_repr().splitlines()
        transforms = {"Transform: ": self.transform, "Target transform: ": self.target_transform}
        given = {head: function for head, function in transforms.items() if function is not None}
        tail = ["    StandardTransform"] if given else []
        for head, function in given.items():
            first, *rest = repr(function).splitlines()
            tail += [head + first, *(" " * len(head) + line for line in rest)]
        head = f"Dataset {type(self).__name__}"
        return "\n".join([head, *(f"    {line}" for line in body), *tail])


def _with_channels(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    return images[..., np.newaxis] if images.ndim == 3 else images
