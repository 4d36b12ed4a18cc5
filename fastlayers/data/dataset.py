"""Map-style datasets: anything with a length that gives a sample for an index."""

import math
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Protocol

import numpy as np
from numpy.typing import NDArray

from fastlayers import random
from fastlayers.autograd import Tensor
from fastlayers.data.checks import Indices, as_indices, first_axis_index, whole_number
from fastlayers.data.collate import collate


class MapStyle(Protocol):
    """What `DataLoader` and `Subset` need of a dataset; lists and arrays will do."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class Dataset:
    """A dataset of samples found by their index; subclasses give `__len__` and `__getitem__`.

    As `torch.utils.data.Dataset
    <https://pytorch.org/docs/stable/data.html#torch.utils.data.Dataset>`_.

    Raises
    ------
    NotImplementedError
        A subclass lacks one of the two methods.
    """

    def __len__(self) -> int:
        raise NotImplementedError(f"{type(self).__name__}: a Dataset must define __len__, got none")

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__}: a Dataset must define __getitem__, got none"
        )

    def batch(self, indices: NDArray[np.int64]) -> Any:
        """Collate the samples at `indices`, int64 of shape (B,), into arrays (B, ...)."""
        return _collate_one_by_one(self, indices)


class TensorDataset(Dataset):
    """A dataset of arrays whose first dimension runs over the samples.

    As `torch.utils.data.TensorDataset
    <https://pytorch.org/docs/stable/data.html#torch.utils.data.TensorDataset>`_, but samples are
    ndarrays; `DataLoader` gives Tensors.

    Parameters
    ----------
    *tensors : ndarray or Tensor
        At least one, each of shape ``(N, ...)`` and of any dtype; they are not copied.

    Attributes
    ----------
    arrays : tuple of ndarray
        The arrays, in the order given.

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
        self.arrays: tuple[NDArray[Any], ...] = tuple(
            np.asarray(tensor.data) if isinstance(tensor, Tensor) else tensor for tensor in tensors
        )

    def __len__(self) -> int:
        return len(self.arrays[0])

    def __getitem__(self, index: Indices) -> tuple[Any, ...]:
        """Give the sample at an int, or the batch at a slice or a 1-d integer array."""
        key = first_axis_index(type(self).__name__, index, len(self))
        return tuple(array[key] for array in self.arrays)

    def batch(self, indices: NDArray[np.int64]) -> Any:
        """Give the samples at `indices`, int64 of shape (B,), by one fancy index per array."""
        # An overridden __getitem__ (augmentation, say) was written for one sample at a time.
        if type(self).__getitem__ is not TensorDataset.__getitem__:
            return super().batch(indices)
        return self[indices]


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


class Subset(Dataset):
    """The samples of a dataset at the given indices.

    As `torch.utils.data.Subset
    <https://pytorch.org/docs/stable/data.html#torch.utils.data.Subset>`_.

    Parameters
    ----------
    dataset : Dataset, or any object with ``__len__`` and ``__getitem__``
        Where the samples come from.
    indices : iterable of int
        Indices into `dataset`, kept as an int64 array of shape (M,).

    Raises
    ------
    IndexError
        An index is outside the dataset.
    TypeError
        The indices are not integers.
    """

    def __init__(self, dataset: MapStyle, indices: Iterable[int]) -> None:
        self.dataset = dataset
        self.indices = as_indices("Subset", "indices", indices)
        first_axis_index("Subset", self.indices, len(dataset))

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: Indices) -> Any:
        """Give the sample at an int; a slice or integer array is passed on to the dataset."""
        chosen = self.indices[first_axis_index("Subset", index, len(self))]
        # A list, say, knows plain ints only.
        return self.dataset[int(chosen) if chosen.ndim == 0 else chosen]

    def batch(self, indices: NDArray[np.int64]) -> Any:
        """Give the batch of samples at `indices`, int64 of shape (B,), as the dataset does."""
        if type(self).__getitem__ is not Subset.__getitem__:  # as in TensorDataset.batch
            return super().batch(indices)
        return fetch_batch(self.dataset, self.indices[indices])


def random_split(
    dataset: MapStyle, lengths: Sequence[int | float], seed: int | None = None
) -> list[Subset]:
    """Split a dataset at random into subsets without overlap.

    As `torch.utils.data.random_split
    <https://pytorch.org/docs/stable/data.html#torch.utils.data.random_split>`_.

    Parameters
    ----------
    dataset : Dataset, or any object with ``__len__`` and ``__getitem__``
        What to split.
    lengths : sequence of int or float
        Lengths that add up to ``len(dataset)``, or fractions that add up to 1: these are rounded
        down, and what is left over goes to the first subsets, one sample each.
    seed : int, optional
        Makes the split reproducible; by default `fastlayers.manual_seed` governs it.

    Raises
    ------
    ValueError
        The lengths do not add up, or one of them is negative or no whole number.
    """
    total = len(dataset)
    counts = _counts_of_fractions(lengths, total) if math.isclose(sum(lengths), 1) else lengths
    whole = [int(count) for count in counts]
    if whole != list(counts) or sum(whole) != total or min(lengths) < 0:
        raise ValueError(
            f"random_split: lengths must be whole numbers that add up to {total}, the length of "
            f"the dataset, or fractions that add up to 1, got {list(lengths)}"
        )
    if seed is None:
        generator = random.numpy_generator()
    else:
        generator = np.random.default_rng(whole_number("random_split", "seed", seed, 0))
    parts = np.split(generator.permutation(total), np.cumsum(whole)[:-1])
    return [Subset(dataset, part) for part in parts]


def fetch_batch(dataset: MapStyle, indices: NDArray[np.int64]) -> Any:
    """Collate the samples at `indices`, int64 (B,), in the way that suits the dataset best."""
    if isinstance(dataset, Dataset):
        return dataset.batch(indices)
    return _collate_one_by_one(dataset, indices)


def _collate_one_by_one(dataset: MapStyle, indices: NDArray[np.int64]) -> Any:
    return collate([dataset[index] for index in indices.tolist()])


def _counts_of_fractions(fractions: Sequence[int | float], total: int) -> list[int]:
    counts = [math.floor(total * fraction) for fraction in fractions]
    left_over = total - sum(counts)
    return [count + (position < left_over) for position, count in enumerate(counts)]
