"""State files: npz by NumPy, safetensors where that package is installed, pickle never.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html,
https://huggingface.co/docs/safetensors

A file may be damaged or hostile: what it claims to hold is compared with its size first.
"""

from __future__ import annotations

import contextlib
import errno
import math
import os
import uuid
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import ArrayLike

from fastlayers.autograd import Tensor

__all__ = ["load", "save"]

# Four bytes, since two may begin a safetensors file: one with a header of 19,280 bytes.
_ZIP = (b"PK\3\4", b"PK\5\6")
# Of booleans, integers and floating point numbers of up to 64 bits, in any byte order.
_NUMBERS = frozenset("?bBhHiIlLqQefd")
# Of sizes. Deflate packs 258 equal bytes to two bits at best.
_RATIOS = {zipfile.ZIP_STORED: 1, zipfile.ZIP_DEFLATED: 1032}
# NumPy's headers have 118 bytes; what is this short takes Python's parser little memory.
_LONGEST_HEADER = 1000
_LONGEST_NAME = 65_000


def save(state: Mapping[str, ArrayLike | Tensor], path: str | os.PathLike[str]) -> None:
    """Write named arrays to a file, which is replaced only when all is written.

    They are written to a file ``.name.*.part`` beside it, which is renamed when its content is on
    the disk: after any failure `path` is as it was, or new and whole. Only a killed process or a
    machine that stops leaves a ``.part`` file; nothing reads it, and it can be deleted.

    Parameters
    ----------
    state : mapping of str to array_like
        Such as ``model.state_dict()``.
    path : path-like
        ``*.safetensors`` is written by safetensors; every other name holds NumPy's npz format. Of a
        symbolic link the target is replaced.

    Raises
    ------
    TypeError
        If `state` is no mapping of names to numeric arrays.
    ValueError
        If a name is ``__metadata__``, which safetensors keeps for itself, has a null character or
        an unpaired surrogate, or takes more than 65,000 bytes.
    OSError
        If the file cannot be written.
    ModuleNotFoundError
        If the name ends in ``.safetensors`` and safetensors isn't installed.
    """
    path = Path(path)
    if not isinstance(state, Mapping):
        raise TypeError(
            f"save: state must be a mapping of names to arrays, as model.state_dict() is, "
            f"got {type(state).__name__}"
        )
    arrays = {name: _array(name, value) for name, value in state.items()}
    if path.suffix == ".safetensors":
        content = _safetensors().save(arrays)
        _replace(path, lambda file: file.write(content))
    else:
        _replace(path, lambda file: _write_npz(file, arrays))


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
        If the file is truncated, damaged or of another format, or holds other than numbers; if an
        npz file has a name twice, or unpacks to more than 256 MiB and 100 times its size.
    ModuleNotFoundError
        If the file is no archive, as those of npz are, and safetensors isn't installed.
    """
    path = Path(path)
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            is_zip = file.read(4) in _ZIP
            if path.suffix == ".npz" and not is_zip:
                raise ValueError("it is no zip archive")
            arrays = (_read_npz if is_zip else _read_safetensors)(file, size)
            return {name: _native(name, array) for name, array in arrays.items()}
        except (MemoryError, ModuleNotFoundError):
            raise
        except Exception as error:  # of zipfile, zlib, NumPy, Python's parser, safetensors
            what = f"{path} is truncated, damaged or neither an npz nor a safetensors file"
            raise ValueError(f"load: {what}: {error}") from error


def _native(name: str, array: np.ndarray) -> np.ndarray:
    if array.dtype.char not in _NUMBERS:
        raise ValueError(f"{name!r} is an array of {array.dtype}")
    return array.astype(array.dtype.newbyteorder("="), copy=False)


def _array(name: Any, value: Any) -> np.ndarray:
    """The value as a C-contiguous little-endian array, if it and its name can be saved."""
    if not isinstance(name, str):
        raise TypeError(f"save: names must be strings, got {type(name).__name__} {name!r}")
    text = name.encode(errors="replace")
    if len(text) > _LONGEST_NAME or text.decode() != name or "\0" in name or name == "__metadata__":
        raise ValueError(
            f"save: names must be text of at most {_LONGEST_NAME} bytes without null characters, "
            f"other than '__metadata__', got {name[:80]!r}"
        )
    try:
        array = np.asarray(value.data if isinstance(value, Tensor) else value, order="C")
    except ValueError:  # lists of unequal lengths
        array = np.empty((), object)
    if array.dtype.char not in _NUMBERS:
        raise TypeError(
            f"save: state[{name!r}] must be a numeric array, got {type(value).__name__} "
            f"({array.dtype})"
        )
    return array.astype(array.dtype.newbyteorder("<"), copy=False)


def _replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file beside `path`, and rename it over that when it is on the disk."""
    path = Path(os.path.realpath(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's, which are for their owner alone. Of names as long as can be a part.
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
    # The folder too, so that the rename outlives a power cut.
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:  # Windows, or a folder that may be written and not read
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that has no such thing
            raise
    finally:
        os.close(folder)


def _write_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    # Not savez, whose keyword arguments cannot hold a name "file".
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # zip64, since the size isn't known to the archive before it is written
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                npy.write_array(member, array, allow_pickle=False)


def _read_npz(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    file.seek(max(0, size - 22 - 0xFFFF))  # where an end record with the longest comment begins
    before, _, end = file.read().rpartition(b"PK\5\6")
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
        count = int.from_bytes(end[6:8], "little")
        # zipfile reads as many as the directory's size tells it, and ignores their number, which
        # zip64 has elsewhere.
        if count not in (len(members), 0xFFFF) or (before and not members):
            raise ValueError(f"its directory has {len(members)} of {count} members")
        if any(m.file_size > _RATIOS.get(m.compress_type, 0) * m.compress_size for m in members):
            raise ValueError("its members are neither stored whole nor deflated")
        # The sum of what lies in the file: members may not overlap, as those of some bombs do.
        claimed = sum(m.compress_size for m in members)
        unpacked = sum(m.file_size for m in members)
        if claimed > size or unpacked > max(256 << 20, 100 * size):
            raise ValueError(f"its {size} bytes claim to hold {claimed}, unpacked {unpacked}")
        for member in members:
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"the name {name!r} occurs twice")
            arrays[name] = _read_member(archive, member)
    return arrays


def _read_member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> np.ndarray:
    """An array, of the size of its member."""
    if member.filename.endswith("data.pkl"):
        raise ValueError("it is torch.save's pickle, which is never read; use safetensors")
    with archive.open(member) as stream:
        old = npy.read_magic(stream) == (1, 0)
        read = npy.read_array_header_1_0 if old else npy.read_array_header_2_0
        shape, _, dtype = read(stream, max_header_size=_LONGEST_HEADER)
        size = member.file_size - stream.tell()
    if math.prod(shape) * dtype.itemsize != size:
        raise ValueError(f"{member.filename!r} has {size} bytes for an array {shape} of {dtype}")
    with archive.open(member) as stream:
        # To the member's end, where zipfile compares the checksum.
        return npy.read_array(stream, allow_pickle=False, max_header_size=_LONGEST_HEADER)


def _read_safetensors(file: IO[bytes], size: int) -> dict[str, np.ndarray]:
    file.seek(0)
    # Not load_file, which maps a file: if another process truncates that, this one ends.
    return dict(_safetensors().load(file.read(size)))


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "safetensors files need the package safetensors: pip install 'fastlayers[train]', "
            "or use a name that ends in .npz"
        ) from error
    return safetensors.numpy
