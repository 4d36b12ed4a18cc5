"""How many threads kernels use; `fastlayers.runtime.parallel` runs them."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import SupportsIndex

__all__ = ["follow", "get_num_threads", "is_chosen", "set_num_threads", "share", "workers_for"]

# Elementary operations (a multiply-add, a load) below which a parallel launch, about 2 us,
# costs more than the second core gives.
SERIAL_WORK = 1e5

_num_threads = 0  # 0: not decided yet
_chosen = False  # by `set_num_threads`
_followers: list[Callable[[int], None]] = []


def workers_for(work: float) -> int:
    """Threads worth using for `work` elementary operations."""
    return 1 if work < SERIAL_WORK else get_num_threads()


def get_num_threads() -> int:
    """Threads that kernels use: `set_num_threads`, ``FASTLAYERS_NUM_THREADS``, or all cores."""
    if not _num_threads:
        named = os.environ.get("FASTLAYERS_NUM_THREADS")
        try:
            share(int(named) if named else _available())
        except ValueError:
            raise ValueError(
                f"FASTLAYERS_NUM_THREADS: expected a positive integer, got {named!r}"
            ) from None
    return _num_threads


def set_num_threads(n: int) -> None:
    """Use `n` threads in kernels; results do not depend on it.

    Raises
    ------
    ValueError
        If `n` is not a positive integer.
    """
    global _chosen
    share(n)
    _chosen = True


def is_chosen() -> bool:
    """Whether the user has said how many threads kernels use."""
    return _chosen or any(map(os.environ.get, ("FASTLAYERS_NUM_THREADS", "NUMBA_NUM_THREADS")))


def share(n: int) -> None:
    """Use `n` threads until the user says how many."""
    global _num_threads
    if isinstance(n, bool) or not isinstance(n, SupportsIndex) or operator.index(n) < 1:
        raise ValueError(f"set_num_threads: n must be a positive integer, got {n!r}")
    _num_threads = operator.index(n)
    for follower in _followers:
        follower(_num_threads)


def follow(follower: Callable[[int], None]) -> None:
    """Call `follower` with the number of threads, now and whenever it changes."""
    _followers.append(follower)
    follower(get_num_threads())


def _available() -> int:
    """Threads that Numba will have: ``NUMBA_NUM_THREADS``, or the cores of this process."""
    if named := os.environ.get("NUMBA_NUM_THREADS"):
        return int(named)
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1
