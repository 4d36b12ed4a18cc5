"""The FMA peak as a contestant, with the same work as in `fastlayers.profile`."""

from __future__ import annotations

from collections.abc import Callable

import fastlayers as fl
from fastlayers.profiling import machine

__all__ = ["prepare"]


def prepare(threads: int) -> tuple[Callable[[], None], int]:
    """A function of nothing but fused multiply-adds, and how many operations it does."""
    fl.set_num_threads(threads)
    work, operations = machine.multiply_adds(threads)
    work()  # compiles
    return work, operations
