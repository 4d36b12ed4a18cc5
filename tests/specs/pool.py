"""Pooling: maxima, and means of windows and of bins."""

import itertools
from collections.abc import Callable
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
    guarded,
    like,
    named,
    normals,
    results,
    wrong_inputs,
)

X, OFFSETS = np.ones((1, 2, 4, 4), np.float32), np.zeros((1, 2, 4, 4), np.uint8)
IMAGES = np.ones((1, 3, 8, 8), np.float32)
LARGE = 2**31 - 1

POOLED = (
    *((1, 1, 4, 4), (2, 3, 7, 9), (1, 16, 5, 11), (1, 33, 9, 6), (5, 8, 8), (0, 3, 6, 7)),
    *((1, 17, 13, 11), (3, 5, 4, 23), (2, 2, 17, 16), (1, 8, 19, 5), (7, 1, 12, 13), (2, 64, 6, 6)),
)
WINDOWS = (
    {"kernel_size": 2},
    {"kernel_size": 3, "stride": 1, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (2, 4), "stride": (3, 1), "padding": (1, 2)},
    {"kernel_size": (4, 1), "stride": (1, 4), "padding": (2, 0)},
    {"kernel_size": 4, "stride": 3, "padding": 2, "ceil_mode": True},
    {"kernel_size": 1, "stride": 2},
    {"kernel_size": 2, "stride": 5},
    {"kernel_size": (1, 3), "stride": (2, 4)},
)


def pool(op: str, x: tuple[int, ...], **options: Any) -> Case:
    return Case(op, {"input": x}, options)


