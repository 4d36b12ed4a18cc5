"""Datasets of arrays."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from fastlayers.autograd import Tensor
from fastlayers.data.checks import Indices, first_axis_index
from fastlayers.data.dataset import Dataset

__all__ = ["ImageDataset", "TensorDataset"]


class TensorDataset(Dataset):
    """A dataset of arrays whose first dimension runs over the samples.

    As `torch.utils.data.TensorDataset
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.TensorDataset>`_; samples of an
    ndarray are ndarrays. `DataLoader` makes Tensors of both.

    Parameters
    ----------
    *tensors : ndarray or Tensor
        At least one, each of shape ``(N, ...)`` and of any dtype; they are not copied.

    Attributes
    ----------
    tensors : tuple of ndarray or Tensor
        As they were given.
    arrays : tuple of ndarray
        Their values.

    Raises
    ------
    TypeError
        An argument is neither an ndarray nor a Tensor.
    ValueError
        There are no tensors, or their first dimensions differ or are missing.
    """

    def __init__(self, *tensors: NDArray[Any] | Tensor) -> None:
        for position, tensor in enumerate(tensors):
            if not isinstance(tensor, np.ndarray | Tensor):
                raise TypeError(
                    f"TensorDataset: tensor {position} must be an ndarray or a Tensor, "
                    f"got {type(tensor).__name__}"
                )
        shapes = [tuple(tensor.shape) for tensor in tensors]
        if not shapes or not all(shapes) or len({shape[0] for shape in shapes}) > 1:
            raise ValueError(
                "TensorDataset: tensors must be one or more of equal first dimension, "
                f"got shapes {shapes}"
            )
        self.tensors = tensors

    @property
    def arrays(self) -> tuple[NDArray[Any], ...]:
        """The values of the tensors, in the order given."""
        return tuple(t.array() if isinstance(t, Tensor) else t for t in self.tensors)

    def __len__(self) -> int:
        return int(self.tensors[0].shape[0])

    def __repr__(self) -> str:
        held = ", ".join(f"{tensor.dtype} {tuple(tensor.shape)}" for tensor in self.tensors)
        return f"{type(self).__name__}({held})"

    def __getitem__(self, index: Indices) -> tuple[Any, ...]:
        """Return the sample at an int, or the batch at a slice or a 1-d integer array."""
        key = first_axis_index(type(self).__name__, index, len(self))
        return tuple(
            Tensor(t.array()[key]) if isinstance(t, Tensor) else t[key] for t in self.tensors
        )

    def fetch_batch(self, indices: NDArray[np.int64]) -> Any:
        """Return the samples at `indices`, int64 of shape (B,), by one fancy index per array."""
        # An overridden __getitem__ (augmentation, say) was written for one sample at a time.
        if type(self).__getitem__ is not TensorDataset.__getitem__:
            return super().fetch_batch(indices)
        key = first_axis_index(type(self).__name__, indices, len(self))
        return [array[key] for array in self.arrays]


class ImageDataset(TensorDataset):
    """Labelled images: float32 (N, C, H, W) in [0, 1] and int64 (N,).

    Attributes
    ----------
    classes : tuple of str
        The name of each label.
    """

    classes: ClassVar[tuple[str, ...]]

    @property
    def images(self) -> NDArray[np.float32]:
        """The images, float32 of shape (N, C, H, W), in [0, 1]."""
        return self.arrays[0]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels, int64 of shape (N,), indices into `classes`."""
        return self.arrays[1]
