"""The library's random state: one seed for initialisation, shuffling and dropout.

All threads share one state. Draws are atomic and no number is drawn twice, but which thread gets
which number depends on timing. A thread inside `fork_rng` has its own state: there a seed gives the
same numbers whatever other threads do.
"""

from __future__ import annotations

import contextlib
import copy
import operator
import os
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import Any

import numpy as np

__all__ = [
    "Generator",
    "dropout_stream",
    "fork_rng",
    "get_rng_state",
    "manual_seed",
    "numpy_generator",
    "set_rank",
    "set_rng_state",
]


class _State:
    """A generator, the key of the dropout masks, and the number of masks drawn.

    `seeded` is the key of rank 0, common to all ranks, `key` that of this rank.
    """

    __slots__ = ("calls", "generator", "key", "rank", "seeded")

    def __init__(self, generator: np.random.Generator, seeded: int) -> None:
        self.rank = 0
        self.set(generator, seeded, 0)

    def set(self, generator: np.random.Generator, seeded: int, calls: int) -> None:
        key = _hash((seeded, self.rank)) if self.rank else seeded
        # One line without a call, which a KeyboardInterrupt can't split.
        self.generator, self.seeded, self.key, self.calls = generator, seeded, key, calls


def _hash(numbers: tuple[int, ...]) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])


_lock = threading.Lock()
if hasattr(os, "register_at_fork"):
    # A process forked while another thread holds the lock would wait for it forever.
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )
_shared = _State(
    np.random.default_rng(), int(np.random.SeedSequence().generate_state(1, np.uint64)[0])
)
# A context variable, so that a loader can pass it on to its thread.
_own: ContextVar[_State | None] = ContextVar("fastlayers.random", default=None)


def manual_seed(seed: int) -> None:
    """Seed initialisation, shuffling and dropout masks.

    Inside `fork_rng` only those of the block, otherwise those of all threads outside of one.

    Parameters
    ----------
    seed : int
        Non-negative; the same seed gives the same numbers for any number of threads.

    Raises
    ------
    TypeError, ValueError
        If `seed` is not an integer, or negative.
    """
    seed = _whole_number("manual_seed", "seed", seed)
    generator = np.random.default_rng(seed)
    # A hash of the seed: Philox keys may differ in few bits, but must not equal a number that
    # NumPy's generator draws.
    key = _hash((seed, 1))
    state = _own.get() or _shared
    with _lock:
        state.set(generator, key, 0)


def set_rank(rank: int) -> None:
    """Use the dropout masks of one of several processes that train together.

    They depend on the seed and the rank, for seeds set before and after this call; rank 0, the
    initial rank of every process, draws those of the seed alone. Initialisation and shuffling don't
    depend on the rank. Inside `fork_rng` the rank is that of the block.

    Parameters
    ----------
    rank : int
        Non-negative.

    Raises
    ------
    TypeError, ValueError
        If `rank` is not an integer, or negative.
    """
    rank = _whole_number("set_rank", "rank", rank)
    state = _own.get() or _shared
    with _lock:
        state.rank = rank
        state.set(state.generator, state.seeded, state.calls)


