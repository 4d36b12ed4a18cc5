"""Images as transforms get them: arrays (H, W, C) or (H, W), like PIL's, and Tensors (..., H, W).

PIL images are converted to arrays; PIL itself is not required.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlayers import random
from fastlayers.autograd import Tensor

__all__ = ["as_pair", "as_pixels", "chance", "on_array", "size_of", "whole"]

Array = NDArray[Any]


def as_pixels(op: str, image: Any) -> Array:
    """The array (H, W, C) or (H, W) of an array or a PIL image.

    Raises
    ------
    TypeError
        It is neither.
    ValueError
        It has another number of dimensions.
    """
    if hasattr(image, "getbands"):  # of PIL
        pixels = np.asarray(image)
        return pixels.astype(np.uint8) * np.uint8(255) if image.mode == "1" else pixels
    if not isinstance(image, np.ndarray):
        raise TypeError(f"{op}: pic must be an ndarray or a PIL image, got {type(image).__name__}")
    if image.ndim not in (2, 3):
        raise ValueError(f"{op}: pic must have 2 or 3 dimensions, got shape {image.shape}")
    return image


def on_array(op: str, image: Any, function: Callable[[Array, int, int], Array]) -> Any:
    """The result of `function(array, y, x)` for an image and the axes of its height and width."""
    if isinstance(image, Tensor):
        if image.ndim < 2:
            raise ValueError(f"{op}: a Tensor must be (..., H, W), got shape {tuple(image.shape)}")
        return Tensor(np.ascontiguousarray(function(image.array(), image.ndim - 2, image.ndim - 1)))
    return function(as_pixels(op, image), 0, 1)


def size_of(image: Any) -> tuple[int, int]:
    """Height and width."""
    if hasattr(image, "getbands"):
        return int(image.height), int(image.width)
    shape = image.shape[-2:] if isinstance(image, Tensor) else image.shape[:2]
    return int(shape[0]), int(shape[1])


def as_pair(op: str, argument: str, value: int | Sequence[int], least: int = 1) -> tuple[int, int]:
    """Height and width of an int, which is both, or of two ints.

    Raises
    ------
    ValueError
        It is something else.
    """
    pair = (value,) if isinstance(value, int | np.integer) else tuple(value)
    pair = pair * 2 if len(pair) == 1 else pair
    if len(pair) != 2 or not all(whole(number) and number >= least for number in pair):
        raise ValueError(f"{op}: {argument} must be one or two ints >= {least}, got {value!r}")
    return int(pair[0]), int(pair[1])


def whole(value: Any) -> bool:
    """Whether a value is an integer, but not a bool."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def chance(p: float) -> bool:
    """Draw True with probability `p`."""
    return bool(random.numpy_generator().random() < p)


def probability(op: str, p: float) -> float:
    """Return `p`; ValueError if it is not in [0, 1]."""
    if not isinstance(p, int | float) or not 0 <= p <= 1:
        raise ValueError(f"{op}: p must be a number in [0, 1], got {p!r}")
    return p
