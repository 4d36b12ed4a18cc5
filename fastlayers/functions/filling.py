"""Tensors filled in place: with one value, another tensor's or random ones."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.expansion import expanded
from fastlayers.functions.registry import method
from fastlayers.functions.sampling import check_std, draw, floating_dtype, hits, integers
from fastlayers.functions.table import result, unbroadcast
from fastlayers.functions.values import scalar
from fastlayers.random import as_numpy

__all__: list[str] = []


def _filled(op: str, self: Tensor, values: np.ndarray, source: Tensor | None = None) -> Tensor:
    """Give a tensor other values; the gradient of the old ones is 0."""

    def function(before: Tensor) -> Tensor:
        def gradient(dy: np.ndarray) -> Any:
            return np.zeros_like(dy), None if source is None else unbroadcast(dy, source.shape)

        with np.errstate(all="ignore"):
            cast = values.astype(self.dtype, copy=False)
        out = expanded(op, cast, tuple(self.shape))
        return result(op.strip("_"), out, (before, source), gradient)

    return inplace.apply(op, function, self)


def _fill_(self: Tensor, value: Any) -> Tensor:
    """Set all elements to one value, a number or a tensor without axes.

    Raises
    ------
    RuntimeError
        If it has axes, or does not fit the dtype.
    """
    if not isinstance(value, Tensor):
        return _filled("fill_", self, scalar("fill_", value, self.dtype))
    if value.ndim:
        raise RuntimeError(
            f"fill_: value must be a number or 0-dimensional, got shape {tuple(value.shape)}"
        )
    return _filled("fill_", self, value.array(), value)


def _zero_(self: Tensor) -> Tensor:
    """Set all elements to 0."""
    return _filled("zero_", self, np.zeros((), self.dtype))


def _copy_(self: Tensor, src: Tensor, non_blocking: bool = False) -> Tensor:
    """Set the elements to the values of another tensor, broadcast and cast."""
    source = tensor(src)
    return _filled("copy_", self, source.array(), source)


def _uniform_(
    self: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Any = None
) -> Tensor:
    """Draw the elements uniformly from [from_, to)."""
    kind = floating_dtype("uniform_", self.dtype)
    if from_ > to:
        raise RuntimeError(f"uniform_: from must not be more than to, got {from_} and {to}")
    draws = draw("random", as_numpy("uniform_", generator), tuple(self.shape), kind)
    return _filled("uniform_", self, draws * kind.type(to - from_) + kind.type(from_))


def _normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Draw the elements from a normal distribution."""
    kind = floating_dtype("normal_", self.dtype)
    check_std("normal_", std)
    draws = draw("standard_normal", as_numpy("normal_", generator), tuple(self.shape), kind)
    return _filled("normal_", self, draws * kind.type(std) + kind.type(mean))


def _exponential_(self: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    """Draw the elements from an exponential distribution of rate `lambd`."""
    kind = floating_dtype("exponential_", self.dtype)
    if not lambd > 0:
        raise RuntimeError(f"exponential_: lambd must be > 0, got {lambd}")
    draws = as_numpy("exponential_", generator).standard_exponential(tuple(self.shape))
    return _filled("exponential_", self, (np.asarray(draws) / lambd).astype(kind))


def _bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    """Set each element to 1 with probability `p`, a number or a tensor, else to 0."""
    odds = p.array() if isinstance(p, Tensor) else np.asarray(p)
    odds = expanded("bernoulli_", odds, tuple(self.shape))
    return _filled("bernoulli_", self, hits("bernoulli_", odds, odds.shape, generator))


def _random_(self: Tensor, *bounds: int, generator: Any = None) -> Tensor:
    """Draw integers below a number, in a range, or from all that the dtype has.

    For floating point dtypes, from 0 up to the largest below which each integer is exact.
    """
    kind = self.dtype
    if not bounds:
        digits = np.finfo(kind).nmant + 1 if kind.kind == "f" else 0
        most = 2**digits if digits else 1 if kind.kind == "b" else int(np.iinfo(kind).max)
        bounds = (0, most + 1 if most < 2**63 - 1 else most)
    low, high = (0, *bounds)[-2:]
    return _filled("random_", self, integers("random_", low, high, tuple(self.shape), generator))


for _function in (
    _fill_,
    _zero_,
    _copy_,
    _uniform_,
    _normal_,
    _exponential_,
    _bernoulli_,
    _random_,
):
    _function.__name__ = _function.__qualname__ = _function.__name__.removeprefix("_")
    method(_function, _function.__name__)
