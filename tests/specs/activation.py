"""Elementwise activations, and softmax. A new one of elements is one entry of `SPECS`."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fastlayers import ops, reference
from specs.spec import (
    ELEMENTS,
    INF,
    NAN,
    Arrays,
    Bad,
    Bounds,
    Call,
    Calls,
    Case,
    Draw,
    Empty,
    Layer,
    Nonfinite,
    Pick,
    Random,
    Spec,
    distinct,
    endless,
    every,
    of_arguments,
    of_output,
    wrong_inputs,
)

X = np.ones((2, 3), np.float32)
ROWS = distinct(4, 3)


def wrong_gradients(op: str, saved: str, *rest: Any) -> list[Bad]:
    """Calls of a backward of two arrays that don't fit each other."""
    return [
        Bad(f"{op}_backward", ValueError, "grad_output", (X[:1], X, *rest)),
        Bad(f"{op}_backward", TypeError, "grad_output", (X.astype(float), X, *rest)),
        Bad(f"{op}_backward", TypeError, saved, (X, X.astype(int), *rest)),
    ]


def elementwise(
    op: str,
    layer: str,
    saves: str,
    bound: Callable[..., Bounds],
    nonfinite: tuple[Nonfinite, ...],
    values: tuple[tuple[Mapping[str, Any], float, float], ...],
    choices: Mapping[str, tuple[Any, ...]] | None = None,
    exact: bool = False,
    inplace: bool = False,
    bad: tuple[Bad, ...] = (),
    reconcile: Callable[..., Any] | None = None,
) -> Spec:
    """Declare an op that takes each element by itself, in its kernel as in its tests.

    Parameters
    ----------
    op, layer : str
        Its name in `ops` and `nn.functional`, and in `nn`.
    saves : {"input", "output"}
        What its gradient needs.
    bound : callable
        See `Spec`.
    nonfinite : tuple of Nonfinite
    values : tuple
        Arguments of the layer, an input and its output by hand.
    choices : mapping, optional
        Values of its options beside the default.
    exact : bool
        Whether it gives the reference's bits on integers; otherwise it keeps to `bound`.
    inplace : bool
        Whether the function and the layer have the option.
    bad : tuple of Bad
        Calls that fail, by its options.
    reconcile : callable, optional
        See `Spec`.
    """
    choices = choices or {}
    variants = ({}, *({name: value} for name, chosen in choices.items() for value in chosen))
    own = {name: list(chosen) for name, chosen in choices.items()}
    in_place = {"inplace": [False, True]} if inplace else {}
    many = tuple(Case(op, {"input": shape}, o) for o in variants for shape in ELEMENTS)

    def calls(draw: Draw) -> Any:
        x, dy = draw(3, 5, 7, 6), draw(3, 5, 7, 6)
        for o in variants:
            saved = x if saves == "input" else getattr(ops, op)(x, **o)
            yield Call(op, (x,), o)
            yield Call(f"{op}_backward", (dy, saved), o)
            yield Call(op, (np.full((2, 3), -INF, draw.dtype),), o)
            yield Call(op, (np.array(2, draw.dtype),), o)

    def array_calls(draw: Draw) -> Any:
        yield Call(op, (draw(),))
        yield Call(op, (draw(8, 32, 24, 24),))  # more than one task

    def differentiated() -> Calls:
        shapes = [(), (7,), (2, 3, 4), (2, 3, 2, 3), (0, 3)]
        for o in every(shape=shapes, variant=variants, **in_place):
            yield {"input": distinct(*o.pop("shape"))}, o.pop("variant") | o

    def drawn(pick: Pick) -> Case:
        shape = pick((), (11,), (3, 5), (2, 3, 4), (2, 3, 4, 5))
        return Case(op, {"input": shape}, pick(*variants))

    return Spec(
        op=op,
        run=of_output if saves == "output" else of_arguments,
        samples=tuple(
            Case(op, {"input": shape}, o)
            for o in variants
            for shape in [(), (7,), (2, 3, 5), (2, 3, 4, 5), (0, 3), (400, 301)]
        ),
        exact=many if exact else (),
        rounded=() if exact else many,
        bound=bound,
        random=(Random(drawn, torch=10),),
        bad=(*wrong_inputs(op, X), *wrong_gradients(op, saves), *bad),
        nonfinite=nonfinite,
        reconcile=reconcile,
        calls=calls,
        array_calls=array_calls,
        empty=tuple(Empty({"input": shape}) for shape in ("n", "nc", "nchw")),
        arguments=lambda world: {
            op: {"input": world.m} | variants[-1],
            f"{op}_backward": {"grad_output": world.m, saves: world.m} | variants[-1],
        },
        too_large={
            op: (lambda: getattr(ops, op)(endless(2**30, 2**30)), "."),
            f"{op} of images": (lambda: getattr(ops, op)(endless(2**20, 3, 2**20, 2**10)), "."),
        },
        functions={op: differentiated},
        layers={layer: Layer(own | in_place, [ROWS], values=values)},
    )


