"""Other shapes of the same elements."""

import math
from typing import Any

import numpy as np
from parity.functions_harness import Arguments, Draw, Row


def _factors(draw: Draw, size: int) -> list[int]:
    """Lengths that multiply to a size."""
    lengths: list[int] = []
    while size > 1 and draw.rng.random() < 0.7:
        by = int(draw.pick(*[n for n in range(1, size + 1) if size % n == 0]))
        lengths.append(by)
        size //= by
    return [*lengths, size]


def _shape(draw: Draw) -> Arguments:
    x = draw.tensor()
    lengths = _factors(draw, x.size) if x.size else [0, 3]
    if draw.rng.random() < 0.4:
        lengths[int(draw.rng.integers(len(lengths)))] = -1
    if draw.rng.random() < 0.05:
        lengths.append(2)
    return (x, tuple(lengths)), {}


def _plain_shape(draw: Draw) -> Arguments:
    """Of contiguous memory, as PyTorch's view needs it."""
    (x, shape), options = _shape(draw)
    return (x.copy(), *draw.pick(shape, (shape,))), options


def _flatten(draw: Draw) -> Arguments:
    x = draw.tensor()
    if draw.rng.random() < 0.3:
        return (x,), {}
    first, last = sorted(int(draw.rng.integers(0, max(x.ndim, 1))) for _ in range(2))
    return (x, first, last - max(x.ndim, 1) if draw.rng.random() < 0.5 else last), {}


def _unflatten(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1, empty=False))
    dim = draw.dim(x.ndim)
    size = x.shape[dim] if -x.ndim <= dim < x.ndim else 2
    lengths = _factors(draw, size)
    if draw.rng.random() < 0.3:
        lengths[0] = -1
    return (x, dim, tuple(lengths)), {}


def _permute(draw: Draw) -> Arguments:
    x = draw.tensor()
    order = [int(i) for i in draw.rng.permutation(x.ndim)]
    if order and draw.rng.random() < 0.3:
        order[0] -= x.ndim
    if order and draw.rng.random() < 0.05:
        order[0] = order[-1]
    return (x, tuple(order)), {}


def _pair(draw: Draw) -> Arguments:
    x = draw.tensor()
    return (x, draw.dim(x.ndim), draw.dim(x.ndim)), {}


def _movedim(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    if draw.rng.random() < 0.5:
        return (x, draw.dim(x.ndim), draw.dim(x.ndim)), {}
    count = int(draw.rng.integers(1, x.ndim + 1))
    pair = [tuple(int(d) for d in draw.rng.permutation(x.ndim)[:count]) for _ in range(2)]
    return (x, *pair), {}


def _few(draw: Draw) -> Arguments:
    return (draw.tensor(draw.shape(most=2)),), {}


def _many(draw: Draw) -> Arguments:
    return (draw.tensor(draw.shape(least=2)),), {}


def _any(draw: Draw) -> Arguments:
    return (draw.tensor(),), {}


def _squeeze(draw: Draw) -> Arguments:
    shape = tuple(1 if draw.rng.random() < 0.5 else n for n in draw.shape())
    x, dims = draw.tensor(shape), draw.dims(len(shape))
    return ((x,) if dims is None else (x, tuple(dims) if isinstance(dims, list) else dims)), {}


def _unsqueeze(draw: Draw) -> Arguments:
    x = draw.tensor()
    return (x, draw.dim(x.ndim + 1)), {}


def _expand(draw: Draw) -> Arguments:
    shape = draw.shape()
    x = draw.tensor(tuple(1 if draw.rng.random() < 0.4 else n for n in shape))
    wanted: list[Any] = [-1 if draw.rng.random() < 0.2 else n for n in shape]
    if draw.rng.random() < 0.4:
        wanted.insert(0, int(draw.rng.integers(0, 3)))
    if wanted and draw.rng.random() < 0.1:
        wanted[-1] = 7
    return (x, tuple(wanted)), {}


def _together(draw: Draw) -> Arguments:
    return tuple(draw.tensor(shape) for shape in draw.pair()), {}


def _of_other(draw: Draw) -> Arguments:
    a, b = draw.pair()
    return (draw.tensor(a), draw.tensor(np.broadcast_shapes(a, b))), {}


def _like_other(draw: Draw) -> Arguments:
    x = draw.tensor().copy()
    return (x, draw.tensor((math.prod(x.shape),))), {}


def _narrow(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    dim = draw.dim(x.ndim)
    size = x.shape[dim] if -x.ndim <= dim < x.ndim else 1
    start = int(draw.rng.integers(-size, size + 1))
    most = size - start if start >= 0 else -start
    return (x, dim, start, int(draw.rng.integers(0, most + 1 + (draw.rng.random() < 0.1)))), {}


def _select(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    return (x, draw.dim(x.ndim), int(draw.rng.integers(-3, 3))), {}


def _view_dtype(draw: Draw) -> Arguments:
    x = draw.tensor((*draw.shape(most=2, empty=False), 4), dtypes=("int32", "int64", "uint8"))
    return (x.copy(), np.dtype(draw.pick("int32", "int64", "uint8", "int16"))), {}


def _unfold(draw: Draw) -> Arguments:
    x = draw.tensor()
    dim = draw.dim(x.ndim)
    return (x, dim, int(draw.rng.integers(0, 4)), int(draw.rng.integers(1, 4))), {}


ROWS = [
    Row("unfold", _unfold, views=True, strides=True),
    Row("reshape", _shape, views=True),
    Row("reshape", _plain_shape, forms=("method",), views=True, strides=True),
    Row("view", _plain_shape, views=True, strides=True),
    Row("view", _view_dtype, views=True, strides=True),
    Row("view_as", _like_other, views=True),
    Row("reshape_as", _like_other, views=True),
    Row("flatten", _flatten, views=True),
    Row("unflatten", _unflatten),
    Row("ravel", _any),
    Row("permute", _permute, views=True, strides=True),
    Row("transpose", _pair, views=True, strides=True),
    Row("swapaxes", _pair, views=True, strides=True),
    Row("swapdims", _pair, views=True, strides=True),
    Row("t", _few, views=True, strides=True),
    Row("movedim", _movedim, views=True, strides=True),
    Row("moveaxis", _movedim, views=True, strides=True),
    Row("squeeze", _squeeze, views=True, strides=True),
    Row("unsqueeze", _unsqueeze, views=True),
    Row("expand", _expand, views=True),
    Row("expand_as", _of_other, views=True),
    Row("broadcast_to", _expand, views=True),
    Row("broadcast_tensors", _together, views=True),
    Row("narrow", _narrow, views=True, strides=True),
    Row("select", _select, views=True, strides=True),
    Row("contiguous", _any, views=True, strides=True),
]
