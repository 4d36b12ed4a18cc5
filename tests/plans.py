"""What ops ask of kernels at named shapes: which kernel, cut how, with what workspace and threads.

``python tests/plans.py > tests/ops/plans.txt`` writes it anew. No kernel runs, and the facts of the
CPU are those of a given one, so that any machine gives the same.
"""

import importlib
import inspect
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import numpy as np

from fastlayers.runtime import cpu

Call = Callable[[], Any]
# Of AVX-512, whatever runs this.
CPU = {
    "vector_bytes": 64,
    "tile_rows": 12,
    "l1_bytes": 32 << 10,
    "l2_bytes": 1 << 20,
    "cache_bytes": 32 << 20,
}
# Entries of a table that is shown; of a longer one the shape is.
SHOWN = 12


def blank(shape: tuple[int, ...] | int, dtype: Any = np.float32) -> np.ndarray:
    """Zeros, of which no memory is touched, with the channels innermost."""
    if isinstance(shape, int) or len(shape) < 3:
        return np.zeros(shape, dtype)
    return np.moveaxis(np.zeros((shape[0], *shape[2:], shape[1]), dtype), -1, 1)


def told(value: Any) -> str:
    """An argument of a kernel, without the elements of its arrays."""
    if isinstance(value, tuple):
        return f"({' '.join(map(told, value))})"
    if not isinstance(value, np.ndarray):
        return str(value)
    if value.dtype == np.int64 and value.ndim == 1 and value.size <= SHOWN:
        return f"[{' '.join(map(str, value))}]"
    return value.dtype.char + "x".join(map(str, value.shape))


def conv(x: Any, weight: Any, dtype: Any = np.float32, **options: Any) -> Call:
    def run() -> None:
        ops = importlib.import_module("fastlayers.ops")
        images, w = blank(x, dtype), np.zeros(weight, dtype)
        y = ops.conv2d(images, w, np.zeros(weight[0], dtype), **options)
        ops.conv2d_backward(blank(y.shape, dtype), images, w, **options)

    return run


def conv_pool(x: Any, weight: Any, *window: Any, **options: Any) -> Call:
    def run() -> None:
        ops = importlib.import_module("fastlayers.ops")
        images, w = blank(x), np.zeros(weight, np.float32)
        fused = options | {
            "pool": (*window, *(None, 0, 1, False)[len(window) - 1 :]),
            "activation": "relu",
        }
        y, cells = ops.conv2d_max_pool2d(images, w, np.zeros(weight[0], np.float32), **fused)
        ops.conv2d_max_pool2d_backward(blank(y.shape), y, cells, images, w, **fused)

    return run


def norm(x: Any, dtype: Any = np.float32, pool: int = 0) -> Call:
    def run() -> None:
        ops = importlib.import_module("fastlayers.ops")
        images, v = blank(x, dtype), np.ones(x[1], dtype)
        if pool:
            y, cells = ops.batch_norm_max_pool2d(images, v, v, v, v, pool, activation="relu")
            saved = y, cells, images, v, v, v, True, (True,) * 3, pool
            ops.batch_norm_max_pool2d_backward(blank(y.shape), *saved, activation="relu")
            return
        y, *saved = ops.batch_norm_forward(images, v.copy(), v.copy(), v, v, True)
        ops.batch_norm_backward(blank(x, dtype), images, v, *saved, True)
        ops.batch_norm_apply(images, v, v, v, v, residual=blank(x, dtype), activation="relu")

    return run


def linear(rows: int, k: int, n: int, dtype: Any = np.float32) -> Call:
    def run() -> None:
        ops = importlib.import_module("fastlayers.ops")
        x, w = np.zeros((rows, k), dtype), np.zeros((n, k), dtype)
        y = ops.linear(x, w, activation="relu")
        ops.linear_backward(y, x, w, activation="relu", output=y)
        ops.linear_backward(y, x, w, (False, True, False))

    return run


def pool(op: str, x: Any, *window: Any) -> Call:
    def run() -> None:
        ops = importlib.import_module("fastlayers.ops")
        images, backward = blank(x), getattr(ops, f"{op}_backward")
        if op == "max_pool2d":
            y, cells = ops.max_pool2d_forward(images, *window)
            backward(blank(y.shape), cells, x, *window)
        else:
            y = getattr(ops, op)(images, *window)
            backward(blank(y.shape), x, *(window if op == "avg_pool2d" else ()))

    return run


