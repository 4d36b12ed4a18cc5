"""Elements chosen by tensors of indices, and values put to such places."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.arrangement import taken
from fastlayers.functions.conversion import clone
from fastlayers.functions.reduction import axis
from fastlayers.functions.shape import reshape, together
from fastlayers.functions.table import method, register, result, tensor

__all__ = [
    "gather",
    "index_add",
    "index_copy",
    "index_fill",
    "index_select",
    "scatter",
    "scatter_add",
    "take",
    "take_along_dim",
]

_LONG = np.dtype(np.int64)
_INTEGERS = (_LONG, np.dtype(np.int32))


def _index(
    op: str,
    index: Any,
    size: int,
    *,
    dtypes: tuple[np.dtype, ...] = _INTEGERS,
    negative: bool = False,
    dtype_error: type[Exception] = RuntimeError,
    error: type[Exception] = RuntimeError,
) -> np.ndarray:
    """Indices of an axis of a length, checked; errors are of the classes that PyTorch has there."""
    array = tensor(index).array()
    if array.dtype not in dtypes:
        named = " or ".join(str(dtype) for dtype in dtypes)
        raise dtype_error(f"{op}: index must be {named}, got {array.dtype}")
    least = -size if negative else 0
    if array.size and (array.min() < least or array.max() >= size):
        worst = array.min() if array.min() < least else array.max()
        raise error(
            f"{op}: index must be in [{least}, {size - 1}] (index {worst} is out of bounds for "
            f"dimension with size {size}), got {worst}"
        )
    return array + size * (array < 0) if negative else array


def _length(x: np.ndarray, at: int) -> int:
    return x.shape[at] if x.ndim else 1


def number_of(op: str, value: Any) -> tuple[Tensor | None, np.ndarray]:
    """A value without axes as a tensor, if it is one, and as an array."""
    if not isinstance(value, Tensor):
        return None, np.asarray(value)
    if value.ndim:
        raise RuntimeError(
            f"{op}: value must be a number or 0-dimensional, got shape {tuple(value.shape)}"
        )
    return value, value.array()


# Along an axis, a place for each element of the index.


def _places(
    op: str, x: np.ndarray, dim: int, index: Any, src: np.ndarray | None = None
) -> tuple[Any, ...]:
    """The index of ``x`` for each element of `index`; 0-d tensors have an axis too."""
    at = axis(op, x.ndim, dim)
    where = _index(op, index, _length(x, at))
    shape, whole = (where.shape or (1,)), (x.shape or (1,))
    if where.size == 0:
        return tuple(np.zeros(shape, np.int64) for _ in whole)
    fits = len(shape) == len(whole) and all(
        size <= most for i, (size, most) in enumerate(zip(shape, whole, strict=True)) if i != at
    )
    if fits and src is not None:
        most = src.shape or (1,)
        fits = len(most) == len(shape) and all(
            size <= of for size, of in zip(shape, most, strict=True)
        )
    if not fits:
        raise RuntimeError(
            f"{op}: index must have as many dimensions as input and be no larger apart from "
            f"dimension {at}, nor than src, got {where.shape} for {x.shape}"
            + ("" if src is None else f" and {src.shape}")
        )
    places = list(np.ogrid[tuple(slice(size) for size in shape)])
    places[at] = where.reshape(shape)
    return tuple(places)


def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """The element at each index along an axis: ``out[i, j] = input[index[i, j], j]`` for dim 0.

    Parameters
    ----------
    input : Tensor
    dim : int
    index : Tensor
        int64 or int32, of as many axes as `input` and no larger but along `dim`.
    sparse_grad : bool
        Without effect.

    Raises
    ------
    RuntimeError
        If an index is out of range, or its shape or dtype does not fit.
    """
    x = tensor(input)
    array = x.array()
    where, shape = _places("gather", array, dim, index), tensor(index).shape
    whole = array.reshape(array.shape or (1,))

    def gradient(dy: np.ndarray) -> np.ndarray:
        dx = np.zeros(whole.shape, dy.dtype)
        np.add.at(dx, where, dy.reshape(dy.shape or (1,)))
        return dx.reshape(array.shape)

    out = whole[where].reshape(shape) if shape.numel() else np.zeros(shape, array.dtype)
    return result("gather", out, (x,), gradient if out.size else lambda dy: np.zeros_like(array))


def _scattered(op: str, input: Any, dim: int, index: Any, src: Any, how: str) -> Tensor:
    """Put, add or multiply `src` at the places of `index`."""
    x, array = tensor(input), tensor(input).array()
    source = src if isinstance(src, Tensor) else None
    if source is not None and source.dtype != array.dtype:
        raise RuntimeError(f"{op}: src must have input's dtype {array.dtype}, got {source.dtype}")
    values = None if source is None else source.array()
    where = _places(op, array, dim, index, values)
    if not tensor(index).numel():
        return result(op, array.copy(), (x, source), lambda dy: (dy, _zeros(values)))
    out = array.copy().reshape(array.shape or (1,))
    used = tuple(slice(size) for size in np.broadcast_shapes(*(p.shape for p in where)))
    given = src if values is None else values.reshape(values.shape or (1,))[used]
    if how == "put":
        out[where] = given
    else:
        {"add": np.add, "multiply": np.multiply}[how].at(out, where, given)

    def gradient(dy: np.ndarray) -> Any:
        if how == "multiply":
            raise RuntimeError(f"{op}: the gradient is not implemented for reduce='multiply'")
        rest = dy.reshape(out.shape)
        found = None
        if values is not None:
            found = np.zeros(values.shape or (1,), dy.dtype)
            found[used] = rest[where]
            found = found.reshape(values.shape)
        if how == "put":
            rest = rest.copy()
            rest[where] = 0
        return rest.reshape(array.shape), found

    return result(op, out.reshape(array.shape), (x, source), gradient)


def _zeros(values: np.ndarray | None) -> np.ndarray | None:
    return None if values is None else np.zeros_like(values)


def scatter(
    input: Tensor,
    dim: int,
    index: Tensor,
    src: Any = None,
    *,
    value: Any = None,
    reduce: str | None = None,
) -> Tensor:
    """A copy with `src`, a tensor or a number, at each index along an axis.

    ``out[index[i, j], j] = src[i, j]`` for dim 0; with `reduce` "add" or "multiply" it is added or
    multiplied, where the second has no gradient.

    Raises
    ------
    RuntimeError
        As `gather`; if `src` is smaller than `index` or of another dtype, or `reduce` is another.
    TypeError
        If there is not one of `src` and `value`.
    """
    if (src is None) == (value is None):
        raise TypeError("scatter: one of src and value must be given, got both or none")
    if reduce not in (None, "add", "multiply"):
        raise RuntimeError(f"scatter: reduce must be 'add' or 'multiply', got {reduce!r}")
    given = value if src is None else src
    return _scattered("scatter", input, dim, index, given, reduce or "put")


def scatter_add(input: Tensor, dim: int, index: Tensor, src: Tensor) -> Tensor:
    """A copy with `src` added at each index along an axis.

    Raises
    ------
    TypeError, RuntimeError
        As `scatter`.
    """
    if not isinstance(src, Tensor):
        raise TypeError(f"scatter_add: src must be a Tensor, got {type(src).__name__}")
    return _scattered("scatter_add", input, dim, index, src, "add")


def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """`gather`, where the other axes are broadcast; of all elements in C order without `dim`."""
    if dim is None:
        return gather(reshape(input, -1), 0, reshape(indices, -1))
    at = axis("take_along_dim", input.ndim, dim)
    if input.ndim != indices.ndim:
        raise RuntimeError(
            f"take_along_dim: indices must have as many axes as input, {input.ndim}, "
            f"got {indices.ndim}"
        )
    where = tensor(indices).array()
    where = Tensor(_index("take_along_dim", where, input.shape[at], negative=True))
    rest = [
        Tensor(np.broadcast_to(0, (*x.shape[:at], 1, *x.shape[at + 1 :]))) for x in (input, where)
    ]
    shape = together("take_along_dim", *rest)
    wide = [x.expand(*shape[:at], x.shape[at], *shape[at + 1 :]) for x in (input, where)]
    return gather(wide[0], at, wide[1])


# Along an axis, whole parts.


def _vector(op: str, input: Any, dim: int, index: Any, **checks: Any) -> tuple[int, np.ndarray]:
    """The axis, and the indices along it, of one axis."""
    x = tensor(input)
    at = axis(op, x.ndim, dim)
    if tensor(index).ndim > 1:
        raise IndexError(f"{op}: index must be a vector, got shape {tuple(tensor(index).shape)}")
    return at, _index(op, index, _length(x.array(), at), **checks).reshape(-1)


def index_select(input: Tensor, dim: int, index: Tensor) -> Tensor:
    """The parts at `index`, int64 or int32 of one axis, along an axis.

    Raises
    ------
    IndexError, RuntimeError
        If `index` has more axes, another dtype, or is out of range.
    """
    x = tensor(input)
    at, where = _vector("index_select", x, dim, index)
    if x.ndim:
        return taken("index_select", x, at, where)
    if len(where) != 1:
        raise RuntimeError(
            f"index_select: index must hold 1 value for a 0-d input, got {len(where)}"
        )
    return clone(x)


def _source(op: str, x: np.ndarray, at: int, where: np.ndarray, source: Any) -> Tensor:
    """The tensor of the parts for `where`, checked."""
    given = tensor(source)
    wanted = (*x.shape[:at], len(where), *x.shape[at + 1 :]) if x.ndim else ()
    fits = tuple(given.shape) == wanted or (given.ndim == 0 and len(where) == 1 and x.ndim < 2)
    if given.dtype != x.dtype or not fits:
        raise RuntimeError(
            f"{op}: source must have shape {wanted} and dtype {x.dtype}, "
            f"got {tuple(given.shape)} and {given.dtype}"
        )
    return given


def _lead(array: np.ndarray, at: int) -> np.ndarray:
    """The view with an axis in front; 0-d arrays have one too."""
    return np.moveaxis(array.reshape(array.shape or (1,)), at, 0)


def index_add(input: Tensor, dim: int, index: Tensor, source: Tensor, *, alpha: Any = 1) -> Tensor:
    """A copy with ``alpha * source`` added to the parts at `index` along an axis.

    Raises
    ------
    IndexError, RuntimeError
        As `index_select`; if `source` has another shape or dtype.
    """
    x = tensor(input)
    at, where = _vector("index_add", x, dim, index)
    out = x.array().copy()
    given = _source("index_add", out, at, where, source)
    np.add.at(_lead(out, at), where, _lead(given.array(), at) * out.dtype.type(alpha))

    def gradient(dy: np.ndarray) -> Any:
        found = np.moveaxis(_lead(dy, at)[where], 0, at) * dy.dtype.type(alpha)
        return dy, found.reshape(given.shape)

    return result("index_add", out, (x, given), gradient)


def index_copy(input: Tensor, dim: int, index: Tensor, source: Tensor) -> Tensor:
    """A copy with the parts of `source` at `index`, int64, along an axis.

    Raises
    ------
    IndexError, RuntimeError
        As `index_add`.
    """
    x = tensor(input)
    at, where = _vector("index_copy", x, dim, index, dtypes=(_LONG,), error=IndexError)
    out = x.array().copy()
    given = _source("index_copy", out, at, where, source)
    _lead(out, at)[where] = _lead(given.array(), at)

    def gradient(dy: np.ndarray) -> Any:
        rest = dy.copy()
        _lead(rest, at)[where] = 0
        return rest, np.moveaxis(_lead(dy, at)[where], 0, at).reshape(given.shape)

    return result("index_copy", out, (x, given), gradient)


def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """A copy with a number, or a tensor of no axes, in all parts at `index`, int64.

    Raises
    ------
    IndexError, RuntimeError
        If `index` has more axes, another dtype, or is out of range; if `value` has axes.
    """
    x = tensor(input)
    checks = {"dtypes": (_LONG,), "error": IndexError, "dtype_error": IndexError}
    at, where = _vector("index_fill", x, dim, index, negative=True, **checks)
    source, number = number_of("index_fill", value)
    out = x.array().copy()
    with np.errstate(all="ignore"):
        _lead(out, at)[where] = number.astype(out.dtype)

    def gradient(dy: np.ndarray) -> Any:
        rest = dy.copy()
        part = _lead(rest, at)
        found = part[np.unique(where)].sum()
        part[where] = 0
        return rest, None if source is None else np.asarray(found)

    return result("index_fill", out, (x, source), gradient)


def take(input: Tensor, index: Tensor) -> Tensor:
    """The elements at `index`, int64, in C order; a negative one counts from the end.

    Raises
    ------
    IndexError, RuntimeError
        If an index is out of range, or of another dtype.
    """
    x, where = tensor(input), tensor(index)
    checks = {"dtypes": (_LONG,), "error": IndexError, "negative": True}
    places = _index("take", where, x.numel(), **checks)  # type: ignore[arg-type]
    return reshape(
        taken("take", reshape(x, -1) if x.numel() else reshape(x, 0), 0, places.reshape(-1)),
        where.shape,
    )


for _function in (index_add, index_copy, index_fill, scatter, scatter_add):
    register(_function.__name__, _function)
for _function in (gather, index_select, take, take_along_dim):
    method(_function, _function.__name__)
