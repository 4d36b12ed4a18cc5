"""Tensors of random numbers.

They are drawn from `fastlayers.random`, which `fastlayers.manual_seed` seeds, or from a
`generator`; the distributions are PyTorch's, the numbers are not.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.expansion import together
from fastlayers.functions.registry import method
from fastlayers.functions.table import result
from fastlayers.functions.values import dtype_of, made, of_size, size_of
from fastlayers.random import as_numpy

__all__ = [
    "bernoulli",
    "multinomial",
    "normal",
    "rand",
    "rand_like",
    "randint",
    "randint_like",
    "randn",
    "randn_like",
    "randperm",
]


def floating_dtype(op: str, dtype: np.dtype) -> np.dtype:
    if dtype.kind != "f":
        raise NotImplementedError(f"{op}: dtype must be floating point, got {dtype}")
    return dtype


def draw(how: str, draws: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Numbers from [0, 1) ("random") or a standard normal distribution ("standard_normal")."""
    kind = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float32)
    out = np.asarray(getattr(draws, how)(shape, dtype=kind), kind)
    if kind == dtype:
        return out
    out = out.astype(dtype)
    # Numbers rounded to 1 are not in [0, 1).
    return np.minimum(out, np.nextafter(dtype.type(1), dtype.type(0))) if how == "random" else out


def _drawn(how: str) -> Callable[..., np.ndarray]:
    def fill(op: str, shape: tuple[int, ...], dtype: np.dtype, generator: Any = None) -> np.ndarray:
        kind = floating_dtype(op, dtype)
        return np.asarray(draw(how, as_numpy(op, generator), shape, kind))

    return fill


rand, rand_like = of_size(
    "rand", _drawn("random"), "numbers drawn uniformly from [0, 1)", "generator"
)
randn, randn_like = of_size(
    "randn", _drawn("standard_normal"), "standard normal numbers", "generator"
)


def integers(op: str, low: Any, high: Any, shape: tuple[int, ...], generator: Any) -> np.ndarray:
    low, high = int(low), int(high)
    if low >= high:
        raise RuntimeError(f"{op}: low must be less than high, got {low} and {high}")
    return np.asarray(as_numpy(op, generator).integers(low, high, shape))


