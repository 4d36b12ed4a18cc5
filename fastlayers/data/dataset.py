"""Datasets: samples found by index, or produced one after the other."""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from types import GenericAlias
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from fastlayers.data.checks import Indices, as_indices, first_axis_index
from fastlayers.data.collate import collate

__all__ = [
    "ChainDataset",
    "ConcatDataset",
    "Dataset",
    "IterableDataset",
    "MapStyle",
    "Subset",
    "describe",
    "fetch_batch",
    "fetch_samples",
]


class MapStyle(Protocol):
    """What `DataLoader` and `Subset` require of a dataset; lists and arrays qualify."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Any: ...


class Dataset:
    """A dataset of samples found by index; subclasses define `__getitem__` and `__len__`.

    As `torch.utils.data.Dataset
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.Dataset>`_. ``a + b`` is the
    `ConcatDataset` of both.

    Raises
    ------
    NotImplementedError
        A subclass lacks `__getitem__`.
    """

    __class_getitem__ = classmethod(GenericAlias)  # type: ignore[var-annotated]

    def __getitem__(self, index: Any) -> Any:
        raise NotImplementedError(
            f"{type(self).__name__}: a Dataset must define __getitem__, got none"
        )

    def __add__(self, other: Dataset) -> Dataset:
        return ConcatDataset([self, other])  # type: ignore[list-item]  # one without a length fails

    def fetch_batch(self, indices: NDArray[np.int64]) -> Any:
        """Collate the samples at `indices`, int64 of shape (B,), into arrays (B, ...).

        A subclass may have a faster way than one sample after the other.
        """
        return collate(fetch_samples(self, indices.tolist()))  # type: ignore[arg-type]


class IterableDataset(Dataset):
    """A dataset whose samples come one after the other; subclasses define `__iter__`.

    As `torch.utils.data.IterableDataset
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.IterableDataset>`_. Each
    worker of a loader gives all samples, unless `__iter__` chooses by `get_worker_info`.

    Raises
    ------
    NotImplementedError
        A subclass lacks `__iter__`.
    """

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(
            f"{type(self).__name__}: an IterableDataset must define __iter__, got none"
        )

    def __add__(self, other: Dataset) -> Dataset:
        return ChainDataset([self, other])


class ChainDataset(IterableDataset):
    """The samples of several iterable datasets, one dataset after the other.

    Parameters
    ----------
    datasets : iterable of IterableDataset

    Raises
    ------
    TypeError
        One is not an `IterableDataset`.
    """

    def __init__(self, datasets: Iterable[Dataset]) -> None:
        self.datasets = list(datasets)
        for dataset in self.datasets:
            if not isinstance(dataset, IterableDataset):
                raise TypeError(
                    f"ChainDataset: datasets must be IterableDatasets, got {type(dataset).__name__}"
                )

    def __iter__(self) -> Iterator[Any]:
        return itertools.chain.from_iterable(self.datasets)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return sum(map(len, self.datasets))  # type: ignore[arg-type]


class ConcatDataset(Dataset):
    """The samples of several datasets, one dataset after the other.

    As `torch.utils.data.ConcatDataset
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.ConcatDataset>`_.

    Parameters
    ----------
    datasets : iterable of objects with ``__len__`` and ``__getitem__``
        At least one.

    Attributes
    ----------
    cumulative_sizes : list of int
        For each dataset, the number of samples in it and all before it.

    Raises
    ------
    TypeError
        One has no length or is an `IterableDataset`.
    ValueError
        There is none.
    """

    def __init__(self, datasets: Iterable[MapStyle]) -> None:
        self.datasets = list(datasets)
        if not self.datasets:
            raise ValueError("ConcatDataset: datasets must be at least one, got none")
        for dataset in self.datasets:
            if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
                raise TypeError(
                    "ConcatDataset: datasets must have __len__ and __getitem__, "
                    f"got {type(dataset).__name__}"
                )
        self.cumulative_sizes = list(itertools.accumulate(map(len, self.datasets)))

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(map(describe, self.datasets))})"

    def __getitem__(self, index: int) -> Any:
        position = first_axis_index("ConcatDataset", index, len(self))
        if not isinstance(position, int):
            raise TypeError(f"ConcatDataset: index must be an integer, got {index!r}")
        position %= len(self)
        number = bisect.bisect_right(self.cumulative_sizes, position)
        before = self.cumulative_sizes[number - 1] if number else 0
        return self.datasets[number][position - before]


class Subset(Dataset):
    """The samples of a dataset at the given indices.

    As `torch.utils.data.Subset
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.Subset>`_.

    Parameters
    ----------
    dataset : Dataset, or any object with ``__len__`` and ``__getitem__``
        Where the samples come from.
    indices : iterable of int
        Indices into `dataset`, kept as a list, so that the indices of two subsets can be added.

    Raises
    ------
    IndexError
        An index is outside the dataset.
    TypeError
        The indices are not integers.
    """

    def __init__(self, dataset: MapStyle, indices: Iterable[int]) -> None:
        self.dataset = dataset
        self._indices = as_indices("Subset", "indices", indices)
        first_axis_index("Subset", self._indices, len(dataset))
        self.indices = self._indices.tolist()

    def __len__(self) -> int:
        return len(self.indices)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} samples of {describe(self.dataset)})"

    def __getitem__(self, index: Indices) -> Any:
        """Return the sample at an int; a slice or integer array is passed on to the dataset."""
        chosen = self._indices[first_axis_index("Subset", index, len(self))]
        # A list, for example, accepts plain ints only.
        return self.dataset[int(chosen) if chosen.ndim == 0 else chosen]

    def fetch_batch(self, indices: NDArray[np.int64]) -> Any:
        """Return the batch of samples at `indices`, int64 of shape (B,), as the dataset does."""
        # An overridden __getitem__ (augmentation, say) was written for one sample at a time.
        if type(self).__getitem__ is not Subset.__getitem__:
            return super().fetch_batch(indices)
        return fetch_batch(self.dataset, self._indices[indices].tolist())


def fetch_batch(dataset: MapStyle, keys: Sequence[Any]) -> Any:
    """Collate the samples at some keys, into arrays, in the way that suits the dataset best."""
    if isinstance(dataset, Dataset) and not hasattr(dataset, "__getitems__"):
        indices = np.asarray(keys)
        if indices.ndim == 1 and indices.dtype.kind in "iu":
            return dataset.fetch_batch(indices.astype(np.int64, copy=False))
    return collate(fetch_samples(dataset, keys))


def fetch_samples(dataset: MapStyle, keys: Sequence[Any]) -> list[Any]:
    """The samples at some keys, from ``__getitems__`` where the dataset has it, as in PyTorch."""
    if callable(several := getattr(dataset, "__getitems__", None)):
        samples: list[Any] = several(list(keys))
        return samples
    return [dataset[key] for key in keys]


def describe(dataset: Any) -> str:
    """A dataset in one line: its own representation, or its type and length."""
    told = repr(dataset) if isinstance(dataset, Dataset) else ""
    if told and "\n" not in told and not told.startswith("<"):
        return told
    samples = f"{len(dataset)} samples" if isinstance(dataset, Sized) else "no length"
    return f"{type(dataset).__name__} of {samples}"