def along(op: str, layer: str, bound: Callable[..., Bounds]) -> Spec:
    """Declare an op along an axis, which has to be named."""

    def calls(draw: Draw) -> Any:
        x, dy = draw(3, 5, 7, 6), draw(3, 5, 7, 6)
        for dim in (1, -1):
            o = {"dim": dim}
            yield Call(op, (x,), o)
            yield Call(f"{op}_backward", (dy, getattr(ops, op)(x, dim)), o)
            yield Call(op, (np.full((2, 3), -INF, draw.dtype),), {"dim": min(dim, 1)})

    def differentiated() -> Calls:
        for shape in [(5,), (4, 3), (2, 3, 4), (2, 3, 2, 2), (0, 3), (3, 1)]:
            for dim in range(-len(shape), len(shape)):
                yield {"input": distinct(*shape)}, {"dim": dim}

    def drawn(pick: Pick) -> Case:
        shape = pick((6,), (3, 5), (2, 7, 4), (2, 3, 4, 5))
        return Case(op, {"input": shape}, {"dim": pick(*range(-len(shape), len(shape)))})

    return Spec(
        op=op,
        run=of_output,
        samples=tuple(
            Case(op, {"input": shape}, {"dim": dim})
            for shape, dim in [
                ((5,), 0),
                ((4, 6), 1),
                ((4, 6), 0),
                ((2, 3, 4, 5), 1),
                ((2, 3, 4), -1),
                ((3, 1), 1),
                ((0, 3), 1),
                ((500, 31), 1),
            ]
        ),
        rounded=tuple(
            Case(op, {"input": shape}, {"dim": dim})
            for shape in ELEMENTS
            for dim in range(-1, len(shape) - 1)
            if shape[dim]
        ),
        bound=bound,
        random=(Random(drawn, torch=10),),
        bad=(
            *wrong_inputs(op, X, 1),
            *wrong_gradients(op, "output", 1),
            *(Bad(op, ValueError, "dim", (X, dim)) for dim in (2, -3)),
            *(Bad(op, TypeError, "dim", (X, dim)) for dim in (1.0, None)),
            Bad(op, ValueError, "dim", (np.array(1.0), 0)),
            Bad(f"{op}_backward", ValueError, "dim", (X, X, 2)),
        ),
        calls=calls,
        empty=tuple(Empty({"input": "nch"}, {"dim": dim}) for dim in (0, 1, 2)),
        arguments=lambda world: {
            op: {"input": world.m, "dim": 1},
            f"{op}_backward": {"grad_output": world.m, "output": world.m, "dim": 1},
        },
        too_large={
            op: (lambda: getattr(ops, op)(endless(2**30, 2**30), 0), "."),
            f"{op} dim": (lambda: getattr(ops, op)(np.ones((1, 3, 8, 8)), 2**70), "."),
        },
        functions={op: differentiated},
        layers={layer: Layer({"dim": [0, -1]}, [ROWS])},
    )


