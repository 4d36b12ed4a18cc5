"""Ops that wait for what follows them, so that a convolution, its ReLU and its pooling are one.

A call of such an op is checked at once, and runs when its output is first used: by another op, by
`Tensor.data`, by `backward`, by an optimiser, or at the end of the outermost module's call. This
can only be noticed by changing a wrapped array, not through its tensor, between two lines of one
`forward`; outside of modules, ops on arrays that the user holds never wait.
"""

from __future__ import annotations

import itertools
import os
import threading
import weakref
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from fastlayers.autograd import Backward, Recording, Tensor

__all__ = [
    "Deferred",
    "Watcher",
    "calls",
    "fuses",
    "is_fusion_enabled",
    "prune",
    "run_waiting",
    "set_fusion_enabled",
    "state",
]


class Deferred(Protocol):
    """A call that was checked, and has not run yet."""

    shape: tuple[int, ...]
    dtype: np.dtype
    requires_grad: bool

    def run(self) -> Recording:
        """Compute the output, and return it with what the tape records."""

    def add(self, output: Tensor, other: Tensor, in_place: bool = False) -> Tensor | None:
        """``output + other`` as a part of the call of `output`, where it can be one."""

    def reads(self, t: Tensor) -> bool:
        """Whether the values of `t` are yet to be read."""


class Watcher(Protocol):
    """Is notified of what runs (`fastlayers.profiling`)."""

    def started(self, head: Any) -> None:
        """The head of a chain is about to run by itself, and to be recorded."""

    def deferred(self, call: Any) -> None:
        """A call waits."""

    def run(self, call: Any) -> Recording:
        """Run a call that waited."""

    def recorded(
        self, output: np.ndarray, inputs: tuple[Tensor | None, ...], backward: Backward
    ) -> Backward:
        """An op ran; returns what the tape is to keep as its backward function."""

    def summed(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """``a + b`` of two gradients."""


class _State(threading.local):
    """This thread's outputs that wait, and whether a module's call is in progress."""

    def __init__(self) -> None:
        self.waiting: list[weakref.ref[Tensor]] = []
        self.call = 0  # outside of modules; else from `calls`, so that no two threads share one


state = _State()
calls = itertools.count(1)
# Checked wherever an op runs, which takes 7 ns if it is None. Each place reads it only once, as
# another thread may set it.
watcher: Watcher | None = None
# Whether ops wait.
fuses = os.environ.get("FASTLAYERS_FUSION", "1") != "0"


def is_fusion_enabled() -> bool:
    """Whether ops wait for what follows them."""
    return fuses


def set_fusion_enabled(enabled: bool) -> None:
    """Let ops wait for what follows and run as one (the default), or run each separately.

    The environment variable ``FASTLAYERS_FUSION=0`` turns it off from the start. Values and
    gradients are the same within rounding.
    """
    global fuses
    fuses = bool(enabled)
    run_waiting()


def prune(waiting: list[weakref.ref[Tensor]]) -> None:
    """Remove outputs that have run or died, each time that the list has doubled."""
    if len(waiting) & (len(waiting) - 1) == 0:
        waiting[:] = [held for held in waiting if (t := held()) is not None and t.deferred]


def run_waiting() -> None:
    """Run what this thread has called but not used yet, in the order of the calls."""
    waiting, state.waiting = state.waiting, []
    try:
        for reference in waiting:
            output = reference()
            if output is not None:
                output.array()
    except BaseException:  # no memory, or Ctrl-C: what has not run keeps waiting
        state.waiting = waiting + state.waiting
        raise
