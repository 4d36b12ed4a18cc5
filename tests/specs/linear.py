"""Linear maps."""

import itertools
from typing import Any
from unittest import mock

import numpy as np

from fastlayers import ops, reference
from fastlayers.ops.linear import large as large_linear
from fastlayers.ops.linear import small as small_linear
from fastlayers.ops.linear.routes import algorithms
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
    named,
    normals,
    results,
    wrong_inputs,
)

EDGES = (1, 2, 3, 5, 7, 11, 12, 13, 16, 17, 31, 33)
# Beyond one block, task or tile of each kernel, and one off: (batch, in, out).
LARGE = (
    (1, 2500, 50),
    (4, 1031, 193),
    (5, 1024, 97),
    (8, 1100, 49),
    (9, 257, 385),
    (129, 1025, 61),
    (257, 530, 197),
    (385, 259, 260),
    (513, 31, 129),
    (600, 255, 13),
)
# Small and large weights, few and many rows, short and long sums, tails of vectors and tiles.
RELU = ((4, 3, 5), (1, 1, 1), (3, 400, 37), (40, 20, 84), (128, 33, 10), (300, 70, 131), (7, 65, 9))


def run(module: Any, case: Case, arrays: Arrays, dy: Place) -> Arrays:
    y = getattr(module, case.op)(**arrays, **case.options)
    backward = getattr(module, f"{case.op}_backward")
    return results(y, backward(dy(y), arrays["input"], arrays["weight"], **case.options))


def bound(case: Case, a: Arrays, y: Any, dy: Any, want: Arrays) -> Bounds:
    """Of convolutions and linear maps: sums of products."""
    sizes = {name: np.abs(array) for name, array in a.items()}
    x, weight, o = sizes["input"], sizes["weight"], case.options
    dx, dweight, dbias = getattr(reference, f"{case.op}_backward")(dy, x, weight, **o)
    m = weight.shape[0]
    each = weight[0].size  # products of an output
    pixels = y.size // max(m, 1)
    reached = weight.size // max(weight.shape[1] * o.get("groups", 1), 1) if each else 1
    found = {
        "y": (each + ("bias" in a), getattr(reference, case.op)(**sizes, **o)),
        "dinput": (reached, dx),
        "dweight": (pixels, dweight),
        "dbias": (pixels, dbias),
    }
    return {name: (max(terms, 1), magnitude) for name, (terms, magnitude) in found.items()}


def linear(x: tuple[int, ...], outputs: int, bias: bool = True) -> Case:
    shapes = {"input": x, "weight": (outputs, x[-1])}
    return Case("linear", shapes | ({"bias": (outputs,)} if bias else {}))


def drawn(pick: Pick) -> Case:
    n, m = pick(1, 7, 16, 33), pick(1, 5, 12, 31)
    return linear((*pick((), (4,), (2, 3), (0,)), n), m, pick(False, True))


def long_sums(pick: Pick) -> Case:
    many, few = pick(64, 97, 130, 300), pick(1, 3, 17)
    return pick(
        linear((pick(1, 5, 33), 3 * many), few, False), linear((many, few), pick(7, 130), False)
    )


def calls(draw: Draw) -> Any:
    w, b, x = draw(4, 6), draw(4), draw(3, 2, 6)
    yield Call("linear", (x, w, b), {"activation": "relu"})
    yield Call("linear", (x, w))
    o = {"activation": "relu", "output": ops.linear(x, w, b, activation="relu")}
    yield Call("linear_backward", (draw(3, 2, 4), x, w), o)
    yield Call("linear_backward", (draw(3, 2, 4), x, w, (True, False, True)), o)


def array_calls(draw: Draw) -> Any:
    for rows, k, n in ((3, 7, 5), (300, 100, 50), (3, 900, 700), (50, 900, 700)):
        x, w, b = draw(rows, k), draw(n, k), draw(n)
        y = ops.linear(x, w, b, activation="relu")
        yield Call("linear", (x, w, b), {"activation": "relu"})
        for needs in ((True, True, True), (False, True, False), (True, False, True)):
            yield Call("linear_backward", (y, x, w, needs), {"activation": "relu", "output": y})


def arguments(world: Any) -> dict[str, dict[str, Any]]:
    given = {"input": world.m, "weight": world.m}
    relu, y = {"activation": "relu"}, world.m @ world.m.T
    return {
        "linear": given | relu | {"bias": world.c[:3]},
        "linear_backward": given | relu | {"grad_output": y, "output": y, "needs": (True,) * 3},
    }


