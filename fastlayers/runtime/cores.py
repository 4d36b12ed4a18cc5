"""How many cores this process may use, by its affinity and its CPU quota.

Hyperthreads share the multipliers of a physical core, so a second thread there adds little to a
kernel that keeps them busy.

A container limited to 2 of 64 cores by a quota still sees all 64: with a thread on each, all of
them are stopped once the quota of a period, usually 0.1 s, is used up.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path, PurePosixPath

from fastlayers.runtime import topology

__all__ = ["affinity", "available", "quota", "without_siblings"]


def available(root: Path = Path("/")) -> tuple[int, str]:
    """How many cores this process may use, and what limits them.

    Parameters
    ----------
    root : Path
        Where ``proc``, ``sys`` and the mounted groups are.
    """
    allowed = affinity()
    limits = [
        (os.cpu_count() or 1, "all cores"),
        (len(allowed), "affinity"),
        (without_siblings(allowed, root), "physical cores"),
    ]
    if (limit := quota(root)) is not None:
        limits.append((limit, "CPU quota"))
    return min(limits, key=lambda limit: limit[0])


def without_siblings(logical: Collection[int], root: Path = Path("/")) -> int:
    """How many physical cores these logical ones are on; all count where that is unknown."""
    return topology.physical(logical, root) or len(logical)


def affinity() -> set[int]:
    """Numbers of the cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return os.sched_getaffinity(0)
    return set(range(os.cpu_count() or 1))


def quota(root: Path = Path("/")) -> int | None:
    """Cores that the control groups of this process allow, rounded up; None without a limit.

    A group is limited by its parents too, as far as they are mounted.

    Parameters
    ----------
    root : Path
        Where ``proc`` and the mounted groups are.

    References
    ----------
    https://docs.kernel.org/admin-guide/cgroup-v2.html#cpu-interface-files
    https://docs.kernel.org/scheduler/sched-bwc.html
    """
    limits = [limit for folder in _groups(root) if (limit := _limit(folder))]
    return math.ceil(min(limits)) if limits else None


def _groups(root: Path) -> Iterator[Path]:
    """Folders of the groups that this process belongs to, of both versions."""
    try:
        member = (root / "proc/self/cgroup").read_text(errors="replace")
        mounted = (root / "proc/self/mountinfo").read_text(errors="replace")
    except OSError:  # another system, or /proc is not mounted
        return
    paths: dict[str, str] = {}  # by controller; version 2 has one group for all, under ""
    for line in member.splitlines():
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in mounted.splitlines():
        mount, _, system = line.partition(" - ")
        kind, _, options = system.split(" ")
        if kind == "cgroup2" or (kind == "cgroup" and "cpu" in options.split(",")):
            top, point = map(_unescaped, mount.split(" ")[3:5])
            controller = "" if kind == "cgroup2" else "cpu"
            if controller in paths:
                yield from _down_to(paths[controller], top, root / point.lstrip("/"))


def _down_to(path: str, top: str, point: Path) -> Iterator[Path]:
    """Folders from `point`, where the group `top` is mounted, down to the group `path`."""
    group, yielded = PurePosixPath(path), point
    yield yielded
    # A container may see its group's path on the host, which is not below its mount.
    if group.is_relative_to(top) and ".." not in group.parts:
        for part in group.relative_to(top).parts:
            yielded /= part
            yield yielded


def _unescaped(text: str) -> str:
    """A path of ``mountinfo``, where spaces and backslashes are octal numbers."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), text)


def _limit(group: Path) -> float | None:
    """CPU time per wall time; None without a limit, or without such a file."""
    try:
        if (group / "cpu.max").exists():
            used, period = (group / "cpu.max").read_text().split()
        else:
            used = (group / "cpu.cfs_quota_us").read_text()
            period = (group / "cpu.cfs_period_us").read_text()
        limit = int(used) / int(period)
    except (OSError, ValueError, ZeroDivisionError):  # ValueError: "max"
        return None
    return limit if limit > 0 else None  # -1: no limit
