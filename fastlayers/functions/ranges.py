"""Tensors of regularly spaced numbers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.values import dtype_of, made, number

__all__ = ["arange", "linspace", "logspace"]


def arange(
    *bounds: Any,
    start: Any = None,
    end: Any = None,
    step: Any = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """Numbers from `start`, below `end`, `step` apart: ``arange(start, end, step)``.

    int64 for integers, otherwise float32, if `dtype` is not given. Computed in float64 or int64.

    Raises
    ------
    TypeError
        If there is no end.
    RuntimeError
        If the step is 0, or leads away from the end.
    """
    names = ("end",) if len(bounds) == 1 else ("start", "end", "step")[: len(bounds)]
    given = {"start": start, "end": end, "step": step} | dict(zip(names, bounds, strict=True))
    numbers = {name: number(value) for name, value in given.items() if value is not None}
    if "end" not in numbers:
        raise TypeError("arange: end must be given, got none")
    first, last, by = numbers.get("start", 0), numbers["end"], numbers.get("step", 1)
    if by == 0:
        raise RuntimeError("arange: step must be nonzero, got 0")
    if not all(math.isfinite(n) for n in (first, last, by)) or (last - first) * by < 0:
        raise RuntimeError(
            f"arange: the bounds must be finite and consistent with step sign, "
            f"got {first}, {last} and {by}"
        )
    integers = all(isinstance(n, int) for n in (first, last, by))
    kind = dtype_of("arange", dtype, np.int64 if integers else np.float32)
    count = -((first - last) // by) if integers else math.ceil((last - first) / by)
    if kind.kind in "iu":  # PyTorch counts in the dtype
        first, by = int(first), int(by)
    out = (first + np.arange(count) * by).astype(kind)
    return made("arange", out, device, requires_grad)


def _spaced(
    op: str, start: Any, end: Any, steps: Any, dtype: Any, base: float | None
) -> np.ndarray:
    first, last, kind = number(start), number(end), dtype_of(op, dtype)
    if steps < 0:
        raise RuntimeError(f"{op}: number of steps must be non-negative, got {steps}")
    if kind.kind in "iu":  # PyTorch casts the bounds first
        first, last = int(first), int(last)
    out = np.linspace(first, last, int(steps))
    return (out if base is None else np.power(float(base), out)).astype(kind)


def linspace(
    start: Any,
    end: Any,
    steps: int,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """`steps` equally spaced numbers from `start` to `end`."""
    out = _spaced("linspace", start, end, steps, dtype, None)
    return made("linspace", out, device, requires_grad)


def logspace(
    start: Any,
    end: Any,
    steps: int,
    base: float = 10.0,
    *,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """The powers of `base` whose exponents are `linspace`'s."""
    out = _spaced("logspace", start, end, steps, dtype, base)
    return made("logspace", out, device, requires_grad)
