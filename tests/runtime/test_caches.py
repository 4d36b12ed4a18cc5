"""Caches as macOS and Windows tell them, from values and records of their formats."""

import struct
import sys

import pytest

from fastlayers.runtime import caches, topology

KIB, MIB = 1 << 10, 1 << 20
M1 = {
    "hw.cacheconfig": (8, 1, 4, 0, 0, 0, 0, 0, 0, 0),
    "hw.l1dcachesize": 64 * KIB,
    "hw.l2cachesize": 4 * MIB,
    "hw.perflevel0.l1dcachesize": 128 * KIB,
    "hw.perflevel0.l2cachesize": 12 * MIB,
    "hw.perflevel0.cpusperl2": 4,
    "hw.perflevel1.l2cachesize": 4 * MIB,
}
INTEL = {
    "hw.cacheconfig": (8, 2, 2, 8, 0, 0, 0, 0, 0, 0),
    "hw.l1dcachesize": 32 * KIB,
    "hw.l2cachesize": 256 * KIB,
    "hw.l3cachesize": 6 * MIB,
}


def sysctl(values, width=8):
    """Give a reader of such values: numbers of 32 or 64 bits, and tables of 64."""

    def read(name):
        value = values.get(name)
        if isinstance(value, tuple):
            return struct.pack(f"<{len(value)}Q", *value)
        return None if value is None else value.to_bytes(width, "little")

    return read


@pytest.mark.parametrize("width", [4, 8])
def test_macos(width):
    assert caches.of_macos(sysctl(M1, width)) == [
        ("L1d", 128 * KIB, 1),
        ("L2", 12 * MIB, 4),
    ]
    expected = [("L1d", 32 * KIB, 2), ("L2", 256 * KIB, 2), ("L3", 6 * MIB, 8)]
    assert caches.of_macos(sysctl(INTEL, width)) == expected
    untold = {name: value for name, value in INTEL.items() if name != "hw.cacheconfig"}
    assert [cache.shared_by for cache in caches.of_macos(sysctl(untold))] == [1, 1, 1]
    assert caches.of_macos(sysctl({})) == []


UNIFIED, INSTRUCTION, DATA = range(3)


def record(level, kind, nbytes, *masks, groups=None, width=8):
    """A record of a cache: header, CACHE_RELATIONSHIP and its GROUP_AFFINITYs."""
    affinities = b"".join(
        mask.to_bytes(width, "little") + struct.pack("<H6x", group) for group, mask in masks
    )
    count = len(masks) if groups is None else groups
    cache = struct.pack("<BBHIi18xH", level, 8, 64, nbytes, kind, count) + affinities
    return struct.pack("<II", 2, 8 + len(cache)) + cache


def ryzen(**options):
    """Two of eight cores with two threads each."""
    cores = [(0, 0b11), (0, 0b1100)]
    found = [struct.pack("<II", 0, 48) + bytes(40)]  # a record of another kind
    for mask in cores:
        found += [
            record(1, DATA, 32 * KIB, mask, **options),
            record(1, INSTRUCTION, 32 * KIB, mask, **options),
            record(2, UNIFIED, 512 * KIB, mask, **options),
        ]
    return b"".join([*found, record(3, UNIFIED, 32 * MIB, (0, 0xFFFF), **options)])


@pytest.mark.parametrize("options", [{}, {"groups": 0}, {"width": 4}], ids=str)
def test_windows(options):
    expected = [("L1d", 32 * KIB, 2), ("L2", 512 * KIB, 2), ("L3", 32 * MIB, 16)]
    assert caches.of_windows(ryzen(**options)) == expected


def test_windows_with_several_groups_of_cores():
    last = record(3, UNIFIED, 64 * MIB, (0, (1 << 64) - 1), (1, 0xFFFF))
    other = record(1, DATA, 48 * KIB, (1, 1))  # the first core of the second group
    assert caches.of_windows(other + last) == [("L3", 64 * MIB, 80)]
    assert caches.of_windows(b"") == caches.of_windows(bytes(64)) == []


@pytest.mark.parametrize("error", [OSError, AttributeError])
@pytest.mark.parametrize(
    ("platform", "name"), [("darwin", "_sysctl"), ("win32", "_processor_information")]
)
def test_a_system_that_does_not_tell(monkeypatch, platform, name, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(sys, "platform", platform)
    monkeypatch.setattr(caches, name, fail)
    assert caches.caches() == []


def test_each_system_is_asked_in_its_way(monkeypatch):
    monkeypatch.setattr(caches, "_sysctl", sysctl(M1))
    monkeypatch.setattr(caches, "_processor_information", ryzen)
    monkeypatch.setattr(topology, "caches", lambda: ["Linux"])
    found = {}
    for name in ("darwin", "win32", "linux", "freebsd14"):
        monkeypatch.setattr(sys, "platform", name)
        found[name] = caches.caches()
    assert found["darwin"][-1].nbytes == 12 * MIB
    assert found["win32"][-1].nbytes == 32 * MIB
    assert found["linux"] == found["freebsd14"] == ["Linux"]
