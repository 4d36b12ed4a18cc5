"""Zip archives. Nothing is unpacked unless what they claim to hold fits their size.

https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

__all__ = ["BEGINNINGS", "Members", "largest_content", "opened", "read_bytes"]

Members = dict[str, zipfile.ZipInfo]

# Four bytes, since two may begin a safetensors file: one with a header of 19,280 bytes.
BEGINNINGS = (b"PK\3\4", b"PK\5\6")
# Of sizes. Deflate packs 258 equal bytes to two bits at best.
_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_CHUNK = 1 << 20


def largest_content(size: int) -> int:
    """Bytes that a file of this size may unpack to: 256 MiB, or 100 times its size."""
    return max(256 << 20, 100 * size)


@contextmanager
def opened(file: IO[bytes], size: int) -> Iterator[tuple[zipfile.ZipFile, Members]]:
    """A zip archive and its members, by their names without ``.npy``.

    Raises
    ------
    ValueError
        If the members are more, larger or more alike than an archive of that size can hold.
    """
    file.seek(max(0, size - 22 - 0xFFFF))  # where an end record with the longest comment begins
    before, _, end = file.read().rpartition(b"PK\5\6")
    with zipfile.ZipFile(file) as archive:
        listed = archive.infolist()
        count = int.from_bytes(end[6:8], "little")
        # zipfile reads as many as the directory's size implies, and ignores their number, which
        # zip64 stores elsewhere.
        if count not in (len(listed), 0xFFFF) or (before and not listed):
            raise ValueError(f"its directory has {len(listed)} of {count} members")
        _check_sizes(listed, size)
        members: Members = {}
        for member in listed:
            name = member.filename.removesuffix(".npy")
            if name in members:
                raise ValueError(f"the name {name!r} occurs twice")
            members[name] = member
        yield archive, members


def _check_sizes(members: list[zipfile.ZipInfo], size: int) -> None:
    if any(m.file_size > _RATIOS.get(m.compress_type, 0) * m.compress_size for m in members):
        raise ValueError("its members are neither stored whole nor deflated")
    # The sum of the parts in the file: members must not overlap, as those of some bombs do.
    claimed = sum(m.compress_size for m in members)
    unpacked = sum(m.file_size for m in members)
    if claimed > size or unpacked > largest_content(size):
        raise ValueError(f"its {size} bytes claim to hold {claimed}, unpacked {unpacked}")


def read_bytes(stream: IO[bytes], size: int) -> np.ndarray:
    """The next bytes of a stream, as an array that owns them."""
    content = np.empty(size, np.uint8)
    at = 0
    while at < size:  # in pieces, since a zip member's readinto takes a copy
        count = stream.readinto(content[at : at + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"it ends {size - at} bytes early")
        at += count
    return content
