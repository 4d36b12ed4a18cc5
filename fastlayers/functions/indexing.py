"""Indexing.

Integers, slices, None and ... come first and give a view; tensors, arrays, lists and masks then
choose among the remaining axes, as in PyTorch. (NumPy treats integers next to arrays as arrays, and
so orders the axes of ``x[0, :, [0, 1]]`` differently.)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.recording import record, tensor, wants_grad
from fastlayers.autograd.tape import Node
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.promotion import operand
from fastlayers.functions.registry import method, register
from fastlayers.functions.table import result, unbroadcast

__all__ = ["index_put"]

_INDICES = (np.dtype(np.int64), np.dtype(np.int32), np.dtype(np.bool_), np.dtype(np.uint8))
Index = tuple[Any, ...]


def _listed(part: list[Any] | tuple[Any, ...] | range) -> np.ndarray:
    """The array of a list of integers or booleans."""
    array = np.asarray([_plain(p) for p in part])
    return array if array.size else array.astype(np.int64)


def _plain(part: Any) -> Any:
    if isinstance(part, (list, tuple)):
        return [_plain(p) for p in part]
    return part.array() if isinstance(part, Tensor) else part


def _part(part: Any) -> Any:
    """One part of an index: an integer, a slice, None, ..., or an array.

    Raises
    ------
    IndexError
        If it is of another kind, or its dtype is not valid for an index.
    """
    if part is None or part is ... or type(part) is int:
        return part
    if isinstance(part, slice):
        return slice(
            *(None if p is None else p.__index__() for p in (part.start, part.stop, part.step))
        )
    if isinstance(part, (bool, np.bool_)):
        return np.asarray(part, bool)
    if isinstance(part, Tensor):
        array = part.array()
        if array.dtype not in _INDICES:
            raise IndexError(
                f"index: tensors used as indices must be int64, int32, uint8 or bool tensors, "
                f"got {array.dtype}"
            )
    elif isinstance(part, (list, tuple, range)):
        array = _listed(part)
    elif isinstance(part, np.ndarray):
        array = part
    elif hasattr(part, "__index__"):
        return part.__index__()
    else:
        array = np.empty(0)
    if array.dtype.kind not in "iub":
        raise IndexError(
            f"index: must be integers, slices, ellipsis (...), None or tensors and lists of "
            f"integers or booleans, got {type(part).__name__}"
        )
    if array.dtype == np.uint8 and isinstance(part, Tensor):
        return array.astype(bool)
    return int(array) if not array.ndim and array.dtype.kind != "b" else array


def _is_several(index: Any) -> bool:
    """Whether a list stands for a tuple, as in PyTorch: if it holds a sequence, slice or None."""
    kinds = (list, tuple, slice, Tensor, np.ndarray, type(None), type(...))
    return isinstance(index, list) and len(index) < 32 and any(isinstance(p, kinds) for p in index)


def resolved(index: Any, ndim: int) -> tuple[Index, Index | None]:
    """The part of an index that gives a view, and the part that chooses among its axes.

    The second is None if there is none, so that the result is a view.
    """
    given = tuple(index) if isinstance(index, tuple) or _is_several(index) else (index,)
    parts = [_part(part) for part in given]
    taken = sum(
        part.ndim if isinstance(part, np.ndarray) and part.dtype.kind == "b" else 1
        for part in parts
        if part is not None and part is not ...
    )
    if taken > ndim:
        raise IndexError(f"index: must be of at most {ndim} axes (too many indices), got {taken}")
    view: list[Any] = []
    choice: list[Any] = []
    for part in (*parts, ...):
        if part is ...:
            # The first stands for all other axes, further ones for none.
            view += [slice(None)] * (ndim - taken)
            choice += [slice(None)] * (ndim - taken)
            taken = ndim
        elif isinstance(part, np.ndarray):
            view += [slice(None)] * (part.ndim if part.dtype.kind == "b" else 1)
            choice.append(part)
        else:
            view.append(part)
            choice += [] if isinstance(part, int) else [slice(None)]
    # With an ellipsis a single element is a view too, not a scalar.
    first = (*view, ...)
    return first, tuple(choice) if any(isinstance(c, np.ndarray) for c in choice) else None


def _look(first: Index, array: np.ndarray) -> np.ndarray:
    try:
        return array[first]
    except IndexError as error:
        raise IndexError(f"index: must be in range for shape {array.shape}, {error}") from None


def _choose(part: np.ndarray, choice: Index) -> np.ndarray:
    try:
        return np.asarray(part[choice])
    except IndexError as error:
        raise IndexError(f"index: must fit shape {part.shape}: {error}") from None


def getitem(self: Tensor, index: Any) -> Tensor:
    """``x[index]``: a view for integers and slices; elements chosen twice count twice in dx.

    Raises
    ------
    IndexError
        If the index is out of range or of a wrong kind, or a mask has another shape.
    """
    x = self.array()
    first, choice = resolved(index, x.ndim)
    out = _look(first, x)
    # A mask alone chooses nothing twice.
    once = choice is None or not any(
        isinstance(c, np.ndarray) and c.dtype.kind != "b" for c in choice
    )
    if choice is not None:
        out = _choose(out, choice)

    def backward(dy: np.ndarray) -> Any:
        dx = np.zeros_like(x)
        part = dx[first]
        if choice is None:
            part[...] = dy
        elif once:
            part[choice] = dy
        else:
            np.add.at(part, choice, dy)
        return (dx,)

    backward.__qualname__ = "getitem.<locals>.backward"
    found = record(out, (self,), backward, saved=())
    if choice is None:
        inplace.make_view(found, self, lambda array: array[first])
    return found


def setitem(self: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``, which is broadcast and cast to the tensor's dtype.

    Raises
    ------
    IndexError
        As `getitem`.
    RuntimeError
        If the value's shape does not fit, or the tensor can't be changed in place.
    """
    value = operand("setitem", "value", value)
    array = inplace.check_target("setitem", self)
    first, choice = resolved(index, array.ndim)
    part = _look(first, array)
    given = value.array() if isinstance(value, Tensor) else np.asarray(value)
    with np.errstate(all="ignore"):
        given = given.astype(array.dtype)
    shape = part.shape
    if choice is not None:  # checked before anything is changed
        shape = _choose(np.broadcast_to(False, shape), choice).shape
    source = value if isinstance(value, Tensor) else None
    is_number = source is None  # `backward` must not hold a view of `self`, which holds it
    _write(part, choice, given, shape)
    self.changed()
    if array.dtype.kind != "f" or not wants_grad((self, source)):
        return

    def backward(dy: np.ndarray) -> Any:
        rest = dy.copy(order="K")
        inside = rest[first]
        found = inside.copy() if choice is None else inside[choice]
        inside[... if choice is None else choice] = 0
        if is_number:
            return rest, None
        extra = len(given.shape) - found.ndim  # axes of length 1 in front
        whole = unbroadcast(found, given.shape[max(extra, 0) :])
        return rest, whole.reshape(given.shape)

    backward.__qualname__ = "setitem.<locals>.backward"
    inplace.rebind(self, Node((self, source), backward, is_fresh=False))


