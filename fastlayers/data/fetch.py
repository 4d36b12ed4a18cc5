"""How the batches of a loader are made from its dataset."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fastlayers.data.collate import cut, default_collate, default_convert
from fastlayers.data.dataset import fetch_batch, fetch_samples
from fastlayers.data.sampler import batched

__all__ = ["END", "Plan"]


class _Mark(enum.Enum):  # which is the same object in another process
    END = enum.auto()


END = _Mark.END  # instead of a batch: the iterable dataset is exhausted


@dataclass(frozen=True)
class Plan:
    """What workers need to know of a loader.

    Attributes
    ----------
    dataset : Dataset, or any object with ``__len__`` and ``__getitem__``
    collate_fn : callable
    batch_size : int, optional
        Samples of a batch of an iterable dataset.
    drop_last : bool
        Leave out a smaller last batch.
    is_iterable, is_batched : bool
        Whether the dataset is an `IterableDataset`, and whether samples are batched.
    """

    dataset: Any
    collate_fn: Callable[[Any], Any]
    batch_size: int | None
    drop_last: bool
    is_iterable: bool
    is_batched: bool

    def begin(self) -> Callable[[Any], Any]:
        """Begin an epoch: a function that makes the batch of some indices, or of one index.

        For an iterable dataset it takes None, and returns `END` at the end.
        """
        if self.is_iterable:
            return self._next()
        return self._batch if self.is_batched else self._sample

    def _sample(self, index: Any) -> Any:
        return self.collate_fn(self.dataset[index])

    def _batch(self, indices: list[Any]) -> Any:
        if not indices:  # of a rank that has no sample where others do
            return cut(self._batch([0]), lambda length: slice(0))
        if self.collate_fn is default_collate:
            return default_convert(fetch_batch(self.dataset, indices))
        return self.collate_fn(fetch_samples(self.dataset, indices))

    def _next(self) -> Callable[[Any], Any]:
        samples: Any = iter(self.dataset)
        if self.batch_size is not None:
            samples = batched(samples, self.batch_size, self.drop_last)

        def fetch(_: Any) -> Any:
            found = next(samples, END)
            return END if found is END else self.collate_fn(found)

        return fetch
