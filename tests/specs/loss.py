"""Losses of classes, and of elements."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers import ops, reference
from fastlayers.reference import loss
from specs.activation import exponentials
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


def labelled(op: str, x: tuple[int, ...], weight: bool = False, **options: Any) -> Case:
    shapes = {"input": x, "target": x[:1] + x[2:] if len(x) > 1 else ()}
    return Case(op, shapes | ({"weight": (x[min(1, len(x) - 1)],)} if weight else {}), options)


def paired(op: str, x: tuple[int, ...], **rest: Any) -> Case:
    """Case of a loss whose target has the input's shape; tuples among `rest` are shapes."""
    shapes = {name: value for name, value in rest.items() if isinstance(value, tuple)}
    options = {name: value for name, value in rest.items() if name not in shapes}
    return Case(op, {"input": x, "target": x, **shapes}, options)


def draw_labelled(case: Case, rng: np.random.Generator, name: str, kind: str) -> Any:
    if name == "target":
        x = case.shapes["input"]
        return rng.integers(0, x[min(1, len(x) - 1)], case.shapes[name])
    return draw_paired(case, rng, name, kind)


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


def _labels(case: Case, a: Arrays) -> tuple[Any, Any]:
    """What classes count, and the sum of it."""
    o = case.options
    given = a["target"], a.get("weight"), o.get("ignore_index", -100)
    return loss._label_weights(a["input"], *given, o.get("label_smoothing", 0.0))


