"""Losses of labels."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers import ops
from fastlayers.reference import loss
from specs.activation import exponentials
from specs.loss import (
    LOGITS,
    ONE,
    REDUCTIONS,
    WEIGHTED,
    X,
    arguments,
    both,
    draw_paired,
    empties,
    of_reductions,
)
from specs.spec import (
    Arrays,
    Bad,
    Bounds,
    Call,
    Calls,
    Case,
    Draw,
    Layer,
    Pick,
    Random,
    Spec,
    distinct,
    endless,
    every,
)

LABELS = np.array([[1, 4, -100, 0], [2, 2, 3, 0]])
T, CLASSES = np.array([0, 2, 1, 1]), np.array([1, 0, 2, 1])
SAMPLES = [(5, 4), (3,), (2, 3, 4), (2, 4, 3, 2)]


def labelled(op: str, x: tuple[int, ...], weight: bool = False, **options: Any) -> Case:
    shapes = {"input": x, "target": x[:1] + x[2:] if len(x) > 1 else ()}
    return Case(op, shapes | ({"weight": (x[min(1, len(x) - 1)],)} if weight else {}), options)


def draw_labelled(case: Case, rng: np.random.Generator, name: str, kind: str) -> Any:
    if name == "target":
        x = case.shapes["input"]
        return rng.integers(0, x[min(1, len(x) - 1)], case.shapes[name])
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


def drawn_labelled(op: str, **choices: Any) -> Callable[[Pick], Case]:
    def drawn(pick: Pick) -> Case:
        options = {"reduction": pick(*REDUCTIONS), "ignore_index": pick(-100, 0, 2)}
        options |= {name: pick(*values) for name, values in choices.items()}
        shape = pick((5,), (6, 4), (8, 3, 5), (4, 3, 2, 5))
        return labelled(op, shape, pick(True, False), **options)

    return drawn


def long_labelled(pick: Pick) -> Case:
    many = pick(64, 97, 130, 300)
    return labelled("cross_entropy", (many, 3 * many), pick(True, False))


def without_ignored(case: Case, a: Arrays, value: float, got: Arrays, want: Arrays) -> Any:
    """An ignored sample counts for nothing, whatever it holds."""
    ignored = np.expand_dims(a["target"] == case.options["ignore_index"], a["input"].ndim > 1)
    dx = np.where(ignored, 0, want["dinput"])
    return got, want | {"dinput": dx.astype(want["dinput"].dtype)}


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
)
