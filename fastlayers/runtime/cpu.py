"""Facts of the CPU that decide how kernels are built."""

from __future__ import annotations

import functools
import os
from pathlib import Path

import llvmlite.binding as llvm

__all__ = ["cache_bytes", "cpu_name", "lanes", "tile_rows", "vector_bytes"]


@functools.cache
def _features() -> dict[str, bool]:
    return dict(llvm.get_host_cpu_features())


def cpu_name() -> str:
    """Name of the CPU as LLVM knows it, such as ``znver4`` or ``apple-m1``."""
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


# Bytes of the last cache of a CPU that does not tell.
CACHE = 32 << 20


@functools.cache
def cache_bytes() -> int:
    """Bytes of the last-level cache.

    What passes through it at once is lost for whoever comes next, so results of more are better
    written past it.
    """
    levels = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    try:
        return int(levels[-1].read_text().strip().removesuffix("K")) << 10
    except (IndexError, OSError, ValueError):  # not Linux, or a machine that hides it
        return CACHE


def lanes(itemsize: int) -> int:
    """Elements of `itemsize` bytes in one vector register."""
    return vector_bytes() // itemsize


def tile_rows() -> int:
    """Rows of the largest register tile, which is two vectors wide.

    12 x 2 sums, 2 columns and a few broadcasts fit 32 registers (AVX-512, NEON); 6 x 2 fit 16.
    """
    many = vector_bytes() == 64 or _features().get("neon", False)
    return 12 if many else 6
