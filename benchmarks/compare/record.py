"""What a comparison measured, with the machine and versions, as JSON."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from fastlayers.runtime import cpu

__all__ = ["Record", "conditions", "read", "save"]

PACKAGES = ("fastlayers", "numpy", "numba", "llvmlite", "torch", "jax")

Record = dict[str, Any]


def conditions(command: str) -> Record:
    """Date, command, commit, machine and versions."""
    return {
        "date": datetime.date.today().isoformat(),
        "command": command,
        "commit": _commit(),
        "machine": {
            "cpu": _cpu_name(),
            "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None,
            "vector_bytes": cpu.vector_bytes(),
            "system": platform.system(),
            "python": platform.python_version(),
        },
        "versions": {name: _version(name) for name in PACKAGES},
    }


def _commit() -> str | None:
    """The commit that is measured; a changed tree is marked."""
    order = ["git", "describe", "--always", "--dirty", "--abbrev=10"]
    try:
        answer = subprocess.run(
            order, cwd=Path(__file__).parent, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def save(folder: Path, section: str, record: Record) -> None:
    """Write ``<folder>/<section>.json``."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{section}.json").write_text(json.dumps(record, indent=1) + "\n")


def read(folder: Path, section: str) -> Record | None:
    """What `save` wrote; None if there is nothing."""
    try:
        return json.loads((folder / f"{section}.json").read_text())  # type: ignore[no-any-return]
    except FileNotFoundError:
        return None
