"""Elements chosen by one index each along an axis, and values written to such positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.expansion import together
from fastlayers.functions.reduction import axis
from fastlayers.functions.registry import method, numpy_names, register
from fastlayers.functions.selection import checked, length
from fastlayers.functions.shape import reshape
from fastlayers.functions.table import result

__all__ = ["gather", "scatter", "scatter_add", "take_along_dim"]


def _places(
    op: str, x: np.ndarray, dim: int, index: Any, src: np.ndarray | None = None
) -> tuple[Any, ...]:
    """The index of ``x`` for each element of `index`; 0-d tensors have an axis too."""
    at = axis(op, x.ndim, dim)
    where = checked(op, index, length(x, at))
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


@numpy_names
def gather(input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False) -> Tensor:
    """The element at each index along an axis: ``out[i, j] = input[index[i, j], j]`` for dim 0.

    Parameters
    ----------
    input : Tensor
    dim : int
    index : Tensor
        int64 or int32, with as many axes as `input`, and no larger except along `dim`.
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
    """Put, add or multiply `src` at the positions in `index`."""
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


@numpy_names
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
    multiplied; the latter has no gradient.

    Raises
    ------
    RuntimeError
        As for `gather`; if `src` is smaller than `index` or of another dtype, or `reduce` is
        unknown.
    TypeError
        Unless exactly one of `src` and `value` is given.
    """
    if (src is None) == (value is None):
        raise TypeError("scatter: one of src and value must be given, got both or none")
    if reduce not in (None, "add", "multiply"):
        raise RuntimeError(f"scatter: reduce must be 'add' or 'multiply', got {reduce!r}")
    given = value if src is None else src
    return _scattered("scatter", input, dim, index, given, reduce or "put")


@numpy_names
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


@numpy_names
def take_along_dim(input: Tensor, indices: Tensor, dim: int | None = None) -> Tensor:
    """`gather` with broadcasting of the other axes; without `dim`, over all elements in C order."""
    if dim is None:
        return gather(reshape(input, -1), 0, reshape(indices, -1))
    at = axis("take_along_dim", input.ndim, dim)
    if input.ndim != indices.ndim:
        raise RuntimeError(
            f"take_along_dim: indices must have as many axes as input, {input.ndim}, "
            f"got {indices.ndim}"
        )
    where = Tensor(checked("take_along_dim", indices, input.shape[at], negative=True))
    rest = [
        Tensor(np.broadcast_to(0, (*x.shape[:at], 1, *x.shape[at + 1 :]))) for x in (input, where)
    ]
    shape = together("take_along_dim", *rest)
    wide = [x.expand(*shape[:at], x.shape[at], *shape[at + 1 :]) for x in (input, where)]
    return gather(wide[0], at, wide[1])


register("scatter", scatter)
register("scatter_add", scatter_add)
method(gather, "gather")
method(take_along_dim, "take_along_dim")
