"""The order and the groups in which a loader takes the samples of a dataset."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence, Sized
from types import GenericAlias
from typing import Any, TypeVar

import numpy as np
from numpy.typing import ArrayLike

from fastlayers import random
from fastlayers.data.checks import true_or_false, whole_number

__all__ = [
    "BatchSampler",
    "RandomSampler",
    "Sampler",
    "SeededSampler",
    "SequentialSampler",
    "SubsetRandomSampler",
    "WeightedRandomSampler",
]

T = TypeVar("T")


class Sampler:
    """Yields the indices of an epoch; subclasses define `__iter__`, and `__len__` if they can.

    As `torch.utils.data.Sampler
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.Sampler>`_.

    Raises
    ------
    NotImplementedError
        A subclass lacks `__iter__`.
    """

    __class_getitem__ = classmethod(GenericAlias)  # type: ignore[var-annotated]

    def __iter__(self) -> Iterator[Any]:
        raise NotImplementedError(f"{type(self).__name__}: __iter__ must be defined, got none")


class SequentialSampler(Sampler):
    """The indices 0, 1, 2, ... of a dataset.

    Parameters
    ----------
    data_source : object with ``__len__``
    """

    def __init__(self, data_source: Sized) -> None:
        self.data_source = data_source

    def __iter__(self) -> Iterator[int]:
        return iter(range(len(self.data_source)))

    def __len__(self) -> int:
        return len(self.data_source)


class RandomSampler(Sampler):
    """The indices of a dataset in a random order, drawn when an iteration begins.

    As `torch.utils.data.RandomSampler
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.RandomSampler>`_.

    Parameters
    ----------
    data_source : object with ``__len__``
    replacement : bool
        Draw with replacement, so that some indices come several times.
    num_samples : int, optional
        How many indices to give; by default as many as there are samples. Without replacement, one
        order follows another if there are more than samples.
    generator : Generator or numpy.random.Generator, optional
        By default that of `fastlayers.manual_seed`.

    Raises
    ------
    TypeError, ValueError
        `replacement` is not a bool, `num_samples` not a positive integer, `generator` another
        object.
    """

    def __init__(
        self,
        data_source: Sized,
        replacement: bool = False,
        num_samples: int | None = None,
        generator: Any = None,
    ) -> None:
        self.data_source = data_source
        self.replacement = true_or_false("RandomSampler", "replacement", replacement)
        if num_samples is not None:
            num_samples = whole_number("RandomSampler", "num_samples", num_samples, 1)
        self._num_samples = num_samples
        random.as_numpy("RandomSampler", generator)
        self.generator = generator

    @property
    def num_samples(self) -> int:
        """How many indices an iteration gives."""
        return len(self.data_source) if self._num_samples is None else self._num_samples

    def __iter__(self) -> Iterator[int]:
        generator = random.as_numpy("RandomSampler", self.generator)
        total, wanted = len(self.data_source), self.num_samples
        if not total:
            return iter(())
        if self.replacement:
            return iter(generator.integers(0, total, wanted).tolist())
        orders = [generator.permutation(total) for _ in range(-(-wanted // total))]
        return iter(np.concatenate(orders)[:wanted].tolist())

    def __len__(self) -> int:
        return self.num_samples


class SeededSampler(Sampler):
    """The indices of a dataset in a random order that follows from a seed and a number.

    Parameters
    ----------
    data_source : object with ``__len__``
    seed : int

    Attributes
    ----------
    seed, number : int
        The number is that of the epoch; both are set by the loader.
    """

    def __init__(self, data_source: Sized, seed: int) -> None:
        self.data_source = data_source
        self.seed = seed
        self.number = 0

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.number))
        return iter(generator.permutation(len(self.data_source)).tolist())

    def __len__(self) -> int:
        return len(self.data_source)


class SubsetRandomSampler(Sampler):
    """The given indices in a random order.

    Parameters
    ----------
    indices : sequence
    generator : Generator or numpy.random.Generator, optional
        By default that of `fastlayers.manual_seed`.
    """

    def __init__(self, indices: Sequence[Any], generator: Any = None) -> None:
        random.as_numpy("SubsetRandomSampler", generator)
        self.indices, self.generator = indices, generator

    def __iter__(self) -> Iterator[Any]:
        generator = random.as_numpy("SubsetRandomSampler", self.generator)
        return iter([self.indices[i] for i in generator.permutation(len(self.indices)).tolist()])

    def __len__(self) -> int:
        return len(self.indices)


class WeightedRandomSampler(Sampler):
    """Indices of a dataset, each drawn with a probability proportional to its weight.

    As `torch.utils.data.WeightedRandomSampler
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.WeightedRandomSampler>`_.

    Parameters
    ----------
    weights : array_like
        One for each sample, finite and not negative; they need not add up to 1.
    num_samples : int
        How many indices to give.
    replacement : bool
        Whether an index may be drawn again.
    generator : Generator or numpy.random.Generator, optional
        By default that of `fastlayers.manual_seed`.

    Raises
    ------
    TypeError, ValueError
        An argument is out of range, or there are fewer weights above 0 than indices to draw without
        replacement.
    """

    def __init__(
        self,
        weights: ArrayLike,
        num_samples: int,
        replacement: bool = True,
        generator: Any = None,
    ) -> None:
        op = "WeightedRandomSampler"
        self.num_samples = whole_number(op, "num_samples", num_samples, 1)
        self.replacement = true_or_false(op, "replacement", replacement)
        self.weights = np.array(weights, dtype=np.float64)
        if self.weights.ndim != 1 or not np.all((self.weights >= 0) & (self.weights < np.inf)):
            raise ValueError(
                f"{op}: weights must be finite and not negative in a sequence, got {weights!r}"
            )
        possible = np.count_nonzero(self.weights)
        if possible < (1 if replacement else num_samples):
            raise ValueError(
                f"{op}: weights must have enough above 0 for num_samples, "
                f"got {possible} for {num_samples}"
            )
        random.as_numpy(op, generator)
        self.generator = generator

    def __iter__(self) -> Iterator[int]:
        generator = random.as_numpy("WeightedRandomSampler", self.generator)
        shares = self.weights / self.weights.sum()
        drawn = generator.choice(len(shares), self.num_samples, self.replacement, shares)
        return iter(drawn.tolist())

    def __len__(self) -> int:
        return self.num_samples


class BatchSampler(Sampler):
    """Lists of the indices that another sampler gives.

    As `torch.utils.data.BatchSampler
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.BatchSampler>`_. The other
    sampler's iteration begins with this one's.

    Parameters
    ----------
    sampler : iterable
    batch_size : int
        Indices per list.
    drop_last : bool
        Leave out a shorter last list.

    Raises
    ------
    TypeError, ValueError
        `batch_size` is not a positive integer, or `drop_last` not a bool.
    """

    def __init__(self, sampler: Iterable[Any], batch_size: int, drop_last: bool) -> None:
        self.sampler = sampler
        self.batch_size = whole_number("BatchSampler", "batch_size", batch_size, 1)
        self.drop_last = true_or_false("BatchSampler", "drop_last", drop_last)

    def __iter__(self) -> Iterator[list[Any]]:
        return batched(iter(self.sampler), self.batch_size, self.drop_last)

    def __len__(self) -> int:
        if not isinstance(self.sampler, Sized):
            raise TypeError(
                "BatchSampler: sampler must have __len__ for the batches to have one, "
                f"got {type(self.sampler).__name__}"
            )
        return count_batches(len(self.sampler), self.batch_size, self.drop_last)


def batched(items: Iterator[T], size: int, drop_last: bool) -> Iterator[list[T]]:
    """Lists of `size` items, of which the last may have fewer unless it is dropped."""
    while (batch := list(itertools.islice(items, size))) and len(batch) >= size * drop_last:
        yield batch


def count_batches(samples: int, size: int, drop_last: bool) -> int:
    """Number of lists that `batched` yields."""
    return samples // size if drop_last else -(-samples // size)
