"""Means of windows and of bins."""

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
    distinct,
    every,
    results,
    wrong_inputs,
)
from specs.windows import (
    IMAGES,
    LARGE,
    LAYER_INPUT,
    POOLED,
    TALL,
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

PIXEL = np.ones((1, 1, 1, 1), np.float32)


def run_mean(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    x, o = arrays["input"], dict(case.options)
    y = getattr(module, case.op)(x, **o)
    o.pop("output_size", None)
    return results(y, getattr(module, f"{case.op}_backward")(dy(y), x.shape, **o))


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

SPECS = (
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
