"""Which algorithm computes a pass of a linear map: one ordered table.

A new algorithm is a class with the methods of `algorithm.Algorithm`, and a row here.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

from fastlayers.ops.linear.algorithm import Algorithm, LinearShape, Pass
from fastlayers.ops.linear.large import Blocks, Dots, Ranks
from fastlayers.ops.linear.reference import Reference
from fastlayers.ops.linear.small import Short, Small
from fastlayers.runtime import threads

__all__ = ["ROUTES", "Algorithms", "Route", "algorithms", "reasons", "route"]


class Route(NamedTuple):
    """An algorithm, and why it takes the shapes that it serves."""

    algorithm: type[Algorithm]
    reason: str


class Algorithms(NamedTuple):
    """What serves each `Pass`, and what computes both gradients in one call, if anything."""

    forward: Algorithm
    backward_input: Algorithm
    backward_weight: Algorithm
    backward: Algorithm | None


# The first that serves a pass computes it.
ROUTES = (
    Route(Reference, "there is no Numba"),
    Route(Short, "many rows and short sums: sums of lanes would cost more than transposing"),
    Route(Dots, "one stream through the weight, and nothing is transposed"),
    Route(Small, "the weight fits the caches: GEMM reads it in place"),
    Route(Ranks, "few rows: one stream through the weight"),
    Route(Blocks, "many rows share each packed block"),
)


def route(shape: LinearShape, which: Pass) -> Route:
    """The row of the table that computes a pass."""
    return next(row for row in ROUTES if row.algorithm.serves(shape, which))


@functools.lru_cache(1024)
def algorithms(rows: int, inputs: int, outputs: int, dtype: np.dtype, available: int) -> Algorithms:
    """What computes each pass on up to `available` threads; one object for passes that share it."""
    shape = LinearShape(rows, inputs, outputs, dtype)
    kinds = [route(shape, which).algorithm for which in Pass]
    made = {kind: kind(shape, available) for kind in kinds}
    forward, dx, dw = (made[kind] for kind in kinds)
    return Algorithms(forward, dx, dw, dx if dx is dw and dx.together else None)


def reasons(x: np.ndarray, weight: np.ndarray) -> list[tuple[str, str, str]]:
    """Each pass of matrices, what computes it, and why."""
    rows, inputs = x.shape
    shape = LinearShape(rows, inputs, len(weight), x.dtype)
    chosen = algorithms(*shape, threads.get_num_threads())
    return [
        (which, getattr(chosen, which).describe(which), route(shape, which).reason)
        for which in Pass
    ]
