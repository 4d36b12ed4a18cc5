"""The library's random state: one seed for initialisation, shuffling and dropout.

All threads share one state. What they draw is never torn and no number is drawn twice, but which
thread gets which depends on who comes first. A thread inside `fork_rng` has a state of its own:
there a seed gives the same numbers whatever other threads do.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import threading
from collections.abc import Iterator
from contextvars import ContextVar

import numpy as np

__all__ = ["dropout_stream", "fork_rng", "manual_seed", "numpy_generator"]


class _State:
    """A generator, and the key of the dropout masks with the number of those drawn."""

    __slots__ = ("calls", "generator", "key")

    def __init__(self, generator: np.random.Generator, key: int, calls: int = 0) -> None:
        self.generator, self.key, self.calls = generator, key, calls


_lock = threading.Lock()
_shared = _State(
    np.random.default_rng(), int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
)
# A variable of the context, so that a loader can hand it on to its thread.
_own: ContextVar[_State | None] = ContextVar("fastlayers.random", default=None)


def manual_seed(seed: int) -> None:
    """Seed initialisation, shuffling and dropout masks.

    Inside of `fork_rng` those of the block alone, otherwise those of all threads outside of one.

    Parameters
    ----------
    seed : int
        Non-negative; the same seed gives the same numbers for any number of threads.

    Raises
    ------
    TypeError, ValueError
        If `seed` is not an integer, or negative.
    """
    try:
        seed = operator.index(seed)
    except TypeError:
        raise TypeError(f"manual_seed: seed must be an integer, got {seed!r}") from None
    if seed < 0:
        raise ValueError(f"manual_seed: seed must not be negative, got {seed}")
    generator = np.random.default_rng(seed)
    # A hash of the seed: Philox keys that differ in few bits are fine, but equal to no number that
    # NumPy's generator draws.
    key = int(np.random.SeedSequence((seed, 1)).generate_state(1, np.uint64)[0])
    state = _own.get() or _shared
    with _lock:
        state.generator, state.key, state.calls = generator, key, 0


def numpy_generator() -> np.random.Generator:
    """The generator of initialisation and shuffling."""
    return (_own.get() or _shared).generator


def dropout_stream() -> tuple[np.uint64, np.uint64]:
    """Key and stream number of the next dropout mask; no two calls share a stream."""
    state = _own.get() or _shared
    with _lock:
        stream = state.calls
        state.calls += 1
        return np.uint64(state.key), np.uint64(stream)


@contextlib.contextmanager
def fork_rng() -> Iterator[None]:
    """A block with a random state of its own, which begins as a copy of that before it.

    Other threads don't see it, and afterwards the state is what it was, as with
    `torch.random.fork_rng`. Models that are trained in threads, each in a block with a seed, get
    the same bits as one after the other::

        def work(seed):
            with fastlayers.random.fork_rng():
                fastlayers.manual_seed(seed)
                ...  # make the model, and train it
    """
    state = _own.get() or _shared
    with _lock:
        own = _State(copy.deepcopy(state.generator), state.key, state.calls)
    token = _own.set(own)
    try:
        yield
    finally:
        _own.reset(token)
