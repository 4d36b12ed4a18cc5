"""Facts of the CPU that decide how kernels are built."""

from __future__ import annotations

import functools
import os

__all__ = ["cpu_name", "lanes", "tile_rows", "vector_bytes"]


@functools.cache
def _features() -> dict[str, bool]:
    import llvmlite.binding as llvm  # 25 ms, and the first plan needs it

    return dict(llvm.get_host_cpu_features())


def cpu_name() -> str:
    """Name of the CPU as LLVM knows it, such as ``znver4`` or ``apple-m1``."""
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_name())


@functools.cache
def vector_bytes() -> int:
    """Bytes of the widest vector register to use: 64, 32 or 16.

    ``FASTLAYERS_VECTOR_BYTES`` asks for a narrower one, so that the code of smaller CPUs can be
    tested on a larger one.
    """
    features = _features()
    widest = 64 if features.get("avx512f") else 32 if features.get("avx2") else 16
    asked = os.environ.get("FASTLAYERS_VECTOR_BYTES")
    if asked is None:
        return widest
    if asked not in ("16", "32", "64"):
        raise ValueError(f"FASTLAYERS_VECTOR_BYTES: expected 16, 32 or 64, got {asked!r}")
    return min(widest, int(asked))


def lanes(itemsize: int) -> int:
    """Elements of `itemsize` bytes in one vector register."""
    return vector_bytes() // itemsize


def tile_rows() -> int:
    """Rows of the largest register tile, which is two vectors wide.

    12 x 2 sums, 2 columns and a few broadcasts fit 32 registers (AVX-512, NEON); 6 x 2 fit 16.
    """
    many = vector_bytes() == 64 or _features().get("neon", False)
    return 12 if many else 6
