"""Sums, extremes, norms and orders."""

from collections.abc import Callable
from typing import Any

import numpy as np
from parity.functions_harness import ALL, FLOATS, Arguments, Draw, Row, Steady


def _options(draw: Draw, options: dict[str, tuple[Any, ...]]) -> dict[str, Any]:
    """Some of the options."""
    return {key: draw.pick(*choices) for key, choices in options.items() if draw.rng.random() < 0.4}


def _over(
    dtypes: tuple[str, ...] = ALL, several: bool = True, ties: bool = False, **options: Any
) -> Callable[[Draw], Arguments]:
    """Over some axes, which are given by place, by name, or by NumPy's name."""

    def drawn(draw: Draw) -> Arguments:
        x = draw.tensor(dtypes=dtypes, ties=ties and draw.rng.random() < 0.5)
        dim = draw.dims(x.ndim) if several else draw.pick(None, draw.dim(x.ndim))
        keywords = _options(draw, options)
        if dim is None:
            keywords.pop("keepdim", None)
            return (x,), keywords
        if draw.rng.random() < 0.5:
            return (x, dim), keywords
        return (x,), {draw.pick("dim", "axis"): dim, **keywords}

    return drawn


def _along(
    dtypes: tuple[str, ...] = ALL, ties: bool = False, **options: Any
) -> Callable[[Draw], Arguments]:
    def drawn(draw: Draw) -> Arguments:
        x = draw.tensor(dtypes=dtypes, ties=ties and draw.rng.random() < 0.5)
        return (x, draw.dim(x.ndim)), _options(draw, options)

    return drawn


def _with_nan(function: Callable[[Draw], Arguments]) -> Callable[[Draw], Arguments]:
    def drawn(draw: Draw) -> Arguments:
        (x, *rest), options = function(draw)
        if x.dtype.kind == "f":
            x[draw.rng.random(x.shape) < 0.2] = np.nan
        return (x, *rest), options

    return drawn


def _norm(draw: Draw) -> Arguments:
    x = draw.tensor(dtypes=FLOATS, ties=draw.pick(True, False), shape=draw.shape(empty=False))
    p = draw.pick("fro", 2, 1, 0, 3, 1.5, float("inf"), -float("inf"))
    dim = draw.dims(x.ndim)
    if dim is None:
        return (x, p), {}
    return (x, p, dim), _options(draw, {"keepdim": (True, False)})


def _best(draw: Draw) -> Arguments:
    x = draw.tensor()
    dim = draw.dim(x.ndim)
    size = np.atleast_1d(x).shape[dim] if -x.ndim <= dim < x.ndim else 1
    # No equal ones: which of them are found is nobody's promise.
    x = np.asarray(draw.rng.permutation(x.size).reshape(x.shape), x.dtype)
    k = int(draw.rng.integers(x.ndim == 0, size + 2))
    return (x, k, dim), _options(draw, {"largest": (True, False), "sorted": (True,)})


def _kth(draw: Draw) -> Arguments:
    (x, k, dim), _ = _best(draw)
    return (x, k, dim), _options(draw, {"keepdim": (True, False)})


def _ordered(draw: Draw) -> Arguments:
    x = draw.tensor(ties=draw.pick(True, False))
    options = _options(draw, {"descending": (True, False)})
    return (x,), {"stable": True, "dim": draw.dim(x.ndim), **options}


def _of_two(draw: Draw) -> Arguments:
    first, second = draw.pair()
    return (draw.tensor(first, ties=True), draw.tensor(second, ties=True)), {}


def _distinct(function: Callable[[Draw], Arguments]) -> Callable[[Draw], Arguments]:
    def drawn(draw: Draw) -> Arguments:
        (x, *rest), options = function(draw)
        values = np.asarray(draw.rng.permutation(x.size).reshape(x.shape), x.dtype)
        return (values, *rest), options

    return drawn


def _unique(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(empty=False), ties=True)
    flags = {"return_inverse": (True, False), "return_counts": (True, False)}
    options = _options(draw, flags)
    if x.ndim and x.size and draw.rng.random() < 0.3:
        options["dim"] = draw.dim(x.ndim)
    return (x,), options


def _variance(draw: Draw) -> Arguments:
    x = draw.tensor(dtypes=FLOATS)
    dim = draw.dims(x.ndim)
    keep = _options(draw, {"keepdim": (True, False)})
    if dim is None:
        return draw.pick(((x,), {}), ((x, False), {}), ((x,), {"correction": 0}))
    return draw.pick(
        ((x, dim), {**keep, "correction": draw.pick(0, 1, 2)}),
        ((x, dim), {**keep, "unbiased": False}),
        ((x, dim, False), keep),
        ((x,), {"dim": dim, **keep}),
    )


def _counted(draw: Draw) -> Arguments:
    x = np.abs(draw.tensor(draw.shape(1, 1), ("int64", "int32", "uint8")))
    options = _options(draw, {"minlength": (0, 2, 9)})
    if draw.rng.random() < 0.4:
        options["weights"] = Steady(draw.tensor(x.shape, FLOATS))
    return (x,), options


_KEEP = {"keepdim": (True, False)}
_DTYPE = {"dtype": (np.dtype(np.float64), np.dtype(np.float32))}
_DTYPES = {"dtype": (*_DTYPE["dtype"], np.dtype(np.int64), np.dtype(np.int32))}
ROWS = [
    Row("sum", _over(**_KEEP, **_DTYPES)),
    Row("nansum", _with_nan(_over(**_KEEP, **_DTYPE))),
    Row("mean", _over(FLOATS, **_KEEP, **_DTYPE)),
    Row("nanmean", _with_nan(_over(FLOATS, **_KEEP, **_DTYPE))),
    Row("prod", _over(several=False, ties=True, **_KEEP, **_DTYPE)),
    Row("var", _variance),
    Row("std", _variance),
    Row("var_mean", _variance, forms=("function",)),
    Row("std_mean", _variance, forms=("function",)),
    *(Row(name, _over(ties=True, **_KEEP)) for name in ("amax", "amin", "any", "all")),
    *(Row(name, _over(several=False, **_KEEP)) for name in ("argmax", "argmin")),
    *(Row(name, _with_nan(_distinct(_over(several=False, **_KEEP)))) for name in ("argmax", "max")),
    *(Row(name, _distinct(_over(several=False, **_KEEP))) for name in ("max", "min", "median")),
    Row("median", _with_nan(_distinct(_over(FLOATS, several=False)))),
    Row("amax", _with_nan(_over(**_KEEP))),
    *(Row(name, _of_two) for name in ("max", "min")),
    *(Row(name, lambda draw: ((draw.tensor(ties=True),), {})) for name in ("max", "min", "median")),
    Row("count_nonzero", _over(ties=True)),
    Row("logsumexp", _along(**_KEEP)),
    Row("logsumexp", lambda draw: ((draw.tensor(), draw.pick(0, (0,), [-1])), {})),
    Row("cumsum", _along(**_DTYPE)),
    Row("cumprod", _along(ties=True, **_DTYPE)),
    Row("norm", _norm),
    Row("topk", _best),
    Row("kthvalue", _kth),
    Row("sort", _ordered),
    Row("argsort", _ordered),
    Row("unique", _unique),
    Row("bincount", _counted),
]
