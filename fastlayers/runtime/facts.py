"""Facts of a plan, which kernels read by name.

A plan makes them as NamedTuples, and keeps their `plain` form to call kernels with: Numba finds the
type of a NamedTuple argument in Python, 2.4 us a call where nested plain tuples take 0.5. In
compiled code `fastlayers.kernels.ir.named.named` gives the names back, at no cost.
"""

from __future__ import annotations

from typing import Any

__all__ = ["plain"]


def plain(facts: Any) -> Any:
    """Nested NamedTuples as nested tuples; anything else as it is."""
    return tuple(map(plain, facts)) if isinstance(facts, tuple) else facts
