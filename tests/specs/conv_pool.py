"""Convolution and pooling in one pass."""

from typing import Any

import numpy as np

from fastlayers import ops
from specs.spec import Arrays, Bad, Call, Draw, Place, Spec, Watched, like, named, normals

OP = "conv2d_max_pool2d"
POOL = (2, None, 0, 1, False)
# Input, weight, options of the convolution, pool.
CASES: list[Any] = [
    ((2, 3, 32, 32), (6, 3, 5, 5), {}, POOL),
    ((5, 6, 14, 14), (16, 6, 5, 5), {}, POOL),
    ((2, 3, 13, 16), (5, 3, 3, 3), {"padding": 1}, (2, 2, 0, 1, False)),
    ((1, 4, 11, 71), (7, 4, 2, 3), {"dilation": 2, "padding": (3, 1)}, POOL),
    ((3, 8, 17), (6, 3, 4, 4), {"padding": "same"}, POOL),
    ((3, 17, 8, 8), (8, 17, 3, 3), {}, POOL),
    ((3, 5, 15, 14), (17, 5, 3, 3), {"stride": 2, "padding": 1}, (2, 2, 0, 1, True)),
    ((2, 3, 15, 16), (33, 3, 3, 3), {"padding": 1}, (3, 2, 1, 1, False)),
    ((2, 3, 15, 16), (17, 3, 3, 3), {"stride": (1, 2)}, (3, 2, 0, 1, False)),
    ((1, 4, 12, 12), (16, 4, 3, 3), {}, ((2, 3), (4, 3), 0, (2, 1), False)),
    ((2, 16, 10, 12), (16, 16, 3, 3), {"padding": 1}, POOL),
    ((2, 16, 10, 12), (16, 16, 3, 3), {"padding": (1, 0)}, POOL),  # rows of zeros alone
    ((1, 4, 9, 8), (6, 2, 3, 3), {"groups": 2}, POOL),
    ((1, 2, 20, 20), (16, 2, 1, 1), {}, (17, 2, 0, 1, False)),
    ((0, 3, 32, 32), (6, 3, 5, 5), {}, POOL),
    ((0, 6, 14, 14), (16, 6, 5, 5), {}, POOL),
]
X, W = np.ones((1, 3, 6, 6), np.float32), np.ones((6, 3, 3, 3), np.float32)
Y, OFFSETS = np.full((1, 6, 2, 2), 27, np.float32), np.zeros((1, 6, 2, 2), np.uint8)


def calls(draw: Draw) -> Any:
    x, w, b = draw(3, 5, 7, 6), draw.plain(10, 5, 3, 2), draw(10)
    options = {"padding": 1, "pool": (2, 2, 0, 1, False), "activation": "relu"}
    y, offsets = ops.conv2d_max_pool2d(x, w, b, **options)
    yield Call(OP, (x, w, b), options)
    yield Call(f"{OP}_backward", (draw(*y.shape), y, offsets, x, w), options)


# Winograd's tiles; its rows; pixels in the lanes; few channels a group; strides.
PATHS: list[Any] = [
    ((3, 32, 10, 9), (33, 32, 3, 3), {"padding": 1}),
    ((16, 3, 12, 14), (6, 3, 5, 5), {}),
    ((2, 3, 18, 20), (5, 3, 5, 5), {}),
    ((2, 16, 9, 8), (16, 1, 3, 3), {"groups": 16, "padding": 1}),
    ((2, 17, 9, 8), (33, 17, 3, 3), {"stride": 2, "padding": 1}),
]


def array_calls(draw: Draw) -> Any:
    for shape, weight, options in PATHS:
        x, w, b = draw(*shape), draw(*weight), draw(weight[0])
        options = options | {"pool": (2, 2, 0, 1, False)}
        y, cells = ops.conv2d_max_pool2d(x, w, b, **options)
        yield Call(OP, (x, w, b), options)
        dy = draw(*y.shape)
        for needs in ((True, True, True), (True, False, False), (False, True, False)):
            yield Call(f"{OP}_backward", (dy, y, cells, x, w), options | {"needs": needs})


def arguments(world: Any) -> dict[str, dict[str, Any]]:
    given = {"input": world.x, "weight": world.w, "stride": 1, "padding": 1, "dilation": 1}
    given |= {"groups": 1, "algorithm": "auto", "activation": "relu"}
    given |= {"pool": (2, 2, 0, 1, False)}
    kept = {"grad_output": world.y, "output": world.y, "offsets": world.offsets}
    return {
        OP: given | {"bias": world.c},
        f"{OP}_backward": given | kept | {"needs": (True, True, True)},
    }


def watched(x: Any, weight: Any, options: Any, pool: Any) -> Watched:
    def run(place: Place, dtype: type) -> Arrays:
        arrays = normals(place, dtype, x, weight, weight[:1])
        fused = options | {"pool": pool, "activation": "relu"}
        y, cells = ops.conv2d_max_pool2d(*arrays, **fused)
        saved = (y, cells, *arrays[:2])
        return named(y, cells, ops.conv2d_max_pool2d_backward(place(like(y)), *saved, **fused))

    return run


SPECS = (
    Spec(
        op=OP,
        bad=(
            *(
                Bad(OP, error, argument, args, {"pool": POOL} | options)
                for error, argument, args, options in (
                    (TypeError, "input", (X.tolist(), W), {}),
                    (ValueError, "weight", (X, W[0]), {}),
                    (TypeError, "pool", (X, W), {"pool": 2}),
                    (ValueError, "kernel_size", (X, W), {"pool": (0, None, 0, 1, False)}),
                    (ValueError, "padding", (X, W), {"pool": (2, None, 2, 1, False)}),
                    (ValueError, "activation", (X, W), {"activation": "tanh"}),
                    (ValueError, "algorithm", (X, W), {"algorithm": "fft"}),
                    (TypeError, "stride", (X, W), {"stride": 1.0}),
                    (TypeError, "bias", (X, W, np.ones(6)), {}),
                )
            ),
            *(
                Bad(f"{OP}_backward", error, argument, (*args, X, W), {"pool": POOL})
                for error, argument, args in (
                    (ValueError, "grad_output", (Y[..., :1], Y, OFFSETS)),
                    (TypeError, "grad_output", (Y.astype(float), Y, OFFSETS)),
                    (ValueError, "output", (Y, Y[:, :1], OFFSETS)),
                    (ValueError, "offsets", (Y, Y, OFFSETS[:, :1])),
                    (TypeError, "offsets", (Y, Y, Y)),
                )
            ),
        ),
        calls=calls,
        array_calls=array_calls,
        arguments=arguments,
        watched={f"conv-pool {row}": watched(*row) for row in CASES},
        huge={
            OP: lambda n: ops.conv2d_max_pool2d(
                *(np.ones(shape, np.float32) for shape in ((1, 3, 8, 8), (4, 3, 3, 3))),
                pool=(n, None, 0, 1, False),
            )
        },
        caller=("conv", "pool"),
    ),
)
