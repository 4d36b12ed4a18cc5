"""The models of `fastlayers.vision.models` in torch, from the same sources with other imports."""

from __future__ import annotations

import re
import types
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

__all__ = ["torch_models", "torch_source"]

_CHANGES = [
    (r"from fastlayers\.autograd import", "from torch import"),
    (r"from fastlayers(\S*) import", r"from torch\1 import"),
    (r"\.view\(", ".reshape("),  # torch's view rejects channels-last memory
]


def _folder() -> Path:
    spec = find_spec("fastlayers")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("fastlayers is not installed")
    return Path(spec.submodule_search_locations[0]) / "vision" / "models"


def torch_source(stem: str) -> str:
    """A module of `fastlayers.vision.models`, from its source, importing only torch."""
    source = (_folder() / f"{stem}.py").read_text()
    for pattern, replacement in _CHANGES:
        source = re.sub(pattern, replacement, source)
    return source


def torch_models() -> dict[str, Callable[..., Any]]:
    """Factories by their names; `fastlayers` itself is not imported."""
    found: dict[str, Callable[..., Any]] = {}
    for path in sorted(_folder().glob("[!_]*.py")):
        namespace = types.ModuleType(f"torch_{path.stem}").__dict__
        exec(compile(torch_source(path.stem), str(path), "exec"), namespace)
        found |= {name: namespace[name] for name in namespace["__all__"]}
    return found
