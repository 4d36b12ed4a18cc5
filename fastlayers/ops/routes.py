"""Tables of routes: which algorithm computes a pass of an op, and why.

A table is ordered: the first row whose algorithm serves a shape and pass computes it.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

__all__ = ["Algorithm", "Algorithms", "Grads", "Pass", "Route", "algorithms", "reasons", "route"]

Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]


class Pass(StrEnum):
    """What is computed of an op with a weight."""

    FORWARD = "forward"
    BACKWARD_INPUT = "backward_input"
    BACKWARD_WEIGHT = "backward_weight"


class Algorithm:
    """A way to compute passes of an op of one shape, which `serves` has accepted."""

    name: ClassVar[str]
    # Whether `backward` gives all gradients at once.
    together: ClassVar[bool] = False

    def __init__(self, shape: Any, *arguments: Any) -> None:
        self.shape = shape

    @classmethod
    def serves(cls, shape: Any, which: Pass) -> bool:
        """Whether it can compute the pass, and should be faster than those after it."""
        raise NotImplementedError

    def describe(self, which: Pass) -> str:
        """How it computes the pass, in words: its name and variant."""
        return self.name


Kind_co = TypeVar("Kind_co", covariant=True)
Served = TypeVar("Served", bound=Algorithm)


class Route(NamedTuple, Generic[Kind_co]):
    """An algorithm, and why it takes what it serves."""

    algorithm: type[Kind_co]
    reason: str


class Algorithms(NamedTuple, Generic[Served]):
    """What serves each `Pass`, and what computes all gradients in one call, if anything."""

    forward: Served
    backward_input: Served
    backward_weight: Served
    backward: Served | None


def route(table: Sequence[Route[Served]], shape: Any, which: Pass) -> Route[Served]:
    """The row of a table that computes a pass."""
    return next(row for row in table if row.algorithm.serves(shape, which))


def algorithms(table: Sequence[Route[Served]], shape: Any, *arguments: Any) -> Algorithms[Served]:
    """What computes each pass, made of the shape and arguments; one object for equal algorithms."""
    kinds = [route(table, shape, which).algorithm for which in Pass]
    made = {kind: kind(shape, *arguments) for kind in kinds}
    forward, dx, dw = (made[kind] for kind in kinds)
    return Algorithms(forward, dx, dw, dx if dx is dw and dx.together else None)


def reasons(
    table: Sequence[Route[Served]], made: Algorithms[Served], shape: Any
) -> list[tuple[str, str, str]]:
    """Each pass, what computes it, and why."""
    rows = ((which, getattr(made, which), route(table, shape, which)) for which in Pass)
    return [(which, algorithm.describe(which), row.reason) for which, algorithm, row in rows]
