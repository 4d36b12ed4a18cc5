"""Losses of elements, and what those of labels share with them."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers import ops, reference
from fastlayers.reference import loss
from specs.spec import (
    ELEMENTS,
    INF,
    Arrays,
    Bad,
    Bounds,
    Call,
    Calls,
    Case,
    Draw,
    Empty,
    Layer,
    Pick,
    Random,
    Spec,
    distinct,
    endless,
    every,
    positive,
)

REDUCTIONS = ("mean", "sum", "none")
BCE = "binary_cross_entropy_with_logits"


def paired(op: str, x: tuple[int, ...], **rest: Any) -> Case:
    """Case of a loss whose target has the input's shape; tuples among `rest` are shapes."""
    shapes = {name: value for name, value in rest.items() if isinstance(value, tuple)}
    options = {name: value for name, value in rest.items() if name not in shapes}
    return Case(op, {"input": x, "target": x, **shapes}, options)


def draw_paired(case: Case, rng: np.random.Generator, name: str, kind: str) -> Any:
    """Weights are positive."""
    shape = case.shapes[name]
    if name == "weight" and kind == "integers":
        return rng.integers(1, 5, shape)
    return rng.uniform(0.5, 1.5, shape) if name in ("weight", "pos_weight") else None


def draw_binary(case: Case, rng: np.random.Generator, name: str, kind: str) -> Any:
    if name == "target" and kind != "integers":
        return rng.uniform(0, 1, case.shapes[name])
    return draw_paired(case, rng, name, kind)


