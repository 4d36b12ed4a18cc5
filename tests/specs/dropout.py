"""Dropout of elements and of channels."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers import ops, random, reference
from specs.spec import (
    ELEMENTS,
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
    Place,
    Random,
    Spec,
    distinct,
    endless,
    every,
    results,
    wrong_inputs,
)

X = np.ones((2, 3, 4), np.float32)


def unpacked(mask: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Give the mask of `ops.dropout_forward` as an array of 0 and 1."""
    size = int(np.prod(shape))
    kept = np.unpackbits(mask, count=size, bitorder="little")
    if len(shape) < 3:
        return kept.reshape(shape)
    return np.moveaxis(kept.reshape(shape[0], *shape[2:], shape[1]), -1, 1)


def run_dropout(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    x, p = arrays["input"], case.options["p"]
    random.manual_seed(0)
    y, mask = ops.dropout_forward(x, p)
    shown = kept = unpacked(mask, x.shape)
    if module is reference:
        y = reference.dropout(x, kept, p)
    else:
        kept = mask
    return results(y, module.dropout_backward(dy(y), kept, p), dropped=shown)


def run_feature_dropout(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    x, axis = arrays["input"], case.options["channel_axis"]
    random.manual_seed(0)
    y, scale = ops.feature_dropout_forward(x, **case.options)
    if module is reference:
        y = reference.feature_dropout(x, scale, axis)
    return results(y, module.feature_dropout_backward(dy(y), scale, axis), dropped=scale)


def bound(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """A factor and a product."""
    return {name: (1, np.abs(value)) for name, value in want.items()}


def by_torch(torch: Any, tensors: Any, options: Any, got: Arrays) -> tuple[Any, dict[str, Any]]:
    """By our mask: PyTorch draws others."""
    mask = got["dropped"]
    mask = mask.reshape(*mask.shape, *[1] * (got["y"].ndim - mask.ndim))
    kept = torch.tensor(np.broadcast_to(mask, got["y"].shape) > 0)
    return torch.where(kept, tensors["input"] / (1 - options["p"] or 1), 0), {}


def drawn_elements(pick: Pick) -> Case:
    p = pick(0.0, 0.3, 0.5, 0.9, 1.0)
    return Case("dropout", {"input": pick((9,), (4, 5), (2, 3, 4, 5))}, {"p": p})


def drawn_features(pick: Pick) -> Case:
    axis, p = pick(0, 1), pick(0.0, 0.3, 0.5, 0.9, 1.0)
    shape = (3,) * axis + (7, *pick((5,), (4, 3)))
    return Case("feature_dropout", {"input": shape}, {"p": p, "channel_axis": axis})


def calls(draw: Draw) -> Any:
    x, dy = draw(3, 5, 7, 6), draw(3, 5, 7, 6)
    for p in (0.0, 0.25, 0.3, 1.0):
        yield Call("dropout", (draw(3, 5, 7, 60), p))
        yield Call("dropout_forward", (draw(12000), p))
        yield Call("dropout_backward", (dy, ops.dropout_forward(x, p)[1], p))


def array_calls(draw: Draw) -> Any:
    x = draw(8, 32, 24, 24)  # more than one task
    yield Call("dropout_forward", (draw(),))
    yield Call("dropout_backward", (x, ops.dropout_forward(x)[1], 0.5))
    yield Call("dropout", (draw(3, 4),), {"training": False}, shares=True)


def feature_calls(draw: Draw) -> Any:
    x, dy = draw(3, 5, 7, 6), draw(3, 5, 7, 6)
    for p in (0.0, 0.25, 0.3, 1.0):
        yield Call("dropout1d", (draw(40, 30, 2), p))
        yield Call("dropout2d", (x, p))
        yield Call("feature_dropout_forward", (draw(30, 50), p))
        scale = ops.feature_dropout_forward(x[0], p, 0)[1]
        yield Call("feature_dropout_backward", (dy[0], scale, 0))


def feature_array_calls(draw: Draw) -> Any:
    for op, shape in (("dropout1d", (3, 4, 2)), ("dropout2d", (2, 3, 4, 5))):
        yield Call(op, (draw(*shape),), {"training": False}, shares=True)


def wrong(op: str) -> list[Bad]:
    """Calls with no probability, or no floats."""
    errors = ((ValueError, (-0.1, 1.1, np.nan)), (TypeError, ("0.5", None)))
    found = [Bad(op, error, "p", (X, p)) for error, values in errors for p in values]
    return [*found, *wrong_inputs(op, X, 0.5)]


def differentiated(*shapes: tuple[int, ...]) -> Callable[[], Calls]:
    def calls() -> Calls:
        for o in every(
            shape=shapes, p=[0.5, 0.0, 0.3, 1.0], training=[True, False], inplace=[False, True]
        ):
            yield {"input": distinct(*o.pop("shape"))}, o

    return calls


OPTIONS = {"p": [0.5, 0.2], "inplace": [False, True]}

SPECS = (
    Spec(
        op="dropout",
        run=run_dropout,
        samples=(
            Case("dropout", {"input": (5, 7)}, {"p": 0.5}),
            Case("dropout", {"input": (2, 3, 4, 5)}, {"p": 0.3}),
            Case("dropout", {"input": (3,)}, {"p": 1.0}),
            Case("dropout", {"input": ()}, {"p": 0.0}),
            Case("dropout", {"input": (0, 4)}, {"p": 0.5}),
            Case("dropout", {"input": (300, 500)}, {"p": 0.5}),
        ),
        exact=tuple(Case("dropout", {"input": shape}, {"p": 0.5}) for shape in ELEMENTS),
        bound=bound,
        random=(Random(drawn_elements, torch=8, data="wide"),),
        torch=by_torch,
        bad=(
            *wrong("dropout"),
            *wrong("dropout_forward"),
            Bad("dropout_backward", ValueError, "mask", (X, np.ones((2, 3), np.uint8), 0.5)),
            Bad("dropout_backward", TypeError, "mask", (X, X, 0.5)),
            Bad("dropout_backward", ValueError, "p", (X, np.ones(16, np.uint8), 2)),
        ),
        calls=calls,
        array_calls=array_calls,
        empty=tuple(Empty({"input": shape}, {"p": 0.5}) for shape in ("n", "nc", "nchw")),
        arguments=lambda world: {
            "dropout": {"input": world.m, "p": 0.5, "training": True},
            "dropout_forward": {"input": world.m, "p": 0.5},
            "dropout_backward": {
                "grad_output": world.m,
                "mask": np.full(16, 255, np.uint8),
                "p": 0.5,
            },
        },
        too_large={"dropout": (lambda: ops.dropout(endless(2**30, 2**30)), ".")},
        functions={"dropout": differentiated((), (5, 4), (2, 3, 2, 3))},
        layers={"Dropout": Layer(OPTIONS, [distinct(4, 3)])},
    ),
    Spec(
        op="feature_dropout",
        run=run_feature_dropout,
        samples=(
            Case("feature_dropout", {"input": (4, 6, 3)}, {"p": 0.5, "channel_axis": 1}),
            Case("feature_dropout", {"input": (2, 9, 3, 2)}, {"p": 0.2, "channel_axis": 1}),
            Case("feature_dropout", {"input": (9, 3, 2)}, {"p": 0.2, "channel_axis": 0}),
            Case("feature_dropout", {"input": (16, 32, 20, 20)}, {"p": 0.5, "channel_axis": 1}),
        ),
        exact=tuple(
            Case("feature_dropout", {"input": shape}, {"p": 0.5, "channel_axis": axis})
            for shape in ELEMENTS
            for axis in (0, 1)
            if axis < len(shape) < 5
        ),
        bound=bound,
        random=(Random(drawn_features, torch=8, data="wide"),),
        torch=by_torch,
        bad=(
            *(
                bad
                for op in ("dropout1d", "dropout2d", "feature_dropout_forward")
                for bad in wrong(op)
            ),
            *(
                Bad(op, ValueError, "input", (np.ones((2,) * ndim, np.float32), 0.5, training))
                for op, ndims in (("dropout1d", (1, 4)), ("dropout2d", (2, 5)))
                for ndim in ndims
                for training in (True, False)
            ),
            Bad("feature_dropout_forward", ValueError, "channel_axis", (X, 0.5, 2)),
            Bad("feature_dropout_forward", ValueError, "channel_axis", (X[0, 0], 0.5, 1)),
            Bad("feature_dropout_backward", ValueError, "scale", (X, X[0, 0, :3], 1)),
            Bad("feature_dropout_backward", TypeError, "scale", (X, np.ones((2, 3)), 1)),
        ),
        calls=feature_calls,
        array_calls=feature_array_calls,
        empty=tuple(
            Empty({"input": "nchw"[1 - axis :]}, {"p": 0.5, "channel_axis": axis})
            for axis in (0, 1)
        ),
        arguments=lambda world: {
            "dropout1d": {"input": world.m, "p": 0.5, "training": True},
            "dropout2d": {"input": world.x, "p": 0.5, "training": True},
            "feature_dropout_forward": {"input": world.m, "p": 0.5, "channel_axis": 1},
            "feature_dropout_backward": {
                "grad_output": world.m,
                "scale": world.m,
                "channel_axis": 1,
            },
        },
        too_large={"dropout2d": (lambda: ops.dropout2d(endless(2**30, 2**10, 2**10, 2**10)), ".")},
        functions={
            "dropout1d": differentiated((2, 5, 3), (5, 3)),
            "dropout2d": differentiated((2, 5, 3, 2)),
        },
        caller="dropout2d",
        layers={
            "Dropout1d": Layer(OPTIONS, [distinct(3, 4, 2)]),
            "Dropout2d": Layer(OPTIONS, [distinct(2, 3, 6, 5)]),
        },
    ),
)
