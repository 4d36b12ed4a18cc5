"""Whether ops run compiled kernels, or their NumPy references where Numba is missing.

``FASTLAYERS_BACKEND`` selects one: ``numba``, the default where it works, or ``numpy``. The
decision is made when the ops are imported; if Numba is installed but its import with the first op
fails, NumPy takes over. Arguments, checks, results and dropout masks are the same except for
rounding. NumPy's BLAS has its own threads, which `set_num_threads` does not control.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from typing import Any

import numpy as np

from fastlayers.runtime import notice, threads

__all__ = ["NUMPY", "name", "reference"]

INSTALL = "python -m pip install numba"
# The first release of Numba that has not been tested.
_UNTESTED = "0.69"


# Whether ops run on NumPy; read where routes and kernels are chosen, once for a shape or a module,
# and by batch norm in each call, which takes 15 ns.
NUMPY: bool


def _asked() -> str | None:
    """The backend that ``FASTLAYERS_BACKEND`` selects."""
    asked = os.environ.get("FASTLAYERS_BACKEND") or None
    if asked not in (None, "numba", "numpy"):
        raise ValueError(f"FASTLAYERS_BACKEND: expected numba or numpy, got {asked!r}")
    return asked


def _is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except (ImportError, ValueError):  # a finder that hides it, a module without a specification
        return False


def _decide() -> bool | None:
    """Whether the references are used; None if this depends on Numba's import."""
    asked = _asked()
    missing = not (_is_installed("numba") and _is_installed("llvmlite"))
    if asked == "numba" and missing:
        raise ModuleNotFoundError(f"FASTLAYERS_BACKEND: numba is not installed; {INSTALL}")
    if asked == "numpy":
        return _on_numpy("FASTLAYERS_BACKEND is numpy")
    return _on_numpy(f"numba is not installed; {INSTALL}") if missing else None


def _on_numpy(reason: str) -> bool:
    """Warn, once per process."""
    notice.warn(
        f"fastlayers runs on NumPy alone, many times slower than compiled: {reason}", stacklevel=3
    )
    return True


def _fails() -> bool:
    """Whether Numba is installed but does not work, for example with a NumPy that is too new.

    Raises
    ------
    ImportError
        If it works, but internals that this library uses have moved: falling back would make a
        program many times slower after an update that its user did not ask for.
    ValueError
        If a variable for the number of threads is invalid.
    """
    threads.get_num_threads()
    try:
        import numba

        if numba.config.DISABLE_JIT:
            raise RuntimeError("NUMBA_DISABLE_JIT is set")
        numba.njit  # noqa: B018 (missing in what is left of a package that was removed by hand)
    except Exception as error:
        if _asked() == "numba":
            raise
        return _on_numpy(f"numba does not work here: {type(error).__name__}: {error}")
    try:
        from fastlayers.runtime import parallel  # noqa: F401 (and with it all that uses internals)
    except (AttributeError, ImportError) as error:
        raise ImportError(
            f"numba {numba.__version__} has moved internals that fastlayers uses "
            f"({type(error).__name__}: {error}): update fastlayers, or install an older one, "
            f"python -m pip install 'numba<{_UNTESTED}'; with FASTLAYERS_BACKEND=numpy it runs "
            "without, many times slower"
        ) from error
    return False


def __getattr__(attribute: str) -> Any:
    global NUMPY
    if attribute != "NUMPY":
        raise AttributeError(f"module {__name__!r} has no attribute {attribute!r}")
    NUMPY = _fails()
    return NUMPY


if (_decided := _decide()) is not None:
    NUMPY = _decided


def name() -> str:
    """Name of the backend, ``numba`` or ``numpy``."""
    return "numpy" if sys.modules[__name__].NUMPY else "numba"


def reference(op: str, *arguments: Any) -> Any:
    """The result of a function of `fastlayers.reference`, without warnings, as from kernels."""
    from fastlayers import reference as references

    with np.errstate(all="ignore"):
        return getattr(references, op)(*arguments)
