"""Convolution; `conv_sizes.py` has its exact cases."""

import functools
import itertools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from fastlayers import ops
from fastlayers.ops.conv import Convolution
from fastlayers.ops.conv.algorithm import Pass
from fastlayers.ops.conv.winograd import Winograd
from specs.conv_pool import PATHS
from specs.conv_sizes import EXACT, conv
from specs.linear import bound, run
from specs.spec import (
    Bad,
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
    guarded,
)

LARGE = 2**31 - 1
# Winograd's transforms add pixels of a whole tile, and take them away again.
WINOGRAD = 20


def drawn(pick: Pick) -> Case:
    groups = pick(1, 1, 2, 3)
    c, m = groups * pick(1, 2, 5), groups * pick(1, 3, 6)
    kernel, dilation = (pick(1, 2, 3, 4), pick(1, 2, 3)), (pick(1, 2, 3), pick(1, 1, 2))
    padding = pick(0, 1, (2, 1), "same", "valid")
    size = [d * (k - 1) + pick(1, 2, 5, 6) for k, d in zip(kernel, dilation, strict=True)]
    stride = 1 if padding == "same" else pick(1, 2, 3, (2, 1), (1, 3))
    batch = pick((), (1,), (3,))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    return conv((*batch, c, *size), (m, c // groups, *kernel), pick(True, False), **options)


def drawn_winograd(pick: Pick) -> Case:
    """Convolutions that Winograd's tiles of 2x2 and of 4x4 can serve."""
    c, m, dilation = pick(16, 17, 24, 33), pick(16, 18, 32), (pick(1, 1, 2), pick(1, 1, 3))
    padding = tuple(pick(0, d, 2 * d) for d in dilation)
    size = [
        max(d, 2 * (d - p) + pick(1, 2, 3, 6, 9)) for d, p in zip(dilation, padding, strict=True)
    ]
    shapes = (pick(1, 2, 3), c, *size), (m, c, 3, 3)
    return conv(*shapes, pick(True, False), padding=padding, dilation=dilation)


def drawn_winograd_rows(pick: Pick) -> Case:
    """Convolutions that Winograd's transform along rows serves, with vectors of any width."""
    m, kh = pick(6, 7, 13), pick(1, 2, 3, 5)
    c, top, left = pick((2, kh // 2, 0), (3, 0, 1), (4, kh // 2, 2), (6, kh - 1, 4))
    size = kh + pick(0, 1, 4), pick(6, 7, 9, 12)
    shapes = (pick(12, 16, 29), c, *size), (m, c, kh, 5)
    return conv(*shapes, pick(True, False), padding=(top, left))


def long_sums(pick: Pick) -> Case:
    many, few = pick(64, 97, 130, 300), pick(1, 3, 17)
    return pick(
        conv((1, many, 4, 5), (few, many, 3, 3), padding=1),
        conv((2, few, 3, 4), (many, few, 3, 2)),
        conv((9, 2, 9, 11), (few, 2, 3, 3), stride=pick(1, 2)),
    )


@functools.cache
def winograd(algorithm: str) -> Any:
    """A module whose convolutions are Winograd's, of a certain tile."""

    def prepared(input: Any, weight: Any, o: dict[str, Any]) -> Convolution:
        options = [o.get(*item) for item in (("stride", 1), ("padding", 0), ("dilation", 1))]
        shapes = (input.shape, weight.shape, input.dtype)
        if algorithm == "F(4,5)":
            found = Convolution("conv2d", *shapes, *options, 1, "auto")
            assert {found.algorithm(which).name for which in Pass} == {"winograd rows"}
            return found
        found = Convolution("conv2d", *shapes, *options, 1, "winograd")
        for served in found.algorithms:  # but for sums of few terms
            if isinstance(served, Winograd):
                served.tile = served.input_tile = int(algorithm[2])
        return found

    def conv2d(input: Any, weight: Any, bias: Any = None, **options: Any) -> Any:
        found = prepared(input, weight, options)
        return found.forward(input, weight, found.bias("conv2d", bias), False)

    def conv2d_backward(dy: Any, input: Any, weight: Any, **options: Any) -> Any:
        return prepared(input, weight, options).backward(dy, input, weight, (True,) * 3)

    return SimpleNamespace(conv2d=conv2d, conv2d_backward=conv2d_backward)


def calls(draw: Draw) -> Any:
    x, w, b = draw(3, 5, 7, 6), draw.plain(10, 5, 3, 2), draw(10)
    plain: dict[str, Any] = {"padding": 1}
    grouped = {"stride": (1, 2), "dilation": 2, "groups": 5, "padding": 2}
    same = {"padding": "same"}
    for weight, options in ((w, plain), (w[:, :1].copy(), grouped), (w, same)):
        y = ops.conv2d(x, weight, b, **options)
        yield Call("conv2d", (x, weight, b), options | {"activation": "relu"})
        yield Call("conv2d", (x[0], weight), options)
        yield Call("conv2d_backward", (draw(*y.shape), x, weight), options)
        yield Call("conv2d_backward", (draw(*y.shape[1:]), x[0], weight), options)
    yield Call("conv2d_backward", (x[:0], x[:0], draw(5, 5, 1, 1)))
    images, weight = draw(2, 16, 6, 5), draw(16, 16, 3, 3)
    yield Call("conv2d", (images, weight), {"padding": 1, "algorithm": "winograd"})


def array_calls(draw: Draw) -> Any:
    for shape, weight, options in PATHS:
        x, w, b = draw(*shape), draw(*weight), draw(weight[0])
        yield Call("conv2d", (x, w, b), options)
        y = ops.conv2d(x, w, b, **options)
        yield Call("conv2d_backward", (draw(*y.shape), x, w), options)
    # Sums for few channels of many pixels.
    dy, x, w = draw(64, 3, 18, 18), draw(64, 2, 18, 18), draw(3, 2, 1, 1)
    yield Call("conv2d_backward", (dy, x, w), {"needs": (False, False, True)})


X, W = np.ones((1, 4, 5, 5), np.float32), np.ones((2, 4, 3, 3), np.float32)


def wrong() -> list[Bad]:
    rows: list[Any] = [
        (ValueError, "input", (X[0, 0], W), {}),
        (ValueError, "weight", (X, W[0]), {}),
        (ValueError, "input", (X[:, :3], W), {}),
        (TypeError, "input", (X.astype(int), W), {}),
        (TypeError, "input", (X.astype(complex), W), {}),
        (TypeError, "input", (X.astype(np.float16), W), {}),
        (TypeError, "input", (X.tolist(), W), {}),
        (TypeError, "weight", (X, W.astype(np.float64)), {}),
        (TypeError, "weight", (X, None), {}),
        (TypeError, "bias", (X, W, np.ones(2)), {}),
        (ValueError, "bias", (X, W, np.ones(3, np.float32)), {}),
        (ValueError, "groups", (X, W), {"groups": 3}),
        (ValueError, "groups", (X, W[:, :2]), {"groups": 0}),
        (TypeError, "groups", (X, W), {"groups": 1.5}),
        (ValueError, "weight", (X, W), {"groups": 2}),
        (ValueError, "weight", (X[..., :2], W), {}),
        (ValueError, "dilation", (X, W), {"dilation": 3}),
        (ValueError, "dilation", (X, W), {"dilation": 0}),
        (ValueError, "stride", (X, W), {"stride": (1, 0)}),
        (TypeError, "stride", (X, W), {"stride": (1, 1, 1)}),
        (TypeError, "stride", (X, W), {"stride": 1.0}),
        (ValueError, "padding", (X, W), {"padding": -1}),
        (ValueError, "padding", (X, W), {"padding": "full"}),
        (ValueError, "padding", (X, W), {"padding": "same", "stride": 2}),
        (ValueError, "activation", (X, W), {"activation": "tanh"}),
        (ValueError, "algorithm", (X, W), {"algorithm": "fft"}),
        (ValueError, "algorithm", (X, W), {"algorithm": "winograd"}),  # 4 channels
    ]
    return [
        *(Bad("conv2d", *row) for row in rows),
        Bad("conv2d_backward", ValueError, "grad_output", (np.ones((1, 2, 3, 4), "f4"), X, W)),
        Bad("conv2d_backward", TypeError, "grad_output", (np.ones((1, 2, 3, 3)), X, W)),
    ]


def arguments(world: Any) -> dict[str, dict[str, Any]]:
    given = {"input": world.x, "weight": world.w, "stride": 1, "padding": 1, "dilation": 1}
    given |= {"groups": 1, "algorithm": "auto"}
    return {
        "conv2d": given | {"bias": world.c, "activation": "relu"},
        "conv2d_backward": given | {"grad_output": world.x, "needs": (True, True, True)},
    }


def differentiated() -> Calls:
    for o in every(
        shape=[(2, 4, 5, 4), (4, 4, 5)],
        stride=[1, 2, (2, 1)],
        padding=[0, 1, (1, 2), "same", "valid"],
        dilation=[1, (1, 2)],
        groups=[1, 2, 4],
        activation=[None, "relu"],
        bias=[False, True],
    ):
        if o["padding"] == "same" and o["stride"] != 1:
            continue
        bias = {"bias": distinct(4)} if o.pop("bias") else {}
        weight = distinct(4, 4 // o["groups"], 3, 2, seed=1)
        yield {"input": distinct(*o.pop("shape")), "weight": weight, **bias}, o
    for algorithm in ops.conv.ALGORITHMS:
        for dilation, activation in itertools.product((1, 2), (None, "relu")):
            o = {"algorithm": algorithm, "dilation": dilation, "activation": activation}
            learnt = {"input": distinct(2, 16, 7, 6), "weight": distinct(17, 16, 3, 3, seed=1)}
            yield {**learnt, "bias": distinct(17)}, {**o, "padding": (1, 2)}


# Each option at and beyond its usual range; `EXACT` has the sizes.
DIFFERENCES = (
    *(conv((2, 3, 5, 5), (m, 3, 3, 3), padding=1) for m in (1, 2, 3)),
    *(conv((1, 2, 3, 3 + k), (4, 2, 3, k), padding=(2, 1)) for k in (4, 5, 7, 9)),
    *(conv((2, 2, 4, 3), (3, 2, 2, 2), padding=padding) for padding in (2, 3, (5, 0), (0, 4))),
    *(conv((1, 2, 13, 11), (3, 2, 3, 3), dilation=dilation) for dilation in (2, 4, 5, (1, 3))),
    conv((2, 2, 9, 7), (3, 2, 2, 3), stride=(5, 2)),
    conv((1, 2, 13, 11), (3, 2, 3, 3), dilation=3, padding=4, stride=3),
    conv((1, 2, 6, 5), (3, 2, 4, 2), padding="same", dilation=(1, 3)),
    *(conv((1, c, 6, 5), (c, 1, 3, 3), groups=c, padding=1) for c in (3, 5)),
    conv((1, 4, 6, 5), (12, 1, 3, 2), groups=4, stride=2),
    conv((2, 5, 7, 3), (4, 5, 1, 1), stride=2),
    conv((2, 5, 7, 3), (4, 5, 1, 1), padding=1),
    conv((3, 5, 5), (4, 3, 3, 3), False),
)
SAMPLES = (
    conv((1, 1, 4, 4), (1, 1, 1, 1)),
    conv((2, 3, 7, 6), (4, 3, 3, 3)),
    conv((3, 5, 6), (4, 3, 3, 2), False, stride=2),
    conv((2, 4, 5, 6), (6, 2, 2, 3), groups=2, padding=(1, 2), stride=(2, 1)),
    conv((2, 5, 6, 5), (5, 1, 3, 3), groups=5, padding=1),
    conv((1, 2, 9, 8), (3, 2, 3, 2), dilation=(2, 3), padding=(2, 0)),
    conv((2, 3, 5, 6), (2, 3, 4, 3), padding="same", dilation=(1, 2)),
    conv((1, 2, 5, 4), (2, 2, 3, 3), False, padding="valid"),
    conv((2, 17, 5, 5), (33, 17, 1, 1)),
    conv((0, 3, 5, 5), (4, 3, 3, 3)),
    conv((8, 16, 20, 20), (33, 16, 3, 3), padding=1),
    conv((16, 32, 16, 16), (32, 1, 3, 3), groups=32, padding=1),
)
# Groups of few channels; and no tap of the kernel that meets the one pixel.
GROUPS = (
    *(
        conv((n, c, 7, 30), (c * e, 1, 3, 3), groups=c, padding=1)
        for n, c, e in ((2, 33, 1), (1, 9, 2), (3, 64, 1))
    ),
    conv((1, 3, 1, 1), (45, 1, 3, 1), groups=3, stride=(2, 5), padding=(6, 3)),
)
IMAGES, WEIGHT = np.ones((1, 3, 8, 8), np.float32), np.ones((4, 3, 3, 3), np.float32)


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def huge() -> dict[str, Callable[[Any], Any]]:
    """Calls with an option in pixels."""
    names = ("stride", "padding", "dilation")
    backward = functools.partial(ops.conv2d_backward, ones(1, 4, 6, 6), IMAGES, WEIGHT)
    return {
        **{
            f"conv2d {name}": lambda n, name=name: ops.conv2d(IMAGES, WEIGHT, **{name: n})
            for name in names
        },
        **{f"conv2d_backward {name}": lambda n, name=name: backward(**{name: n}) for name in names},
        "conv2d same": lambda n: ops.conv2d(IMAGES, WEIGHT, padding="same", dilation=n),
    }


SPECS = (
    Spec(
        op="conv2d",
        run=run,
        learnt=("input", "weight", "bias"),
        samples=SAMPLES,
        differences=DIFFERENCES,
        exact=EXACT,
        bound=bound,
        algorithms={
            name: (functools.partial(winograd, name), WINOGRAD)
            for name in ("F(2x2)", "F(4x4)", "F(4,5)")
        },
        random=(
            Random(drawn, torch=80),
            Random(drawn, data="wide", note="of wide ranges"),
            Random(drawn_winograd, algorithm="F(2x2)", note="by Winograd F(2x2)"),
            Random(drawn_winograd, algorithm="F(4x4)", note="by Winograd F(4x4)"),
            Random(drawn_winograd_rows, algorithm="F(4,5)", note="by Winograd F(4,5)"),
            Random(long_sums, note="long sums"),
        ),
        bad=tuple(wrong()),
        calls=calls,
        array_calls=array_calls,
        empty=(
            *(
                Empty({"input": "nchw", "weight": "mcrs", "bias": "m"}, {"padding": p}, "mcrshw")
                for p in (0, 2)
            ),
            Empty({"input": "chw", "weight": "mcrs"}, {}, "mcrshw"),
        ),
        arguments=arguments,
        watched={case.id: guarded(case) for case in (*GROUPS, *EXACT)},
        huge=huge(),
        too_large={
            "padding": (lambda: ops.conv2d(IMAGES, WEIGHT, padding=LARGE), "conv2d: .*padded"),
            "padded rows": (
                lambda: ops.conv2d(IMAGES, WEIGHT, padding=(LARGE, 2**20)),
                "conv2d: .*padded",
            ),
            "same": (
                lambda: ops.conv2d(IMAGES, WEIGHT, padding="same", dilation=LARGE),
                "conv2d: .*padded",
            ),
            "dilation": (
                lambda: ops.conv2d(IMAGES, WEIGHT, dilation=LARGE),
                "conv2d: .*dilation",
            ),
            "channels": (
                lambda: ops.conv2d(endless(2**40, 1, 2**9, 2**9), ones(8, 1, 1, 1)),
                "conv2d: the output",
            ),
            "kernel of 5": (
                lambda: ops.conv2d(endless(16, 1, 2**40, 9), ones(1, 1, 5, 5)),
                "conv2d: the padded input",
            ),
            "gradient": (
                lambda: ops.conv2d_backward(
                    ones(1, 1, 1, 1), endless(1, 1, 2**40, 9), ones(1, 1, 1, 1)
                ),
                "conv2d_backward: ",
            ),
        },
        functions={"conv2d": differentiated},
        layers={
            "Conv2d": Layer(
                {
                    "in_channels": [4],
                    "out_channels": [4, 8],
                    "kernel_size": [3, (1, 2)],
                    "stride": [1, (2, 1)],
                    "padding": [0, (1, 2), "same"],
                    "dilation": [1, (2, 1)],
                    "groups": [1, 2, 4],
                    "bias": [True, False],
                    "padding_mode": ["zeros"],
                    "algorithm": ["auto", "direct"],
                },
                [distinct(1, 4, 6, 5)],
                {"in_channels": 4, "out_channels": 4, "kernel_size": 3},
            )
        },
    ),
)
