"""Where compiled kernels are kept on disk, and the decorator that compiles them.

Numba's own cache keys a function by its own file only, so a change in a callee or in a
constant of another file would run stale code. The folder name here contains a hash of every source
that can affect a kernel, so a stale kernel cannot be found.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import pickle
import secrets
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llvmlite
import numba
from numba.core import event
from numba.core.caching import CompileResultCacheImpl, FunctionCache, NullCache
from numba.core.serialize import dumps

from fastlayers.runtime import cpu, cross, notice, sources
from fastlayers.runtime.compiler import InnerKernel, Kernel, SharedCode
from fastlayers.runtime.progress import Progress

__all__ = ["cache_dir", "kernel", "progress", "sources_hash"]

_DIGEST = hashlib.sha256().digest_size
# Seconds after which an unfinished file must have been left by a killed process.
_ABANDONED = 3600
_warned: set[str] = set()
if cpu.compiles_only():
    cross.install()
elif cpu.fleet():  # otherwise for the host's name and features
    cross.lower()


@functools.cache
def sources_hash() -> str:
    """Hash of all that machine code depends on: sources, versions and properties of the CPU.

    Raises
    ------
    OSError
        If the sources cannot be read.
    """
    digest = hashlib.sha256()
    for name, content in sources.contents():
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    # As Numba names its own files. Machines of a fleet may have other patches of Python.
    python = sys.implementation.cache_tag, getattr(sys, "abiflags", "")  # t: without a GIL
    versions = numba.__version__, llvmlite.__version__, *python
    checked = bool(numba.config.BOUNDSCHECK)
    facts = (*versions, *(fact() for fact in cpu.CODE_FACTS), checked)
    digest.update(repr(facts).encode())
    return digest.hexdigest()[:16]


def _cache_root() -> Path:
    """Folder set by the user, or the platform's usual one."""
    if named := os.environ.get("FASTLAYERS_CACHE_DIR"):
        return Path(named).expanduser()
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA")
        return (Path(base) if base else Path.home() / "AppData" / "Local") / "fastlayers"
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "fastlayers"
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fastlayers"


def _private_root() -> Path:
    """Private folder of this user below the temporary folder.

    A folder made by another user could contain their code.
    """
    user = os.getuid() if hasattr(os, "getuid") else 0
    folder = Path(tempfile.gettempdir()) / f"fastlayers-{user}"
    folder.mkdir(mode=0o700, exist_ok=True)
    status = folder.lstat()
    if hasattr(os, "getuid") and (status.st_uid != user or status.st_mode & 0o077):
        raise PermissionError(f"{folder} is open to other users")
    return folder


@functools.cache
def cache_dir() -> Path | None:
    """Folder of this version's compiled kernels, or None if none is writable.

    The first of ``FASTLAYERS_CACHE_DIR``, the user's cache folder and a private temporary folder
    that is writable. Without one, kernels are compiled in every process, after one warning; so they
    are if the package's code cannot be read, as another version's kernels could be found.
    """
    try:
        version = sources_hash()
    except OSError as error:
        _warn("saving", f"{error}; so kernels are compiled in every process")
        return None
    for candidate in (_cache_root, _private_root):
        try:
            folder = candidate() / version
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except (OSError, RuntimeError):  # RuntimeError: there is no home folder
            continue
        return folder
    _warned.add("saving")
    notice.warn(
        "fastlayers: no cache folder can be written, so kernels are compiled in every process; "
        "set FASTLAYERS_CACHE_DIR to a folder that can be written",
        stacklevel=2,
    )
    return None


@functools.cache
def _warmed_dir() -> Path | None:
    """The user's folder if it is read-only, as in an image that was warmed up."""
    try:
        folder = _cache_root() / sources_hash()
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return None
    return folder if folder != cache_dir() and os.path.isdir(folder) else None


def _warn(topic: str, text: str) -> None:
    """Warn once per process: Python's own record is lost when Numba changes its filters."""
    if topic not in _warned:
        _warned.add(topic)
        notice.warn(f"fastlayers: {text}", stacklevel=3)


class _Locator:
    """Makes Numba's cache keep a kernel in `cache_dir`."""

    def __init__(self, function: Callable[..., Any]) -> None:
        # Numba uses these names for a function that cannot be cached.
        code = function.__code__
        self._py_file, self._lineno = code.co_filename, code.co_firstlineno

    def ensure_cache_path(self) -> None:
        Path(self.get_cache_path()).mkdir(parents=True, exist_ok=True)

    def get_cache_path(self) -> str:
        return str(cache_dir() or _warmed_dir())

    def get_source_stamp(self) -> str:
        return sources_hash()