def get_rng_state() -> dict[str, Any]:
    """The random state; after `set_rng_state` the same numbers are drawn again.

    Inside `fork_rng` that of the block.

    Returns
    -------
    dict
        JSON-compatible text and integers: the ``generator`` in NumPy's form, the ``key`` of the
        dropout masks, the same for all ranks, and the number of ``calls`` that drew one.
    """
    state = _own.get() or _shared
    with _lock:
        generator: Any = state.generator.bit_generator.state
        return {"generator": generator, "key": state.seeded, "calls": state.calls}


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Set the random state; the rank stays, so a state of rank 0 gives each rank its own masks.

    Parameters
    ----------
    state : mapping
        As from `get_rng_state`.

    Raises
    ------
    ValueError
        If it is invalid; then nothing is changed.
    """
    generator = np.random.default_rng(0)
    try:
        generator.bit_generator.state = state["generator"]
        key, calls = (operator.index(state[name]) for name in ("key", "calls"))
        # NumPy takes numbers modulo their width.
        known = generator.bit_generator.state == state["generator"]
        if not (known and 0 <= key < 2**64 and 0 <= calls < 2**64):
            raise ValueError("a number is out of its range")
    except (AttributeError, LookupError, OverflowError, TypeError, ValueError) as error:
        raise ValueError(
            f"set_rng_state: state must be as get_rng_state() gives it, got another: {error}"
        ) from error
    own = _own.get() or _shared
    with _lock:
        own.set(generator, key, calls)


def numpy_generator() -> np.random.Generator:
    """The generator of initialisation and shuffling."""
    return (_own.get() or _shared).generator


class Generator:
    """A separate random state, for functions and loaders that take a `generator`.

    Its numbers are NumPy's: the same seed gives the same numbers again, but not PyTorch's.

    Parameters
    ----------
    device : str or device
        Must be the CPU.

    Raises
    ------
    RuntimeError
        If it is another device.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.Generator.html
    """

    def __init__(self, device: Any = "cpu") -> None:
        from fastlayers.autograd.types import device as Device
        from fastlayers.ops import check

        check.device("Generator", device)
        self.device = Device(device)
        # PyTorch's: a new generator has a fixed seed until `seed` is called.
        self.manual_seed(67280421310721)

    def manual_seed(self, seed: int) -> Generator:
        """Start from a seed; a negative one counts from 2**64."""
        number = int(operator.index(seed))
        if not -(2**63) <= number < 2**64:
            raise RuntimeError(f"manual_seed: seed must be a 64-bit integer, got {seed}")
        self._seed = number % 2**64
        self._draws = np.random.default_rng(self._seed)
        return self

    def seed(self) -> int:
        """Start from a seed drawn by the operating system, and return it."""
        self.manual_seed(int(np.random.SeedSequence().generate_state(1, np.uint64)[0]))
        return self._seed

    def initial_seed(self) -> int:
        """The seed of the last `manual_seed` or `seed`."""
        return self._seed

    @property
    def numpy(self) -> np.random.Generator:
        """NumPy's generator, which draws the numbers."""
        return self._draws

    def get_state(self) -> dict[str, Any]:
        """The state; after `set_state` the same numbers are drawn again."""
        return {"generator": self._draws.bit_generator.state, "seed": self._seed}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Set a state from `get_state`."""
        draws = np.random.default_rng(0)
        draws.bit_generator.state = state["generator"]
        self._draws, self._seed = draws, operator.index(state["seed"])


def as_numpy(op: str, generator: Any) -> np.random.Generator:
    """NumPy's generator for an argument ``generator``; None stands for the library's own.

    Raises
    ------
    TypeError
        If it is neither None, a `Generator` nor a `numpy.random.Generator`.
    """
    if generator is None:
        return numpy_generator()
    found = generator.numpy if isinstance(generator, Generator) else generator
    if not isinstance(found, np.random.Generator):
        raise TypeError(
            f"{op}: generator must be a Generator of fastlayers or of NumPy, "
            f"got {type(generator).__name__}"
        )
    return found


def dropout_stream() -> tuple[np.uint64, np.uint64]:
    """Key and stream number of the next dropout mask; no two calls share a stream."""
    state = _own.get() or _shared
    with _lock:
        stream = state.calls
        state.calls += 1
        return np.uint64(state.key), np.uint64(stream)


@contextlib.contextmanager
def fork_rng() -> Iterator[None]:
    """A block with its own random state, initially a copy of the one outside.

    Other threads don't see it, and afterwards the previous state is restored, as with
    `torch.random.fork_rng`. Models trained in parallel threads, each in a block with a seed, are
    bitwise the same as when trained one after the other::

        def work(seed):
            with fastlayers.random.fork_rng():
                fastlayers.manual_seed(seed)
                ...  # make the model, and train it
    """
    state = _own.get() or _shared
    with _lock:
        own = copy.copy(state)
        own.generator = copy.deepcopy(state.generator)
    token = _own.set(own)
    try:
        yield
    finally:
        _own.reset(token)


def _whole_number(function: str, argument: str, value: Any) -> int:
    try:
        number = operator.index(value)
    except TypeError:
        raise TypeError(f"{function}: {argument} must be an integer, got {value!r}") from None
    if number < 0:
        raise ValueError(f"{function}: {argument} must not be negative, got {number}")
    return number
