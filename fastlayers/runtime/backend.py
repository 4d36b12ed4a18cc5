"""Whether ops run compiled kernels, or their NumPy references where Numba is missing.

``FASTLAYERS_BACKEND`` names one: ``numba``, the default where it is installed, or ``numpy``. It is
decided when the ops are imported. Arguments, checks, results and dropout masks are the same but for
rounding. NumPy's BLAS has threads of its own, which `set_num_threads` does not reach.
"""

from __future__ import annotations

import importlib.util
import os
import warnings
from typing import Any

import numpy as np

__all__ = ["NUMPY", "name", "reference"]

INSTALL = "python -m pip install numba"


def _decide() -> bool:
    """Whether the references are used; warns of it, once for a process."""
    asked = os.environ.get("FASTLAYERS_BACKEND") or None
    if asked not in (None, "numba", "numpy"):
        raise ValueError(f"FASTLAYERS_BACKEND: expected numba or numpy, got {asked!r}")
    missing = [name for name in ("numba", "llvmlite") if importlib.util.find_spec(name) is None]
    if asked == "numba" and missing:
        raise ModuleNotFoundError(f"FASTLAYERS_BACKEND: numba is not installed; {INSTALL}")
    if asked != "numpy" and not missing:
        return False
    reason = "FASTLAYERS_BACKEND is numpy" if asked else f"numba is not installed; {INSTALL}"
    warnings.warn(
        f"fastlayers runs on NumPy alone, many times slower than compiled: {reason}",
        RuntimeWarning,
        stacklevel=2,
    )
    return True


# Read once, where ops have checked their arguments; 15 ns.
NUMPY = _decide()


def name() -> str:
    """Name of the backend, ``numba`` or ``numpy``."""
    return "numpy" if NUMPY else "numba"


def reference(op: str, *arguments: Any) -> Any:
    """What a function of `fastlayers.reference` gives; no more warnings than a kernel's."""
    from fastlayers import reference as references

    with np.errstate(all="ignore"):
        return getattr(references, op)(*arguments)
