"""Arithmetic on flat arrays, in chunks of `SPAN` elements."""

from __future__ import annotations

from fastlayers.kernels.ir.runs import sum_run
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = ["add"]

SPAN = 16384


@kernel
def _add_chunk(chunk, worker, a, b, out):
    sum_run(out, a, b, chunk * SPAN, min(SPAN, out.size - chunk * SPAN))


@kernel
def add(a, b, workers, out):
    """``out = a + b``."""
    parallel_for(_add_chunk, (out.size + SPAN - 1) // SPAN, workers, (a, b, out))
