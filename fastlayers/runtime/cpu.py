"""Properties of the CPU that kernels depend on."""

from __future__ import annotations

import functools
import os

from fastlayers.runtime import topology

__all__ = [
    "FLEETS",
    "cache_bytes",
    "cpu_name",
    "fleet",
    "lanes",
    "masked_loads",
    "masked_stores",
    "tile_rows",
    "vector_bytes",
]

# Levels of x86-64 that all machines of a fleet may share, and the bytes of their vectors;
# https://gitlab.com/x86-psABIs/x86-64-ABI, table 3.1. The second has no fused multiply-add.
FLEETS = {"x86-64-v3": 32, "x86-64-v4": 64}


@functools.cache
def _features() -> dict[str, bool]:
    import llvmlite.binding as llvm  # 25 ms, and the first plan needs it

    return dict(llvm.get_host_cpu_features())


def cpu_name() -> str:
    """LLVM's name of the CPU, such as ``znver4`` or ``apple-m1``."""
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_name())


@functools.cache
def fleet() -> str | None:
    """The level given by ``FASTLAYERS_CPU``, for machine code that many machines can share.

    Raises
    ------
    ValueError
        For an unknown level, or one that this machine does not support.
    """
    named = os.environ.get("FASTLAYERS_CPU") or None
    if named is not None:
        if named not in FLEETS:
            raise ValueError(f"FASTLAYERS_CPU: expected {' or '.join(FLEETS)}, got {named!r}")
        if FLEETS[named] > _widest():
            raise ValueError(f"FASTLAYERS_CPU: {cpu_name()} does not support {named}")
    return named


def _widest() -> int:
    features = _features()
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


@functools.cache
def vector_bytes() -> int:
    """Bytes of the widest vector register to use: 64, 32 or 16.

    ``FASTLAYERS_VECTOR_BYTES`` selects a narrower one, so that the code for smaller CPUs can be
    tested on a larger one.
    """
    named = fleet()
    widest = FLEETS[named] if named else _widest()
    asked = os.environ.get("FASTLAYERS_VECTOR_BYTES")
    if asked is None:
        return widest
    if asked not in ("16", "32", "64"):
        raise ValueError(f"FASTLAYERS_VECTOR_BYTES: expected 16, 32 or 64, got {asked!r}")
    return min(widest, int(asked))


# Bytes of a core's caches where the system does not tell them, and for a fleet, whose machines cut
# their work alike: what the cores of laptops and servers have at least.
L1_BYTES, L2_BYTES, L3_BYTES = 32 << 10, 512 << 10, 32 << 20


def _cache(name: str, usual: int) -> topology.Cache:
    """The cache of this name, or one of the usual size."""
    levels = [] if fleet() else topology.caches()
    return next((cache for cache in levels if cache.name == name), topology.Cache(name, usual, 1))


def _asked(level: str) -> int | None:
    """Bytes that ``FASTLAYERS_{level}_BYTES`` asks for."""
    variable = f"FASTLAYERS_{level}_BYTES"
    asked = os.environ.get(variable)
    if asked is None:
        return None
    if not asked.isdecimal() or int(asked) == 0:
        raise ValueError(f"{variable}: expected a positive number of bytes, got {asked!r}")
    return int(asked)


@functools.cache
def l1_bytes() -> int:
    """Bytes of a core's L1 data cache; ``FASTLAYERS_L1_BYTES`` overrides it."""
    return _asked("L1") or _cache("L1d", L1_BYTES).nbytes


@functools.cache
def l2_bytes() -> int:
    """Bytes of a core's L2, or of its share of one; ``FASTLAYERS_L2_BYTES`` overrides it."""
    asked, cache = _asked("L2"), _cache("L2", L2_BYTES)
    sharing = max(1, cache.shared_by // _cache("L1d", L1_BYTES).shared_by)
    return asked or cache.nbytes // sharing


@functools.cache
def cache_bytes() -> int:
    """Bytes of the last-level cache, of all cores that share it; ``FASTLAYERS_L3_BYTES`` overrides.

    An op that moves more than this leaves nothing useful in the cache for the next op, so its
    results are better written with non-temporal stores.
    """
    levels = [] if fleet() else topology.caches()
    return _asked("L3") or (levels[-1].nbytes if levels else L3_BYTES)


def masked_stores() -> bool:
    """Whether a store of some lanes costs what a whole one does: 0.4 ns with AVX-512's masks.

    AVX2's takes 6.9 ns on Zen 3 (18 operations, as on all of AMD's before Zen 4), 1 on Intel's;
    NEON has none, and LLVM takes it apart into single elements.
    """
    return vector_bytes() == 64


def masked_loads() -> bool:
    """Whether a load of some lanes costs what a whole one does: from AVX2 on."""
    return vector_bytes() >= 32


def lanes(itemsize: int) -> int:
    """Elements of `itemsize` bytes in one vector register."""
    return vector_bytes() // itemsize


def tile_rows() -> int:
    """Rows of the largest register tile, which is two vectors wide.

    12 x 2 sums, 2 columns and a few broadcasts fit 32 registers (AVX-512, NEON); 6 x 2 fit 16.
    """
    many = vector_bytes() == 64 or _features().get("neon", False)
    return 12 if many else 6
