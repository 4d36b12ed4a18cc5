"""Elements in another order, repeated, or of a part of a matrix."""

from typing import Any

import numpy as np
from parity.functions_harness import Arguments, Draw, Row


def _flip(draw: Draw) -> Arguments:
    x = draw.tensor()
    dims = draw.dims(x.ndim)
    return (x, () if dims is None else dims if isinstance(dims, (tuple, list)) else (dims,)), {}


def _roll(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    if draw.rng.random() < 0.3:
        return (x, int(draw.rng.integers(-5, 6))), {}
    dims = [int(d) for d in draw.rng.integers(-x.ndim, x.ndim, draw.rng.integers(1, 3))]
    return (x, tuple(int(s) for s in draw.rng.integers(-5, 6, len(dims))), tuple(dims)), {}


def _rot90(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=2))
    pair = [int(d) for d in draw.rng.permutation(x.ndim)[:2]]
    return (x, int(draw.rng.integers(-5, 6)), pair), {}


def _times(draw: Draw, ndim: int, extra: int) -> tuple[int, ...]:
    return tuple(int(n) for n in draw.rng.integers(0, 3, max(ndim + extra, 0)))


def _repeat(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(most=2))
    return (x, _times(draw, x.ndim, draw.pick(0, 0, 1, -1))), {}


def _tile(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(most=2))
    return (x, _times(draw, x.ndim, draw.pick(0, 1, -1))), {}


def _repeat_interleave(draw: Draw) -> Arguments:
    x = draw.tensor()
    dim = draw.pick(None, draw.dim(x.ndim))
    size = x.size if dim is None or not x.ndim else x.shape[dim % x.ndim]
    each = np.asarray(draw.rng.integers(0, 4, size))
    repeats: Any = draw.pick(int(draw.rng.integers(0, 4)), each, np.asarray([2]))
    return ((x, repeats) if dim is None else (x, repeats, dim)), {}


def _triangle(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=draw.pick(1, 2, 2)))
    return ((x,) if draw.rng.random() < 0.3 else (x, int(draw.rng.integers(-3, 4)))), {}


def _meshgrid(draw: Draw) -> Arguments:
    dtype = (draw.pick("float32", "int64"),)
    parts = [draw.tensor(draw.shape(most=1), dtypes=dtype) for _ in range(draw.rng.integers(1, 4))]
    options = {"indexing": draw.pick("ij", "xy")}
    return draw.pick(tuple(parts), (parts,)), options


def _diag(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1, most=2))
    return (x, int(draw.rng.integers(-3, 4))), {}


def _diagonal(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=2))
    if draw.rng.random() < 0.3:
        return (x,), {}
    pair = [int(d) for d in draw.rng.permutation(x.ndim)[:2]]
    return (x, int(draw.rng.integers(-3, 4)), *pair), {}


def _embed(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1, most=2))
    if draw.rng.random() < 0.3:
        return (x,), {}
    pair = [int(d) for d in draw.rng.permutation(x.ndim + 1)[:2]]
    return (x, int(draw.rng.integers(-2, 3)), *pair), {}


def _many(draw: Draw) -> Arguments:
    return (draw.tensor(draw.shape(least=2)),), {}


def _corner(draw: Draw) -> Arguments:
    n, m, offset = (int(k) for k in draw.rng.integers(0, 5, 3))
    return (n, m, offset - 2), {"dtype": np.dtype("int32")} if draw.rng.random() < 0.3 else {}


ROWS = [
    Row("fliplr", _many),
    Row("flipud", _many),
    Row("diag_embed", _embed),
    Row("tril_indices", _corner),
    Row("triu_indices", _corner),
    Row("flip", _flip),
    Row("roll", _roll),
    Row("rot90", _rot90),
    Row("repeat", _repeat),
    Row("tile", _tile),
    Row("repeat_interleave", _repeat_interleave),
    Row("tril", _triangle),
    Row("triu", _triangle),
    Row("meshgrid", _meshgrid, forms=("function",)),
    Row("diag", _diag),
    Row("diagonal", _diagonal, views=True),
]