def bound_mse(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Losses of elements, which are not negative, then their sum."""
    samples = 1 if case.options.get("reduction") == "none" else a["input"].size
    return {"y": (samples + 3, y), "dinput": (4, np.abs(want["dinput"]))}


def bound_binary(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    x, t, reduction = a["input"], a["target"], case.options.get("reduction", "mean")
    samples = 1 if reduction == "none" else x.size
    softplus = np.logaddexp(0, np.abs(x))  # is rounded, and an exponential taken of it
    slopes = (1 - t) * reference.sigmoid(x) + t * a.get("pos_weight", 1) * reference.sigmoid(-x)
    slopes = slopes * a.get("weight", 1) * loss._spread(dy, x, reduction)
    return {"y": (samples + 6, y), "dinput": (softplus + 6, slopes)}


def drawn_mse(pick: Pick) -> Case:
    return paired("mse_loss", pick((5,), (6, 4), (2, 4, 3)), reduction=pick(*REDUCTIONS))


def drawn_binary(pick: Pick) -> Case:
    shape = pick((5,), (6, 4), (2, 4, 3))
    factors = {"weight": pick(None, shape[-1:], shape), "pos_weight": pick(None, shape[-1:])}
    given = {name: factor for name, factor in factors.items() if factor}
    return paired(BCE, shape, reduction=pick(*REDUCTIONS), **given)


def long_mse(pick: Pick) -> Case:
    return paired("mse_loss", (pick(64, 97, 130, 300), pick(1, 3, 17)))


def without_sure_losses(case: Case, a: Arrays, value: float, got: Arrays, want: Arrays) -> Any:
    """Where the loss is NaN, as 0 times infinity is, our gradient is finite."""
    if value == -INF:
        assert np.isnan(want["y"]).any() and not np.isnan(got["dinput"]).any()
        return None
    return got, want


def paired_calls(op: str) -> Callable[[Draw], Any]:
    def calls(draw: Draw) -> Any:
        x, t = draw(2, 5, 4), np.abs(draw(2, 5, 4))
        for reduction in REDUCTIONS:
            dy = draw(2, 5, 4) if reduction == "none" else np.array(0.5, draw.dtype)
            yield Call(op, (x, t), {"reduction": reduction})
            yield Call(f"{op}_backward", (dy, x, t), {"reduction": reduction})

    return calls


def paired_array_calls(op: str) -> Callable[[Draw], Any]:
    def calls(draw: Draw) -> Any:
        scalar = draw()
        yield Call(op, (scalar, scalar))
        yield Call(op, (draw(9, 16, 8, 8), draw(9, 16, 8, 8)))
        if op == BCE:
            x, t = draw(3, 4, 5), np.abs(draw(3, 4, 5))
            weights = {"weight": draw(4, 1), "pos_weight": np.abs(draw(3, 1, 5))}
            yield Call(op, (x, t), weights)
            yield Call(f"{op}_backward", (scalar, x, t), weights)

    return calls


X, ONE = np.ones((4, 3), np.float32), np.float32(1)


def both(op: str, rows: list[Any], **usual: Any) -> list[Bad]:
    """Calls that fail forward and backward."""
    return [
        Bad(name, error, argument, args, usual | given)
        for error, argument, given in rows
        for name, args in ((op, ()), (f"{op}_backward", (ONE,)))
    ]


def wrong_paired(op: str) -> list[Bad]:
    rows = [
        (TypeError, "input", {"input": X.astype(int)}),
        (TypeError, "input", {"input": X.astype(complex)}),
        (TypeError, "target", {"target": X.astype(float)}),
        (TypeError, "target", {"target": X.astype(int)}),
        (TypeError, "target", {"target": 1.0}),
        (ValueError, "target", {"target": X[:1]}),
        (ValueError, "reduction", {"reduction": "max"}),
    ]
    return [
        *both(op, rows, input=X, target=X),
        Bad(f"{op}_backward", ValueError, "grad_output", (X, X, X)),
    ]


def arguments(op: str, **more: Any) -> Callable[[Any], dict[str, dict[str, Any]]]:
    """Arguments with which a loss works; text stands for an attribute of the world."""

    def given(world: Any) -> dict[str, dict[str, Any]]:
        own = {k: getattr(world, v) if hasattr(world, str(v)) else v for k, v in more.items()}
        found = {op: {"input": world.m} | own}
        scalar = {"grad_output": np.ones((), np.float32)}
        found[f"{op}_backward"] = scalar | found[op]
        if op == "cross_entropy":
            found["cross_entropy_forward"] = found[op] | {"needs_grad": True}
            found["cross_entropy_apply"] = scalar | {"slopes": world.m, "reuse": False}
        return found

    return given


def empties(op: str, target: str, never: str) -> tuple[Empty, ...]:
    return tuple(
        Empty({"input": "nchw", "target": target}, {"reduction": reduction}, never)
        for reduction in ("sum", "none")
    )


def differentiated_mse() -> Calls:
    for o in every(shape=[(), (7,), (2, 3, 4)], reduction=REDUCTIONS):
        shape = o.pop("shape")
        yield {"input": distinct(*shape), "target": distinct(*shape, seed=1)}, o


def differentiated_binary() -> Calls:
    for o in every(
        shape=[(3,), (4, 3), (2, 2, 3)],
        weight=[None, np.array([0.5, 1, 2])],
        pos_weight=[None, np.array([3.0, 0.5, 1])],
        reduction=REDUCTIONS,
    ):
        shape = o.pop("shape")
        o["target"] = np.random.default_rng(0).uniform(0, 1, shape)
        yield {"input": distinct(*shape)}, o


LOGITS, WEIGHTS = distinct(4, 3), np.array([0.5, 1, 2])
WEIGHTED = {"weight": [None, WEIGHTS], "reduction": list(REDUCTIONS)}
PAIRED = [(), (7,), (4, 3), (2, 3, 2, 2)]


def of_reductions(make: Callable[..., Case], op: str, shapes: Any, *rest: Any) -> Any:
    return (
        make(op, shape, *more, reduction=reduction)
        for shape in shapes
        for more in itertools.product(*rest)
        for reduction in REDUCTIONS
    )


SPECS = (
    Spec(
        op="mse_loss",
        draw=draw_paired,
        samples=tuple(of_reductions(paired, "mse_loss", PAIRED)),
        exact=tuple(
            paired("mse_loss", shape, reduction=REDUCTIONS[(i + more) % 3])
            for i, shape in enumerate(ELEMENTS)
            for more in (0, 1)
            if 0 not in shape
        ),
        bound=bound_mse,
        random=(Random(drawn_mse, torch=15), Random(long_mse, note="long sums")),
        bad=tuple(wrong_paired("mse_loss")),
        calls=paired_calls("mse_loss"),
        array_calls=paired_array_calls("mse_loss"),
        empty=empties("mse_loss", "nchw", ""),
        arguments=arguments("mse_loss", target="m", reduction="sum"),
        too_large={"mse_loss": (lambda: ops.mse_loss(endless(2**50), endless(2**50)), ".")},
        functions={"mse_loss": differentiated_mse},
        layers={
            "MSELoss": Layer({"reduction": list(REDUCTIONS)}, [LOGITS, distinct(4, 3, seed=1)])
        },
    ),
    Spec(
        op=BCE,
        draw=draw_binary,
        samples=(
            *of_reductions(paired, BCE, PAIRED),
            paired(BCE, (4, 3), weight=(4, 1), pos_weight=(3,)),
            paired(BCE, (4, 3), pos_weight=(3,), reduction="none"),
            paired(BCE, (4, 3), weight=(4, 3), reduction="sum"),
        ),
        rounded=tuple(
            of_reductions(paired, BCE, [shape for shape in ELEMENTS[1::2] if 0 not in shape])
        ),
        bound=bound_binary,
        random=(Random(drawn_binary, torch=15),),
        reconcile=without_sure_losses,
        bad=(
            *wrong_paired(BCE),
            Bad(BCE, ValueError, "weight", (X, X, np.ones(4, np.float32))),
            Bad(BCE, ValueError, "weight", (X, X, np.ones((2, 4, 3), np.float32))),
            Bad(BCE, TypeError, "pos_weight", (X, X, None, "mean", np.ones(3))),
        ),
        calls=paired_calls(BCE),
        array_calls=paired_array_calls(BCE),
        empty=empties(BCE, "nchw", ""),
        arguments=arguments(BCE, target="m", reduction="sum", weight="m", pos_weight="c"),
        functions={BCE: differentiated_binary},
        layers={
            "BCEWithLogitsLoss": Layer(
                WEIGHTED | {"pos_weight": [None, WEIGHTS]},
                [LOGITS, positive(4, 3) / 2],
            )
        },
    ),
)
