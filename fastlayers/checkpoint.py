"""State files: npz or safetensors by NumPy and the standard library, pickle never.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html,
https://huggingface.co/docs/safetensors

A file may be damaged or hostile. What it claims to hold is compared with its size before any
array is allocated, and headers are matched or parsed as data, never evaluated.
"""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import re
import uuid
import zipfile
import zlib
from collections.abc import Callable, Mapping
from operator import itemgetter
from pathlib import Path
from struct import error as struct_error
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from fastlayers.autograd import Tensor

__all__ = ["load", "save"]

# Four bytes, since two may begin a safetensors file: one with a header of 19,280 bytes.
_ZIP = (b"PK\3\4", b"PK\5\6")
# All that a damaged file makes zipfile, json and NumPy raise; RuntimeError is an encrypted member,
# or JSON nested too deeply.
_DAMAGED = (
    EOFError,
    NotImplementedError,
    OSError,
    OverflowError,
    RuntimeError,
    ValueError,
    struct_error,
    zipfile.BadZipFile,
    zlib.error,
)
_CHUNK = 1 << 20
# NumPy's own limit of a member's header, and that of the safetensors package.
_NPY_HEADER = 10_000
_JSON_HEADER = 100_000_000
# Of a zip archive's end record with a comment; and a number of members that zip64 has elsewhere.
_LONGEST_END = 22 + 0xFFFF
_MANY = 0xFFFF
# Deflate packs 258 equal bytes to two bits at best. What unpacks to more than 256 MiB must do so to
# at most 100 times the file's size.
_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
_UNPACKED = 256 << 20
_UNPACKED_RATIO = 100
# The dictionary before each member's array, its keys in any order.
_NPY = re.compile(
    rb"""\{ (?: \s*+ (?:
        'descr' \s*+ : \s*+ '(?P<dtype> [<>|=] (?: b1 | [iu][1248] | f[248] ))'
        | 'fortran_order' \s*+ : \s*+ (?P<fortran> True | False)
        | 'shape' \s*+ : \s*+ \( (?P<shape> [0-9,\s]*+ ) \)
    ) \s*+ ,?+ )*+ \s*+ \} \s*+""",
    re.VERBOSE,
)
_DTYPES = {
    "BOOL": "|b1", "U8": "|u1", "I8": "|i1", "U16": "<u2", "I16": "<i2", "F16": "<f2",
    "U32": "<u4", "I32": "<i4", "F32": "<f4", "U64": "<u8", "I64": "<i8", "F64": "<f8",
}  # fmt: skip
_DTYPE_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_METADATA = "__metadata__"
_LONGEST_NAME = 65_000

_Arrays = dict[str, np.ndarray]


def save(state: Mapping[str, ArrayLike | Tensor], path: str | os.PathLike[str]) -> None:
    """Write named arrays to a file, which is replaced only when all is written.

    They are written to a file beside it, ``.name.*.part``, which is renamed when its content is on
    the disk. After any failure `path` is as it was, or new and whole. Only a process that is
    killed, or a machine that stops, leaves a ``.part`` file; nothing reads it, and it can be
    deleted.

    Parameters
    ----------
    state : mapping of str to array_like
        Such as ``model.state_dict()``.
    path : path-like
        ``*.safetensors`` has that format; every other name holds NumPy's npz format. Of a symbolic
        link the target is replaced.

    Raises
    ------
    TypeError
        If `state` is no mapping of names to numeric arrays.
    ValueError
        If a name is ``__metadata__``, which safetensors keeps for itself, has a null character or
        an unpaired surrogate, or takes more than 65,000 bytes.
    OSError
        If the file cannot be written.
    """
    path = Path(path)
    if not isinstance(state, Mapping):
        raise TypeError(
            f"save: state must be a mapping of names to arrays, as model.state_dict() is, "
            f"got {type(state).__name__}"
        )
    for name in state:
        _check_name(name)
    arrays = {name: _array(name, value) for name, value in state.items()}
    write = _write_safetensors if path.suffix == ".safetensors" else _write_npz
    _replace(path, lambda file: write(file, arrays))


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the named arrays of a file that `save` wrote, or an npz or safetensors file.

    Nothing in a file is ever run, and memory is taken for what the file can hold, whatever it
    claims. npz has a checksum of each array; safetensors has none, so there a damaged value is
    read as another one.

    Parameters
    ----------
    path : path-like
        The format is found by the content.

    Returns
    -------
    dict of str to ndarray

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, damaged or of another format, holds other than numbers, or a
        name twice, or unpacks to more than 256 MiB and 100 times its size.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if file.read(4) in _ZIP:
                return _read_npz(file, size)
            if path.suffix == ".npz":
                raise ValueError("it is no zip archive")
            return _read_safetensors(file, size)
        except _DAMAGED as error:
            raise ValueError(
                f"load: {path} is truncated, damaged or neither npz nor safetensors: {error}"
            ) from error


