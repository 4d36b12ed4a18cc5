"""Elements chosen by tensors of indices, and values written to such positions."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.arrangement import taken
from fastlayers.functions.conversion import clone
from fastlayers.functions.reduction import axis
from fastlayers.functions.registry import method, numpy_names, register
from fastlayers.functions.shape import reshape
from fastlayers.functions.table import result

__all__ = [
    "index_add",
    "index_copy",
    "index_fill",
    "index_select",
    "take",
]

_LONG = np.dtype(np.int64)
_INTEGERS = (_LONG, np.dtype(np.int32))


def checked(
    op: str,
    index: Any,
    size: int,
    *,
    dtypes: tuple[np.dtype, ...] = _INTEGERS,
    negative: bool = False,
    dtype_error: type[Exception] = RuntimeError,
    error: type[Exception] = RuntimeError,
) -> np.ndarray:
    """Checked indices into an axis of a given length; errors are of PyTorch's classes."""
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


def length(x: np.ndarray, at: int) -> int:
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


def _vector(op: str, input: Any, dim: int, index: Any, **checks: Any) -> tuple[int, np.ndarray]:
    """The axis, and the indices along it, of one axis."""
    x = tensor(input)
    at = axis(op, x.ndim, dim)
    if tensor(index).ndim > 1:
        raise IndexError(f"{op}: index must be a vector, got shape {tuple(tensor(index).shape)}")
    return at, checked(op, index, length(x.array(), at), **checks).reshape(-1)


@numpy_names
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
    is_one = given.ndim == 0 and len(where) == 1 and x.ndim == 1 and op == "index_copy"
    fits = tuple(given.shape) == wanted or is_one
    if given.dtype != x.dtype or not fits:
        raise RuntimeError(
            f"{op}: source must have shape {wanted} and dtype {x.dtype}, "
            f"got {tuple(given.shape)} and {given.dtype}"
        )
    return given


def _lead(array: np.ndarray, at: int) -> np.ndarray:
    """The view with an axis in front; 0-d arrays have one too."""
    return np.moveaxis(array.reshape(array.shape or (1,)), at, 0)


@numpy_names
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


@numpy_names
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


@numpy_names
def index_fill(input: Tensor, dim: int, index: Tensor, value: Any) -> Tensor:
    """A copy with a number, or a tensor without axes, in all parts at `index`, int64.

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
    places = checked("take", where, x.numel(), **checks)  # type: ignore[arg-type]
    return reshape(
        taken("take", reshape(x, -1) if x.numel() else reshape(x, 0), 0, places.reshape(-1)),
        where.shape,
    )


for _function in (index_add, index_copy, index_fill):
    register(_function.__name__, _function)
method(index_select, "index_select")
method(take, "take")
