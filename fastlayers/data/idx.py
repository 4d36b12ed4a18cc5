"""The IDX format of the MNIST files: one array, big-endian, behind a short header."""

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

_DTYPES = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_CHUNK = 1 << 20

_Stream = IO[bytes] | gzip.GzipFile


def read_idx(path: str | os.PathLike[str]) -> NDArray[Any]:
    """Read an array from an IDX file, plain or compressed by gzip.

    The format is described under "The IDX file format" at
    https://web.archive.org/web/2020/http://yann.lecun.com/exdb/mnist/.

    Parameters
    ----------
    path : path
        The file. Whether it is compressed is told by its first bytes, not by its name.

    Returns
    -------
    ndarray
        Of the shape and the dtype that the header gives (uint8, int8, int16, int32, float32 or
        float64), in native byte order.

    Raises
    ------
    FileNotFoundError
        There is no such file.
    ValueError
        The file is too short or too long, its header is not an IDX header, or its compression is
        damaged.
    """
    path = Path(path)
    with path.open("rb") as raw:
        compressed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        if not compressed:
            return _parse(raw, path)
        try:
            with gzip.GzipFile(fileobj=raw) as stream:
                return _parse(stream, path)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise ValueError(
                f"read_idx: {path}: expected a whole gzip file, "
                f"got a damaged one of {path.stat().st_size} bytes: {error}"
            ) from error


def _parse(stream: _Stream, path: Path) -> NDArray[Any]:
    magic = _read_exactly(stream, 4, path, "its magic number")
    if magic[:2] != b"\0\0" or magic[2] not in _DTYPES:
        codes = " ".join(f"{code:02x}" for code in _DTYPES)
        raise ValueError(
            f"read_idx: {path}: expected a magic number 00 00 dtype rank, with dtype one of "
            f"{codes}, got {magic.hex(' ')}"
        )
    dtype, rank = np.dtype(_DTYPES[magic[2]]), magic[3]
    shape = struct.unpack(f">{rank}I", _read_exactly(stream, 4 * rank, path, "its dimensions"))
    expected = math.prod(shape) * dtype.itemsize
    content = _read_exactly(stream, expected, path, f"an array {shape} of {dtype.name}")
    if excess := _count_rest(stream):
        raise ValueError(
            f"read_idx: {path}: expected {expected} bytes for an array {shape} of {dtype.name}, "
            f"got {expected + excess}"
        )
    try:
        array = np.frombuffer(content, dtype).reshape(shape)
    except ValueError as error:
        raise ValueError(
            f"read_idx: {path}: expected a shape that NumPy can hold, got {shape}: {error}"
        ) from error
    return array.astype(dtype.newbyteorder("="), copy=False)


def _read_exactly(stream: _Stream, count: int, path: Path, what: str) -> bytearray:
    # In pieces, so that memory grows with the file and not with what a header claims.
    content = bytearray()
    while piece := stream.read(min(_CHUNK, count - len(content))):
        content += piece
    if len(content) < count:
        raise ValueError(f"read_idx: {path}: expected {count} bytes for {what}, got {len(content)}")
    return content


def _count_rest(stream: _Stream) -> int:
    """Read to the end, where gzip verifies its checksum, and count what was there."""
    return sum(len(piece) for piece in iter(lambda: stream.read(_CHUNK), b""))
