"""Other shapes of the same elements: views where the memory allows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlayers.functions.table import method, view
from fastlayers.ops.flatten import flatten as flatten_op
from fastlayers.ops.layout import contiguous

__all__ = ["flatten", "reshape"]


def sizes(op: str, given: tuple[Any, ...]) -> tuple[int, ...]:
    """A shape, given as one sequence or as several integers.

    Raises
    ------
    TypeError
        If it holds other than integers.
    """
    several = given[0] if len(given) == 1 and not isinstance(given[0], (int, np.integer)) else given
    try:
        return tuple(size.__index__() for size in several)
    except (AttributeError, TypeError):
        raise TypeError(f"{op}: shape must be integers, got {given!r}") from None


@view
def reshape(x: np.ndarray, *shape: Any) -> Any:
    """The elements in C order of (N, C, H, W) in another shape; one length may be -1.

    Raises
    ------
    RuntimeError
        If the shape holds another number of elements.
    """
    wanted, before = sizes("reshape", shape), x.shape
    known = math.prod(size for size in wanted if size != -1)
    fits = wanted.count(-1) <= 1 and min(wanted, default=0) >= -1
    if not fits or (x.size != known if -1 not in wanted else known == 0 or x.size % known):
        raise RuntimeError(
            f"reshape: shape must have the {x.size} elements of shape {before}, got {wanted}"
        )
    return (
        lambda array: contiguous(array).reshape(wanted),
        lambda dy: contiguous(dy).reshape(before),
    )


method(lambda self, *shape: _view(self, *shape), "view")


def _view(self: Any, *shape: Any) -> Any:
    """As `reshape`; with a dtype, `to` of it where the elements have its size."""
    return reshape(self, *shape)


@view
def flatten(x: np.ndarray, start_dim: int = 0, end_dim: int = -1) -> Any:
    """Join the axes from `start_dim` to `end_dim` into one; see `fastlayers.ops.flatten`."""
    before = x.shape
    flatten_op(x[..., :0] if x.ndim else x, start_dim, end_dim)  # checks
    return (
        lambda array: flatten_op(array, start_dim, end_dim),
        lambda dy: contiguous(dy).reshape(before),
    )
