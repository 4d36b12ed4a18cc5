"""Reports on stderr that kernels are being compiled, if that takes longer than a second."""

from __future__ import annotations

import gc
import os
import time
from pathlib import Path
from typing import Any

from numba.core import event

from fastlayers.runtime import cpu, notice

__all__ = ["Progress"]

# Seconds of compilation before the first line, and between lines.
PATIENCE, INTERVAL = 1.0, 5.0


class Progress(event.Listener):
    """Counts the kernels that are compiled, not loaded from the cache, and the time it takes.

    Python's garbage collector is off meanwhile.

    Parameters
    ----------
    folder : Path or None
        Where they are kept.
    """

    def __init__(self, folder: Path | None) -> None:
        self.kernels, self.seconds = 0, 0.0
        self._depth, self._began, self._next, self._collects = 0, 0.0, PATIENCE, False
        self._kept = f"kept in {folder}" if folder else "in every process: see the warning above"

    def on_start(self, event: Any) -> None:
        """A kernel's compilation begins, which includes that of its callees."""
        if not _is_kernel(event):
            return
        if self._depth == 0:
            self._began, self._collects = time.perf_counter(), gc.isenabled()
            gc.disable()  # the compiler's graphs live until its end: 6 % of the time
        self._depth += 1

    def on_end(self, event: Any) -> None:
        """It ends."""
        if not _is_kernel(event):
            return
        self._depth -= 1
        seconds = self.seconds + time.perf_counter() - self._began
        if self._depth == 0:
            self.kernels, self.seconds = self.kernels + 1, seconds
            if self._collects:
                gc.enable()
        if seconds >= self._next:
            self._say(seconds)
            self._next = seconds + INTERVAL

    def _say(self, seconds: float) -> None:
        if os.environ.get("FASTLAYERS_QUIET", "0") not in ("", "0"):
            return
        if self._next == PATIENCE:
            target = cpu.fleet() or "this CPU"
            text = f"compiling kernels for {target}, {self._kept} (FASTLAYERS_QUIET=1 hides this)"
        else:
            text = f"{self.kernels} kernels compiled in {seconds:.0f} s"
        notice.tell(f"fastlayers: {text}")


def _is_kernel(event: Any) -> bool:
    """Whether the function being compiled is the library's, not a user's."""
    return str(event.data["dispatcher"].py_func.__module__).startswith("fastlayers.")