def run_max(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    x, o = arrays["input"], dict(case.options)
    indices = module.max_pool2d(x, **o, return_indices=True)[1]
    y, offsets = module.max_pool2d_forward(x, **o)
    o.pop("ceil_mode", None)
    return results(y, module.max_pool2d_backward(dy(y), offsets, x.shape, **o), indices=indices)


def run_mean(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    x, o = arrays["input"], dict(case.options)
    y = getattr(module, case.op)(x, **o)
    o.pop("output_size", None)
    return results(y, getattr(module, f"{case.op}_backward")(dy(y), x.shape, **o))


def cells(kernel_size: Any) -> int:
    return int(np.prod(kernel_size)) ** (1 + isinstance(kernel_size, int))


def bound_max(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """No rounding, but of a pixel's gradients."""
    x, o = a["input"], dict(case.options)
    offsets = reference.max_pool2d_forward(x, **o)[1]
    o.pop("ceil_mode", None)
    dx = reference.max_pool2d_backward(dy, offsets, x.shape, **o)
    exact = {name: (1, np.zeros(y.shape)) for name in ("y", "indices")}
    return exact | {"dinput": (cells(o["kernel_size"]), dx)}


def bound_avg(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """A sum, a quotient."""
    x, o = a["input"], case.options
    terms = cells(o["kernel_size"]) + 1
    dx = reference.avg_pool2d_backward(dy, x.shape, **o)
    return {"y": (terms, reference.avg_pool2d(np.abs(x), **o)), "dinput": (terms, dx)}


def bound_adaptive(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    x = a["input"]
    spans = [
        (-(-n // k) + (n % k > 0), -(-k // n) + (k % n > 0))
        for n, k in zip(x.shape[-2:], y.shape[-2:], strict=True)
    ]
    (down, up), (across, along) = spans
    means = reference.adaptive_avg_pool2d(np.abs(x), **case.options)
    dx = reference.adaptive_avg_pool2d_backward(dy, x.shape)
    return {"y": (down * across + 1, means), "dinput": (up * along + 1, dx)}


def size(pick: Pick) -> tuple[int, ...]:
    return (*pick((), (1,), (3,)), pick(1, 4, 7), pick(6, 7, 8), pick(6, 9, 11))


def drawn_max(pick: Pick) -> Case:
    kernel = (pick(2, 3), pick(2, 3))
    options = {"stride": pick(None, 1, 2, (3, 1)), "padding": pick(0, 1, (0, 1))}
    rest = {"dilation": pick(1, 2, (1, 2)), "ceil_mode": pick(True, False)}
    return pool("max_pool2d", size(pick), kernel_size=kernel, **options, **rest)


def drawn_avg(pick: Pick) -> Case:
    kernel = (pick(2, 3, 4), pick(2, 3, 5))
    options = {"stride": pick(None, 1, 2, (3, 1)), "padding": pick(0, 1, (0, 1))}
    options |= {"ceil_mode": pick(True, False), "count_include_pad": pick(True, False)}
    options |= {"divisor_override": pick(None, None, 3)}
    return pool("avg_pool2d", size(pick), kernel_size=kernel, **options)


def drawn_adaptive(pick: Pick) -> Case:
    sizes = pick(1, 3, 8, (2, 5), (None, 3), (7, None))
    return pool("adaptive_avg_pool2d", size(pick), output_size=sizes)


def long_sums(op: str, **choices: Any) -> Random:
    def drawn(pick: Pick) -> Case:
        options = {name: pick(*values) for name, values in choices.items()}
        return pool(op, (2, pick(1, 3, 17), 19, 21), **options)

    return Random(drawn, note="long sums")


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


def avg_calls(draw: Draw) -> Any:
    x = draw(3, 5, 7, 6)
    for window in ((2,), ((7, 6),), (3, 2, 1, True, False), (2, 1, 0, False, True, 3)):
        yield Call("avg_pool2d", (x, *window))
        yield Call("avg_pool2d", (x[0], *window))
        dy = draw(*ops.avg_pool2d(x, *window).shape)
        yield Call("avg_pool2d_backward", (dy, x.shape, *window))


def adaptive_calls(draw: Draw) -> Any:
    x = draw(3, 5, 7, 6)
    for sizes in (1, (3, None), (2, 4)):
        yield Call("adaptive_avg_pool2d", (x, sizes))
        dy = draw(*ops.adaptive_avg_pool2d(x, sizes).shape)
        yield Call("adaptive_avg_pool2d_backward", (dy, x.shape))


def wrong_windows(op: str) -> list[Bad]:
    """Calls with an input or a window that neither maxima nor means take."""
    rows = [
        (ValueError, "input", X[0, 0], {}),
        (ValueError, "input", X[None], {}),
        (ValueError, "input", X[:, :0], {}),
        (ValueError, "kernel_size", X, {"kernel_size": 0}),
        (ValueError, "kernel_size", X, {"kernel_size": 5}),
        (ValueError, "kernel_size", X, {"kernel_size": (2, 7), "padding": (0, 1)}),
        (TypeError, "kernel_size", X, {"kernel_size": 2.0}),
        (TypeError, "kernel_size", X, {"kernel_size": (2, 2, 2)}),
        (ValueError, "stride", X, {"stride": 0}),
        (TypeError, "stride", X, {"stride": "2"}),
        (ValueError, "padding", X, {"padding": 2}),
        (ValueError, "padding", X, {"padding": -1}),
    ]
    window: dict[str, Any] = {"kernel_size": 2}
    found = [Bad(op, error, name, (x,), window | o) for error, name, x, o in rows]
    return [*found, *wrong_inputs(op, X, **window)]


def window_of(world: Any) -> dict[str, Any]:
    return {"kernel_size": 2, "stride": 2, "padding": 0}


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


def avg_arguments(world: Any) -> dict[str, dict[str, Any]]:
    means = window_of(world) | {
        "ceil_mode": False,
        "count_include_pad": True,
        "divisor_override": 2,
    }
    return {
        "avg_pool2d": {"input": world.x} | means,
        "avg_pool2d_backward": {"grad_output": world.y, "input_shape": world.x.shape} | means,
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


# Many tasks, whose vectors spill over into the next pixel.
TASKS = (64, 6, 28, 28)


def of_tasks(op: str) -> dict[str, Watched]:
    return {f"{op} {(TASKS, 2)}": guarded(pool(op, TASKS, kernel_size=2))}


def huge(op: str, *names: str) -> dict[str, Callable[[Any], Any]]:
    """Calls with an option in pixels."""
    function = getattr(ops, op)
    return {
        f"{op} {name}": lambda n, name=name: function(IMAGES, **{"kernel_size": 2, name: n})
        for name in names
    }


def all_padded(op: str) -> tuple[Callable[[], Any], str]:
    """A pooling with all the padding that it takes."""
    n = 2**28
    return lambda: getattr(ops, op)(IMAGES, (n, 3), 1, (n // 2, 1)), f"{op}: .*entries"


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


def differentiated_avg() -> Calls:
    for o in every(
        shape=[(2, 3, 6, 5), (3, 6, 7)],
        kernel_size=[2, (3, 2)],
        stride=[None, 1, (2, 3)],
        padding=[0, 1, (1, 0)],
        ceil_mode=[False, True],
        count_include_pad=[True, False],
        divisor_override=[None, 3],
    ):
        yield {"input": distinct(*o.pop("shape"))}, o


def differentiated_adaptive() -> Calls:
    for o in every(
        shape=[(2, 3, 6, 5), (3, 6, 7)], output_size=[1, (3, 2), (None, 4), (7, None), None, 8]
    ):
        yield {"input": distinct(*o.pop("shape"))}, o


def halved(size: int, out: int) -> bool:
    """Whether all bins of an adaptive mean have as many cells as a power of two."""
    counts = [-(-(i + 1) * size // out) - i * size // out for i in range(out)]
    return all(count & (count - 1) == 0 for count in counts)


BINS = [(size, out) for size in range(1, 18) for out in range(1, 18) if halved(size, out)]
LAYER_INPUT = [distinct(2, 3, 6, 5)]
TALL = np.ones((1, 1, 513, 1), np.float32)
PIXEL = np.ones((1, 1, 1, 1), np.float32)

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
    Spec(
        op="avg_pool2d",
        run=run_mean,
        samples=(
            pool("avg_pool2d", (2, 3, 6, 8), kernel_size=2),
            pool("avg_pool2d", (3, 7, 6), kernel_size=(3, 2), stride=(2, 1), padding=1),
            pool("avg_pool2d", (1, 5, 8, 10), kernel_size=3, stride=2, padding=1, ceil_mode=True),
            pool("avg_pool2d", (2, 2, 7, 7), kernel_size=3, padding=1, count_include_pad=False),
            pool("avg_pool2d", (2, 2, 7, 7), kernel_size=3, stride=1, divisor_override=2),
            pool("avg_pool2d", (0, 2, 4, 4), kernel_size=2),
            pool("avg_pool2d", (8, 32, 24, 24), kernel_size=3, stride=2, padding=1),
        ),
        exact=(
            *(
                pool("avg_pool2d", (3, c, 61, 47), **WINDOWS[i], divisor_override=4)
                for i, c in itertools.product((0, 2, 3), (12, 20))
            ),
            # Any quotient is rounded in the same way; their sums, in the gradient, are exact of
            # halves.
            *(
                pool("avg_pool2d", x, **window, divisor_override=2 ** (i % 3))
                for i, (x, window) in enumerate(itertools.product(POOLED, WINDOWS))
            ),
            *(pool("avg_pool2d", x, kernel_size=(2, 4)) for x in POOLED),
            # Windows that are read line by line.
            *(
                pool("avg_pool2d", (2, c, 20, 41), kernel_size=(8, 16), stride=3)
                for c in (3, 16, 33)
            ),
            *(pool("avg_pool2d", x, kernel_size=2, ceil_mode=True) for x in POOLED),
            *(
                pool("avg_pool2d", x, kernel_size=2, padding=1, stride=1, count_include_pad=False)
                for x in POOLED
            ),
        ),
        bound=bound_avg,
        random=(
            Random(drawn_avg, torch=40, data="wide"),
            long_sums("avg_pool2d", kernel_size=(9, 14), stride=(5,)),
        ),
        bad=(
            *wrong_windows("avg_pool2d"),
            Bad("avg_pool2d", ValueError, "divisor_override", (X, 2, 1, 0, False, True, 0)),
            Bad("avg_pool2d_backward", ValueError, "grad_output", (X, X.shape, 2)),
        ),
        calls=avg_calls,
        empty=(Empty({"input": "nchw"}, {"kernel_size": 2}, "chw"),),
        arguments=avg_arguments,
        watched=of_tasks("avg_pool2d"),
        huge=huge("avg_pool2d", "kernel_size", "stride", "padding"),
        too_large={
            "avg_pool2d": all_padded("avg_pool2d"),
            "input_shape": (
                lambda: ops.avg_pool2d_backward(TALL, (1, 1, 2**40, 1), 1, LARGE),
                "avg_pool2d_backward: .*entries",
            ),
            "input_shape of 2**70": (
                lambda: ops.avg_pool2d_backward(PIXEL, (1, 1, 2**70, 1), 1, LARGE),
                "avg_pool2d_backward: .*entries",
            ),
            "channels of the gradient": (
                lambda: ops.avg_pool2d_backward(PIXEL, (2**40, 2**40, 1, 1), 1),
                "avg_pool2d_backward: ",
            ),
        },
        functions={"avg_pool2d": differentiated_avg},
        layers={
            "AvgPool2d": Layer(
                {
                    "kernel_size": [2, (3, 2)],
                    "stride": [None, 1, (1, 2)],
                    "padding": [0, 1],
                    "ceil_mode": [False, True],
                    "count_include_pad": [True, False],
                    "divisor_override": [None, 3],
                },
                LAYER_INPUT,
                {"kernel_size": 2},
            )
        },
    ),
    Spec(
        op="adaptive_avg_pool2d",
        run=run_mean,
        samples=(
            pool("adaptive_avg_pool2d", (2, 3, 7, 5), output_size=1),
            pool("adaptive_avg_pool2d", (3, 7, 5), output_size=(3, 2)),
            pool("adaptive_avg_pool2d", (2, 2, 4, 6), output_size=(None, 4)),
            pool("adaptive_avg_pool2d", (1, 2, 3, 3), output_size=(5, 7)),
            pool("adaptive_avg_pool2d", (8, 32, 24, 24), output_size=7),
        ),
        exact=(
            *(pool("adaptive_avg_pool2d", (17, c, 16, 16), output_size=(4, 15)) for c in (24, 31)),
            *(
                pool(
                    *("adaptive_avg_pool2d", (1 + i % 2, (1, 3, 16, 17)[i % 4], h, w)),
                    output_size=(oh, ow),
                )
                for i, ((h, oh), (w, ow)) in enumerate(zip(BINS, BINS[5:] + BINS[:5], strict=True))
            ),
            *(pool("adaptive_avg_pool2d", (n, 5, 8, 4), output_size=(4, 2)) for n in (0, 1, 7)),
        ),
        bound=bound_adaptive,
        random=(
            Random(drawn_adaptive, torch=20, data="wide"),
            long_sums("adaptive_avg_pool2d", output_size=(1, 2)),
        ),
        bad=(
            *wrong_inputs("adaptive_avg_pool2d", X, 2),
            Bad("adaptive_avg_pool2d", ValueError, "input", (X[0, 0], 2)),
            Bad("adaptive_avg_pool2d", TypeError, "input", (X.astype(np.uint8), 2)),
            Bad("adaptive_avg_pool2d", ValueError, "output_size", (X, 0)),
            Bad("adaptive_avg_pool2d", TypeError, "output_size", (X, (1, 2, 3))),
            Bad("adaptive_avg_pool2d_backward", ValueError, "grad_output", (X[:, :1], X.shape)),
        ),
        calls=adaptive_calls,
        empty=(Empty({"input": "nchw"}, {"output_size": 2}, "chw"),),
        arguments=lambda world: {
            "adaptive_avg_pool2d": {"input": world.x, "output_size": 3},
            "adaptive_avg_pool2d_backward": {
                "grad_output": world.y,
                "input_shape": world.x.shape,
            },
        },
        huge={"adaptive_avg_pool2d": lambda n: ops.adaptive_avg_pool2d(IMAGES, n)},
        too_large={
            "output_size": (
                lambda: ops.adaptive_avg_pool2d(IMAGES, LARGE),
                "adaptive_avg.*entries",
            ),
            "adaptive input_shape": (
                lambda: ops.adaptive_avg_pool2d_backward(PIXEL, (1, 1, 2**40, 1)),
                "adaptive_avg_pool2d_backward: .*entries",
            ),
        },
        functions={"adaptive_avg_pool2d": differentiated_adaptive},
        layers={
            "AdaptiveAvgPool2d": Layer(
                {"output_size": [1, (3, None), 7]}, LAYER_INPUT, {"output_size": 2}
            )
        },
    ),
)
