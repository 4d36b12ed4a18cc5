"""Transforms of whole batches, with the same result as for one image after the other."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlayers.data.collate import collate
from fastlayers.vision.transforms.compose import Compose

__all__ = ["transformed_batch"]


def transformed_batch(transform: Any, images: NDArray[np.uint8]) -> Any:
    """The collated results of a transform for images (N, H, W, C) or (N, H, W).

    The last parts that have a method `batch`, such as `ToTensor` and `Normalize`, are applied to
    all images at once: 64 CIFAR images take 0.3 ms instead of 2.
    """
    each, together = _divided(_steps(transform))
    if not each and together and together[0].takes is np.ndarray:
        return _applied(together, _with_channels(images))
    results = [_called(each, image.copy("C")) for image in images]
    if together and _is_stackable(results, together[0].takes):
        stacked = collate(results)
        pixels = together[0].takes is np.ndarray
        return _applied(together, _with_channels(stacked) if pixels else stacked)
    return collate([_called(together, result) for result in results])


def _steps(transform: Any) -> list[Any]:
    if type(transform) is not Compose:
        return [transform]
    return [step for part in transform.transforms for step in _steps(part)]


def _divided(steps: list[Any]) -> tuple[list[Any], list[Any]]:
    """The steps for each image, and those after them that take a batch."""
    count = len(steps)
    # A subclass may override `__call__`: only a class with its own `batch` is trusted.
    while count and "batch" in vars(type(steps[count - 1])):
        count -= 1
    return steps[:count], steps[count:]


def _is_stackable(results: list[Any], kind: Any) -> bool:
    dimensions = (2, 3) if kind is np.ndarray else (3,)
    return all(type(r) is kind and r.ndim in dimensions for r in results) and (
        len({(r.shape, r.dtype) for r in results}) == 1
    )


def _applied(steps: list[Any], images: Any) -> Any:
    for step in steps:
        images = step.batch(images)
    return images


def _called(steps: list[Any], image: Any) -> Any:
    for step in steps:
        image = step(image)
    return image


def _with_channels(images: NDArray[Any]) -> NDArray[Any]:
    return images[..., np.newaxis] if images.ndim == 3 else images
