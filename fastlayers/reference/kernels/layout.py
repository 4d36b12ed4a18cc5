"""Stand-in for `fastlayers.kernels.layout`."""

from __future__ import annotations

from fastlayers.reference.types import Array

__all__ = ["swap_axes"]


def swap_axes(x: Array, pieces: int, workers: int, out: Array) -> None:
    """Exchange the last two axes of an (N, A, B) array."""
    out[...] = x.swapaxes(1, 2)
