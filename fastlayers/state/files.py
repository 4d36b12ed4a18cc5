"""Files that are replaced completely or not at all."""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import IO

__all__ = ["replace"]


def replace(path: Path, write: Callable[[IO[bytes]], object]) -> None:
    """Write a temporary file beside `path`, and rename it to `path` once it is on the disk."""
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
    except OSError:  # Windows, or a folder that can be written but not read
        return
    try:
        os.fsync(folder)
    except OSError as error:
        if error.errno != errno.EINVAL:  # a file system that does not support it
            raise
    finally:
        os.close(folder)
