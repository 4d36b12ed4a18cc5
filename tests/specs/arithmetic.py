"""Arithmetic of tensors, whose gradients are summed by the numbers of the elements taken."""

from collections.abc import Callable, Iterable
from itertools import chain, product
from typing import Any

import numpy as np

from fastlayers import reference
from fastlayers.ops import arithmetic
from specs.spec import ELEMENTS, Arrays, Case, Place, Spec

# Two shapes that broadcast against each other.
PAIRS = (
    *((shape, shape) for shape in ELEMENTS if len(shape) < 4),
    *(((90, 101), (90, 101)), ((3, 17, 19, 23), (3, 17, 19, 23)), ((9001,), (9001,))),
    *((shape, ()) for shape in ELEMENTS[:12]),
    *((shape, (1, *shape[1:])) for shape in ELEMENTS if len(shape) > 2),
    *((shape[-1:], shape) for shape in ELEMENTS if len(shape) > 1),
)
INDICES: tuple[Any, ...] = (
    *(0, -1, slice(None), slice(1, None), slice(None, None, -1), slice(0, 0), ..., None),
    *((..., 0), (..., None), (slice(None, 2), ...), [0, 1, 0], [[1, -1], [0, 0]], (0, ...)),
    *((..., -1, None), ([1, 0, 1], ...)),
)
# Terms of gradients: the numbers of the elements that each belongs to, and its values.
Terms = list[tuple[np.ndarray, np.ndarray]]


def axes(shape: tuple[int, ...]) -> Iterable[int | tuple[int, ...] | None]:
    """All axes, each of them, and pairs of them."""
    rank = len(shape)
    return chain((None,), range(-rank, rank), ((i, i + 1) for i in range(rank - 1)))


def run(terms: Callable[..., tuple[np.ndarray, Terms]]) -> Callable[..., Arrays]:
    """What runs an op, or sums the terms of its gradients in float64."""

    def called(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
        if module is reference:
            return _summed(terms, case, arrays, dy)
        y = getattr(arithmetic, case.op)(*arrays.values(), **case.options)
        rest = ((True, True),) if "b" in arrays else case.options.values()
        backward = getattr(arithmetic, f"{case.op}_backward")
        gradients = backward(dy(y), *arrays.values(), *rest)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        return {"y": y} | {f"d{n}": d for n, d in zip(arrays, gradients, strict=True)}

    return called


def _summed(terms: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    dtype = next(iter(arrays.values())).dtype
    wide = [array.astype(np.float64) for array in arrays.values()]
    places = [np.arange(array.size).reshape(array.shape) for array in wide]
    y, found = terms(case, wide, places, dy)
    results = {"y": y} | {
        f"d{name}": np.bincount(place.ravel(), values.ravel(), array.size).reshape(array.shape)
        for (name, array), (place, values) in zip(arrays.items(), found, strict=True)
    }
    return {name: np.asarray(value, dtype) for name, value in results.items()}


def taken(case: Case, arrays: Any, places: Any, dy: Place) -> tuple[np.ndarray, Terms]:
    chosen = places[0][case.options["index"]]
    y = arrays[0].ravel()[chosen]
    return y, [(chosen, dy(y))]


def reduced(case: Case, arrays: Any, places: Any, dy: Place) -> tuple[np.ndarray, Terms]:
    (x,), dim = arrays, case.options["dim"]
    rows = x.sum(dim, keepdims=True)
    count = x.size // rows.size if case.op == "mean" else 1
    y = x.sum(dim, keepdims=case.options["keepdim"]) / count
    return y, [(places[0], np.broadcast_to(dy(y).reshape(rows.shape) / count, x.shape))]


def multiplied(case: Case, arrays: Any, places: Any, dy: Place) -> tuple[np.ndarray, Terms]:
    x, z = arrays
    y = x @ z
    d = dy(y)
    if z.ndim == 1:
        z, places[1], d = z[:, None], places[1][:, None], d[..., None]
    if x.ndim == 1:
        x, places[0], d = x[None], places[0][None], np.expand_dims(d, -2)
    left, right = (
        np.broadcast_arrays(a[..., None], b[..., None, :, :]) for a, b in ((x, z), places)
    )
    d = d[..., None, :]
    return y, [(right[0], d * left[1]), (right[1], d * left[0])]


def elements(slopes: Callable[..., Any]) -> Callable[..., tuple[np.ndarray, Terms]]:
    """Terms of an op of two elements, by its value and slopes."""

    def terms(case: Case, arrays: Any, places: Any, dy: Place) -> tuple[np.ndarray, Terms]:
        y, factors = slopes(*arrays)
        d = dy(y)
        return y, [
            (np.broadcast_to(place, y.shape), d * factor)
            for place, factor in zip(places, factors, strict=True)
        ]

    return terms


def draw_powers(case: Case, rng: np.random.Generator, name: str, kind: str) -> Any:
    """Divisors are powers of two, so that sums of quotients are exact."""
    return np.ldexp(1.0, rng.integers(-4, 5, case.shapes[name])) if name == "b" else None


SLOPES: dict[str, Callable[..., Any]] = {
    "add": lambda x, z: (x + z, (1, 1)),
    "sub": lambda x, z: (x - z, (1, -1)),
    "mul": lambda x, z: (x * z, (z, x)),
    "div": lambda x, z: (x / z, (1 / z, -x / (z * z))),
}

SPECS = (
    *(
        Spec(
            op=op,
            run=run(elements(slopes)),
            exact=tuple(Case(op, {"a": a, "b": b}) for a, b in dict.fromkeys(PAIRS)),
            signed_zeros=False,
            **({"draw": draw_powers} if op == "div" else {}),
        )
        for op, slopes in SLOPES.items()
    ),
    Spec(
        op="matmul",
        run=run(multiplied),
        exact=(
            *(
                Case("matmul", {"a": (*stack, *a), "b": b})
                for n, k, m in product((1, 2, 5, 17), (1, 3, 16), (1, 4, 33))
                for stack, a, b in (
                    ((), (n, k), (k, m)),
                    ((3,), (n, k), (k, m)),
                    ((2, 1), (n, k), (3, k, m)),
                )
            ),
            *(Case("matmul", {"a": (k,), "b": (k,)}) for k in (1, 7)),
            *(Case("matmul", {"a": (5,), "b": (*stack, 5, 3)}) for stack in ((), (2,))),
            *(Case("matmul", {"a": (*stack, 4, 5), "b": (5,)}) for stack in ((), (2,))),
        ),
        signed_zeros=False,
    ),
    *(
        Spec(
            op=op,
            run=run(reduced),
            exact=tuple(
                Case(op, {"x": shape}, {"dim": dim, "keepdim": keepdim})
                for shape in (
                    *((1,), (17,), (3, 5), (1, 16), (2, 3, 4), (7, 1, 33)),
                    *((2, 3, 5, 4), (1, 17, 2, 3)),
                )
                for dim in axes(shape)
                for keepdim in (False, True)
            ),
            signed_zeros=False,
        )
        for op in ("sum", "mean")
    ),
    Spec(
        op="getitem",
        run=run(taken),
        exact=tuple(
            Case("getitem", {"x": shape}, {"index": index})
            for shape in ((7,), (17,), (3, 5), (16, 2), (2, 3, 4), (5, 1, 33), (2, 3, 5, 4))
            for index in INDICES
        ),
        signed_zeros=False,
    ),
)
