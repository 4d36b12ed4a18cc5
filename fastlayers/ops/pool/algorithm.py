"""What every algorithm of pooling offers, and how a table of them is read."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar

from fastlayers.ops.routes import Route

__all__ = ["PAIR", "Algorithm", "Route", "algorithm", "reasons"]

# Tells a kernel that rows, or rows and columns, of a window are two cells long.
PAIR = (0, 0)


class Algorithm(ABC):
    """A way to compute one pass of pooling of one shape, which `serves` has accepted.

    Those of a pass have a `run` of the same arguments, which takes and gives channels-last images
    and checks nothing.
    """

    name: ClassVar[str]

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    @classmethod
    def serves(cls, shape: Any) -> bool:
        """Whether it can compute the pass, and should be faster than those after it."""
        return True  # but for those that say otherwise

    def describe(self) -> str:
        """How it computes the pass, in words: its name and the windows."""
        return f"{self.name}, {self.shape.describe()}"


def _route(routes: Sequence[Route[Algorithm]], shape: Any) -> Route[Algorithm]:
    return next(row for row in routes if row.algorithm.serves(shape))


def algorithm(routes: Sequence[Route[Algorithm]], shape: Any) -> Any:
    """What computes a pass: the first algorithm of a table that serves the shape."""
    return _route(routes, shape).algorithm(shape)


def reasons(
    shape: Any, forward: Sequence[Route[Algorithm]], backward: Sequence[Route[Algorithm]]
) -> list[tuple[str, str, str]]:
    """Each pass of a pooling, what computes it, and why."""
    return [
        ("forward", shape.forward.describe(), _route(forward, shape).reason),
        ("backward", shape.backward.describe(), _route(backward, shape).reason),
    ]
