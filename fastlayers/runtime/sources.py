"""The code that kernels are made from, however the package was installed.

It is read where Python finds it: from source or bytecode files, on disk or in a zip file, or, if
there are no files, as in an application frozen by PyInstaller, from its importer.
"""

from __future__ import annotations

import importlib.util
import pkgutil
from collections.abc import Iterator
from importlib import resources
from importlib.machinery import all_suffixes
from importlib.resources.abc import Traversable
from pathlib import Path
from types import CodeType
from typing import Any

__all__ = ["contents"]

_PACKAGE = Path(__file__).resolve().parent.parent
_SUFFIXES = tuple(all_suffixes())


def contents() -> list[tuple[str, bytes]]:
    """Names and contents of all modules that can affect a kernel, in a fixed order.

    Raises
    ------
    OSError
        If they cannot be read.
    """
    found: list[tuple[str, bytes]] = []
    try:
        for part in ("kernels", "runtime"):
            modules = sorted(_in_files(_folder(part), part)) or list(_imported(part))
            if not modules:
                raise FileNotFoundError(f"there is nothing of fastlayers.{part}")
            found += modules
    except Exception as error:  # anything an importer raises, or a zip file that was overwritten
        raise OSError(f"the package's code cannot be read: {error}") from error
    return found


def _folder(part: str) -> Traversable:
    folder = _PACKAGE / part
    return folder if folder.is_dir() else resources.files("fastlayers") / part


def _in_files(folder: Traversable, path: str) -> Iterator[tuple[str, bytes]]:
    """Files below a folder that Python imports; not its cached copies of sources."""
    for entry in folder.iterdir() if folder.is_dir() else ():
        name = f"{path}/{entry.name}"
        if entry.name.endswith(_SUFFIXES):
            yield name, entry.read_bytes()
        elif entry.name != "__pycache__":
            yield from _in_files(entry, name)


def _imported(module: str, is_package: bool = True) -> Iterator[tuple[str, bytes]]:
    """Code of a module, and of those below, as its importer provides it."""
    spec = importlib.util.find_spec(f"fastlayers.{module}")
    if spec is None or spec.loader is None:
        return
    loader: Any = spec.loader
    yield module, _text(loader.get_code(spec.name)).encode()
    places = spec.submodule_search_locations if is_package else None
    for below in pkgutil.iter_modules(places, f"{module}.") if places else ():
        yield from _imported(below.name, below.ispkg)


def _text(value: object) -> str:
    """Code, or a constant in it, as text that is the same in every process; marshal's is not."""
    if isinstance(value, CodeType):
        names = (value.co_name, value.co_names, value.co_varnames, value.co_freevars)
        facts = (*names, value.co_code, value.co_exceptiontable, value.co_firstlineno)
        return repr(facts) + _text(value.co_consts)
    if isinstance(value, tuple):
        return f"({','.join(map(_text, value))})"
    if isinstance(value, frozenset):  # in the order of the process's hashes
        return f"{{{','.join(sorted(map(_text, value)))}}}"
    return repr(value)
