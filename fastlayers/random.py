"""The library's random state: one seed for initialisation, shuffling and dropout."""

from __future__ import annotations

import contextlib
import copy
import operator
import threading
from collections.abc import Iterator

import numpy as np

__all__ = ["dropout_stream", "manual_seed", "numpy_generator", "preserved"]

_lock = threading.Lock()
_generator = np.random.default_rng()
_key = int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
_calls = 0


def manual_seed(seed: int) -> None:
    """Seed initialisation, shuffling and dropout masks.

    Parameters
    ----------
    seed : int
        Non-negative; the same seed gives the same numbers for any number of threads.

    Raises
    ------
    TypeError, ValueError
        If `seed` is not an integer, or negative.
    """
    global _generator, _key, _calls
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"manual_seed: seed must be an integer, got {seed!r}") from None
    if seed < 0:
        raise ValueError(f"manual_seed: seed must not be negative, got {seed}")
    with _lock:
        _generator = np.random.default_rng(seed)
        # A hash of the seed: Philox keys that differ in few bits are fine, but equal to no
        # number that NumPy's generator draws.
        _key = int(np.random.SeedSequence((seed, 1)).generate_state(1, np.uint64)[0])
        _calls = 0


def numpy_generator() -> np.random.Generator:
    """The generator of initialisation and shuffling."""
    return _generator


def dropout_stream() -> tuple[np.uint64, np.uint64]:
    """Key and stream number of the next dropout mask; no two calls share a stream."""
    global _calls
    with _lock:
        stream = _calls
        _calls += 1
        return np.uint64(_key), np.uint64(stream)


@contextlib.contextmanager
def preserved() -> Iterator[None]:
    """A block after which the random state is what it was before."""
    global _generator, _key, _calls
    before = copy.deepcopy(_generator), _key, _calls
    try:
        yield
    finally:
        with _lock:
            _generator, _key, _calls = before
