"""Maxima of windows."""

import itertools
from typing import Any

import numpy as np

from fastlayers import ops, reference
from specs.spec import (
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
    Watched,
    distinct,
    endless,
    every,
    like,
    named,
    normals,
    results,
)
from specs.windows import (
    IMAGES,
    LARGE,
    LAYER_INPUT,
    OFFSETS,
    POOLED,
    TALL,
    TASKS,
    WINDOWS,
    X,
    all_padded,
    cells,
    huge,
    of_tasks,
    pool,
    size,
    window_of,
    wrong_windows,
)


def run_max(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    x, o = arrays["input"], dict(case.options)
    indices = module.max_pool2d(x, **o, return_indices=True)[1]
    y, offsets = module.max_pool2d_forward(x, **o)
    o.pop("ceil_mode", None)
    return results(y, module.max_pool2d_backward(dy(y), offsets, x.shape, **o), indices=indices)


def bound_max(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """No rounding, but of a pixel's gradients."""
    x, o = a["input"], dict(case.options)
    offsets = reference.max_pool2d_forward(x, **o)[1]
    o.pop("ceil_mode", None)
    dx = reference.max_pool2d_backward(dy, offsets, x.shape, **o)
    exact = {name: (1, np.zeros(y.shape)) for name in ("y", "indices")}
    return exact | {"dinput": (cells(o["kernel_size"]), dx)}


def drawn_max(pick: Pick) -> Case:
    kernel = (pick(2, 3), pick(2, 3))
    options = {"stride": pick(None, 1, 2, (3, 1)), "padding": pick(0, 1, (0, 1))}
    rest = {"dilation": pick(1, 2, (1, 2)), "ceil_mode": pick(True, False)}
    return pool("max_pool2d", size(pick), kernel_size=kernel, **options, **rest)


def max_by_torch(torch: Any, tensors: Any, options: Any, got: Arrays) -> Any:
    y, indices = torch.nn.functional.max_pool2d(tensors["input"], **options, return_indices=True)
    return y, {"indices": indices}


def max_calls(draw: Draw) -> Any:
    x = draw(3, 5, 7, 6)
    for window in ((2,), ((3, 2), 2, 1, 1, True), (2, 1, 0, 2)):
        y, offsets = ops.max_pool2d_forward(x, *window)
        yield Call("max_pool2d", (x, *window))
        yield Call("max_pool2d", (x[0], *window), {"return_indices": True})
        yield Call("max_pool2d_forward", (x, *window), {"activation": "relu"})
        yield Call("max_pool2d_shape", (x.shape, *window))
        yield Call("max_pool2d_indices", (offsets, x.shape, *window[:4]))
        given = (draw(*y.shape), offsets, x.shape, *window[:4])
        yield Call("max_pool2d_backward", given, {"output": y})


def max_array_calls(draw: Draw) -> Any:
    # Large enough for more than one task; then windows whose cells have numbers in uint32.
    x, wide = draw(8, 32, 24, 24), draw(2, 3, 17, 18)
    yield Call("max_pool2d_forward", (x, 3, 2, 1))
    y, offsets = ops.max_pool2d_forward(x, 3, 2, 1)
    yield Call("max_pool2d_backward", (y, offsets, x.shape, 3, 2, 1))
    y, offsets = ops.max_pool2d_forward(wide, 16, 1)
    yield Call("max_pool2d_backward", (y, offsets, wide.shape, 16, 1))
    yield Call("max_pool2d_indices", (offsets, wide.shape, 16, 1))


def max_arguments(world: Any) -> dict[str, dict[str, Any]]:
    window, images = window_of(world) | {"dilation": 1}, {"input": world.x}
    shape, ceil = {"input_shape": world.x.shape}, {"ceil_mode": False}
    kept = {"grad_output": world.y, "offsets": world.offsets, "output": world.y}
    return {
        "max_pool2d": images | window | ceil | {"return_indices": True},
        "max_pool2d_forward": images | window | ceil | {"activation": "relu"},
        "max_pool2d_backward": kept | shape | window,
        "max_pool2d_indices": {"offsets": world.offsets} | shape | window,
        "max_pool2d_shape": shape | window | ceil,
    }


def with_relu(shape: Any, *window: Any) -> Watched:
    def run(place: Place, dtype: type) -> Arrays:
        (x,) = normals(place, dtype, shape)
        y, offsets = ops.max_pool2d_forward(x, *window, activation="relu")
        dy = place(like(y))
        before, plain = ops.max_pool2d_forward(x, *window)
        grads = ops.max_pool2d_backward(dy, offsets, shape, *window)
        return named(
            *(y, offsets, grads), ops.max_pool2d_backward(dy, plain, shape, *window, output=before)
        )

    return run


def differentiated_max() -> Calls:
    for o in every(
        shape=[(2, 3, 6, 5), (3, 6, 7)],
        kernel_size=[2, (3, 2)],
        stride=[None, 1, (2, 3)],
        padding=[0, 1, (1, 0)],
        dilation=[1, (2, 1)],
        ceil_mode=[False, True],
        return_indices=[False, True],
    ):
        yield {"input": distinct(*o.pop("shape"))}, o


SPECS = (
    Spec(
        op="max_pool2d",
        run=run_max,
        samples=(
            pool("max_pool2d", (2, 3, 6, 8), kernel_size=2),
            pool("max_pool2d", (3, 7, 6), kernel_size=(3, 2), stride=(2, 1), padding=1),
            pool("max_pool2d", (1, 5, 9, 10), kernel_size=3, stride=2, padding=1, ceil_mode=True),
            pool("max_pool2d", (2, 1, 9, 9), kernel_size=3, dilation=2, stride=1, padding=1),
            pool("max_pool2d", (1, 2, 20, 20), kernel_size=17, stride=2),
            *(pool("max_pool2d", (1, 2, 40, 40), kernel_size=k) for k in ((32, 9), (9, 32))),
            pool("max_pool2d", (0, 2, 4, 4), kernel_size=2),
            pool("max_pool2d", (8, 32, 24, 24), kernel_size=3, stride=2, padding=1),
        ),
        exact=(
            *(pool("max_pool2d", x, **window) for x in POOLED for window in WINDOWS),
            *(pool("max_pool2d", x, kernel_size=2, dilation=(3, 2), stride=1) for x in POOLED),
            # As large as is cut into tasks.
            *(
                pool("max_pool2d", (3, c, 61, 47), **WINDOWS[i])
                for i, c in itertools.product((0, 2, 3), (12, 20))
            ),
        ),
        bound=bound_max,
        random=(Random(drawn_max, torch=40, data="wide"),),
        torch=max_by_torch,
        bad=(
            *wrong_windows("max_pool2d"),
            Bad("max_pool2d", ValueError, "dilation", (X, 2, 1, 0, 4)),
            Bad("max_pool2d", ValueError, "dilation", (X, 2, 1, 0, 0)),
            Bad("max_pool2d_forward", ValueError, "activation", (X, 2), {"activation": "tanh"}),
            Bad("max_pool2d_backward", TypeError, "offsets", (X, X, X.shape, 2)),
            Bad("max_pool2d_backward", ValueError, "offsets", (X, OFFSETS[..., 1:], X.shape, 2, 1)),
            Bad("max_pool2d_backward", ValueError, "grad_output", (X, OFFSETS, X.shape, 2)),
            *(
                Bad(
                    *("max_pool2d_backward", error, "output"),
                    (X[..., :2, :2], OFFSETS[..., :2, :2], X.shape, 2),
                    {"output": wrong},
                )
                for error, wrong in (
                    (ValueError, X),
                    (TypeError, np.ones((1, 2, 2, 2))),
                    (TypeError, 1),
                )
            ),
        ),
        calls=max_calls,
        array_calls=max_array_calls,
        empty=(
            Empty({"input": "nchw"}, {"kernel_size": 2}, "chw"),
            Empty({"input": "chw"}, {"kernel_size": 2}, "chw"),
        ),
        arguments=max_arguments,
        watched={
            **{
                f"relu-pool {(shape, *window)}": with_relu(shape, *window)
                for shape, *window in (
                    ((2, 3, 9, 7), 2),
                    ((1, 33, 9, 8), 3, 2, 1),
                    ((2, 5, 8, 9), (1, 4), 3),
                    (TASKS, 2),
                )
            },
            **of_tasks("max_pool2d"),
        },
        huge=huge("max_pool2d", "kernel_size", "stride", "padding", "dilation"),
        too_large={
            "max_pool2d": all_padded("max_pool2d"),
            "cells": (
                lambda: ops.max_pool2d(IMAGES, LARGE, 1, LARGE // 2),
                "max_pool2d: .*cells",
            ),
            "window": (lambda: ops.max_pool2d(IMAGES, (LARGE, 1)), "max_pool2d: kernel_size"),
            "shape": (lambda: ops.max_pool2d_shape((1, 1, 2**40, 4), 2), "max_pool2d: .*entries"),
            "batch": (
                lambda: ops.max_pool2d_shape((2**40, 16, 4, 4), 2),
                "max_pool2d: the output",
            ),
            "offsets": (
                lambda: ops.max_pool2d_backward(
                    TALL, np.zeros(TALL.shape, np.uint8), (1, 1, 2**40, 1), 1, LARGE
                ),
                "max_pool2d_backward: .*entries",
            ),
            "max_pool2d of images": (lambda: ops.max_pool2d(endless(1, 1, 2**50, 4), 2), "."),
        },
        functions={"max_pool2d": differentiated_max},
        layers={
            "MaxPool2d": Layer(
                {
                    "kernel_size": [2, (3, 2)],
                    "stride": [None, 1, (1, 2)],
                    "padding": [0, 1],
                    "dilation": [1, (2, 1)],
                    "return_indices": [False, True],
                    "ceil_mode": [False, True],
                },
                LAYER_INPUT,
                {"kernel_size": 2},
            )
        },
    ),
)