def _unrounded(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    return {name: (0, np.abs(value)) for name, value in want.items()}


def _slope(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """A slope is rounded, and the product with it."""
    return {name: (1, np.abs(value)) for name, value in want.items()}


def _sigmoid(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """An exponential of an ulp, a sum, a quotient; the gradient takes y as rounded."""
    return {"y": (3, y), "dinput": (4, dy * y)}


def _silu(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """A sigmoid of two ulps and a half, a product; in the gradient two, a sum and three."""
    x = np.abs(a["input"])
    p, rest = reference.sigmoid(a["input"]), reference.sigmoid(-a["input"])
    return {"y": (3, np.abs(y)), "dinput": (7, dy * p * (1 + x * rest))}


def _tanh(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Two ulps; the gradient, ``dy (1 - y^2)``, takes y as rounded."""
    return {"y": (2, np.abs(y)), "dinput": (4, dy)}


def _gelu(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """In float64, up to the last rounding; but a cube is taken in float32."""
    x = np.abs(a["input"])
    if case.options.get("approximate", "none") == "none":
        return {"y": (1, np.abs(y) + 1e-8 * x), "dinput": (1, dy * (1 + x * np.exp(-x * x / 2)))}
    root = np.sqrt(2 / np.pi)
    tail = 1 - np.tanh(root * (x + 0.044715 * x**3)) ** 2
    cube = root * 0.044715 * x**3
    slope = tail * root * (1 + 3 * 0.044715 * x * x)
    dx = dy * (1 + x * slope * (1 + cube))
    return {"y": (2, np.abs(y) + x * tail * cube + 1e-8 * x), "dinput": (2, dx)}


def _hardswish(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """A sum, a quotient and a product, of x and 3 and then of x / 3 and 1 / 2."""
    x = np.abs(a["input"])
    return {"y": (2, x * (x + 3) / 6), "dinput": (2, dy * (x / 3 + 0.5))}


def exponentials(x: Any, axis: int) -> tuple[Any, Any]:
    """Terms of a softmax over an axis, and the probabilities.

    Exponentials of differences d have the relative error of a rounding of d, and one of an ulp;
    then as many as there are classes are added.
    """
    p = reference.softmax(x, axis)
    span = x.max(axis, keepdims=True) - x.min(axis, keepdims=True)
    return x.shape[axis] + span + 4, p


def _softmax(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    dim = case.options["dim"]
    terms, _ = exponentials(a["input"], dim)
    dx = y * (dy + (dy * y).sum(dim, keepdims=True))
    return {"y": (terms, y), "dinput": (2 * terms, dx)}


def _log_softmax(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    dim = case.options["dim"]
    terms, p = exponentials(a["input"], dim)
    dx = dy + p * dy.sum(dim, keepdims=True) * (1 + np.abs(y))
    return {"y": (terms, 1 + np.abs(y)), "dinput": (2 * terms, dx)}


def _gelu_of_infinity(case: Case, a: Arrays, value: float, got: Arrays, want: Arrays) -> Any:
    """Of infinity PyTorch's vectors give NaN, its scalars infinity."""
    return None if value == INF else (got, want)


def _hardswish_of_nan(case: Case, a: Arrays, value: float, got: Arrays, want: Arrays) -> Any:
    """Of NaN PyTorch's vectors have the gradient NaN, its scalars 1."""
    wanted = np.where(np.isnan(a["input"]), NAN, want["dinput"])
    return got, want | {"dinput": wanted.astype(want["dinput"].dtype)}


SPECS = (
    elementwise(
        *("relu", "ReLU", "output", _unrounded),
        nonfinite=(Nonfinite({}, (NAN, INF, 0), (1, 1, 0)),),
        values=(({}, -2, 0), ({}, 3, 3)),
        exact=True,
        inplace=True,
    ),
    elementwise(
        *("leaky_relu", "LeakyReLU", "input", _slope),
        choices={"negative_slope": (0.0, -2.0, 0.3)},
        nonfinite=(
            Nonfinite({}, (NAN, INF, -INF), (0.01, 1, 0.01)),
            Nonfinite({"negative_slope": 0.0}, (NAN, INF, NAN), (0, 1, 0)),
        ),
        values=(({}, -2, -0.02), ({"negative_slope": 0.5}, -2, -1)),
        exact=True,
        inplace=True,
        bad=(
            Bad("leaky_relu", TypeError, "negative_slope", (X, "0.1")),
            Bad("leaky_relu_backward", TypeError, "negative_slope", (X, X, None)),
        ),
    ),
    elementwise(
        *("sigmoid", "Sigmoid", "output", _sigmoid),
        nonfinite=(Nonfinite({}, (NAN, 1, 0), (NAN, 0, 0)),),
        values=(({}, np.log(3), 0.75),),
    ),
    elementwise(
        *("silu", "SiLU", "input", _silu),
        nonfinite=(Nonfinite({}, (NAN, INF, NAN), (NAN, NAN, NAN)),),
        values=(({}, np.log(3), 0.75 * np.log(3)), ({}, -np.log(3), -0.25 * np.log(3))),
        inplace=True,
    ),
    elementwise(
        *("tanh", "Tanh", "output", _tanh),
        nonfinite=(Nonfinite({}, (NAN, 1, -1), (NAN, 0, 0)),),
        values=(({}, np.arctanh(0.5), 0.5),),
    ),
    elementwise(
        *("gelu", "GELU", "input", _gelu),
        choices={"approximate": ("tanh",)},
        nonfinite=(
            Nonfinite({}, (NAN, INF, NAN), (NAN, NAN, NAN)),
            Nonfinite({"approximate": "tanh"}, (NAN, INF, NAN), (NAN, NAN, NAN)),
        ),
        values=(({}, 1, 0.8413447460685429), ({"approximate": "tanh"}, 1, 0.8411919906082768)),
        bad=(
            Bad("gelu", ValueError, "approximate", (X, "erf")),
            Bad("gelu_backward", ValueError, "approximate", (X, X, True)),
        ),
        reconcile=_gelu_of_infinity,
    ),
    elementwise(
        *("hardswish", "Hardswish", "input", _hardswish),
        nonfinite=(Nonfinite({}, (NAN, INF, NAN), (NAN, 1, 0)),),
        values=(({}, -4, 0), ({}, 1, 2 / 3), ({}, 4, 4)),
        exact=True,
        inplace=True,
        reconcile=_hardswish_of_nan,
    ),
    along("softmax", "Softmax", _softmax),
    along("log_softmax", "LogSoftmax", _log_softmax),
)
