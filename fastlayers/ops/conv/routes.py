"""Which algorithm computes a pass of a convolution: one ordered table.

A new algorithm is a file with the methods of `algorithm.Algorithm`, and a row here.
"""

from __future__ import annotations

from fastlayers.ops import routes
from fastlayers.ops.conv.algorithm import Algorithm
from fastlayers.ops.conv.depthwise import Depthwise
from fastlayers.ops.conv.direct import Direct
from fastlayers.ops.conv.planar import Planar
from fastlayers.ops.conv.reference import Reference
from fastlayers.ops.conv.shape import ConvShape
from fastlayers.ops.conv.winograd import ForcedWinograd, Winograd
from fastlayers.ops.conv.winograd_rows import WinogradRows
from fastlayers.ops.routes import Route

__all__ = ["ALGORITHMS", "ROUTES", "algorithms", "check", "reasons"]

ALGORITHMS = ("auto", "direct", "winograd")


# The first that serves a pass computes it.
ROUTES: tuple[Route[Algorithm], ...] = (
    Route(Reference, "there is no Numba"),
    Route(WinogradRows, "kernels 5 wide and few channels: lanes are images, rows are transformed"),
    Route(Winograd, "3x3 kernels at stride 1: transformed tiles need fewer products"),
    Route(Planar, "few output channels: lanes are pixels"),
    Route(Depthwise, "few channels a group: lanes are groups"),
    Route(Direct, "any shape: a GEMM that reads the images in place"),
)
# Those of ``algorithm="direct"``, which sum the products as they stand.
_EXACT = tuple(row for row in ROUTES if row.algorithm.exact)
_CHOICES: dict[str, tuple[Route[Algorithm], ...]] = {
    "auto": ROUTES,
    "direct": _EXACT,
    "winograd": (ROUTES[0], Route(ForcedWinograd, "the caller's choice"), *_EXACT[1:]),
}


def check(op: str, shape: ConvShape, algorithm: str) -> None:
    """Raise ValueError where the algorithm that was named cannot compute the convolution."""
    if algorithm == "winograd" and not Winograd.can(shape):
        raise ValueError(
            f"{op}: algorithm 'winograd' needs a 3x3 kernel, a stride and groups of 1 and at "
            f"least {Winograd.LEAST_CHANNELS} channels of input and output, got a weight of "
            f"shape {shape.weight}, stride {shape.stride} and groups {shape.groups}"
        )


def algorithms(shape: ConvShape, algorithm: str = "auto") -> routes.Algorithms[Algorithm]:
    """What computes each pass."""
    return routes.algorithms(_CHOICES[algorithm], shape)


def reasons(
    shape: ConvShape, made: routes.Algorithms[Algorithm], algorithm: str
) -> list[tuple[str, str, str]]:
    """Each pass, what computes it, and why."""
    return routes.reasons(_CHOICES[algorithm], made, shape)
