"""Tensors of random numbers, and tensors that are filled with them.

They are drawn by `fastlayers.random`, which `fastlayers.manual_seed` seeds, or by a `generator`;
PyTorch has the same distributions, not the same numbers.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.creation import dtype_of, made, scalar, size_of
from fastlayers.functions.shape import expanded, together
from fastlayers.functions.table import method, result, tensor, unbroadcast
from fastlayers.random import Generator, numpy_generator

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


def _drawn_by(op: str, generator: Any) -> np.random.Generator:
    if generator is None:
        return numpy_generator()
    if not isinstance(generator, Generator):
        raise TypeError(f"{op}: generator must be a Generator, got {type(generator).__name__}")
    return generator.numpy()


def _floating(op: str, dtype: np.dtype) -> np.dtype:
    if dtype.kind != "f":
        raise NotImplementedError(f"{op}: dtype must be floating point, got {dtype}")
    return dtype


def _draw(how: str, draws: np.random.Generator, shape: tuple[int, ...], dtype: np.dtype) -> Any:
    """Numbers from [0, 1) ("random") or a standard normal distribution ("standard_normal")."""
    kind = dtype if dtype in (np.float32, np.float64) else np.dtype(np.float32)
    out = np.asarray(getattr(draws, how)(shape, dtype=kind), kind)
    if kind == dtype:
        return out
    out = out.astype(dtype)
    # What is rounded to 1 is not in [0, 1).
    return np.minimum(out, np.nextafter(dtype.type(1), dtype.type(0))) if how == "random" else out


def _distribution(name: str, how: str, what: str) -> tuple[Any, Any]:
    def function(
        *size: Any,
        generator: Any = None,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        layout: Any = None,
        pin_memory: bool = False,
        **named: Any,
    ) -> Tensor:
        if named.keys() - {"size"}:
            raise TypeError(f"{name}: {next(iter(named.keys() - {'size'}))} is no option of it")
        shape = size_of(name, size, named.get("size"))
        kind = _floating(name, dtype_of(name, dtype))
        out = _draw(how, _drawn_by(name, generator), shape, kind)
        return made(name, out, device, requires_grad)

    def like(
        input: Tensor,
        *,
        generator: Any = None,
        dtype: Any = None,
        device: Any = None,
        requires_grad: bool = False,
        layout: Any = None,
        memory_format: Any = None,
    ) -> Tensor:
        op = f"{name}_like"
        kind = _floating(op, dtype_of(op, dtype, input.dtype))
        out = _draw(how, _drawn_by(op, generator), tuple(input.shape), kind)
        return made(op, out, device, requires_grad)

    function.__doc__ = f"A tensor of {what}, of a size given as integers or a sequence."
    like.__doc__ = f"A tensor of {what}, of the shape and dtype of another."
    for made_by, known in ((function, name), (like, f"{name}_like")):
        made_by.__name__ = made_by.__qualname__ = known
    return function, like


rand, rand_like = _distribution("rand", "random", "numbers drawn uniformly from [0, 1)")
randn, randn_like = _distribution("randn", "standard_normal", "standard normal numbers")


def _integers(op: str, low: Any, high: Any, shape: tuple[int, ...], generator: Any) -> np.ndarray:
    low, high = int(low), int(high)
    if low >= high:
        raise RuntimeError(f"{op}: low must be less than high, got {low} and {high}")
    return np.asarray(_drawn_by(op, generator).integers(low, high, shape))


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
    """Integers from `low` on, below `high`, int64: ``randint(high, size)``, ``(low, high, size)``.

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
    out = _integers("randint", low, high, size_of("randint", (size,)), generator)
    return made("randint", out.astype(kind), device, requires_grad)


def randint_like(input: Tensor, *bounds: int, dtype: Any = None, **options: Any) -> Tensor:
    """`randint` of the shape and dtype of a tensor."""
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
    out = _drawn_by("randperm", generator).permutation(count)
    return made(
        "randperm", out.astype(dtype_of("randperm", dtype, np.int64)), device, requires_grad
    )


