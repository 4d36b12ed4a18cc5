"""One page of facts about the CPU: vectors, registers, masks and caches.

All that kernels and plans take from the machine comes from here, so that code can be compiled, and
work cut, for another CPU than this one: for a level that a fleet of machines shares
(``FASTLAYERS_CPU``), and in tests.
"""

from __future__ import annotations

import functools
import os
import sys
from typing import NamedTuple

from fastlayers.runtime import caches
from fastlayers.runtime.topology import Cache

__all__ = [
    "CODE_FACTS",
    "LEVELS",
    "Level",
    "cache_bytes",
    "choose",
    "compiles_only",
    "cpu_name",
    "fleet",
    "l1_bytes",
    "l2_bytes",
    "lanes",
    "machine",
    "masked_loads",
    "masked_stores",
    "panel_bytes",
    "same_machine",
    "slab_bytes",
    "supports",
    "tile_rows",
    "vector_bytes",
]


class Level(NamedTuple):
    """What all machines of a fleet have, or may be taken to have."""

    machine: str
    name: str  # of the CPU, and its features, as LLVM has them
    features: str
    needs: tuple[str, ...]  # features that LLVM finds on the machines that have this level
    vector_bytes: int
    l1_bytes: int  # of a core; `l3_bytes` are of all cores that share it
    l2_bytes: int
    l3_bytes: int


_KIB, _MIB = 1 << 10, 1 << 20
# The x86-64 levels are those of the ABI (https://gitlab.com/x86-psABIs/x86-64-ABI, table 3.1; the
# second has no fused multiply-add), those of Arm what compilers call them. Caches are those that
# most cores of the level have at least: of ARM a Cortex-A72's, of which four share 1 MiB, and a
# Cortex-A76's. LLVM's feature `lse` is the atomic instructions of Armv8.1, the last that compiled
# code of 8.2 has.
LEVELS = {
    "x86-64-v3": Level(
        "x86_64", "x86-64-v3", "", ("avx2", "fma", "bmi2"), 32, 32 * _KIB, 512 * _KIB, 32 * _MIB
    ),
    "x86-64-v4": Level(
        "x86_64", "x86-64-v4", "", ("avx512f", "avx512vl"), 64, 32 * _KIB, _MIB, 32 * _MIB
    ),
    "armv8-a": Level("aarch64", "generic", "+neon", (), 16, 32 * _KIB, 256 * _KIB, _MIB),
    "armv8.2-a": Level(
        "aarch64", "generic", "+neon,+v8.2a", ("lse",), 16, 64 * _KIB, 512 * _KIB, 2 * _MIB
    ),
}
_chosen: str | None = None  # by `choose`
# Names of one architecture, by which LLVM and Python call it on different systems.
_SAME = {"amd64": "x86_64", "arm64": "aarch64"}


@functools.cache
def _features() -> dict[str, bool]:
    import llvmlite.binding as llvm  # 25 ms, and the first plan needs it

    try:
        return dict(llvm.get_host_cpu_features())
    except RuntimeError:  # where LLVM cannot tell
        return {}


@functools.cache
def _host() -> str:
    """The architecture of this process; the system's may have 64 bits where Python has 32."""
    import llvmlite.binding as llvm

    name = str(llvm.get_process_triple()).partition("-")[0].lower()
    return _SAME.get(name, name)


def machine() -> str:
    """The architecture that code is compiled for, such as ``x86_64`` or ``aarch64``."""
    named = fleet()
    return LEVELS[named].machine if named else _host()


def same_machine() -> bool:
    """Whether that is the architecture of this process."""
    return machine() == _host()


def cpu_name() -> str:
    """LLVM's name of the CPU, such as ``znver4`` or ``apple-m1``."""
    import llvmlite.binding as llvm

    return str(llvm.get_host_cpu_name())


@functools.cache
def fleet() -> str | None:
    """The level of `choose` or ``FASTLAYERS_CPU``, for machine code that many machines can share.

    Raises
    ------
    ValueError
        For an unknown level, or one that this machine does not support.
    """
    named = _chosen or os.environ.get("FASTLAYERS_CPU") or None
    if named is not None and named != _chosen:
        if named not in LEVELS:
            raise ValueError(f"FASTLAYERS_CPU: expected {_names()}, got {named!r}")
        if not supports(named):
            raise ValueError(f"FASTLAYERS_CPU: {cpu_name()} does not support {named}")
    return named


def _names() -> str:
    *names, last = LEVELS
    return f"{', '.join(names)} or {last}"


def choose(level: str) -> None:
    """Compile for a level in this process, which need not support it: then it runs no kernels.

    Raises
    ------
    ValueError
        For an unknown level, or one that this machine has not where its system is not Linux.
    RuntimeError
        If this process compiles for another CPU already.
    """
    global _chosen
    if level not in LEVELS:
        raise ValueError(f"warmup: cpu must be {_names()}, got {level!r}")
    if sys.platform != "linux" and not supports(level):
        raise ValueError(f"warmup: cpu must be this machine's except on Linux, got {level!r}")
    if "fastlayers.runtime.cache" in sys.modules and level != fleet():
        raise RuntimeError(f"warmup: cpu must be chosen before the first op, got {level!r} after")
    _chosen = level
    for fact in (fleet, vector_bytes, l1_bytes, l2_bytes, cache_bytes):
        fact.cache_clear()