class _KernelCacheImpl(CompileResultCacheImpl):
    """Numba's serialised form of a kernel; its own `__init__` chooses another place and name."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._locator, self._lineno = _Locator(function), function.__code__.co_firstlineno
        # Numba uses only the last part of the module's name, which two folders may share.
        module = function.__module__.removeprefix("fastlayers.")
        name = function.__qualname__.replace("<", "").replace(">", "")  # not in Windows' file names
        self._filename_base = f"{module}-{name}-{self._lineno}"


class _KernelFiles:
    """A file for each signature of a kernel, written atomically and checked when it is read.

    Numba's index of a function's signatures loses entries, and can mix up two, if two processes
    write it at the same time; a truncated file crashes the process that reads it.
    """

    def __init__(self, folder: Path, base: str) -> None:
        self._folder, self._base = folder, base

    def _name(self, key: Any) -> str:
        return f"{self._base}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.nbc"

    def load(self, key: Any) -> Any:
        """What was saved; None if there is nothing, or it is damaged."""
        name = self._name(key)
        content = _content(self._folder / name)
        if content is None and (warmed := _warmed_dir()):
            content = _content(warmed / name)
        if content is None:
            return None
        digest, data = content[:_DIGEST], content[_DIGEST:]
        if hashlib.sha256(data).digest() != digest:
            _warn("damage", f"{self._folder / name} is damaged, its kernel is compiled again")
            return None
        # Numba's form, which holds machine code: a loaded file is trusted anyway, so
        # `_private_root` rejects folders of other users.
        return pickle.loads(data)

    def save(self, key: Any, data: Any) -> None:
        """Keep what a later process can load."""
        _remove_abandoned(self._folder)
        path, content = self._folder / self._name(key), dumps(data)
        unfinished = path.with_name(f"{path.name}.{secrets.token_hex(4)}")
        try:
            with open(unfinished, "xb") as file:  # with the user's permissions for new files
                file.write(hashlib.sha256(content).digest() + content)
            os.replace(unfinished, path)
        except BaseException:  # an interrupt leaves nothing behind either
            unfinished.unlink(missing_ok=True)
            raise


def _content(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


@functools.cache
def _remove_abandoned(folder: Path) -> None:
    """Remove what killed processes have left, once per process that saves."""
    for path in folder.glob("*.nbc.*"):
        with contextlib.suppress(OSError):
            if path.stat().st_mtime < time.time() - _ABANDONED:
                path.unlink()


class _KernelCache(FunctionCache):
    _impl_class = _KernelCacheImpl

    def __init__(self, function: Callable[..., Any], folder: Path) -> None:
        super().__init__(function)
        self._cache_file = _KernelFiles(folder, self._impl.filename_base)

    def load_overload(self, sig: Any, target_context: Any) -> Any:
        """Load a kernel, without the tables of types and functions that only compilation needs.

        Those are 0.12 of the 0.52 s to the end of a first training step.
        """
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)

    def save_overload(self, sig: Any, data: Any) -> None:
        """Save a compiled kernel; if the disk is full, it still works.

        Not if a source was edited since the process started: its hash would belong to other code.
        """
        try:
            if sources_hash.__wrapped__() != sources_hash():
                return
            super().save_overload(sig, data)
        except OSError as error:
            folder = self._impl.locator.get_cache_path()
            _warn("saving", f"kernels cannot be saved in {folder}: {error.strerror or error}")


def kernel(function: Callable[..., Any] | None = None, /, **options: Any) -> Any:
    """Compile `function` as ``numba.njit`` does and keep its machine code in `cache_dir`.

    Division follows NumPy's rules (no zero-division check), the GIL is released, and contraction
    to fused multiply-add is allowed; no other liberty is taken with floating point. With `inner`,
    or if its name begins with an underscore, a function is only called by kernels: from Python it
    runs uncompiled. With `shared` it is called by its address. `opt` and `unroll` are those of
    `Kernel`.
    """
    if function is None:
        return functools.partial(kernel, **options)
    progress()
    kind = cross.CompiledOnly if cpu.compiles_only() else Kernel
    kind = SharedCode if options.pop("shared", False) else kind
    inner = options.pop("inner", function.__name__.startswith("_"))
    options = {
        "error_model": "numpy",
        "nogil": True,
        "fastmath": {"contract"},
        "no_cfunc_wrapper": True,
    } | options
    if inner:
        return InnerKernel(function, options)
    dispatcher = kind(function, options)
    folder = cache_dir() or _warmed_dir()
    dispatcher._cache = _KernelCache(function, folder) if folder else NullCache()
    return dispatcher


@functools.cache
def progress() -> Progress:
    """What this process has compiled since the first kernel was defined."""
    listener = Progress(cache_dir())
    event.register("numba:compile", listener)
    return listener
