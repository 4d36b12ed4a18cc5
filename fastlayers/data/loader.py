"""DataLoader: batches of a dataset, in order or shuffled, made on demand or in advance."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sized
from types import GenericAlias
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.data import options
from fastlayers.data.checks import callable_or_none, true_or_false, whole_number
from fastlayers.data.collate import cut, default_collate, default_convert
from fastlayers.data.dataset import IterableDataset, describe
from fastlayers.data.distributed import DistributedSampler
from fastlayers.data.fetch import Plan
from fastlayers.data.iteration import Team, made_by_workers, made_here
from fastlayers.data.sampler import (
    BatchSampler,
    RandomSampler,
    SeededSampler,
    SequentialSampler,
    count_batches,
)
from fastlayers.data.threads import start_threads

__all__ = ["DataLoader", "part_of"]

_FIXED = ("batch_size", "batch_sampler", "sampler", "drop_last", "dataset", "persistent_workers")


class DataLoader:
    """Iterate over a dataset in batches of Tensors.

    As `torch.utils.data.DataLoader
    <https://docs.pytorch.org/docs/stable/data.html#torch.utils.data.DataLoader>`_, whose workers
    are threads unless processes are requested. Each iteration is an epoch and gives, per batch, a
    list with one Tensor ``(B, ...)`` per field (a single Tensor if samples are not tuples, a dict
    if they are mappings). Dtypes are kept; Python ints become int64 and Python floats float32.

    Parameters
    ----------
    dataset : Dataset, or any object with ``__len__`` and ``__getitem__``
        Where the samples come from.
    batch_size : int, optional
        The number of samples B in a batch; the last batch may be smaller. None gives the samples
        themselves, with arrays as Tensors.
    shuffle : bool, optional
        Whether to draw a new order for each epoch, when its iteration begins.
    sampler : iterable, optional
        The indices of an epoch, in place of ``shuffle``. With a `DistributedSampler` all ranks get
        the same number of batches, the last of which may be empty.
    batch_sampler : iterable, optional
        The lists of indices of an epoch, in place of the other options of batches.
    num_workers : int
        How many workers prepare batches in advance. With 0, samples are drawn when the program
        requests a batch, never before.
    collate_fn : callable, optional
        Makes a batch from a list of samples; by default `default_collate`. With ``batch_size=None``
        it is called with each sample, and the default is `default_convert`.
    pin_memory, pin_memory_device
        No effect on a CPU.
    drop_last : bool
        Whether to leave out a last batch of fewer than `batch_size` samples.
    timeout : float
        Seconds to wait for a batch from a worker; 0 waits as long as it takes.
    worker_init_fn : callable, optional
        Called in each worker with its number, before its first batch.
    multiprocessing_context : str or context of multiprocessing, optional
        "fork", "forkserver" or "spawn": workers are processes, with copies of the dataset, so that
        Python code runs on several cores. By default they are threads, which start at once and
        share the dataset; NumPy and the kernels of this library run on several cores there too.
        The functions of ``random`` and ``numpy.random`` have one state for all threads; use
        `fastlayers.random.numpy_generator`, or the seed from `get_worker_info`.
    generator : Generator or numpy.random.Generator, optional
        Draws orders and the seeds of workers; by default that of `fastlayers.manual_seed`. A seed
        is drawn for each epoch, whatever the number of workers, so that orders don't depend on it.
    prefetch_factor : int, optional
        How many batches each worker prepares in advance; 2 by default.
    persistent_workers : bool
        Keep the workers and their random states from epoch to epoch.
    in_order : bool
        Batches come in order even if False.
    seed : int, optional
        Instead of a generator: orders and seeds become a function of it and the number of the
        epoch.
    prefetch : int, optional
        Has no effect, and warns; an option of an older version, kept for one more. Only workers
        draw samples in advance.

    Attributes
    ----------
    epoch : int
        The number of epochs begun so far; set it to resume a seeded run.

    Raises
    ------
    TypeError
        The dataset cannot be indexed, or an option is of the wrong type.
    ValueError
        A number is out of range, or options exclude each other.
    RuntimeError
        In an iteration, if a worker took too long or has ended; other exceptions in a worker keep
        their type, with the worker's traceback in the message.
    """

    __class_getitem__ = classmethod(GenericAlias)  # type: ignore[var-annotated]

    def __init__(
        self,
        dataset: Any,
        batch_size: int | None = 1,
        shuffle: bool | None = None,
        sampler: Iterable[Any] | None = None,
        batch_sampler: Iterable[Iterable[Any]] | None = None,
        num_workers: int = 0,
        collate_fn: Callable[[Any], Any] | None = None,
        pin_memory: bool = False,
        drop_last: bool = False,
        timeout: float = 0,
        worker_init_fn: Callable[[int], Any] | None = None,
        multiprocessing_context: Any = None,
        generator: Any = None,
        *,
        prefetch_factor: int | None = None,
        persistent_workers: bool = False,
        pin_memory_device: str = "",
        in_order: bool = True,
        seed: int | None = None,
        prefetch: int | None = None,
    ) -> None:
        op = "DataLoader"
        if prefetch is not None:
            options.tell_of_prefetch(prefetch)
        options.check_dataset(dataset, shuffle, sampler, batch_sampler)
        options.check_batches(batch_size, shuffle, sampler, batch_sampler, drop_last)
        self.num_workers = whole_number(op, "num_workers", num_workers, 0)
        self.prefetch_factor = options.prefetch_factor(num_workers, prefetch_factor)
        self.timeout = options.timeout(timeout)
        self.multiprocessing_context = options.context(num_workers, multiprocessing_context)
        self.worker_init_fn = callable_or_none(op, "worker_init_fn", worker_init_fn)
        self.pin_memory, self.pin_memory_device = pin_memory, pin_memory_device
        self.in_order = in_order
        self.seed = None if seed is None else whole_number(op, "seed", seed, 0)
        options.check_generator(generator, self.seed)
        self.generator = generator
        batched = batch_size is not None  # a batch_sampler leaves it at 1
        callable_or_none(op, "collate_fn", collate_fn)
        self.collate_fn = collate_fn or (default_collate if batched else default_convert)
        self._is_iterable = isinstance(dataset, IterableDataset)
        self.dataset = dataset
        self.sampler = self._sampler(shuffle) if sampler is None else sampler
        self.drop_last = true_or_false(op, "drop_last", drop_last)
        self.batch_size = None if batch_sampler is not None else batch_size
        if batch_sampler is None and batch_size is not None and self.sampler is not None:
            batch_sampler = BatchSampler(self.sampler, batch_size, self.drop_last)
        self.batch_sampler = batch_sampler
        self.epoch = 0
        self._team: Team | None = None
        self.persistent_workers = options.persistent_workers(num_workers, persistent_workers)

    def __setattr__(self, name: str, value: Any) -> None:
        # Set last: the samplers are made from the others.
        if name in _FIXED and "persistent_workers" in vars(self):
            raise ValueError(
                f"DataLoader: {name} must not be set after the loader is made, got {value!r}"
            )
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        batches = f"batch_size={self.batch_size}"
        if self.batch_size is None and self.batch_sampler is not None:
            batches = f"batch_sampler={type(self.batch_sampler).__name__}"
        sampler = type(self.sampler).__name__
        return (
            f"DataLoader({describe(self.dataset)}, {batches}, sampler={sampler}, "
            f"num_workers={self.num_workers}, drop_last={self.drop_last})"
        )

    def __len__(self) -> int:
        """Return the number of batches in an epoch; TypeError if its source has no length."""
        if isinstance(self.sampler, DistributedSampler) and self.batch_size is not None:
            return self._batches_of_ranks(self.sampler)
        source: Any = self.batch_sampler if self.batch_sampler is not None else self.sampler
        if self._is_iterable:
            source = self.dataset
        if not isinstance(source, Sized):
            name = "dataset" if self._is_iterable else "sampler"
            raise TypeError(
                f"DataLoader: {name} must have __len__ for the loader to have one, "
                f"got {type(source).__name__}"
            )
        if self._is_iterable and self.batch_size is not None:
            return count_batches(len(source), self.batch_size, self.drop_last)
        return len(source)

    def __iter__(self) -> Iterator[Any]:
        """Begin an epoch."""
        return self.part(0, 1)

    def part(self, rank: int, ranks: int) -> Iterator[Any]:
        """Begin an epoch in which only a part of each batch is returned.

        Parameters
        ----------
        rank : int
            Which part, from 0.
        ranks : int
            Number of parts. Their lengths differ by at most one sample; they may be empty.
        """

        def choose(length: int) -> slice:
            return part_of(length, rank, ranks)

        # Orders and seeds are drawn here, so that they depend on the caller alone.
        tasks = self._tasks()
        if ranks > 1 and self.batch_sampler is not None:
            tasks = (indices[choose(len(indices))] for indices in tasks)
        batches = self._made(tasks, self._epoch_seed())
        self.epoch += 1
        if ranks > 1 and self.batch_sampler is None:
            return (cut(batch, choose) for batch in batches)
        return batches

    def samples(self, number: int) -> int:
        """Number of samples in a batch of an epoch, of all parts together."""
        if self.batch_size is None or not isinstance(self.sampler, Sized):
            raise TypeError(
                "DataLoader: batch_size must be given, and the sampler have a length, for batches "
                f"of known sizes, got {self!r}"
            )
        return min(self.batch_size, max(0, len(self.sampler) - number * self.batch_size))

    @property
    def is_distributed(self) -> bool:
        """Whether the sampler gives the samples of one rank."""
        return isinstance(self.sampler, DistributedSampler)

    def _sampler(self, shuffle: bool | None) -> Any:
        if self._is_iterable:
            return None
        if not shuffle:
            return SequentialSampler(self.dataset)
        if self.seed is not None:
            return SeededSampler(self.dataset, self.seed)
        return RandomSampler(self.dataset, generator=self.generator)

    def _batches_of_ranks(self, sampler: DistributedSampler) -> int:
        """As many as other ranks have."""
        samples = sampler.shortest if self.drop_last else sampler.longest
        return count_batches(samples, self.batch_size or 1, self.drop_last)

    def _tasks(self) -> Iterator[Any]:
        """What to make each batch from."""
        if self._is_iterable:
            return itertools.repeat(None)
        if isinstance(self.sampler, SeededSampler):
            self.sampler.number, self.sampler.seed = self.epoch, self.seed or 0
        if self.batch_sampler is None:
            return iter(self.sampler)
        batches = map(_as_list, iter(self.batch_sampler))
        if isinstance(self.sampler, DistributedSampler):
            more = itertools.chain(batches, itertools.repeat([]))
            return itertools.islice(more, self._batches_of_ranks(self.sampler))
        return batches

    def _epoch_seed(self) -> int:
        if self.seed is None:
            return int(random.as_numpy("DataLoader", self.generator).integers(2**63))
        state = np.random.SeedSequence((self.seed, self.epoch)).generate_state(1, np.uint64)
        return int(state[0] >> np.uint64(1))

    def _made(self, tasks: Iterator[Any], seed: int) -> Iterator[Any]:
        batched = self.batch_sampler is not None
        plan = Plan(
            self.dataset, self.collate_fn, self.batch_size, self.drop_last, self._is_iterable,
            batched,
        )  # fmt: skip
        if not self.num_workers:
            return made_here(plan, tasks)
        hire = functools.partial(self._hire, plan, seed)
        return made_by_workers(hire, tasks, self.prefetch_factor or 1, self.timeout)

    def _hire(self, plan: Plan, seed: int) -> Team:
        if self._team is not None:
            return self._team
        crew = plan, self.num_workers, seed, self.worker_init_fn
        team: Any
        if self.multiprocessing_context is None:
            team = start_threads(*crew)
        else:
            from fastlayers.data.processes import start_processes

            team = start_processes(*crew, self.multiprocessing_context)
        if self.persistent_workers:
            self._team = team
        return team  # type: ignore[no-any-return]


def part_of(samples: int, rank: int, ranks: int) -> slice:
    """Which samples of a batch belong to a rank."""
    return slice(samples * rank // ranks, samples * (rank + 1) // ranks)


def _as_list(indices: Any) -> list[Any]:
    return indices.tolist() if hasattr(indices, "tolist") else list(indices)
