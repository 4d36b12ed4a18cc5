"""Elements by their index."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.tape import Node
from fastlayers.autograd.tensor import Tensor, record, wants_grad
from fastlayers.functions.promotion import operand
from fastlayers.functions.table import method, unbroadcast

__all__: list[str] = []


def index_of(index: Any) -> Any:
    """An index as NumPy takes it."""
    if isinstance(index, Tensor):
        array = index.array()
        return array.astype(bool) if array.dtype == np.uint8 and array.ndim else array
    if isinstance(index, tuple):
        return tuple(index_of(part) for part in index)
    if isinstance(index, slice):
        parts = (index.start, index.stop, index.step)
        return slice(*(int(p) if isinstance(p, Tensor) else p for p in parts))
    if isinstance(index, list) and any(isinstance(part, Tensor) for part in index):
        return [index_of(part) for part in index]
    return index


def _basic(index: Any) -> Any:
    """An index of integers, slices, None and ..., for which NumPy gives a view; else None."""
    parts = index if isinstance(index, tuple) else (index,)
    kinds = (int, np.integer, slice, type(None), type(...))
    if not all(isinstance(part, kinds) and not isinstance(part, bool) for part in parts):
        return None
    # With an ellipsis a single element is a view too, not a scalar.
    return parts if ... in parts else (*parts, ...)


def getitem(self: Tensor, index: Any) -> Tensor:
    """``x[index]``; an index that occurs twice counts twice in the gradient."""
    x, where = self.array(), index_of(index)
    basic = _basic(where)
    if basic is not None:
        where = basic

    def backward(dy: np.ndarray) -> Any:
        dx = np.zeros_like(x)
        if basic is not None:
            dx[where] = dy
        else:
            np.add.at(dx, where, dy)
        return (dx,)

    backward.__qualname__ = "getitem.<locals>.backward"
    result = record(np.asarray(x[where]), (self,), backward, saved=())
    if basic is not None:
        inplace.make_view(result, self, lambda array: array[where])
    return result


def setitem(self: Tensor, index: Any, value: Any) -> None:
    """``x[index] = value``."""
    where = index_of(index)
    value = operand("setitem", "value", value)
    array = inplace.check_target("setitem", self)
    given = value.array() if isinstance(value, Tensor) else np.asarray(value, array.dtype)
    if not np.can_cast(given.dtype, array.dtype, "same_kind") and given.ndim:
        given = given.astype(array.dtype)
    source = value if isinstance(value, Tensor) else None
    if not wants_grad((self, source)):
        array[where] = given
        self.changed()
        return
    edges = tuple(
        None if t is None or not t.requires_grad else t if t._node is None else t._node
        for t in (self, source)
    )

    def backward(dy: np.ndarray) -> Any:
        rest = dy.copy(order="K")
        rest[where] = 0
        return rest, None if source is None else unbroadcast(np.asarray(dy[where]), given.shape)

    backward.__qualname__ = "setitem.<locals>.backward"
    array[where] = given
    self.changed()
    likes = [(t.array().shape, t.dtype) if t is not None else None for t in (self, source)]
    inplace.rebind(self, Node(edges, backward, (), likes))


method(getitem, "__getitem__")
method(setitem, "__setitem__")
