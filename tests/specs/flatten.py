"""Flattening."""

import itertools
from typing import Any

import numpy as np

from fastlayers import ops
from specs.spec import (
    Arrays,
    Bad,
    Call,
    Calls,
    Case,
    Draw,
    Layer,
    Place,
    Spec,
    distinct,
    results,
)

X = np.zeros((2, 3, 4, 5))


def run(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    y = module.flatten(**arrays, **case.options)
    return results(y, module.flatten_backward(dy(y), arrays["input"].shape))


def calls(draw: Draw) -> Any:
    x = draw(3, 5, 7, 6)
    yield Call("flatten", (x, 1), shares=True)
    yield Call("flatten_backward", (draw(3, 210), x.shape), shares=True)
    yield Call("flatten", (draw(2, 5),), shares=True)


def differentiated() -> Calls:
    for shape in [(), (5,), (2, 3, 4), (2, 3, 2, 2)]:
        axes = range(-len(shape), len(shape))
        for start, end in itertools.product(axes, axes):
            if start % len(shape) <= end % len(shape):
                yield {"input": distinct(*shape)}, {"start_dim": start, "end_dim": end}
        yield {"input": distinct(*shape)}, {}


SPECS = (
    Spec(
        op="flatten",
        run=run,
        exact=tuple(
            Case("flatten", {"input": shape}, {"start_dim": first, "end_dim": last})
            for shape in ((7,), (0, 3), (2, 3, 5), (1, 16, 7, 3), (3, 2, 4, 5, 2), (2, 1, 4, 1, 3))
            for first in range(len(shape))
            for last in (*range(first, len(shape)), *range(first - len(shape), 0))
        ),
        bad=(
            Bad("flatten", ValueError, "start_dim", (X, 4)),
            Bad("flatten", ValueError, "end_dim", (X, 0, -5)),
            Bad("flatten", ValueError, "end_dim", (X, 2, 1)),
            Bad("flatten", TypeError, "start_dim", (X, 0.5)),
            Bad("flatten_backward", ValueError, "grad_output", (X[0, 0, :2], (2, 4))),
        ),
        calls=calls,
        array_calls=lambda draw: [Call("flatten", (draw(),), shares=True)],
        arguments=lambda world: {
            "flatten": {"input": world.x, "start_dim": 1, "end_dim": -1},
            "flatten_backward": {"grad_output": world.x, "input_shape": world.x.shape},
        },
        too_large={"flatten start_dim": (lambda: ops.flatten(np.ones((1, 3, 8, 8)), 2**70), ".")},
        functions={"flatten": differentiated},
        layers={
            "Flatten": Layer({"start_dim": [1, 0], "end_dim": [-1, 2]}, [distinct(2, 3, 6, 5)])
        },
    ),
)
