"""DataLoader: batches of a dataset, in order or shuffled, prepared ahead of their use."""

from collections.abc import Iterable, Iterator, Sized
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastlayers import random
from fastlayers.data.checks import as_indices, whole_number
from fastlayers.data.collate import to_tensors
from fastlayers.data.dataset import MapStyle, fetch_batch
from fastlayers.data.prefetch import prefetched
from fastlayers.data.sampler import DistributedSampler


class DataLoader:
    """Iterate over a dataset in batches of Tensors.

    As `torch.utils.data.DataLoader
    <https://pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader>`_, with one thread in
    place of worker processes. Each iteration is an epoch and gives, per batch, a list with one
    Tensor ``(B, ...)`` per field (a single Tensor if samples are no tuples, a dict if they are
    mappings). Dtypes are kept; Python ints become int64 and Python floats float32.

    Parameters
    ----------
    dataset : Dataset, or any object with ``__len__`` and ``__getitem__``
        Where the samples come from.
    batch_size : int
        The number of samples B in a batch; the last batch may be smaller.
    shuffle : bool
        Whether to draw a new order for each epoch.
    sampler : iterable of int, optional
        The indices of an epoch, in place of ``shuffle``; read in full when an epoch begins. With a
        `DistributedSampler` all ranks get equally many batches, of which the last may be empty.
    drop_last : bool
        Whether to leave out a last batch of less than `batch_size` samples.
    seed : int, optional
        Makes the order of an epoch a function of the seed and the number of the epoch; by default
        `fastlayers.manual_seed` governs it.
    prefetch : int
        How many batches a background thread prepares ahead; 0 for no thread.

    Attributes
    ----------
    epoch : int
        The number of epochs begun so far; set it to resume a seeded run.

    Raises
    ------
    TypeError
        The dataset cannot be indexed.
    ValueError
        A number is out of range, or both `shuffle` and `sampler` are given.
    """

    def __init__(
        self,
        dataset: MapStyle,
        batch_size: int = 1,
        shuffle: bool = False,
        *,
        sampler: Iterable[int] | None = None,
        drop_last: bool = False,
        seed: int | None = None,
        prefetch: int = 2,
    ) -> None:
        if not hasattr(dataset, "__getitem__"):
            raise TypeError(
                f"DataLoader: dataset must have __getitem__, got {type(dataset).__name__}"
            )
        if shuffle and sampler is not None:
            raise ValueError("DataLoader: sampler must be None if shuffle is true, got both")
        self.dataset = dataset
        self.batch_size = whole_number("DataLoader", "batch_size", batch_size, 1)
        self.shuffle = shuffle
        self.sampler = sampler
        self.drop_last = drop_last
        self.seed = None if seed is None else whole_number("DataLoader", "seed", seed, 0)
        self.prefetch = whole_number("DataLoader", "prefetch", prefetch, 0)
        self.epoch = 0

    def __len__(self) -> int:
        """Give the number of batches in an epoch; TypeError if the sampler has no length."""
        if self.sampler is None:
            return self._batch_count(len(self.dataset))
        if not isinstance(self.sampler, Sized):
            raise TypeError(
                "DataLoader: sampler must have __len__ for the loader to have one, "
                f"got {type(self.sampler).__name__}"
            )
        return self._batch_count(len(self.sampler))

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch."""
        return self.part(0, 1)

    def part(self, rank: int, ranks: int) -> Iterator[Any]:
        """Begin an epoch of which this is given a part of each batch.

        Parameters
        ----------
        rank : int
            Which part, from 0.
        ranks : int
            How many parts there are, of equal lengths but for one sample; they may be empty.
        """
        # The order is drawn here, not in the thread, so that it depends on the caller alone.
        batches = self._batches(self._order(), rank, ranks)
        self.epoch += 1
        return prefetched(batches, self.prefetch) if self.prefetch else batches

    def samples(self, number: int) -> int:
        """How many samples a batch of an epoch has, of all parts together."""
        total = len(self.dataset if self.sampler is None else self.sampler)  # type: ignore[arg-type]
        return min(self.batch_size, max(0, total - number * self.batch_size))

    @property
    def is_distributed(self) -> bool:
        """Whether the sampler gives the samples of one rank."""
        return isinstance(self.sampler, DistributedSampler)

    def _batch_count(self, samples: int) -> int:
        if isinstance(self.sampler, DistributedSampler):  # as many as other ranks have
            samples = self.sampler.shortest if self.drop_last else self.sampler.longest
        return samples // self.batch_size if self.drop_last else -(-samples // self.batch_size)

    def _order(self) -> NDArray[np.int64]:
        if self.sampler is not None:
            return as_indices("DataLoader", "sampler", self.sampler)
        if not self.shuffle:
            return np.arange(len(self.dataset))
        if self.seed is None:
            return random.numpy_generator().permutation(len(self.dataset))
        return np.random.default_rng((self.seed, self.epoch)).permutation(len(self.dataset))

    def _batches(self, order: NDArray[np.int64], rank: int, ranks: int) -> Iterator[Any]:
        for number in range(self._batch_count(len(order))):
            start = number * self.batch_size
            batch = order[start : start + self.batch_size]
            batch = batch[part_of(len(batch), rank, ranks)]
            if len(batch):
                yield to_tensors(fetch_batch(self.dataset, batch))
            else:
                yield _without_samples(to_tensors(fetch_batch(self.dataset, np.zeros(1, np.int64))))


def part_of(samples: int, rank: int, ranks: int) -> slice:
    """Which samples of a batch are a rank's."""
    return slice(samples * rank // ranks, samples * (rank + 1) // ranks)


def _without_samples(batch: Any) -> Any:
    if isinstance(batch, dict):
        return {key: _without_samples(field) for key, field in batch.items()}
    return [_without_samples(field) for field in batch] if isinstance(batch, list) else batch[:0]
