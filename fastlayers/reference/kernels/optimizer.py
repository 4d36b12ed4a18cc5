"""Stand-in for `fastlayers.kernels.optimizer`."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np

from fastlayers.reference import optimizer as reference
from fastlayers.reference.types import Array

__all__ = ["adadelta", "adam", "gather", "sgd"]


def gather(dtype: int, array_type: int, table: Array) -> int:
    """Tell that the arrays are not as they should be, so that a step goes through copies."""
    return -1


def _at(like: Array, address: int, count: int) -> Array:
    interface = {"version": 3, "shape": (count,), "typestr": like.dtype.str}
    interface["data"] = (address, False)
    return np.asarray(SimpleNamespace(__array_interface__=interface))


def _update(name: str, like: Array, table: Array, options: tuple[Any, ...], workers: int) -> None:
    rows = [[_at(like, at, row[-1]) for at in row[:-1]] for row in table.tolist()]
    with np.errstate(all="ignore"):
        getattr(reference, name)(like, rows, options, workers)


def adadelta(like: Array, table: Array, options: tuple[Any, ...], workers: int) -> None:
    """A step of Adadelta."""
    _update("adadelta", like, table, options, workers)


def adam(like: Array, table: Array, options: tuple[Any, ...], workers: int) -> None:
    """A step of Adam."""
    _update("adam", like, table, options, workers)


def sgd(like: Array, table: Array, options: tuple[Any, ...], workers: int) -> None:
    """A step of gradient descent."""
    _update("sgd", like, table, options, workers)
