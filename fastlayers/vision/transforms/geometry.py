"""Flips, crops and padding. They draw from the generator of `fastlayers.manual_seed`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlayers import random
from fastlayers.vision.transforms.images import (
    as_pair,
    chance,
    on_array,
    probability,
    size_of,
    whole,
)

__all__ = ["CenterCrop", "Pad", "RandomCrop", "RandomHorizontalFlip", "RandomVerticalFlip"]

Array = NDArray[Any]
Fill = float | Sequence[float]
_MODES = ("constant", "edge", "reflect", "symmetric")


class RandomHorizontalFlip:
    """The image, or with probability `p` its mirror image from left to right.

    Parameters
    ----------
    p : float

    Raises
    ------
    ValueError
        If `p` is not in [0, 1].
    """

    _axis = 1

    def __init__(self, p: float = 0.5) -> None:
        self.p = probability(type(self).__name__, p)

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        if not chance(self.p):
            return image
        return on_array(type(self).__name__, image, self._flipped)

    def _flipped(self, array: Array, y: int, x: int) -> Array:
        return np.flip(array, (y, x)[self._axis])

    def __repr__(self) -> str:
        return f"{type(self).__name__}(p={self.p})"


class RandomVerticalFlip(RandomHorizontalFlip):
    """The image, or with probability `p` its mirror image from top to bottom.

    Parameters
    ----------
    p : float

    Raises
    ------
    ValueError
        If `p` is not in [0, 1].
    """

    _axis = 0


class Pad:
    """The image with a frame around it.

    As `torchvision.transforms.Pad
    <https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.Pad.html>`_.

    Parameters
    ----------
    padding : int, (int, int) or (int, int, int, int)
        Pixels on all sides; left/right and top/bottom; or left, top, right and bottom.
    fill : number or sequence of numbers
        Value of the frame, or one for each channel.
    padding_mode : {"constant", "edge", "reflect", "symmetric"}

    Raises
    ------
    ValueError
        An argument is invalid.
    """

    def __init__(
        self, padding: int | Sequence[int], fill: Fill = 0, padding_mode: str = "constant"
    ) -> None:
        self._sides = _sides("Pad", padding)
        self.padding, self.fill = padding, fill
        self.padding_mode = _mode("Pad", padding_mode)

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        return _padded("Pad", image, self._sides, self.fill, self.padding_mode)

    def __repr__(self) -> str:
        return f"Pad(padding={self.padding}, fill={self.fill}, padding_mode={self.padding_mode})"


class CenterCrop:
    """The center of the image, with zeros around it if it is too small.

    Parameters
    ----------
    size : int or (int, int)
        Height and width.

    Raises
    ------
    ValueError
        The size is invalid.
    """

    def __init__(self, size: int | Sequence[int]) -> None:
        self.size = as_pair("CenterCrop", "size", size)

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        sides = [0, 0, 0, 0]
        for axis, (wanted, length) in enumerate(zip(self.size, size_of(image), strict=True)):
            missing = max(0, wanted - length)
            sides[1 - axis], sides[3 - axis] = missing // 2, (missing + 1) // 2
        if any(sides):
            image = _padded("CenterCrop", image, tuple(sides), 0, "constant")
        top, left = (
            # Python rounds halves to even, as torchvision does.
            round((length - wanted) / 2.0)
            for wanted, length in zip(self.size, size_of(image), strict=True)
        )
        return cropped("CenterCrop", image, top, left, *self.size)

    def __repr__(self) -> str:
        return f"CenterCrop(size={self.size})"


class RandomCrop:
    """A random part of the image, after padding.

    As `torchvision.transforms.RandomCrop
    <https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.RandomCrop.html>`_.

    Parameters
    ----------
    size : int or (int, int)
        Height and width.
    padding : int, (int, int) or (int, int, int, int), optional
        As for `Pad`.
    pad_if_needed : bool
        Pad an image that is smaller than `size`, on both sides by what is missing.
    fill, padding_mode
        As for `Pad`.

    Raises
    ------
    ValueError
        An argument is invalid, or an image is too small.
    """

    def __init__(
        self,
        size: int | Sequence[int],
        padding: int | Sequence[int] | None = None,
        pad_if_needed: bool = False,
        fill: Fill = 0,
        padding_mode: str = "constant",
    ) -> None:
        self.size = as_pair("RandomCrop", "size", size)
        self._sides = None if padding is None else _sides("RandomCrop", padding)
        self.padding, self.pad_if_needed, self.fill = padding, pad_if_needed, fill
        self.padding_mode = _mode("RandomCrop", padding_mode)

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        if self._sides is not None:
            image = self._padded(image, self._sides)
        missing = [w - h for w, h in zip(self.size, size_of(image), strict=True)]
        if self.pad_if_needed and missing[1] > 0:
            image = self._padded(image, (missing[1], 0, missing[1], 0))
        if self.pad_if_needed and missing[0] > 0:
            image = self._padded(image, (0, missing[0], 0, missing[0]))
        height, width = size_of(image)
        if height < self.size[0] or width < self.size[1]:
            raise ValueError(
                f"RandomCrop: size must be at most that of the image, {(height, width)}, "
                f"got {self.size}"
            )
        if (height, width) == self.size:
            return image
        draw = random.numpy_generator().integers
        top = int(draw(height - self.size[0] + 1))
        left = int(draw(width - self.size[1] + 1))
        return cropped("RandomCrop", image, top, left, *self.size)

    def _padded(self, image: Any, sides: tuple[int, ...]) -> Any:
        return _padded("RandomCrop", image, sides, self.fill, self.padding_mode)

    def __repr__(self) -> str:
        return f"RandomCrop(size={self.size}, padding={self.padding})"


def cropped(op: str, image: Any, top: int, left: int, height: int, width: int) -> Any:
    """The part of an image with a given height and width, from a given position."""

    def part(array: Array, y: int, x: int) -> Array:
        index: list[Any] = [slice(None)] * array.ndim
        index[y], index[x] = slice(top, top + height), slice(left, left + width)
        found: Array = array[tuple(index)]
        return found

    return on_array(op, image, part)


def _sides(op: str, padding: int | Sequence[int]) -> tuple[int, ...]:
    """Left, top, right and bottom."""
    given = (padding,) if isinstance(padding, int | np.integer) else tuple(padding)
    if len(given) not in (1, 2, 4) or not all(whole(n) and n >= 0 for n in given):
        raise ValueError(f"{op}: padding must be 1, 2 or 4 non-negative ints, got {padding!r}")
    return tuple(int(n) for n in given) * (4 // len(given))


def _mode(op: str, mode: str) -> str:
    if mode not in _MODES:
        raise ValueError(f"{op}: padding_mode must be one of {', '.join(_MODES)}, got {mode!r}")
    return mode


def _padded(op: str, image: Any, sides: tuple[int, ...], fill: Fill, mode: str) -> Any:
    left, top, right, bottom = sides

    def framed(array: Array, y: int, x: int) -> Array:
        widths = [(0, 0)] * array.ndim
        widths[y], widths[x] = (top, bottom), (left, right)
        if mode != "constant":
            return np.pad(array, widths, mode)  # type: ignore[call-overload, no-any-return]
        shape = [n + sum(more) for n, more in zip(array.shape, widths, strict=True)]
        values = np.asarray(fill)
        if y and values.ndim:  # (C, H, W)
            values = values[:, np.newaxis, np.newaxis]
        out = np.empty(shape, array.dtype)
        out[...] = values
        inner = [slice(b, b + n) for n, (b, _) in zip(array.shape, widths, strict=True)]
        out[tuple(inner)] = array
        return out

    return on_array(op, image, framed)
