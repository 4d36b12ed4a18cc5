"""Elements of one vector of the CPU."""

from __future__ import annotations

from fastlayers.runtime import cpu
from fastlayers.runtime.cache import kernel

__all__ = ["lanes_of"]

VECTOR_BYTES = cpu.vector_bytes()


@kernel(inner=True)
def lanes_of(x):
    """Elements of one vector of the type of the array `x`."""
    return VECTOR_BYTES // x.itemsize
