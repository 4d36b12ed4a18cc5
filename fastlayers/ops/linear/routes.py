"""Which algorithm computes a pass of a linear map: one ordered table.

A new algorithm is a class with the methods of `algorithm.Algorithm`, and a row here.
"""

from __future__ import annotations

import functools

import numpy as np

from fastlayers.ops import routes
from fastlayers.ops.linear.algorithm import Algorithm, LinearShape
from fastlayers.ops.linear.large import Blocks, Dots, Ranks
from fastlayers.ops.linear.reference import Reference
from fastlayers.ops.linear.small import Short, Small
from fastlayers.ops.routes import Route
from fastlayers.runtime import threads

__all__ = ["ROUTES", "algorithms", "reasons"]


# The first that serves a pass computes it.
ROUTES: tuple[Route[Algorithm], ...] = (
    Route(Reference, "there is no Numba"),
    Route(Short, "many rows and short sums: sums of lanes would cost more than transposing"),
    Route(Dots, "one stream through the weight, and nothing is transposed"),
    Route(Small, "the weight fits the caches: GEMM reads it in place"),
    Route(Ranks, "few rows: one stream through the weight"),
    Route(Blocks, "many rows share each packed block"),
)


@functools.lru_cache(1024)
def algorithms(
    rows: int, inputs: int, outputs: int, dtype: np.dtype, available: int
) -> routes.Algorithms[Algorithm]:
    """What computes each pass on up to `available` threads."""
    return routes.algorithms(ROUTES, LinearShape(rows, inputs, outputs, dtype), available)


def reasons(x: np.ndarray, weight: np.ndarray) -> list[tuple[str, str, str]]:
    """Each pass of matrices, what computes it, and why."""
    rows, inputs = x.shape
    shape = LinearShape(rows, inputs, len(weight), x.dtype)
    return routes.reasons(ROUTES, algorithms(*shape, threads.get_num_threads()), shape)
