"""How many threads kernels use; `fastlayers.runtime.parallel` runs them."""

from __future__ import annotations

import operator
import os
from collections.abc import Callable
from typing import SupportsIndex

from fastlayers.runtime import cores

__all__ = [
    "follow",
    "get_num_threads",
    "is_chosen",
    "origin",
    "set_num_threads",
    "share",
    "workers_for",
]

# Elementary operations (a multiply-add, a load) below which a parallel launch, about 2 us, costs
# more than the second core saves.
SERIAL_WORK = 1e5

_num_threads, _origin = 0, ""  # 0: not decided yet
_chosen = False  # by `set_num_threads`
_followers: list[Callable[[int], None]] = []


def workers_for(work: float) -> int:
    """Threads worth using for `work` elementary operations."""
    return 1 if work < SERIAL_WORK else get_num_threads()


def get_num_threads() -> int:
    """Threads that kernels use.

    Decided by the first of these that is set: `set_num_threads`, ``FASTLAYERS_NUM_THREADS``,
    ``OMP_NUM_THREADS`` (the first number of a list; what OpenMP ignores is ignored) limited by
    ``NUMBA_NUM_THREADS``, or the latter alone. By default one for each physical core that this
    process may run on, or fewer if the CPU quota of its control group is lower.

    Raises
    ------
    ValueError
        If ``FASTLAYERS_NUM_THREADS`` or ``NUMBA_NUM_THREADS`` is not a positive integer.
    """
    if not _num_threads:
        share(*(_named() or cores.available()))
    return _num_threads


def origin() -> str:
    """What decided the number of threads, such as ``affinity`` or a variable's name."""
    get_num_threads()
    return _origin


def set_num_threads(n: int) -> None:
    """Use `n` threads in kernels; results do not depend on it.

    Raises
    ------
    ValueError
        If `n` is not a positive integer.
    """
    global _chosen
    share(n, "set_num_threads")
    _chosen = True


def is_chosen() -> bool:
    """Whether the user has chosen how many threads kernels use."""
    return _chosen or _named() is not None


def share(n: int, origin: str) -> None:
    """Use `n` threads, as decided by `origin`, until the user chooses a number."""
    global _num_threads, _origin
    if isinstance(n, bool) or not isinstance(n, SupportsIndex) or operator.index(n) < 1:
        raise ValueError(f"set_num_threads: n must be a positive integer, got {n!r}")
    _num_threads, _origin = operator.index(n), origin
    for follower in _followers:
        follower(_num_threads)


def follow(follower: Callable[[int], None]) -> None:
    """Call `follower` with the number of threads, now and whenever it changes."""
    _followers.append(follower)
    follower(get_num_threads())


def _named() -> tuple[int, str] | None:
    """The number of threads set by the environment, and the variable that sets it."""
    own, numba = _positive("FASTLAYERS_NUM_THREADS"), _positive("NUMBA_NUM_THREADS")
    if own:
        return own, "FASTLAYERS_NUM_THREADS"
    counts = {"OMP_NUM_THREADS": _openmp(), "NUMBA_NUM_THREADS": numba}
    found = [(count, name) for name, count in counts.items() if count]
    return min(found, key=lambda limit: limit[0]) if found else None


def _positive(variable: str) -> int | None:
    """Value of a variable, or None if it is not set."""
    text = os.environ.get(variable)
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise ValueError(f"{variable}: expected a positive integer, got {text!r}")
    return value


def _openmp() -> int | None:
    """Threads of the outermost level, or None where OpenMP would ignore ``OMP_NUM_THREADS``."""
    levels = [level.strip() for level in os.environ.get("OMP_NUM_THREADS", "").split(",")]
    numbers = [int(level) if level.isdecimal() else 0 for level in levels]
    return numbers[0] if all(numbers) else None