def compiles_only() -> bool:
    """Whether kernels are compiled for a CPU that cannot run here."""
    return _chosen is not None and not supports(_chosen)


def supports(level: str) -> bool:
    """Whether this machine runs code of a level."""
    wanted, found = LEVELS[level], _features()
    if wanted.machine != _host():
        return False
    # macOS does not tell LLVM what Apple's CPUs have, which begin with Armv8.3.
    apple = sys.platform == "darwin" and wanted.machine == "aarch64"
    return apple or all(found.get(name, False) for name in wanted.needs)


@functools.cache
def vector_bytes() -> int:
    """Bytes of the widest vector register to use: 64, 32 or 16.

    ``FASTLAYERS_VECTOR_BYTES`` selects a narrower one, so that the code for smaller CPUs can be
    tested on a larger one. ARM's scalable vectors are not used.
    """
    named = fleet()
    widest = LEVELS[named].vector_bytes if named else _widest()
    asked = os.environ.get("FASTLAYERS_VECTOR_BYTES")
    if asked is None:
        return widest
    if asked not in ("16", "32", "64"):
        raise ValueError(f"FASTLAYERS_VECTOR_BYTES: expected 16, 32 or 64, got {asked!r}")
    return min(widest, int(asked))


def _widest() -> int:
    features = _features()
    return 64 if features.get("avx512f") else 32 if features.get("avx2") else 16


def _usual() -> Level:
    """The level whose caches a machine is taken to have if it does not tell."""
    return LEVELS[fleet() or ("armv8-a" if machine() == "aarch64" else "x86-64-v3")]


def _found() -> list[Cache]:
    """Caches that the system tells; none for a fleet, whose machines cut their work alike."""
    return [] if fleet() else caches.caches()


def _asked(level: str) -> int | None:
    """Bytes that ``FASTLAYERS_{level}_BYTES`` asks for, of a fleet's machines too."""
    variable = f"FASTLAYERS_{level}_BYTES"
    asked = os.environ.get(variable)
    if asked is None:
        return None
    if not (asked.isascii() and asked.isdecimal() and int(asked)):
        raise ValueError(f"{variable}: expected a positive number of bytes, got {asked!r}")
    return int(asked)


@functools.cache
def l1_bytes() -> int:
    """Bytes of a core's L1 data cache; ``FASTLAYERS_L1_BYTES`` overrides it."""
    found = (cache.nbytes for cache in _found() if cache.name == "L1d")
    return _asked("L1") or next(found, _usual().l1_bytes)


@functools.cache
def l2_bytes() -> int:
    """Bytes of a core's L2, or of its share of one; ``FASTLAYERS_L2_BYTES`` overrides it.

    Logical cores share what their physical core has, so those of one L1 count as one.
    """
    known = {cache.name: cache for cache in _found()}
    threads = known["L1d"].shared_by if "L1d" in known else 1
    share = known["L2"].nbytes // max(1, known["L2"].shared_by // threads) if "L2" in known else 0
    return _asked("L2") or share or _usual().l2_bytes


@functools.cache
def cache_bytes() -> int:
    """Bytes of the last-level cache, of all cores that share it; ``FASTLAYERS_L3_BYTES`` overrides.

    An op that moves more than this leaves nothing useful in the cache for the next op, so its
    results are better written with non-temporal stores.
    """
    found = [cache.nbytes for cache in _found()]
    return _asked("L3") or (found[-1] if found else _usual().l3_bytes)


def slab_bytes() -> int:
    """Bytes that a task works on, of images or of Winograd's tiles: 3/4 of an L2.

    The rest is for a panel of the weight and the output. With 512 KiB of L2, 384 KiB to 1.5 MiB of
    images are within 3 % of each other for nine layers, 96 KiB up to 1.2 times as slow, where a
    slab then has less than 96 pixels; 192 KiB to 1.5 MiB of tiles are within 2 % for ten layers.
    """
    return l2_bytes() * 3 // 4


def panel_bytes() -> int:
    """Bytes of one packed panel of an operand that is read from end to end: an eighth of an L2.

    A sixteenth to a half of it are equally fast in weight gradients, a 32nd up to 8 % slower.
    """
    return l2_bytes() // 8


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

    12 x 2 sums, 2 columns and a few broadcasts fit 32 registers, as AVX-512 and all of AArch64
    have, whatever an emulator says of NEON; 6 x 2 fit 16.
    """
    return 12 if vector_bytes() == 64 or machine() == "aarch64" else 6


# Facts that are constants in kernels, so that kernels of other facts must not be found. What only
# plans ask for, such as `l2_bytes`, is no such fact.
CODE_FACTS = (vector_bytes, tile_rows, masked_loads, masked_stores, cache_bytes)
