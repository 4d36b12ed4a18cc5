"""Conversion of images to tensors, and of their values. These also work on whole batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import DTypeLike, NDArray

from fastlayers.autograd import Tensor
from fastlayers.vision.transforms.images import as_pixels

__all__ = ["ConvertImageDtype", "Lambda", "Normalize", "PILToTensor", "ToTensor", "unit_images"]

Array = NDArray[Any]


def unit_images(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Images uint8 (N, H, W, C) as float32 (N, C, H, W) in [0, 1]."""
    n, height, width, channels = images.shape
    out = np.empty((n, channels, height, width), np.float32)
    # The true division by 255 rounds as torchvision's does.
    return np.divide(images.transpose(0, 3, 1, 2), np.float32(255), out=out, dtype=np.float32)


class ToTensor:
    """From an image uint8 (H, W, C) or (H, W) to a Tensor float32 (C, H, W) in [0, 1].

    As `torchvision.transforms.ToTensor
    <https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.ToTensor.html>`_:
    arrays of another dtype keep their values and dtype.

    Raises
    ------
    TypeError
        It is neither an array nor a PIL image.
    ValueError
        Its number of dimensions is neither 2 nor 3.
    """

    takes: ClassVar[type] = np.ndarray

    def __call__(self, pic: Any) -> Tensor:
        """Return the transformed image."""
        pixels = as_pixels(type(self).__name__, pic)
        pixels = pixels[..., np.newaxis] if pixels.ndim == 2 else pixels
        return Tensor(self.batch(pixels[np.newaxis])[0])

    def batch(self, images: Array) -> Array:
        """The same for images (N, H, W, C), as an array."""
        if images.dtype == np.uint8:
            return unit_images(images)
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"


class PILToTensor(ToTensor):
    """From an image (H, W, C) or (H, W) to a Tensor (C, H, W) of the same values and dtype."""

    def batch(self, images: Array) -> Array:
        """The same for images (N, H, W, C), as an array."""
        return np.ascontiguousarray(images.transpose(0, 3, 1, 2))


class ConvertImageDtype:
    """Images of another dtype, scaled from the range of one to that of the other.

    As `torchvision.transforms.ConvertImageDtype
    <https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.ConvertImageDtype.html>`_:
    floats are in [0, 1], integers from 0 to the largest of the dtype.

    Parameters
    ----------
    dtype : dtype

    Raises
    ------
    TypeError
        An image is not a Tensor.
    ValueError
        The integers have as many bits as the floats or more, too many values for them to represent.
    """

    takes: ClassVar[type] = Tensor

    def __init__(self, dtype: DTypeLike) -> None:
        self.dtype = np.dtype(dtype)
        if self.dtype.kind not in "iuf":
            raise ValueError(f"ConvertImageDtype: dtype must be real numbers, got {self.dtype}")

    def __call__(self, image: Tensor) -> Tensor:
        """Return the transformed image."""
        if not isinstance(image, Tensor):
            kind = type(image).__name__
            raise TypeError(f"ConvertImageDtype: image must be a Tensor, got {kind}")
        return Tensor(self.batch(image.array()))

    def batch(self, images: Array) -> Array:
        """The same for an array."""
        source, target = images.dtype, self.dtype
        if source == target:
            return images
        if source.kind == "f":
            return self._from_floats(images)
        most = int(np.iinfo(source).max)
        out: Array = images.astype(target)
        if target.kind == "f":
            out /= target.type(most)
        elif most > (limit := int(np.iinfo(target).max)):
            out = (images // ((most + 1) // (limit + 1))).astype(target)
        else:
            out *= target.type((limit + 1) // (most + 1))
        return out

    def _from_floats(self, images: Array) -> Array:
        source, target = images.dtype, self.dtype
        if target.kind == "f":
            return images.astype(target)
        if target.itemsize >= source.itemsize:
            raise ValueError(
                f"ConvertImageDtype: dtype must be of fewer bits than {source}, got {target}"
            )
        scale = source.type(np.iinfo(target).max + 1.0 - 1e-3)  # where 1 gives the largest
        out: Array = np.multiply(images, scale).astype(target)
        return out

    def __repr__(self) -> str:
        return "ConvertImageDtype()"


class Normalize:
    """Channels minus their mean, divided by their standard deviation: (x - mean) / std.

    As `torchvision.transforms.Normalize
    <https://docs.pytorch.org/vision/stable/generated/torchvision.transforms.Normalize.html>`_.

    Parameters
    ----------
    mean, std : sequence of float
        One for each channel, or one for all; in the dtype of the image.
    inplace : bool
        Write into the Tensor that is given.

    Raises
    ------
    TypeError
        An image is neither a Tensor nor an array, or not floating point.
    ValueError
        It is not (..., C, H, W), it has another number of channels, or a deviation is 0.
    """

    takes: ClassVar[type] = Tensor

    def __init__(
        self, mean: Sequence[float] | float, std: Sequence[float] | float, inplace: bool = False
    ) -> None:
        self.mean, self.std, self.inplace = mean, std, inplace

    def __call__(self, tensor: Any) -> Any:
        """Return the transformed image."""
        if isinstance(tensor, np.ndarray):
            return self._normalized(tensor, self.inplace)
        if not isinstance(tensor, Tensor):
            kind = type(tensor).__name__
            raise TypeError(f"Normalize: tensor must be a Tensor or an ndarray, got {kind}")
        if not self.inplace:
            return Tensor(self._normalized(tensor.array(), False))
        self._normalized(tensor.settled(), True)
        tensor.changed()
        return tensor

    def batch(self, images: Array) -> Array:
        """The same for an array (N, C, H, W)."""
        return self._normalized(images, False)

    def _normalized(self, images: Array, inplace: bool) -> Array:
        if images.dtype.kind != "f":
            raise TypeError(f"Normalize: tensor must be of floats, got {images.dtype}")
        if images.ndim < 3:
            raise ValueError(f"Normalize: tensor must be (..., C, H, W), got shape {images.shape}")
        mean, std = (self._per_channel(name, images) for name in ("mean", "std"))
        if not std.all():
            raise ValueError(
                f"Normalize: std must not be 0 in {images.dtype}, which it is divided by, "
                f"got {self.std!r}"
            )
        out = np.subtract(images, mean, out=images if inplace else None)
        return np.divide(out, std, out=out)

    def _per_channel(self, name: str, images: Array) -> Array:
        values = np.asarray(getattr(self, name), images.dtype).reshape(-1)
        if len(values) not in (1, images.shape[-3]):
            raise ValueError(
                f"Normalize: {name} must have one value for each of {images.shape[-3]} channels, "
                f"got {len(values)}"
            )
        return values[:, np.newaxis, np.newaxis]

    def __repr__(self) -> str:
        return f"Normalize(mean={self.mean}, std={self.std})"


class Lambda:
    """A function as a transform.

    Parameters
    ----------
    lambd : callable

    Raises
    ------
    TypeError
        It cannot be called.
    """

    def __init__(self, lambd: Callable[[Any], Any]) -> None:
        if not callable(lambd):
            raise TypeError(f"Lambda: lambd must be a function, got {type(lambd).__name__}")
        self.lambd = lambd

    def __call__(self, image: Any) -> Any:
        """Return the transformed image."""
        return self.lambd(image)

    def __repr__(self) -> str:
        return "Lambda()"
