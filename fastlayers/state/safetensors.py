"""The safetensors format: a JSON header of names, dtypes, shapes and offsets, then the values.

https://huggingface.co/docs/safetensors

The header is read one entry at a time: parsing in Python takes up to 20 times the memory of the
JSON text.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import IO, Any, NamedTuple

import numpy as np

from fastlayers.state.archive import read_bytes
from fastlayers.state.bfloat16 import to_float32

__all__ = ["METADATA", "read", "write"]

# The header's entry of strings, which is neither written nor read.
METADATA = "__metadata__"

_DTYPES = {
    "BOOL": "?", "U8": "u1", "I8": "i1", "U16": "<u2", "I16": "<i2", "U32": "<u4", "I32": "<i4",
    "U64": "<u8", "I64": "<i8", "F16": "<f2", "F32": "<f4", "F64": "<f8", "BF16": "<u2",
}  # fmt: skip
_BFLOAT16 = "BF16"
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items() if name != _BFLOAT16}

_LONGEST_HEADER = 100_000_000  # the format's
_LONGEST_ENTRY = 4096  # of 64 dimensions of 20 digits
_STRING = r'"(?:[^"\\]++|\\.)*+"'
_ENTRY = re.compile(
    rf'\s*({_STRING})\s*:\s*(\{{(?:[^{{}}"]++|{_STRING})*+\}})\s*([,}}])', re.DOTALL
)


def write(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    """Write named little-endian C-contiguous arrays to an open file."""
    header, end = {}, 0
    # The widest dtypes first, so that all arrays are aligned.
    order = sorted(arrays, key=lambda name: -arrays[name].itemsize)
    for name in order:
        begin, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": _NAMES[arrays[name].dtype],
            "shape": arrays[name].shape,
            "data_offsets": (begin, end),
        }
    text = json.dumps({name: header[name] for name in arrays}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for name in order:
        file.write(arrays[name].reshape(-1).view(np.uint8).data)


def read(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    """The named arrays of a file, with bfloat16 as float32.

    Raises
    ------
    ValueError
        If the header does not follow the format, or its arrays do not fill the file without gaps.
    """
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if not 2 <= length <= min(size - 8, _LONGEST_HEADER):
        raise ValueError(f"its {size} bytes begin with a header of {length} bytes")
    entries = _entries(file.read(length).decode())
    arrays: dict[str, Any] = dict.fromkeys(entries)  # in the header's order
    in_file = sorted(entries.items(), key=lambda item: item[1].data_offsets)
    end = 0
    for name, entry in in_file:
        begin, stop = entry.data_offsets
        if begin != end or stop - begin != math.prod(entry.shape) * entry.stored.itemsize:
            raise ValueError(f"{name!r} has bytes {begin} to {stop} after byte {end}: {entry}")
        end = stop
    if end != size - 8 - length:
        raise ValueError(f"its arrays have {end} of {size - 8 - length} bytes")
    for name, entry in in_file:
        begin, stop = entry.data_offsets
        values = read_bytes(file, stop - begin).view(entry.stored).reshape(entry.shape)
        arrays[name] = to_float32(values) if entry.dtype == _BFLOAT16 else values
    return arrays


class _Entry(NamedTuple):
    """What the header says about an array."""

    dtype: str
    shape: tuple[int, ...]
    data_offsets: tuple[int, int]

    @property
    def stored(self) -> np.dtype:
        """The dtype that the array is read as."""
        return np.dtype(_DTYPES[self.dtype])


def _entries(text: str) -> dict[str, _Entry]:
    """The header's entries by their names."""
    entries: dict[str, _Entry] = {}
    seen, at, after = set(), 1, "," if text[0] == "{" else ""
    if re.fullmatch(r"\{\s*\}\s*", text):
        return entries
    while after == ",":
        found = _ENTRY.match(text, at)
        if found is None:
            break
        name, at, after = json.loads(found[1]), found.end(), found[3]
        if name in seen:
            raise ValueError(f"the name {name[:80]!r} occurs twice")
        seen.add(name)
        if name != METADATA:
            entries[name] = _entry(name, found[2])
    if after != "}" or text[at:].strip():
        raise ValueError(f"its header is not a list of arrays from character {at} on")
    return entries


def _entry(name: str, text: str) -> _Entry:
    name.encode()  # which no lone surrogate has, and the format neither
    fields = json.loads(text, object_pairs_hook=list) if len(text) <= _LONGEST_ENTRY else []
    match sorted(fields):
        case [["data_offsets", [begin, end]], ["dtype", str(dtype)], ["shape", [*shape]]] if all(
            type(n) is int and n >= 0 for n in (begin, end, *shape)
        ):
            if dtype not in _DTYPES:
                raise ValueError(f"{name[:80]!r} is an array of {dtype}, of which NumPy has none")
            return _Entry(dtype, tuple(shape), (begin, end))
    raise ValueError(f"{name[:80]!r} must have dtype, shape and data_offsets, got {text[:200]}")