def plain(op: str, x: Any, *options: Any) -> Call:
    def run() -> None:
        ops = importlib.import_module("fastlayers.ops")
        importlib.import_module("fastlayers.random").manual_seed(0)
        y = getattr(ops, op)(blank(x), *options)
        y, saved = y if isinstance(y, tuple) else (y, y)
        getattr(ops, f"{op.removesuffix('_forward')}_backward")(y, saved, *options[-1:])

    return run


def calls() -> Iterator[tuple[str, Call]]:
    """The calls by their names."""
    rows: list[tuple[Any, ...]] = [
        # The layers of VGG-16, ResNet-18 and ResNet-50, at a batch of 16 or so.
        ((16, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "padding": 3}),
        ((16, 3, 32, 32), (64, 3, 3, 3), {"padding": 1}),
        *(
            ((n, c, size, size), (c, c, 3, 3), {"padding": 1})
            for n, c, size in (
                *((1, 64, 56), (16, 64, 56), (64, 64, 56), (1, 128, 28), (16, 128, 28)),
                *((4, 256, 14), (16, 256, 14), (1, 512, 7), (4, 512, 7), (16, 512, 7)),
                *((2, 16, 32), (128, 16, 32), (128, 64, 8), (64, 24, 20), (3, 48, 2)),
            )
        ),
        *(
            ((n, c, size, size), (m, c, 1, 1), {})
            for n, c, m, size in (
                *((16, 64, 256, 56), (16, 256, 64, 56), (64, 256, 64, 56), (1, 512, 2048, 7)),
                *((4, 1024, 256, 14), (64, 3, 16, 17), (2, 17, 33, 9)),
            )
        ),
        ((16, 64, 56, 56), (128, 64, 3, 3), {"stride": 2, "padding": 1}),
        ((16, 256, 56, 56), (512, 256, 1, 1), {"stride": 2}),
        ((4, 64, 28, 28), (64, 64, 3, 3), {"padding": 2, "dilation": 2}),
        ((2, 9, 30, 31), (20, 9, 5, 3), {"stride": (3, 1), "padding": (2, 0), "dilation": (1, 2)}),
        ((8, 32, 16, 16), (32, 32, 3, 3), {"padding": 1, "algorithm": "direct"}),
        ((8, 32, 16, 16), (32, 32, 3, 3), {"padding": 1, "algorithm": "winograd"}),
        # Few channels: of MNIST's and of CIFAR's networks.
        *(
            ((n, c, size, size), (m, c, 5, 5), {"padding": p})
            for n, c, m, size, p in (
                *((64, 1, 6, 28, 2), (64, 6, 16, 14, 0), (128, 3, 32, 32, 2), (128, 32, 32, 16, 2)),
                *((64, 32, 64, 8, 2), (5, 6, 16, 14, 0), (64, 1, 20, 28, 0), (64, 20, 50, 12, 0)),
            )
        ),
        *(((n, 1, 28, 28), (8, 1, 3, 3), {"padding": 1}) for n in (1, 64)),
        *(((16, c, 8, 8), (4, c, 5, 5), {"padding": 2}) for c in (1, 3)),
        *(((8, 3, 40, 33), (m, 3, 3, 3), {}) for m in (1, 2, 5, 7, 12)),
        # Groups.
        *(
            ((8, c, 28, 28), (c * each, 1, 3, 3), {"padding": 1, "stride": s, "groups": c})
            for c, each, s in ((32, 1, 1), (96, 1, 2), (20, 2, 1))
        ),
        *(
            ((8, c, 14, 14), (c, c // g, 3, 3), {"padding": 1, "groups": g})
            for c, g in ((256, 32), (64, 2), (96, 3), (24, 12))
        ),
    ]
    for i, (x, weight, options) in enumerate(rows):
        for dtype in (np.float32, np.float64)[: 1 + (i % 4 == 1)]:
            name = f"conv2d {x} {weight} {options} {dtype.__name__}"
            yield name, conv(x, weight, dtype, **options)
    for x, weight, *window in (
        *(((64, 1, 28, 28), (m, 1, 5, 5), 2) for m in (6, 8, 20, 32)),
        *(((64, 6, 14, 14), (16, 6, 5, 5), 2), ((64, 20, 12, 12), (50, 20, 5, 5), 2)),
        *(((8, 3, 32, 32), (m, 3, 3, 3), k) for m in (8, 32, 64) for k in (2, 3)),
        *(((3, 2, 20, 20), (16, 2, 3, 3), (2, 3), (1, 2)), ((2, 8, 14, 15), (8, 8, 3, 3), 3, 2)),
        *(((2, 16, 64, 64), (64, 16, 3, 3), 2), ((7, 40, 20, 20), (40, 40, 3, 3), 2)),
        *(((2, 4, 40, 40), (24, 4, 2, 2), 16), ((2, 3, 12, 12), (8, 3, 9, 9), 2)),
        *(((2, 1, 200, 200), (16, 1, 3, 3), 3), ((1, 2, 36, 20), (16, 2, 2, 2), (32, 9))),
    ):
        yield f"conv2d_max_pool2d {x} {weight} {window}", conv_pool(x, weight, *window)
    for x in (
        *((128, 10), (128, 1024), (4, 3), (60, 6, 28, 28), (64, 16, 32, 32), (64, 20, 12, 12)),
        *((16, 64, 56, 56), (64, 64, 112, 112), (16, 512, 7, 7), (1, 24, 40, 40), (9, 130, 15, 15)),
        *((300, 33, 50), (256, 32, 16, 16), (2, 2048, 7, 7)),
    ):
        yield f"batch_norm {x}", norm(x)
        if len(x) == 4:
            yield f"batch_norm_max_pool2d {x}", norm(x, pool=2)
    yield "batch_norm float64", norm((32, 24, 30, 30), np.float64)
    for size in (
        *((1, 784, 128), (4, 1024, 256), (8, 4096, 4096), (64, 784, 128), (64, 128, 10)),
        *((128, 400, 120), (256, 9216, 4096), (16, 25088, 512), (100, 30, 50), (9000, 12, 20)),
        *((9, 2048, 2048), (512, 512, 512), (7, 300, 100), (200, 97, 33), (3, 70000, 2)),
        *((64, 1000, 1), (5, 4096, 9000), (16, 3072, 4096), (70000, 8, 8)),
    ):
        yield f"linear {size}", linear(*size)
    yield "linear float64", linear(60, 900, 700, np.float64)
    for op, x, *window in (
        *(("max_pool2d", (64, c, 28, 28), 2) for c in (6, 16)),
        *(("max_pool2d", (16, 64, size, 57), 3, 2, 1) for size in (112, 113)),
        *(("max_pool2d", (16, 64, 112, 112), 3, 2, 1), ("max_pool2d", (2, 5, 40, 40), 17, 2)),
        *(("max_pool2d", (1, 130, 9, 10), (2, 3), (1, 4), (1, 0), (2, 1)),),
        *(("avg_pool2d", (64, c, 28, 28), 2) for c in (6, 16)),
        *(("avg_pool2d", (16, 64, 56, 56), 3, 2, 1), ("avg_pool2d", (16, 512, 7, 7), 7)),
        *(("adaptive_avg_pool2d", (16, c, 7, 7), 1) for c in (20, 512)),
        *(("adaptive_avg_pool2d", (2, 12, 30, 31), (7, 4)),),
    ):
        yield f"{op} {x} {window}", pool(op, x, *window)
    for x in ((50, 100), (64, 64, 28, 28)):
        for op in ("relu", "sigmoid", "tanh"):
            yield f"{op} {x}", plain(op, x)
        for op in ("softmax", "log_softmax"):
            yield f"{op} {x}", plain(op, x, 1)
        yield f"dropout {x}", plain("dropout_forward", x, 0.5)
        yield f"feature_dropout {x}", plain("feature_dropout_forward", x, 0.5, 1)


def lines() -> Iterator[str]:
    """Each call, and the kernels that it calls."""
    memory, threads, compiler = (
        importlib.import_module(f"fastlayers.runtime.{name}")
        for name in ("memory", "threads", "compiler")
    )
    asked: list[str] = []

    def ask(kernel: Any, *args: Any) -> Any:
        function = kernel.py_func
        if not {"call", "facts", "workers"} & inspect.signature(function).parameters.keys():
            return function(*args)  # the size of a workspace
        home = function.__module__.removeprefix("fastlayers.kernels.")
        asked.append(f"  {home}.{function.__name__} {' '.join(map(told, args))}")
        return None

    def empty(shape: Any, dtype: Any) -> np.ndarray:
        return np.zeros(shape, dtype)

    def scratch(counts: tuple[int, ...], dtype: Any) -> tuple[np.ndarray, ...]:
        return tuple(np.zeros(count, dtype) for count in counts)

    threads.set_num_threads(2)
    with (
        mock.patch.multiple(memory, empty=empty, scratch=scratch),
        mock.patch.object(compiler.Kernel, "__call__", ask, create=True),
    ):
        for name, call in calls():
            yield name
            call()
            yield from asked
            asked.clear()


def main() -> None:
    """Print all of them."""
    for name, value in CPU.items():
        setattr(cpu, name, lambda value=value: value)
    for line in lines():
        print(line)


if __name__ == "__main__":
    main()
