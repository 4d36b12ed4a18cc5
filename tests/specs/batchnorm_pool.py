"""Batch normalisation and pooling in one pass."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from fastlayers import ops
from specs.spec import Arrays, Bad, Call, Draw, Place, Spec, Watched, like, named, normals

OP = "batch_norm_max_pool2d"
# Shape, kernel, stride, padding, dilation, ceil_mode; the first need one pass.
CASES = [
    ((4, 6, 8, 8), 2, None, 0, 1, False),
    ((3, 16, 7, 9), 2, None, 0, 1, False),
    ((2, 17, 9, 10), (3, 2), None, 0, 1, False),
    ((40, 64, 13, 12), 2, 2, 0, 1, False),
    ((3, 130, 4, 4), (1, 4), None, 0, 1, True),
    ((5, 1, 6, 6), 3, None, 0, 1, False),
    ((3, 6, 7, 9), 2, None, 0, 1, True),
    ((3, 6, 7, 9), 3, 2, 1, 1, False),
    ((3, 16, 9, 9), 2, 3, 0, 1, False),
    ((3, 16, 9, 9), 2, 2, 0, 2, False),
]
X, V = np.ones((4, 3, 4, 4), np.float32), np.ones(3, np.float32)


def calls(draw: Draw) -> Any:
    x, w, b = draw(3, 5, 7, 6), draw(5), draw(5)
    _, *fixed = ops.batch_norm_forward(x, draw(5), draw(5) ** 2, w, b, False)
    relu = {"activation": "relu"}
    for window in ((2,), (3, 1, 1)):
        y, offsets = ops.batch_norm_max_pool2d(x, *fixed, w, b, *window, **relu)
        yield Call(OP, (x, *fixed, w, b, *window), relu)
        saved = (y, offsets, x, w, *fixed, True, (True,) * 3, *window)
        yield Call(f"{OP}_backward", (draw(*y.shape), *saved), relu)


def wrong() -> Iterator[Bad]:
    given = {"input": X, "mean": V, "invstd": V, "weight": V, "bias": V, "kernel_size": 2}
    for error, name, value in (
        (ValueError, "input", X[0]),
        (ValueError, "input", X[:, :0]),
        (ValueError, "input", X[:, :, :0]),
        (ValueError, "mean", V[:2]),
        (TypeError, "weight", V.astype(float)),
        (ValueError, "activation", "tanh"),
        (ValueError, "kernel_size", 5),
        (ValueError, "padding", 2),
    ):
        yield Bad(OP, error, name, (), given | {name: value})
    y, offsets = X[..., :2, :2], np.zeros((4, 3, 2, 2), np.uint8)
    given = {"grad_output": y, "output": y, "offsets": offsets, "input": X, "weight": V}
    given |= {"mean": V, "invstd": V, "training": True, "needs": (True,) * 3, "kernel_size": 2}
    for error, name, options in (
        (ValueError, "grad_output", {"grad_output": X}),
        (ValueError, "offsets", {"offsets": X.astype(np.uint8)}),
        (TypeError, "offsets", {"offsets": y}),
        (ValueError, "invstd", {"invstd": X}),
        # Of another batch or dtype than the input: kernels would read what is not theirs.
        (ValueError, "output", {"output": y[:2], "grad_output": y[:2]}),
        (TypeError, "output", {"output": y.astype(float)}),
    ):
        yield Bad(f"{OP}_backward", error, name, (), given | options)


def arguments(world: Any) -> dict[str, dict[str, Any]]:
    given = {"input": world.x, "mean": world.c, "invstd": world.c, "weight": world.c}
    given |= {"kernel_size": 2, "stride": 2, "padding": 0, "dilation": 1, "activation": "relu"}
    kept = {"grad_output": world.y, "output": world.y, "offsets": world.offsets}
    return {
        OP: given | {"bias": world.c, "ceil_mode": False},
        f"{OP}_backward": given | kept | {"training": True, "needs": (True,) * 3},
    }


def watched(shape: Any, *window: Any) -> Watched:
    def run(place: Place, dtype: type) -> Arrays:
        x, weight, bias = normals(place, dtype, shape, shape[1:2], shape[1:2])
        statistics, relu = ops.batch_norm_statistics(x, training=True), {"activation": "relu"}
        y, cells = ops.batch_norm_max_pool2d(x, *statistics, weight, bias, *window, **relu)
        saved = (y, cells, x, weight, *statistics, True, (True,) * 3, *window[:-1])
        grads = ops.batch_norm_max_pool2d_backward(place(like(y)), *saved, **relu)
        return named(*statistics, y, cells, grads)

    return run


SPECS = (
    Spec(
        op=OP,
        bad=tuple(wrong()),
        calls=calls,
        arguments=arguments,
        watched={f"norm-pool {row}": watched(*row) for row in CASES},
        huge={
            OP: lambda n: ops.batch_norm_max_pool2d(
                np.ones((1, 3, 8, 8), np.float32), V, V, None, None, n
            )
        },
        caller=("norm", "pool"),
    ),
)
