"""What every way to compute a pass of pooling offers."""

from __future__ import annotations

from abc import ABC
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar

from fastlayers.runtime import backend

__all__ = ["PAIR", "Route", "described", "first_that_serves"]

# Tells a kernel that rows, or rows and columns, of a window are two cells long.
PAIR = (0, 0)


class Route(ABC):
    """A way to compute a pass of pooling of one shape, which `serves` has accepted.

    Those of a pass have a `run` of the same arguments, which takes and gives channels-last images
    and checks nothing.
    """

    reason: ClassVar[str]  # why it is taken, in words that follow those on the windows

    def __init__(self, shape: Any) -> None:
        self.shape = shape

    @classmethod
    def serves(cls, shape: Any) -> bool:
        """Whether it can compute the pass, and should be faster than those after it."""
        return True  # but for those that say otherwise

    def describe(self) -> str:
        """How it computes the pass, in words."""
        return f"{self.shape.describe()}, {self.reason}"


R = TypeVar("R", bound=Route)


def first_that_serves(routes: Sequence[type[R]], shape: Any) -> R:
    """The first of the routes that serves a shape; the last one serves all."""
    return next(route(shape) for route in routes if route.serves(shape))


def described(shape: Any) -> dict[str, str]:
    """How the passes of a pooling are computed, in words."""
    if backend.NUMPY:
        return {"forward": "NumPy", "backward": "NumPy"}
    return {"forward": shape.forward.describe(), "backward": shape.backward.describe()}