def _check_std(op: str, std: Any) -> None:
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
    """Normal numbers with a mean and a standard deviation each, or the same for all of a size.

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
    kind = _floating(
        "normal", dtype_of("normal", dtype, tensors[0].dtype if tensors else np.float32)
    )
    mu, sigma = (x.array() if isinstance(x, Tensor) else kind.type(x) for x in (mean, std))
    _check_std("normal", sigma)
    noise = _draw("standard_normal", _drawn_by("normal", generator), shape, kind)
    out = (noise * sigma + mu).astype(kind)
    if not tensors:
        return made("normal", out, device, requires_grad)
    zeros = [np.zeros_like(x.array()) for x in tensors]
    return result("normal", out, tuple(tensors), lambda dy: tuple(zeros))  # as PyTorch's is


def _hits(op: str, p: np.ndarray, shape: tuple[int, ...], generator: Any) -> np.ndarray:
    if not ((p >= 0) & (p <= 1)).all():
        raise RuntimeError(f"{op}: p must be in [0, 1], got others")
    return np.asarray(_drawn_by(op, generator).random(shape) < p)


def bernoulli(input: Tensor, p: float | None = None, *, generator: Any = None) -> Tensor:
    """1 with the probability that `input` holds, or with `p`; else 0. Of the input's dtype.

    Raises
    ------
    NotImplementedError
        If the probabilities are not floating point.
    RuntimeError
        If they are not in [0, 1].
    """
    array = input.array()
    if p is None:
        _floating("bernoulli", array.dtype)
    odds = array if p is None else np.asarray(p)
    out = _hits("bernoulli", odds, array.shape, generator).astype(array.dtype)
    return result("bernoulli", out, (input,), np.zeros_like)


def multinomial(
    input: Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None
) -> Tensor:
    """Indices drawn with the probabilities of each row, which need not sum to 1; int64.

    Raises
    ------
    RuntimeError
        If the input is not floating point of one or two axes, holds a negative number, infinity or
        NaN, or no positive one; if more are drawn than there are without replacement.
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
    draws = _drawn_by("multinomial", generator)
    if replacement:
        ends = rows.cumsum(1)
        points = draws.random((len(rows), num_samples)) * ends[:, -1:]
        pairs = zip(ends, points, strict=True)
        out = np.stack([np.searchsorted(end, at, side="right") for end, at in pairs])
    else:
        # The first of exponential clocks that go off at these rates; 0 never does.
        with np.errstate(divide="ignore"):
            times = draws.standard_exponential(rows.shape) / rows
        out = np.argsort(times, 1, kind="stable")[:, :num_samples]
    return Tensor(out.reshape(*p.shape[:-1], num_samples).astype(np.int64))


# In place.


def _filled(op: str, self: Tensor, values: np.ndarray, source: Tensor | None = None) -> Tensor:
    """Give a tensor other values; the gradient of what it was is 0."""

    def function(before: Tensor) -> Tensor:
        def gradient(dy: np.ndarray) -> Any:
            return np.zeros_like(dy), None if source is None else unbroadcast(dy, source.shape)

        with np.errstate(all="ignore"):
            cast = values.astype(self.dtype, copy=False)
        out = expanded(op, cast, tuple(self.shape))
        return result(op.strip("_"), out, (before, source), gradient)

    return inplace.apply(op, function, self)


def _fill_(self: Tensor, value: Any) -> Tensor:
    """Give all elements one value, a number or a tensor of no axes.

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
    """Give the elements the values of another tensor, broadcast and cast."""
    source = tensor(src)
    return _filled("copy_", self, source.array(), source)


def _uniform_(
    self: Tensor, from_: float = 0.0, to: float = 1.0, *, generator: Any = None
) -> Tensor:
    """Draw the elements uniformly from [from_, to)."""
    kind = _floating("uniform_", self.dtype)
    if from_ > to:
        raise RuntimeError(f"uniform_: from must not be more than to, got {from_} and {to}")
    draws = _draw("random", _drawn_by("uniform_", generator), tuple(self.shape), kind)
    return _filled("uniform_", self, draws * kind.type(to - from_) + kind.type(from_))


def _normal_(self: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """Draw the elements from a normal distribution."""
    kind = _floating("normal_", self.dtype)
    _check_std("normal_", std)
    draws = _draw("standard_normal", _drawn_by("normal_", generator), tuple(self.shape), kind)
    return _filled("normal_", self, draws * kind.type(std) + kind.type(mean))


def _exponential_(self: Tensor, lambd: float = 1.0, *, generator: Any = None) -> Tensor:
    """Draw the elements from an exponential distribution of rate `lambd`."""
    kind = _floating("exponential_", self.dtype)
    if not lambd > 0:
        raise RuntimeError(f"exponential_: lambd must be > 0, got {lambd}")
    draws = _drawn_by("exponential_", generator).standard_exponential(tuple(self.shape))
    return _filled("exponential_", self, (np.asarray(draws) / lambd).astype(kind))


def _bernoulli_(self: Tensor, p: Any = 0.5, *, generator: Any = None) -> Tensor:
    """Set each element to 1 with the probability `p`, a number or a tensor, else to 0."""
    odds = p.array() if isinstance(p, Tensor) else np.asarray(p)
    odds = expanded("bernoulli_", odds, tuple(self.shape))
    return _filled("bernoulli_", self, _hits("bernoulli_", odds, odds.shape, generator))


def _random_(self: Tensor, *bounds: int, generator: Any = None) -> Tensor:
    """Draw integers: below a number, from one on below another, or of all that the dtype has.

    Of floating point dtypes all up to which it holds each integer.
    """
    kind = self.dtype
    if not bounds:
        digits = np.finfo(kind).nmant + 1 if kind.kind == "f" else 0
        most = 2**digits if digits else 1 if kind.kind == "b" else int(np.iinfo(kind).max)
        bounds = (0, most + 1 if most < 2**63 - 1 else most)
    low, high = (0, *bounds)[-2:]
    return _filled("random_", self, _integers("random_", low, high, tuple(self.shape), generator))


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
method(bernoulli, "bernoulli")
method(multinomial, "multinomial")
