"""The models of `fastlayers.models` on torch, from the same sources with other imports."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["torch_models"]

_CHANGES = [
    (r"from fastlayers\.autograd import", "from torch import"),
    (r"from fastlayers(\S*) import", r"from torch\1 import"),
    (r"\.view\(", ".reshape("),  # torch's view refuses channels-last memory
]


def torch_models() -> dict[str, Callable[..., Any]]:
    """Factories by their names; `fastlayers` itself is not imported."""
    spec = find_spec("fastlayers")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("fastlayers is not installed")
    folder = Path(spec.submodule_search_locations[0]) / "models"
    found: dict[str, Callable[..., Any]] = {}
    for path in sorted(folder.glob("[!_]*.py")):
        source = path.read_text()
        for pattern, replacement in _CHANGES:
            source = re.sub(pattern, replacement, source)
        namespace = types.ModuleType(f"torch_{path.stem}").__dict__
        exec(compile(source, str(path), "exec"), namespace)
        found |= {name: namespace[name] for name in namespace["__all__"]}
    return found