def randint(
    *bounds: Any,
    low: int = 0,
    high: int | None = None,
    size: Any = None,
    generator: Any = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """Integers in [`low`, `high`), int64: ``randint(high, size)``, ``(low, high, size)``.

    Raises
    ------
    TypeError, RuntimeError
        If there is no high or size, or `low` is not below `high`.
    """
    given = list(bounds)
    if size is None and given and not hasattr(given[-1], "__index__"):
        size = given.pop()
    if len(given) == 2:
        low, high = given
    elif len(given) == 1:
        low, high = (low, given[0]) if high is None else (given[0], high)
    if high is None or size is None or len(given) > 2:
        raise TypeError(f"randint: low, high and size, a sequence, must be given, got {bounds}")
    kind = dtype_of("randint", dtype, np.int64)
    out = integers("randint", low, high, size_of("randint", (size,)), generator)
    return made("randint", out.astype(kind), device, requires_grad)


def randint_like(input: Tensor, *bounds: int, dtype: Any = None, **options: Any) -> Tensor:
    """`randint` with the shape and dtype of a tensor."""
    kind = input.dtype if dtype is None else dtype
    return randint(*bounds, size=tuple(input.shape), dtype=kind, **options)


def randperm(
    n: int,
    *,
    generator: Any = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
    layout: Any = None,
    pin_memory: bool = False,
) -> Tensor:
    """The integers below `n` in random order, int64."""
    (count,) = size_of("randperm", (n,))
    out = as_numpy("randperm", generator).permutation(count)
    return made(
        "randperm", out.astype(dtype_of("randperm", dtype, np.int64)), device, requires_grad
    )


def check_std(op: str, std: Any) -> None:
    if np.any(np.asarray(std) < 0):
        raise RuntimeError(f"{op}: std must be >= 0, got {np.min(std)}")


def normal(
    mean: Any = 0.0,
    std: Any = 1.0,
    size: Any = None,
    *,
    generator: Any = None,
    dtype: Any = None,
    device: Any = None,
    requires_grad: bool = False,
) -> Tensor:
    """Normal numbers, each with its mean and standard deviation, or with the same for a given size.

    Raises
    ------
    TypeError
        If neither is a tensor and there is no size, or one is and there is.
    RuntimeError
        If a standard deviation is negative.
    """
    tensors = [x for x in (mean, std) if isinstance(x, Tensor)]
    if bool(tensors) == (size is not None):
        raise TypeError("normal: size must be given for numbers, and not for tensors")
    shape = together("normal", *tensors) if tensors else size_of("normal", (size,))
    kind = floating_dtype(
        "normal", dtype_of("normal", dtype, tensors[0].dtype if tensors else np.float32)
    )
    mu, sigma = (x.array() if isinstance(x, Tensor) else kind.type(x) for x in (mean, std))
    check_std("normal", sigma)
    noise = draw("standard_normal", as_numpy("normal", generator), shape, kind)
    out = (noise * sigma + mu).astype(kind)
    if not tensors:
        return made("normal", out, device, requires_grad)
    zeros = [np.zeros_like(x.array()) for x in tensors]
    return result("normal", out, tuple(tensors), lambda dy: tuple(zeros))  # as PyTorch's is


def hits(op: str, p: np.ndarray, shape: tuple[int, ...], generator: Any) -> np.ndarray:
    if not ((p >= 0) & (p <= 1)).all():
        raise RuntimeError(f"{op}: p must be in [0, 1], got others")
    return np.asarray(as_numpy(op, generator).random(shape) < p)


def bernoulli(input: Tensor, p: float | None = None, *, generator: Any = None) -> Tensor:
    """1 with the probability given by `input`, or `p`; else 0. In the input's dtype.

    Raises
    ------
    NotImplementedError
        If the probabilities are not floating point.
    RuntimeError
        If they are not in [0, 1].
    """
    array = input.array()
    if p is None:
        floating_dtype("bernoulli", array.dtype)
    odds = array if p is None else np.asarray(p)
    out = hits("bernoulli", odds, array.shape, generator).astype(array.dtype)
    return result("bernoulli", out, (input,), np.zeros_like)


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None
) -> Tensor:
    """Indices drawn with the probabilities of each row, which need not sum to 1; int64.

    Raises
    ------
    RuntimeError
        If the input is not floating point with one or two axes, holds a negative number, infinity
        or NaN, or no positive number; if more are drawn than exist, without replacement.
    """
    p = input.array()
    if p.ndim not in (1, 2) or p.dtype.kind != "f":
        raise RuntimeError(
            f"multinomial: input must be floating point of 1 or 2 dim, got {p.dtype} of {p.shape}"
        )
    if num_samples < 1 or (not replacement and num_samples > p.shape[-1]):
        raise RuntimeError(
            f"multinomial: num_samples must be positive and, without replacement, at most "
            f"{p.shape[-1]}, got {num_samples}"
        )
    rows = np.atleast_2d(p).astype(np.float64)
    if not np.isfinite(rows).all() or (rows < 0).any() or (rows.sum(1) <= 0).any():
        raise RuntimeError(
            "multinomial: input must hold finite numbers >= 0 (an invalid multinomial "
            "distribution), of which some are positive in each row, got others"
        )
    draws = as_numpy("multinomial", generator)
    if replacement:
        ends = rows.cumsum(1)
        points = draws.random((len(rows), num_samples)) * ends[:, -1:]
        pairs = zip(ends, points, strict=True)
        out = np.stack([np.searchsorted(end, at, side="right") for end, at in pairs])
    else:
        # The first of exponential clocks with these rates to ring; rate 0 never does.
        with np.errstate(divide="ignore"):
            times = draws.standard_exponential(rows.shape) / rows
        out = np.argsort(times, 1, kind="stable")[:, :num_samples]
    return Tensor(out.reshape(*p.shape[:-1], num_samples).astype(np.int64))


method(bernoulli, "bernoulli")
method(multinomial, "multinomial")
