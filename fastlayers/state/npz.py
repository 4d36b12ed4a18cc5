"""NumPy's npz format, without pickles.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

import math
import zipfile
from collections.abc import Mapping
from typing import IO

import numpy as np
from numpy.lib import format as npy

from fastlayers.state.archive import Members
from fastlayers.state.nested import NUMBERS

__all__ = ["read", "write"]

# NumPy's headers have 118 bytes; parsing such short ones takes little memory.
_LONGEST_HEADER = 1000


def write(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write named arrays to an open file, uncompressed."""
    # Not savez, whose keyword arguments cannot hold a name "file".
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # zip64, since the archive does not know the size in advance
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)


def read(archive: zipfile.ZipFile, members: Members) -> dict[str, np.ndarray]:
    """The named arrays of an archive.

    Raises
    ------
    ValueError, zipfile.BadZipFile, and others
        If a member is damaged or not an array of numbers.
    """
    return {name: _read_member(archive, name, member) for name, member in members.items()}


def _read_member(archive: zipfile.ZipFile, name: str, member: zipfile.ZipInfo) -> np.ndarray:
    """An array that fills its member."""
    with archive.open(member) as stream:
        old = npy.read_magic(stream) == (1, 0)
        read_header = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
        shape, _, dtype = read_header(stream, max_header_size=_LONGEST_HEADER)
        size = member.file_size - stream.tell()
    if dtype.char not in NUMBERS:
        raise ValueError(f"{name!r} is an array of {dtype}")
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{member.filename!r} has {size} bytes for an array {shape} of {dtype}")
    with archive.open(member) as stream:
        # To the member's end, where zipfile compares the checksum.
        return npy.read_array(stream, allow_pickle=False, max_header_size=_LONGEST_HEADER)