def bound_nll(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Sums over samples."""
    (q, total), samples = _labels(case, a), max(a["target"].size, 1)
    reduction = case.options.get("reduction", "mean")
    magnitude = loss._expected_loss(-np.abs(a["input"]), q, total, reduction)
    return {"y": (samples + 2, magnitude), "dinput": (samples + 2, np.abs(want["dinput"]))}


def bound_cross_entropy(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Sums over classes, then over samples; what is expected is the logarithm's size and 1."""
    (q, total), samples = _labels(case, a), max(a["target"].size, 1)
    x, reduction = a["input"], case.options.get("reduction", "mean")
    axis = min(1, x.ndim - 1)
    terms, p = exponentials(x, axis)
    most = np.max(terms, initial=1) + samples
    magnitude = loss._expected_loss(np.log(p) - 1, q, total, reduction)
    slopes = np.abs(loss._expected_loss_backward(dy, q, total, reduction))
    slopes = slopes + p * slopes.sum(axis, keepdims=True)
    return {"y": (most, magnitude), "dinput": (most + 4, slopes)}


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


def drawn_labelled(op: str, **choices: Any) -> Callable[[Pick], Case]:
    def drawn(pick: Pick) -> Case:
        options = {"reduction": pick(*REDUCTIONS), "ignore_index": pick(-100, 0, 2)}
        options |= {name: pick(*values) for name, values in choices.items()}
        shape = pick((5,), (6, 4), (8, 3, 5), (4, 3, 2, 5))
        return labelled(op, shape, pick(True, False), **options)

    return drawn


def drawn_mse(pick: Pick) -> Case:
    return paired("mse_loss", pick((5,), (6, 4), (2, 4, 3)), reduction=pick(*REDUCTIONS))


def drawn_binary(pick: Pick) -> Case:
    shape = pick((5,), (6, 4), (2, 4, 3))
    factors = {"weight": pick(None, shape[-1:], shape), "pos_weight": pick(None, shape[-1:])}
    given = {name: factor for name, factor in factors.items() if factor}
    return paired(BCE, shape, reduction=pick(*REDUCTIONS), **given)


def long_labelled(pick: Pick) -> Case:
    many = pick(64, 97, 130, 300)
    return labelled("cross_entropy", (many, 3 * many), pick(True, False))


def long_mse(pick: Pick) -> Case:
    return paired("mse_loss", (pick(64, 97, 130, 300), pick(1, 3, 17)))


def without_ignored(case: Case, a: Arrays, value: float, got: Arrays, want: Arrays) -> Any:
    """An ignored sample counts for nothing, whatever it holds."""
    ignored = np.expand_dims(a["target"] == case.options["ignore_index"], a["input"].ndim > 1)
    dx = np.where(ignored, 0, want["dinput"])
    return got, want | {"dinput": dx.astype(want["dinput"].dtype)}


def without_sure_losses(case: Case, a: Arrays, value: float, got: Arrays, want: Arrays) -> Any:
    """Where the loss is NaN, as 0 times infinity is, our gradient is finite."""
    if value == -INF:
        assert np.isnan(want["y"]).any() and not np.isnan(got["dinput"]).any()
        return None
    return got, want


LABELS = np.array([[1, 4, -100, 0], [2, 2, 3, 0]])


def labelled_calls(op: str, **more: Any) -> Callable[[Draw], Any]:
    """Calls with weights, and with nothing but labels that are ignored."""

    def calls(draw: Draw) -> Any:
        x, w = draw(2, 5, 4), np.abs(draw(5))
        for reduction in REDUCTIONS:
            dy = draw(2, 4) if reduction == "none" else np.array(0.5, draw.dtype)
            o = {"weight": w, "reduction": reduction} | more
            for labels in (LABELS, np.full_like(LABELS, -100)):
                yield Call(op, (x, labels), o)
                yield Call(f"{op}_backward", (dy, x, labels), o)
                if op == "cross_entropy":
                    yield Call("cross_entropy_forward", (x, labels), o)
            yield Call(op, (x[0, :, 0], np.array(1)), o)
            if op == "cross_entropy":
                slopes = ops.cross_entropy_forward(x, LABELS, **o)[1]
                yield Call("cross_entropy_apply", (dy, slopes))

    return calls


def cross_entropy_array_calls(draw: Draw) -> Any:
    slopes = draw(3, 4)
    one = np.ones((), draw.dtype)
    yield Call("cross_entropy_apply", (one, slopes), {"reuse": True}, shares=True)
    yield Call("cross_entropy_apply", (draw(), slopes), {"reuse": True})


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


X, T, ONE = np.ones((4, 3), np.float32), np.array([0, 2, 1, 1]), np.float32(1)


def both(op: str, rows: list[Any], **usual: Any) -> list[Bad]:
    """Calls that fail forward and backward."""
    return [
        Bad(name, error, argument, args, usual | given)
        for error, argument, given in rows
        for name, args in ((op, ()), (f"{op}_backward", (ONE,)))
    ]


def wrong_labelled(op: str) -> list[Bad]:
    rows = [
        (TypeError, "input", {"input": X.astype(int)}),
        (TypeError, "input", {"input": X.astype(complex)}),
        (TypeError, "input", {"input": X.tolist()}),
        (ValueError, "input", {"input": np.array(1, np.float32)}),
        (ValueError, "input", {"input": X[:, :0]}),
        (ValueError, "target", {"target": np.array([0, 3, 1, 1])}),
        (ValueError, "target", {"target": np.array([0, -1, 1, 1])}),
        (ValueError, "target", {"target": np.array([0, -100, 1, 1]), "ignore_index": 2}),
        (TypeError, "target", {"target": T.astype(float)}),
        (TypeError, "target", {"target": T.astype(bool)}),
        (TypeError, "target", {"target": T.tolist()}),
        (TypeError, "target", {"target": X}),
        (ValueError, "target", {"target": T[:3]}),
        (ValueError, "target", {"target": T[:, None]}),
        (ValueError, "weight", {"weight": np.ones(4, np.float32)}),
        (TypeError, "weight", {"weight": np.ones(3)}),
        (TypeError, "ignore_index", {"ignore_index": 1.5}),
        (ValueError, "reduction", {"reduction": "average"}),
        (ValueError, "reduction", {"reduction": None}),
    ]
    return both(op, rows, input=X, target=T)


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


def differentiated_labelled(**options: Any) -> Callable[[], Calls]:
    def calls() -> Calls:
        for o in every(
            shape=[(5, 4), (4,), (2, 4, 3), (2, 4, 3, 2)],
            weight=[None, np.array([0.5, 1, 2, 0])],
            ignore_index=[-100, 1],
            reduction=REDUCTIONS,
            **options,
        ):
            shape = o.pop("shape")
            size = shape[:1] + shape[2:] if len(shape) > 1 else ()
            o["target"] = np.random.default_rng(0).integers(0, 3, size)
            yield {"input": distinct(*shape)}, o

    return calls


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


LOGITS, CLASSES, WEIGHTS = distinct(4, 3), np.array([1, 0, 2, 1]), np.array([0.5, 1, 2])
WEIGHTED = {"weight": [None, WEIGHTS], "reduction": list(REDUCTIONS)}
SAMPLES = [(5, 4), (3,), (2, 3, 4), (2, 4, 3, 2)]
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
        op="cross_entropy",
        draw=draw_labelled,
        labels=("target",),
        samples=(
            *of_reductions(labelled, "cross_entropy", SAMPLES, (False, True)),
            labelled("cross_entropy", (6, 4), ignore_index=1),
            labelled("cross_entropy", (6, 4), True, ignore_index=1, label_smoothing=0.1),
            labelled("cross_entropy", (4, 3, 5), True, label_smoothing=1.0, reduction="none"),
            labelled("cross_entropy", (4, 3), label_smoothing=0.3, reduction="sum"),
            labelled("cross_entropy", (500, 31), True, ignore_index=1, label_smoothing=0.1),
        ),
        rounded=tuple(
            labelled(
                *("cross_entropy", shape, weight), reduction=reduction, label_smoothing=smoothing
            )
            for shape in ((3,), (17,), (1, 5), (5, 4), (13, 17), (64, 10), (2, 3, 4), (3, 16, 2, 2))
            for weight in (False, True)
            for reduction in REDUCTIONS
            for smoothing in (0.0, 0.1, 1.0)
        ),
        bound=bound_cross_entropy,
        random=(
            Random(drawn_labelled("cross_entropy", label_smoothing=(0.0, 0.1, 1.0)), torch=25),
            Random(long_labelled, note="long sums"),
        ),
        reconcile=without_ignored,
        bad=(
            *wrong_labelled("cross_entropy"),
            Bad("cross_entropy", ValueError, "label_smoothing", (X, T, None, -100, "mean", 1.5)),
            Bad("cross_entropy", TypeError, "label_smoothing", (X, T, None, -100, "mean", "no")),
            Bad("cross_entropy_backward", ValueError, "grad_output", (T.astype(np.float32), X, T)),
            Bad("cross_entropy_backward", ValueError, "grad_output", (ONE, X, T, None, 0, "none")),
            Bad("cross_entropy_apply", ValueError, "grad_output", (X[0], X)),
            Bad("cross_entropy_apply", TypeError, "grad_output", (np.ones(4), X)),
        ),
        calls=labelled_calls("cross_entropy", label_smoothing=0.1),
        array_calls=cross_entropy_array_calls,
        empty=empties("cross_entropy", "nhw", "c"),
        arguments=arguments(
            "cross_entropy",
            target="labels",
            weight="c",
            ignore_index=1,
            reduction="mean",
            label_smoothing=0.1,
        ),
        too_large={
            "cross_entropy": (
                lambda: ops.cross_entropy(
                    endless(2**50, 3), np.broadcast_to(np.int64(0), (2**50,))
                ),
                ".",
            )
        },
        functions={"cross_entropy": differentiated_labelled(label_smoothing=[0.0, 0.2, 1.0])},
        layers={
            "CrossEntropyLoss": Layer(
                WEIGHTED | {"ignore_index": [-100, 1], "label_smoothing": [0.0, 0.3]},
                [LOGITS, CLASSES],
            )
        },
    ),
    Spec(
        op="nll_loss",
        draw=draw_labelled,
        labels=("target",),
        samples=(
            *of_reductions(labelled, "nll_loss", SAMPLES, (False, True)),
            labelled("nll_loss", (6, 4), True, ignore_index=1),
        ),
        exact=(
            *of_reductions(
                labelled,
                "nll_loss",
                (
                    *((1,), (3,), (17,), (1, 1), (1, 5), (5, 4), (7, 16), (13, 17), (64, 10)),
                    *((257, 3), (2, 3, 4), (1, 7, 5), (3, 2, 1), (2, 4, 3, 2), (1, 3, 5, 7)),
                    (3, 16, 2, 2),
                ),
                (False, True),
            ),
            *(
                labelled("nll_loss", (n, 4), w, ignore_index=1)
                for n in (2, 7, 64)
                for w in (False, True)
            ),
        ),
        signed_zeros=False,  # terms in another order
        bound=bound_nll,
        random=(Random(drawn_labelled("nll_loss"), torch=25),),
        bad=(
            *wrong_labelled("nll_loss"),
            Bad("nll_loss_backward", TypeError, "grad_output", (np.float64(1), X, T)),
        ),
        calls=labelled_calls("nll_loss"),
        empty=empties("nll_loss", "nhw", "c"),
        arguments=arguments(
            "nll_loss", target="labels", weight="c", ignore_index=1, reduction="mean"
        ),
        functions={"nll_loss": differentiated_labelled()},
        layers={"NLLLoss": Layer(WEIGHTED | {"ignore_index": [-100, 1]}, [LOGITS, CLASSES])},
    ),
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