def with_relu(batch: int, k: int, n: int, large: bool = False) -> Watched:
    """With a ReLU; as for a weight that is `large`, or by its size."""

    def run(place: Place, dtype: type) -> Arrays:
        x, weight, bias, dy = normals(place, dtype, (batch, k), (n, k), (n,), (batch, n))
        y = ops.linear(x, weight, bias, activation="relu")
        if not large:
            return named(y, ops.linear_backward(dy, x, weight, activation="relu", output=y))
        algorithms.cache_clear()
        cut = mock.patch.object(large_linear, "STREAMED", 1 << 15)
        with mock.patch.object(small_linear, "SMALL", 0), cut:
            grads = ops.linear_backward(dy, x, weight, activation="relu", output=y)
        algorithms.cache_clear()
        return named(y, grads)

    return run


def differentiated() -> Calls:
    for o in every(
        shape=[(3, 5), (5,), (2, 3, 5), (0, 5), (11, 5)],
        activation=[None, "relu"],
        bias=[False, True],
    ):
        bias = {"bias": distinct(4)} if o.pop("bias") else {}
        yield {"input": distinct(*o.pop("shape")), "weight": distinct(4, 5, seed=1), **bias}, o


X, W, Y = (np.ones(shape, np.float32) for shape in ((2, 3), (4, 3), (2, 4)))

SPECS = (
    Spec(
        op="linear",
        run=run,
        learnt=("input", "weight", "bias"),
        samples=(
            linear((4, 3), 5),
            linear((7,), 2),
            linear((2, 3, 5), 17, False),
            linear((0, 3), 4),
            linear((1, 1), 1),
            linear((301, 65), 129),
        ),
        exact=(
            *(linear((n, k), n) for n, k in itertools.product(EDGES, EDGES)),
            *(linear((3, k), n, False) for n, k in itertools.product(EDGES, EDGES)),
            *(
                linear((*batch, k), n)
                for batch in ((), (0,), (1,), (2, 3), (129,))
                for k, n in ((0, 3), (1, 4), (7, 5), (65, 17), (257, 33))
            ),
        ),
        signed_zeros=False,  # terms in another order
        bound=bound,
        random=(Random(drawn, torch=25, data="wide"), Random(long_sums, note="long sums")),
        bad=(
            Bad("linear", ValueError, "input", (X[:, :2], W)),
            Bad("linear", ValueError, "input", (np.array(1, np.float32), W)),
            Bad("linear", ValueError, "weight", (X, W[0])),
            Bad("linear", ValueError, "bias", (X, W, X[0])),
            *wrong_inputs("linear", X, W),
            Bad("linear", TypeError, "weight", (X, W.astype(float))),
            Bad("linear", TypeError, "bias", (X, W, np.ones(4))),
            Bad("linear_backward", ValueError, "grad_output", (X, X, W)),
            Bad("linear_backward", TypeError, "grad_output", (np.ones((2, 4)), X, W)),
            Bad("linear_backward", ValueError, "grad_output", (Y[:, None], X, W)),
            *(
                Bad(f"linear{way}", ValueError, "activation", args, o | {"activation": wrong})
                for way, args, o in (("", (X, W), {}), ("_backward", (Y, X, W), {"output": Y}))
                for wrong in ("tanh", 1)
            ),
            *(
                Bad("linear_backward", error, "output", (Y, X, W), {"activation": "relu"} | given)
                for error, given in (
                    (TypeError, {}),
                    (TypeError, {"output": Y.astype(float)}),
                    (ValueError, {"output": X}),
                )
            ),
        ),
        calls=calls,
        array_calls=array_calls,
        empty=(
            Empty({"input": "nc", "weight": "mc", "bias": "m"}),
            Empty({"input": "nhc", "weight": "mc"}),
        ),
        arguments=arguments,
        watched={
            **{f"linear-relu {size}": with_relu(*size) for size in (*LARGE, *RELU)},
            **{f"linear-large {size}": with_relu(*size, large=True) for size in (*LARGE, *RELU)},
        },
        too_large={
            "linear": (lambda: ops.linear(endless(2**50, 2), endless(2**50, 2)), "."),
            "linear_backward": (
                lambda: ops.linear_backward(
                    endless(2**50, 2**8), endless(2**50, 2), endless(2**8, 2)
                ),
                ".",
            ),
        },
        functions={"linear": differentiated},
        layers={
            "Linear": Layer(
                {"in_features": [3], "out_features": [5, 17], "bias": [True, False]},
                [distinct(4, 3)],
                {"in_features": 3, "out_features": 5},
            )
        },
    ),
)
