"""Checks of `DataLoader`'s options, which exclude each other as PyTorch's do."""

from __future__ import annotations

import math
import multiprocessing
import numbers
import warnings
from multiprocessing.context import BaseContext
from typing import Any

from fastlayers import random
from fastlayers.data.checks import true_or_false, whole_number
from fastlayers.data.dataset import IterableDataset

_OP = "DataLoader"


def check_dataset(dataset: Any, shuffle: Any, sampler: Any, batch_sampler: Any) -> None:
    """Raise TypeError for anything but a dataset, ValueError for what an iterable one excludes."""
    if not isinstance(dataset, IterableDataset):
        if not hasattr(dataset, "__getitem__"):
            raise TypeError(f"{_OP}: dataset must have __getitem__, got {type(dataset).__name__}")
        return
    given = {"sampler": sampler, "batch_sampler": batch_sampler, "shuffle": shuffle or None}
    for name, value in given.items():
        if value is not None:
            raise ValueError(f"{_OP}: {name} must be left out with an IterableDataset, got {value}")


def check_batches(
    batch_size: Any, shuffle: Any, sampler: Any, batch_sampler: Any, drop_last: Any
) -> None:
    """Raise ValueError for a wrong size, and for options that exclude each other."""
    if batch_size is not None:
        whole_number(_OP, "batch_size", batch_size, 1)
    if sampler is not None and shuffle:
        raise ValueError(f"{_OP}: sampler option is mutually exclusive with shuffle, got both")
    if batch_sampler is not None:
        if batch_size != 1 or shuffle or sampler is not None or drop_last:
            raise ValueError(
                f"{_OP}: batch_sampler option is mutually exclusive with batch_size, shuffle, "
                "sampler and drop_last, got one of them, too"
            )
    elif batch_size is None and drop_last:
        raise ValueError(
            f"{_OP}: batch_size=None is mutually exclusive with drop_last, got drop_last=True"
        )


def tell_of_prefetch(value: Any) -> None:
    """Warn about an argument of an older version."""
    whole_number(_OP, "prefetch", value, 0)
    warnings.warn(
        f"{_OP}: prefetch has no effect and will be removed; num_workers=1 prepares batches ahead",
        DeprecationWarning,
        stacklevel=3,
    )


def prefetch_factor(num_workers: int, factor: int | None) -> int | None:
    """Return the number of batches that each worker prepares in advance, 2 by default."""
    if num_workers == 0:
        if factor is not None:
            raise ValueError(f"{_OP}: prefetch_factor must be None without workers, got {factor!r}")
        return None
    return 2 if factor is None else whole_number(_OP, "prefetch_factor", factor, 1)


def timeout(seconds: float) -> float:
    """Return the timeout in seconds; ValueError if it is negative or not a number."""
    if (
        not isinstance(seconds, numbers.Real)
        or isinstance(seconds, bool)
        or not 0 <= seconds < math.inf
    ):
        raise ValueError(f"{_OP}: timeout must be a non-negative number, got {seconds!r}")
    return seconds


def persistent_workers(num_workers: int, wanted: bool) -> bool:
    """Return whether workers are kept."""
    if true_or_false(_OP, "persistent_workers", wanted) and not num_workers:
        raise ValueError(f"{_OP}: persistent_workers option needs num_workers > 0, got 0")
    return bool(wanted)


def context(num_workers: int, given: Any) -> BaseContext | None:
    """Return the multiprocessing context, which may be given by name, such as "fork"."""
    if given is None:
        return None
    if not num_workers:
        raise ValueError(
            f"{_OP}: multiprocessing_context can only be used with num_workers > 0, got 0"
        )
    if isinstance(given, BaseContext):
        return given
    known = multiprocessing.get_all_start_methods()
    if not isinstance(given, str):
        raise TypeError(
            f"{_OP}: multiprocessing_context must be a context of multiprocessing or one of "
            f"{', '.join(known)}, got {given!r}"
        )
    if given not in known:
        raise ValueError(
            f"{_OP}: multiprocessing_context must be one of {', '.join(known)}, got {given!r}"
        )
    return multiprocessing.get_context(given)


def check_generator(generator: Any, seed: int | None) -> None:
    """Raise TypeError for another object, ValueError for a generator together with a seed."""
    random.as_numpy(_OP, generator)
    if generator is not None and seed is not None:
        raise ValueError(f"{_OP}: seed must be None if a generator is given, got {seed!r}")
