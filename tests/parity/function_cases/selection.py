"""Elements chosen by tensors of indices or by masks."""

from typing import Any

import numpy as np
from parity.functions_harness import ALL, Arguments, Draw, Row, Steady


def _gather(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=draw.pick(0, 1, 1, 1)))
    dim = int(draw.rng.integers(-max(x.ndim, 1), max(x.ndim, 1)))
    return (x, dim, _index(draw, x, dim)), {}


def _index(draw: Draw, x: np.ndarray, dim: int, smaller: bool = True) -> np.ndarray:
    if not x.ndim:
        return np.zeros(draw.pick((), (2,)), np.int64)
    shape = [int(draw.rng.integers(0, n + 1)) if smaller else n for n in x.shape]
    size = x.shape[dim]
    shape[dim] = int(draw.rng.integers(0, 5)) if size else 0
    most = size + (draw.rng.random() < 0.1) if size else 1
    dtype = draw.pick("int64", "int64", "int32", "int16" if draw.rng.random() < 0.2 else "int64")
    index = np.asarray(draw.rng.integers(0, most, shape), dtype)
    # PyTorch does not look at the dtype of no indices.
    return index if index.size else index.astype(np.int64)


def _scatter(draw: Draw, add: bool = False) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    dim = int(draw.rng.integers(-x.ndim, x.ndim))
    index = _index(draw, x, dim)
    if not add:  # which of several values stays is not said
        order = np.argsort(draw.rng.random(x.shape), dim, kind="stable")
        index = order[
            tuple(slice(min(n, m)) for n, m in zip(index.shape, order.shape, strict=True))
        ]
    # PyTorch's gradient wants no more elements than indices.
    src: Any = draw.tensor(index.shape, dtypes=(x.dtype.name,))
    if not add and draw.rng.random() < 0.3:
        src = draw.pick(2, 1.5)
    return (x, dim, index, src), {}


def _scatter_add(draw: Draw) -> Arguments:
    return _scatter(draw, add=True)


def _vector(draw: Draw, x: np.ndarray, dim: int, low: int = 0) -> np.ndarray:
    size = x.shape[dim] if x.ndim else 1
    count = int(draw.rng.integers(0, 5)) if size else 0
    most = size + (draw.rng.random() < 0.05) if size else 1
    index = draw.rng.integers(low * size, most, count)
    return np.asarray(index, draw.pick("int64", "int64", "int64", "int32"))


def _dim(draw: Draw, ndim: int) -> int:
    return int(draw.rng.integers(-max(ndim, 1), max(ndim, 1)))


def _index_select(draw: Draw) -> Arguments:
    x = draw.tensor()
    dim = _dim(draw, x.ndim)
    return (x, dim, _vector(draw, x, dim)), {}


def _source(draw: Draw, x: np.ndarray, dim: int, index: np.ndarray) -> np.ndarray:
    shape = list(x.shape)
    if shape:
        shape[dim] = len(index)
    return draw.tensor(tuple(shape), dtypes=(x.dtype.name,))


def _index_add(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    dim = _dim(draw, x.ndim)
    index = _vector(draw, x, dim)
    options = {"alpha": 2} if draw.rng.random() < 0.3 and x.dtype != bool else {}
    return (x, dim, index, _source(draw, x, dim, index)), options


def _index_copy(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1))
    dim = _dim(draw, x.ndim)
    index = np.unique(_vector(draw, x, dim))
    return (x, dim, index, _source(draw, x, dim, index)), {}


def _index_fill(draw: Draw) -> Arguments:
    x = draw.tensor()
    dim = _dim(draw, x.ndim)
    value: Any = draw.pick(2, draw.tensor((), dtypes=(x.dtype.name,)))
    # PyTorch's gradient of the value fails for negative indices.
    low = -1 if isinstance(value, int) else 0
    return (x, dim, _vector(draw, x, dim, low), value), {}


def _take(draw: Draw) -> Arguments:
    x = draw.tensor()
    shape = draw.shape(most=2) if x.size else (0,)
    return (x, np.asarray(draw.rng.integers(-x.size, max(x.size, 1), shape))), {}


def _take_along_dim(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=1, empty=False))
    if draw.rng.random() < 0.2:
        return (x.copy(), np.asarray(draw.rng.integers(0, x.size, 3))), {}
    dim = _dim(draw, x.ndim)
    shape = [1 if draw.rng.random() < 0.3 else n for n in x.shape]
    shape[dim] = int(draw.rng.integers(0, 4))
    return (x, np.asarray(draw.rng.integers(0, x.shape[dim], shape)), dim), {}


def _masked(draw: Draw) -> tuple[np.ndarray, np.ndarray]:
    a, b = draw.pair()
    return draw.tensor(a), draw.tensor(b, dtypes=("bool",))


def _masked_fill(draw: Draw) -> Arguments:
    x, mask = _masked(draw)
    value: Any = draw.pick(2, 1.5, float("inf"), draw.tensor((), dtypes=(x.dtype.name,)))
    return (x, mask, value), {}


def _masked_select(draw: Draw) -> Arguments:
    return _masked(draw), {}


def _masked_scatter(draw: Draw) -> Arguments:
    x, mask = _masked(draw)
    size = int(np.prod(np.broadcast_shapes(x.shape, mask.shape)))
    return (x, mask, draw.tensor((size,), dtypes=(x.dtype.name,))), {}


def _nonzero(draw: Draw) -> Arguments:
    return (draw.tensor(ties=True),), draw.pick({}, {"as_tuple": True})


def _bincount(draw: Draw) -> Arguments:
    n = int(draw.rng.integers(0, 6))
    x = np.asarray(draw.rng.integers(0, 5, n), draw.pick("int64", "int32", "uint8"))
    weights = Steady(draw.tensor((n,), dtypes=ALL[:3]))
    return (x,), draw.pick({}, {"minlength": 7}, {"weights": weights})


def _index_put(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(least=2, empty=False), dtypes=("float32", "float64", "int64"))
    add = draw.pick(True, False)
    count = int(draw.rng.integers(0, 4)) if add else 1
    indices = [np.asarray(draw.rng.integers(-n, n, count)) for n in x.shape[:2]]
    shape = draw.pick((count, *x.shape[2:]), x.shape[2:], ())
    return (x, tuple(indices), draw.tensor(shape, dtypes=(x.dtype.name,)), add), {}


ROWS = [
    Row("index_put", _index_put),
    Row("gather", _gather),
    Row("scatter", _scatter),
    Row("scatter_add", _scatter_add),
    Row("index_select", _index_select),
    Row("index_add", _index_add),
    Row("index_copy", _index_copy),
    Row("index_fill", _index_fill),
    Row("take", _take),
    Row("take_along_dim", _take_along_dim),
    Row("masked_fill", _masked_fill),
    Row("masked_select", _masked_select),
    Row("masked_scatter", _masked_scatter),
    Row("nonzero", _nonzero),
    Row("bincount", _bincount),
]
