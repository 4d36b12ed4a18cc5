"""Packages whose submodules are imported when their names are first used.

Of kernels, this is where the backend is chosen: a name gives the compiled module, or the one in
NumPy where there is no Numba. It is looked up once, so that a call costs the same in both.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Collection, Mapping
from typing import Any

from fastlayers.runtime import backend

__all__ = ["on_use"]


def on_use(
    package: str,
    modules: Collection[str],
    homes: Mapping[str, str] | None = None,
    stand_ins: Mapping[str, str] | None = None,
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """``__getattr__`` and ``__dir__`` of a package: its modules, and names by the module of each.

    Source: PEP 562.

    Parameters
    ----------
    package : str
    modules : collection of str
        Its submodules.
    homes : mapping, optional
        By other names of it, the submodules that they are in.
    stand_ins : mapping, optional
        By submodules, the full names of modules that take their places without Numba.
    """
    homes, stand_ins = homes or {}, stand_ins or {}

    def get(name: str) -> Any:
        if name in stand_ins and backend.NUMPY:
            value = importlib.import_module(stand_ins[name])
        elif name in homes:
            value = getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        elif name in modules:
            value = importlib.import_module(f"{package}.{name}")
        else:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        setattr(sys.modules[package], name, value)
        return value

    return get, lambda: sorted([*modules, *homes])
