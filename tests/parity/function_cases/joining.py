"""Tensors joined to one, and one divided into several."""

import numpy as np
from parity.functions_harness import Arguments, Draw, Row


def _cat(draw: Draw) -> Arguments:
    shape = draw.shape(least=1)
    dim = draw.dim(len(shape))
    parts = []
    for _ in range(draw.rng.integers(1, 4)):
        lengths = list(shape)
        if -len(shape) <= dim < len(shape):
            lengths[dim] = int(draw.rng.integers(0, 4))
        if draw.rng.random() < 0.04:
            lengths[0] += 1
        parts.append(draw.tensor(tuple(lengths)))
    if draw.rng.random() < 0.15:
        parts.insert(0, np.zeros(0, np.float32))
    return (draw.pick(tuple, list)(parts), dim), {}


def _same(draw: Draw) -> list[np.ndarray]:
    shape = draw.shape()
    return [draw.tensor(shape) for _ in range(draw.rng.integers(1, 4))]


def _stack(draw: Draw) -> Arguments:
    parts = _same(draw)
    return (parts, draw.dim(parts[0].ndim + 1)), {}


def _piled(draw: Draw) -> Arguments:
    return (_same(draw),), {}


def _split(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    dim = draw.dim(x.ndim)
    if draw.rng.random() < 0.5 or not -x.ndim <= dim < x.ndim:
        return (x, int(draw.rng.integers(0, 5)), dim), {}
    cut = int(draw.rng.integers(0, x.shape[dim] + 1))
    return (x, [cut, 0, x.shape[dim] - cut + int(draw.rng.random() < 0.1)], dim), {}


def _chunk(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    return (x, int(draw.rng.integers(0, 5)), draw.dim(x.ndim)), {}


def _tensor_split(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    where = tuple(int(i) for i in draw.rng.integers(-6, 7, draw.rng.integers(0, 4)))
    return (x, draw.pick(int(draw.rng.integers(0, 5)), where), draw.dim(x.ndim)), {}


def _unbind(draw: Draw) -> Arguments:
    x = draw.tensor()
    return (x, draw.dim(x.ndim)), {}


def _any(draw: Draw) -> Arguments:
    return draw.pick((draw.tensor(),), (draw.tensor(), draw.tensor())), {}


ROWS = [
    Row("dstack", _piled),
    Row("column_stack", _piled),
    Row("atleast_1d", _any),
    Row("atleast_2d", _any),
    Row("atleast_3d", _any),
    Row("cat", _cat),
    Row("concat", _cat),
    Row("concatenate", _cat),
    Row("stack", _stack),
    Row("hstack", _piled),
    Row("vstack", _piled),
    Row("split", _split, views=True, strides=True),
    Row("chunk", _chunk, views=True, strides=True),
    Row("tensor_split", _tensor_split, views=True),
    Row("unbind", _unbind, views=True, strides=True),
]
