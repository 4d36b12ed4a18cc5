"""State files: npz always, safetensors where it is installed, pickle never.

https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html,
https://huggingface.co/docs/safetensors
"""

from __future__ import annotations

import contextlib
import os
import struct
import uuid
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import ArrayLike

from fastlayers.autograd import Tensor

__all__ = ["load", "save"]

_ZIP = b"PK"
# All that NumPy and zipfile raise for a damaged archive; RuntimeError is an encrypted member.
_DAMAGED = (
    EOFError,
    KeyError,
    MemoryError,
    NotImplementedError,
    OSError,
    RuntimeError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


def save(state: Mapping[str, ArrayLike | Tensor], path: str | os.PathLike[str]) -> None:
    """Write named arrays to a file, which is replaced only when all is written.

    Parameters
    ----------
    state : mapping of str to array_like
        Such as ``model.state_dict()``.
    path : path-like
        ``*.safetensors`` is written by safetensors; every other name holds NumPy's npz format.

    Raises
    ------
    TypeError
        If `state` is no mapping of names to numeric arrays.
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
        # Keyword arguments of savez cannot hold a name "file"; writing the members can.
        _replace(path, lambda file: _write_npz(file, arrays))


def load(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Read the named arrays of a file that `save` wrote, or an npz or safetensors file.

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
        If the file is truncated, damaged or of another format.
    ModuleNotFoundError
        If the file is safetensors' and that isn't installed.
    """
    path = Path(path)
    with path.open("rb") as file:
        is_zip = file.read(2) == _ZIP
        try:
            if is_zip:
                file.seek(0)
                with np.load(file, allow_pickle=False) as members:
                    return {name: members[name] for name in members.files}
        except _DAMAGED as error:
            raise ValueError(f"load: {path} is a truncated or damaged npz file: {error}") from error
    return _load_safetensors(path)


def _array(name: Any, value: Any) -> np.ndarray:
    if not isinstance(name, str):
        raise TypeError(f"save: names must be strings, got {type(name).__name__} {name!r}")
    try:
        array = np.array(value.data if isinstance(value, Tensor) else value, order="C")
    except ValueError:  # lists of unequal lengths
        array = np.empty((), object)
    if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
        raise TypeError(
            f"save: state[{name!r}] must be a numeric array, got {type(value).__name__} "
            f"({array.dtype})"
        )
    return array


def _write_npz(file: IO[bytes], arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            # zip64, since the size isn't known to the archive before it is written
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, array, allow_pickle=False)


def _replace(path: Path, write: Any) -> None:
    """Write a temporary file beside `path`, and rename it over that when it is on the disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not tempfile's, whose files are for their owner alone.
    temporary = path.parent / f".{path.name}.{uuid.uuid4().hex}"
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def _safetensors() -> Any:
    try:
        import safetensors.numpy
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "safetensors files need the package safetensors: pip install 'fastlayers[train]', "
            "or use a name that ends in .npz"
        ) from error
    return safetensors.numpy


def _load_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Read a file that is not a zip archive."""
    if path.suffix == ".npz":
        raise ValueError(f"load: {path} is a truncated or damaged npz file: it is no zip archive")
    module = _safetensors()
    from safetensors import SafetensorError

    try:
        return dict(module.load_file(path))
    except (SafetensorError, *_DAMAGED) as error:
        raise ValueError(
            f"load: {path} is neither an npz nor a whole safetensors file: {error}"
        ) from error