def _write(
    part: np.ndarray, choice: Index | None, given: np.ndarray, shape: tuple[int, ...]
) -> None:
    try:
        part[... if choice is None else choice] = given
    except ValueError:
        raise RuntimeError(
            f"setitem: value must broadcast to the indexed shape {shape} (shape mismatch), "
            f"got {given.shape}"
        ) from None


def index_put(
    input: Tensor, indices: Sequence[Any], values: Any, accumulate: bool = False
) -> Tensor:
    """A copy with `values` at the indices, one tensor or None for each axis.

    With `accumulate` they are added, repeatedly where an index occurs twice.

    Raises
    ------
    IndexError, RuntimeError
        As for ``x[indices] = values``.
    """
    where = tuple(slice(None) if part is None else part for part in indices)
    if not accumulate:
        out: Tensor = input.clone()
        setitem(out, where, values)
        return out
    x, given = input.array(), tensor(values)
    first, choice = resolved(where, x.ndim)
    added = np.zeros_like(x)
    part = _look(first, added)
    shape = part.shape if choice is None else _choose(part, choice).shape
    if np.broadcast_shapes(given.shape, shape) != shape or given.dtype != x.dtype:
        raise RuntimeError(
            f"index_put: values must be {x.dtype} and broadcast to the indexed shape {shape}, "
            f"got {given.dtype} of shape {tuple(given.shape)}"
        )
    where = (...,) if choice is None else choice
    np.add.at(part, where, given.array())

    def gradient(dy: np.ndarray) -> Any:
        found = dy[first] if choice is None else dy[first][choice]
        return dy, unbroadcast(found, tuple(given.shape))

    return result("index_put", x + added, (input, given), gradient)


register("index_put", index_put)
method(getitem, "__getitem__")
method(setitem, "__setitem__")