def _array(name: Any, value: Any) -> np.ndarray:
    """The value as a C-contiguous little-endian array."""
    try:
        array = np.asarray(value.data if isinstance(value, Tensor) else value, order="C")
    except ValueError:  # lists of unequal lengths
        array = np.empty((), object)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(
            f"save: state[{name!r}] must be a numeric array, got {type(value).__name__} "
            f"({array.dtype})"
        )
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _check_name(name: Any) -> None:
    if not isinstance(name, str):
        raise TypeError(f"save: names must be strings, got {type(name).__name__} {name!r}")
    try:
        fits = len(name.encode()) <= _LONGEST_NAME and "\0" not in name and name != _METADATA
    except UnicodeEncodeError:
        fits = False
    if not fits:
        raise ValueError(
            f"save: names must be text of at most {_LONGEST_NAME} bytes without null characters, "
            f"other than {_METADATA!r}, got {name[:80]!r}"
        )


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file beside `path`, and rename it over that when it is on the disk."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's, whose files are for their owner alone. Part of the name, which may be as long
    # as names can be.
    temporary = path.parent / f".{path.name[:50]}.{uuid.uuid4().hex}.part"
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Put a folder's entries on the disk, so that a rename outlives a power cut."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows, or a folder that may be written and not read
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(descriptor)


