"""Where data files are kept, and how they get there."""

import functools
import hashlib
import http.client
import importlib
import os
import secrets
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_CHUNK = 1 << 18
_TIMEOUT_SECONDS = 30.0
# Systems under FIPS rules refuse MD5 otherwise.
_new_md5 = functools.partial(hashlib.md5, usedforsecurity=False)


def data_folder(root: str | os.PathLike[str] | None = None) -> Path:
    """Return the folder of the datasets.

    Parameters
    ----------
    root : path, optional
        Used as it is. By default ``$FASTLAYERS_DATA_DIR``, or else ``fastlayers`` in the user's
        data folder of the `XDG Base Directory Specification
        <https://specifications.freedesktop.org/basedir-spec/latest/>`_.
    """
    if root is None:
        root = os.environ.get("FASTLAYERS_DATA_DIR") or None
    if root is not None:
        return Path(root).expanduser()
    shared = Path(os.environ.get("XDG_DATA_HOME", ""))
    if not shared.is_absolute():  # the specification has relative paths ignored
        shared = Path.home() / ".local" / "share"
    return shared / "fastlayers"


def find_file(folders: Iterable[Path], names: Sequence[str]) -> Path | None:
    """Return the first file that exists under one of `names` in one of `folders`."""
    candidates = (folder / name for folder in folders for name in names)
    return next((path for path in candidates if path.is_file()), None)


def fetch(name: str, urls: str | Sequence[str], md5: str, folder: str | os.PathLike[str]) -> Path:
    """Download a file into a folder, unless it is there already, and verify its checksum.

    Parameters
    ----------
    name : str
        The name of the file in `folder`.
    urls : str or sequence of str
        Full addresses of the file, tried in turn.
    md5 : str
        The expected MD5 checksum, in hexadecimal digits.
    folder : path
        Where to put the file; created if need be. A file that is there with another checksum is
        replaced once the download has succeeded.

    Returns
    -------
    Path
        The file, complete and verified.

    Raises
    ------
    FileNotFoundError
        No address provided the file; the message says why, and how to get it by hand.
    ValueError
        `name` is not a plain file name.
    """
    if name in {"", ".."} or Path(name).name != name:
        raise ValueError(f"fetch: name must be a plain file name, got {name!r}")
    target = Path(folder) / name
    if target.is_file() and _md5_of(target) == md5:
        return target
    addresses = [urls] if isinstance(urls, str) else list(urls)
    failures = []
    cause: Exception | None = None
    for url in addresses:
        try:
            _download(url, target, md5)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"  {url}: {type(error).__name__}: {error}")
            cause = error
        else:
            return target
    raise FileNotFoundError(
        "\n".join(
            [
                f"fetch: looked for {name} (md5 {md5}) in {folder}, and could not download it:",
                *failures,
                f"To get it by hand, download it elsewhere and put it at {target}",
            ]
        )
    ) from cause


@contextmanager
def atomic_write(target: Path) -> Iterator[IO[bytes]]:
    """Open a file for writing that appears as `target` only if the block succeeds."""
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.part")
    try:
        with partial.open("xb") as stream:
            yield stream
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _download(url: str, target: Path, md5: str) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    digest = _new_md5()
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response,
        _progress(target.name, response.headers.get("Content-Length")) as advance,
        atomic_write(target) as stream,
    ):
        while chunk := response.read(_CHUNK):
            stream.write(chunk)
            digest.update(chunk)
            advance(len(chunk))
        if digest.hexdigest() != md5:
            raise ValueError(f"expected md5 {md5}, got {digest.hexdigest()}")


def _md5_of(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, _new_md5).hexdigest()


@contextmanager
def _progress(name: str, total: str | None) -> Iterator[Callable[[int], object]]:
    """Return a function to report the number of new bytes to, shown on a terminal by tqdm."""
    try:
        tqdm = importlib.import_module("tqdm").tqdm
    except ImportError:  # an optional dependency
        yield lambda count: None
        return
    size = int(total) if total else None
    with tqdm(desc=name, total=size, unit="B", unit_scale=True, disable=None) as bar:
        yield bar.update
