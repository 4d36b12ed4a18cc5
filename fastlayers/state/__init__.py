"""State files: npz, safetensors and PyTorch's. Nothing in them is ever executed.

A file may be damaged or hostile: what it claims to hold is compared with its size first.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import DTypeLike

from fastlayers.autograd import Tensor
from fastlayers.state import archive, files, nested, npz, safetensors, torch_file

__all__ = ["load", "save"]

_File = str | os.PathLike[str] | IO[bytes]


def save(obj: Any, path: _File) -> None:
    """Write a state to a file, which is replaced only once everything is written.

    ``torch.save(model, path)`` pickles the class; here the state dict is written, in a format
    without pickle.

    The content goes to a file ``.name.*.part`` beside it, which is renamed once it is on the disk:
    after any failure `path` is either unchanged, or new and complete. Only a killed process or a
    crashed machine leaves a ``.part`` file; nothing reads it, and it can be deleted.

    Parameters
    ----------
    obj : object
        A state dict, a numeric array or tensor, a number, text, a bool, None, or a dict, list or
        tuple of these, such as ``{"model": model.state_dict(), "epoch": 3}``. For an object with a
        `state_dict` method, such as a module or an optimiser, its result is written.
    path : path-like or binary file
        ``*.safetensors`` gives a safetensors file; every other name, including ``*.pth`` and
        ``*.pt``, and an open file give NumPy's npz format. If it is a symbolic link, its target is
        replaced.

    Raises
    ------
    TypeError
        If a part of `obj` is none of these, or `path` is not a path.
    ValueError
        If a name is ``__metadata__``, which safetensors reserves, has a null character or an
        unpaired surrogate, or takes more than 65,000 bytes; if `obj` is nested more than 100 deep.
    OSError
        If the file cannot be written.
    """
    _check_path("save", path, "write")
    state_dict = getattr(obj, "state_dict", None)
    arrays = nested.pack(state_dict() if callable(state_dict) else obj)
    if not isinstance(path, str | os.PathLike):
        npz.write(path, arrays)
        return
    path = Path(path)
    write = safetensors.write if path.suffix == ".safetensors" else npz.write
    files.replace(path, lambda file: write(file, arrays))


def load(
    path: _File, map_location: Any = None, *, weights_only: bool | None = True,
    dtype: DTypeLike | None = None,
) -> Any:  # fmt: skip
    """Read a file that `save` or ``torch.save`` wrote, or an npz or safetensors file.

    Nothing in a file is ever executed, and no more memory is taken than the file can really hold,
    whatever it claims. npz and PyTorch's files have a checksum for each array; safetensors has
    none, so damage there can go unnoticed.

    Parameters
    ----------
    path : path-like or binary file
        The format is recognised by the content. An open file is read from its position to its end.
    map_location : {None, "cpu"}
        Where to put arrays, always the CPU.
    weights_only : bool
        Must be True: only arrays and plain data are ever read.
    dtype : dtype, optional
        For all floating point arrays: float16, float32 or float64. By default that of the file, and
        float32 for bfloat16, which has all of its values.

    Returns
    -------
    object
        What was saved: a dict of str to Tensor for a state dict. A plain mapping of names to
        arrays, such as any npz file, gives tensors too. Each has its own memory.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If the file is truncated, damaged or of another format, or holds anything else: numbers that
        NumPy doesn't have, such as float8, or objects; if a name occurs twice, or it unpacks to
        more than 256 MiB and 100 times its size; if `map_location` or `weights_only` is any other
        value.
    TypeError
        If `path` is not a path, or `dtype` none of these.
    """
    _check_path("load", path, "read")
    _check_options(map_location, weights_only)
    convert = partial(_converted, dtype=None if dtype is None else _floating(dtype))
    with _opened(path) as (file, name):
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        start = file.read(_BEGINNING)
        kind = _kind(name, start)
        try:
            if kind == _SAFETENSORS:
                arrays = safetensors.read(file, size)
            else:
                with archive.opened(file, size) as (zipped, members):
                    if torch_file.is_torch_file(members):
                        kind = "a torch"
                        return torch_file.read(zipped, members, size, lambda a: _leaf(convert(a)))
                    kind = "an npz"
                    arrays = npz.read(zipped, members)
            return nested.unpack({n: convert(a) for n, a in arrays.items()}, size, _leaf)
        except MemoryError:
            raise
        except Exception as error:  # from zipfile, zlib, NumPy, Python's parser, json, struct
            raise ValueError(
                f"load: {name} cannot be read as {kind} file: {error!s:.500}"
            ) from error


_SAFETENSORS = "a safetensors"
# A tar archive identifies itself after 257 bytes.
_BEGINNING = 512


def _kind(name: str, start: bytes) -> str:
    """The format of a file by its first bytes, or by its name for a damaged safetensors file."""
    if start.startswith(archive.BEGINNINGS):
        return "an npz or torch"
    found = torch_file.foreign(start)
    if found is None and (start[8:9] == b"{" or name.endswith(".safetensors")):
        return _SAFETENSORS
    found = found or (f"that begins with {start[:16]!r}" if start else "without content")
    raise ValueError(f"load: {name} must be an npz, safetensors or torch file, got one {found}")


@contextmanager
def _opened(path: Any) -> Iterator[tuple[IO[bytes], str]]:
    """A file that begins at position 0, and how to refer to it."""
    if isinstance(path, str | os.PathLike):
        with open(path, "rb") as file:
            yield file, os.fspath(path)
    else:
        yield io.BytesIO(path.read()), str(getattr(path, "name", type(path).__name__))


def _leaf(array: np.ndarray) -> Tensor:
    """What `load` gives for a tensor, or for an array with a name alone."""
    return Tensor(array)


def _converted(array: np.ndarray, dtype: np.dtype | None) -> np.ndarray:
    """The array in the machine's byte order, and in `dtype` if its values are floating point."""
    if dtype is None or array.dtype.kind != "f":
        dtype = array.dtype.newbyteorder("=")
    return array.astype(dtype, copy=False)


def _check_path(op: str, path: Any, method: str) -> None:
    is_binary = hasattr(path, method) and not isinstance(path, io.TextIOBase)
    if not isinstance(path, str | os.PathLike) and not is_binary:
        raise TypeError(
            f"{op}: path must be a path or a file opened for binary, got {type(path).__name__}"
        )


def _check_options(map_location: Any, weights_only: Any) -> None:
    if map_location is not None and str(map_location).partition(":")[0] != "cpu":
        raise ValueError(f"load: map_location must be None or 'cpu', got {map_location!r}")
    if weights_only not in (None, True):
        raise ValueError(
            f"load: weights_only must be True, since nothing in a file is ever executed, "
            f"got {weights_only!r}"
        )


def _floating(dtype: Any) -> np.dtype:
    found: np.dtype | None
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or found.char not in "efd":
        raise TypeError(f"load: dtype must be float16, float32 or float64, got {dtype!r}")
    return found