def _write_npz(file: IO[bytes], arrays: _Arrays) -> None:
    # Not savez, whose keyword arguments cannot hold a name "file".
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # zip64, since the size isn't known to the archive before it is written
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _read_npz(file: IO[bytes], size: int) -> _Arrays:
    arrays: _Arrays = {}
    file.seek(max(0, size - _LONGEST_END))
    before, _, end = file.read().rpartition(b"PK\5\6")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        count = int.from_bytes(end[6:8], "little")
        # zipfile reads as many as the directory's size tells it, and ignores their number.
        if count not in (len(members), _MANY) or (before and not members):
            raise ValueError(f"its directory has {len(members)} of {count} members")
        for member in members:
            ratio = _RATIOS.get(member.compress_type, 0)
            if member.file_size > ratio * member.compress_size:
                raise ValueError(f"{member.filename!r} is neither stored whole nor deflated")
        # The sum of what lies in the file: members may not overlap, as those of some bombs do.
        claimed = sum(member.compress_size for member in members)
        unpacked = sum(member.file_size for member in members)
        if claimed > size or unpacked > max(_UNPACKED, _UNPACKED_RATIO * size):
            raise ValueError(f"its {size} bytes claim to hold {claimed}, unpacked {unpacked}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"the name {name!r} occurs twice")
            with archive.open(member) as stream:
                arrays[name] = _read_npy(stream, member)
    return arrays


def _read_npy(stream: IO[bytes], member: zipfile.ZipInfo) -> np.ndarray:
    """Read a member to its end, where zipfile compares its checksum."""
    prefix = stream.read(8)
    width = {b"\1": 2, b"\2": 4, b"\3": 4}.get(prefix[6:7], 0)  # by the format's version
    if not prefix.startswith(np.lib.format.MAGIC_PREFIX) or not width:
        pickle = member.filename.endswith("data.pkl")
        hint = ", but torch.save's pickle, which is never read; use safetensors" if pickle else ""
        raise ValueError(f"{member.filename!r} is no array{hint}")
    length = int.from_bytes(stream.read(width), "little")
    header = _NPY.fullmatch(stream.read(length)) if length <= _NPY_HEADER else None
    if header is None or None in header.groups():
        raise ValueError(f"{member.filename!r} is no array of numbers")
    dtype, fortran, sizes = (value.decode() for value in header.groups())
    shape = tuple(int(text) for text in sizes.split(",") if text.strip())
    rest = member.file_size - len(prefix) - width - length
    return _filled(stream, member.filename, dtype, shape, rest, "F" if fortran == "True" else "C")


def _filled(
    stream: IO[bytes],
    name: str,
    code: str,
    shape: tuple[int, ...],
    size: int,
    order: Literal["C", "F"] = "C",
) -> np.ndarray:
    """An array of the next `size` bytes, in native byte order."""
    dtype = np.dtype(code)
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{name!r} has {size} bytes for an array {shape} of {dtype}")
    array = np.empty(shape, dtype, order)
    content, done = array.reshape(-1, order="A").view(np.uint8).data, 0
    # In pieces, since zipfile makes a copy of each.
    while done < size:
        count = stream.readinto(content[done : done + _CHUNK])  # type: ignore[attr-defined]
        if not count:
            raise EOFError(f"{name!r} ends after {done} of {size} bytes")
        done += count
    return array.astype(dtype.newbyteorder("="), copy=False)


def _write_safetensors(file: IO[bytes], arrays: _Arrays) -> None:
    entries, place = {}, 0
    # The widest first, so that each begins at a multiple of its items' size.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0]))
    for name, array in ordered:
        offsets = [place, place := place + array.nbytes]
        kind = _DTYPE_NAMES[array.dtype]
        entries[name] = {"dtype": kind, "shape": array.shape, "data_offsets": offsets}
    header = {name: entries[name] for name in arrays}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little") + text)
    for _, array in ordered:
        file.write(array.reshape(-1).view(np.uint8).data)


def _read_safetensors(file: IO[bytes], size: int) -> _Arrays:
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, _JSON_HEADER):
        raise ValueError(f"its {size} bytes claim a header of {length}")
    header = json.loads(file.read(length).decode(), object_pairs_hook=_distinct)
    if not isinstance(header, dict):
        raise ValueError("its header is no JSON object")
    header.pop(_METADATA, None)
    entries = sorted((_entry(name, entry) for name, entry in header.items()), key=itemgetter(0, 1))
    place = 0
    for begin, end, name, *_ in entries:
        if begin != place:
            raise ValueError(f"{name!r} begins at byte {begin} of the data, and not at {place}")
        place = end
    if place != size - 8 - length:
        raise ValueError(f"it has {size - 8 - length} bytes of data, its arrays {place}")
    arrays = {
        name: _filled(file, name, code, shape, end - begin)
        for begin, end, name, code, shape in entries
    }
    return {name: arrays[name] for name in header}


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _entry(name: str, entry: Any) -> tuple[int, int, str, str, tuple[int, ...]]:
    """Where an array's data begin and end, its name, dtype and shape."""
    match entry:
        case {"dtype": str(dtype), "shape": [*shape], "data_offsets": [begin, end]}:
            if dtype not in _DTYPES:
                raise ValueError(f"{name!r} is of {dtype}, which NumPy has no type for")
            if all(type(n) is int and n >= 0 for n in (begin, end, *shape)):
                return begin, end, name, _DTYPES[dtype], tuple(shape)
    raise ValueError(f"{name!r} has no dtype, shape and data_offsets")
