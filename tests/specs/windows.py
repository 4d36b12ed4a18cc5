"""What the specs of pooling share: shapes, windows, and calls that fail."""

from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers import ops
from specs.spec import (
    Bad,
    Case,
    Pick,
    Watched,
    distinct,
    guarded,
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


LAYER_INPUT = [distinct(2, 3, 6, 5)]
TALL = np.ones((1, 1, 513, 1), np.float32)
# Many tasks, whose vectors spill over into the next pixel.
TASKS = (64, 6, 28, 28)


def pool(op: str, x: tuple[int, ...], **options: Any) -> Case:
    return Case(op, {"input": x}, options)


def cells(kernel_size: Any) -> int:
    return int(np.prod(kernel_size)) ** (1 + isinstance(kernel_size, int))


def size(pick: Pick) -> tuple[int, ...]:
    return (*pick((), (1,), (3,)), pick(1, 4, 7), pick(6, 7, 8), pick(6, 9, 11))


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
