"""Cores and caches as Linux describes them in ``/sys``.

Other systems, and some containers, have no such files; a malformed one counts as missing.

References
----------
https://docs.kernel.org/admin-guide/cputopology.html
https://www.kernel.org/doc/Documentation/ABI/testing/sysfs-devices-system-cpu
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

__all__ = ["Cache", "caches", "online", "physical"]

_CPUS = Path("sys/devices/system/cpu")
# Which logical cores share a physical one; the second is the name before Linux 5.4.
_SIBLINGS = ("core_cpus_list", "thread_siblings_list")
# By the kind of a cache, what its name ends with.
_KINDS = {"Data": "d", "Unified": ""}


class Cache(NamedTuple):
    """One instance of a cache, such as the L2 of one core."""

    name: str  # L1d, L2, L3
    nbytes: int
    shared_by: int  # logical cores


def caches(root: Path = Path("/")) -> list[Cache]:
    """Caches of data that logical core 0 has, from the smallest level up; empty if unknown.

    Parameters
    ----------
    root : Path
        Where ``sys`` is.
    """
    folders = sorted((root / _CPUS / "cpu0/cache").glob("index*"))
    return [cache for folder in folders if (cache := _cache(folder)) is not None]


def _cache(folder: Path) -> Cache | None:
    try:
        level, kind, size = (
            (folder / name).read_text().strip() for name in ("level", "type", "size")
        )
        name, nbytes = f"L{int(level)}{_KINDS[kind]}", int(size.removesuffix("K")) << 10
    except (KeyError, OSError, ValueError):  # KeyError: a cache of instructions
        return None
    shared = _numbers(folder / "shared_cpu_list")
    return Cache(name, nbytes, len(shared)) if shared else None


def online(root: Path = Path("/")) -> set[int] | None:
    """Numbers of the machine's logical cores; None if unknown."""
    return _numbers(root / _CPUS / "online")


def physical(logical: Iterable[int], root: Path = Path("/")) -> int | None:
    """How many physical cores the logical ones of these numbers are on; None if unknown."""
    cores = set()
    for number in logical:
        folder = root / _CPUS / f"cpu{number}/topology"
        known = (_numbers(folder / name) for name in _SIBLINGS)
        siblings = next((found for found in known if found and number in found), None)
        if siblings is None:
            return None
        cores.add(min(siblings))
    return len(cores)


def _numbers(path: Path) -> set[int] | None:
    """Numbers of a list such as ``0-3,8`` in a file; None without such a file."""
    found: set[int] = set()
    try:
        for part in path.read_text().split(","):
            first, _, last = part.partition("-")
            found.update(range(int(first), int(last or first) + 1))
    except (OSError, ValueError):
        return None
    return found or None
