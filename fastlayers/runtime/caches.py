"""Caches of a core as the operating system tells them; `runtime.topology` reads Linux's files.

References
----------
https://developer.apple.com/documentation/kernel/1387446-sysctlbyname
https://learn.microsoft.com/windows/win32/api/winnt/ns-winnt-cache_relationship
"""

from __future__ import annotations

import ctypes
import struct
import sys
from collections.abc import Callable, Iterator
from typing import Any

from fastlayers.runtime import topology
from fastlayers.runtime.topology import Cache

__all__ = ["caches", "of_macos", "of_windows"]

# Of macOS: a cache's name, and the ends of the names of its size and of how many cores share it.
# The fastest cores of a chip with several kinds are those of perflevel0.
_MACOS = (
    ("L1d", "l1dcachesize", ""),
    ("L2", "l2cachesize", "cpusperl2"),
    ("L3", "l3cachesize", "cpusperl3"),
)
# Of Windows: the kinds of caches with data, and the request for caches.
_WINDOWS, _RELATION_CACHE = {0: "", 2: "d"}, 2


def caches() -> list[Cache]:
    """Caches of data that the first logical core has, from the smallest level up.

    Empty if the system does not tell.
    """
    try:
        if sys.platform == "darwin":
            return of_macos(_sysctl)
        if sys.platform == "win32":
            return of_windows(_processor_information())
    except (AttributeError, OSError, struct.error):
        return []
    return topology.caches()


def of_macos(read: Callable[[str], bytes | None]) -> list[Cache]:
    """Caches from the values that ``sysctlbyname`` has; None for an unknown name."""

    def number(name: str) -> int:
        return int.from_bytes(read(name) or b"", "little")

    found = []
    # How many logical cores share memory, an L1, an L2 and an L3; older than the names.
    table = read("hw.cacheconfig") or b""
    sharing = struct.unpack(f"<{len(table) // 8}Q", table[: len(table) // 8 * 8])
    for level, (name, size, shared) in enumerate(_MACOS, 1):
        fastest = number(f"hw.perflevel0.{size}")
        cores = number(f"hw.perflevel0.{shared}") if fastest and shared else 0
        if nbytes := fastest or number(f"hw.{size}"):
            any_core = sharing[level] if level < len(sharing) else 1
            found.append(Cache(name, nbytes, cores or max(1, any_core)))
    return found


def of_windows(buffer: bytes) -> list[Cache]:
    """Caches from records of ``GetLogicalProcessorInformationEx``."""
    found = [cache for record in _records(buffer) if (cache := _record(record)) is not None]
    return sorted(found)


def _records(buffer: bytes) -> Iterator[bytes]:
    """Records, each of which begins with its kind and its size."""
    at = 0
    while at + 8 <= len(buffer):
        kind, size = struct.unpack_from("<II", buffer, at)
        if size < 8:
            return
        if kind == _RELATION_CACHE:
            yield buffer[at : at + size]
        at += size


def _record(record: bytes) -> Cache | None:
    """The cache of a record, if the first logical core has it and it is one of data."""
    level, _, _, nbytes, kind = struct.unpack_from("<BBHIi", record, 8)
    groups = max(1, struct.unpack_from("<H", record, 38)[0])  # 0 before there were several
    width = (len(record) - 40) // groups - 8  # bytes of a mask; a group's number and zeros follow
    masks = {}
    for at in range(40, 40 + groups * (width + 8), width + 8):
        (group,) = struct.unpack_from("<H", record, at + width)
        masks[group] = int.from_bytes(record[at : at + width], "little")
    if kind not in _WINDOWS or not masks.get(0, 0) & 1:
        return None
    shared = sum(mask.bit_count() for mask in masks.values())
    return Cache(f"L{level}{_WINDOWS[kind]}", nbytes, shared)


def _sysctl(name: str) -> bytes | None:
    """The value of a name, as macOS' C library has it."""
    function = ctypes.CDLL(None).sysctlbyname
    size = ctypes.c_size_t(0)
    if function(name.encode(), None, ctypes.byref(size), None, 0):
        return None
    value = ctypes.create_string_buffer(size.value)
    failed = function(name.encode(), value, ctypes.byref(size), None, 0)
    return None if failed else value.raw[: size.value]


def _processor_information() -> bytes:
    """All records of caches that Windows has."""
    function: Any = ctypes.windll.kernel32.GetLogicalProcessorInformationEx  # type: ignore[attr-defined]
    size = ctypes.c_uint32(0)
    function(_RELATION_CACHE, None, ctypes.byref(size))  # fails, and tells the size
    buffer = ctypes.create_string_buffer(size.value)
    return buffer.raw if function(_RELATION_CACHE, buffer, ctypes.byref(size)) else b""
