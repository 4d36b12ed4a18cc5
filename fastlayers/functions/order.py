"""Maxima, minima, medians and sorted values, with their indices.

References
----------
https://docs.pytorch.org/docs/stable/torch.html#comparison-ops
"""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import numpy as np

from fastlayers.autograd.recording import record, tensor
from fastlayers.autograd.tape import OUTPUT
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.pairs import maximum, minimum
from fastlayers.functions.reduction import axis, ties
from fastlayers.functions.registry import numpy_names, register

__all__ = [
    "argsort",
    "kthvalue",
    "max",
    "median",
    "min",
    "sort",
    "topk",
    "unique",
]


def _results(name: str) -> Any:
    """A named pair of values and indices that prints as PyTorch's."""

    def text(self: Any) -> str:
        return f"torch.return_types.{name}(\nvalues={self.values!r},\nindices={self.indices!r})"

    return type(name, (namedtuple(name, ("values", "indices")),), {"__repr__": text})


_TYPES = {name: _results(name) for name in ("kthvalue", "max", "median", "min", "sort", "topk")}


def _lanes(op: str, x: Tensor, dim: Any) -> tuple[np.ndarray, int]:
    """The values with at least one axis, and the axis `dim`."""
    array = x.array()
    return np.atleast_1d(array), axis(op, array.ndim, dim)


def _picked(op: str, x: Tensor, index: np.ndarray, along: int, keepdim: bool = True) -> Any:
    """The values at `index` along an axis, and the index itself."""
    array = np.atleast_1d(x.array())
    shape = index.shape if keepdim else index.shape[:along] + index.shape[along + 1 :]
    shape = shape if x.ndim or index.size != 1 else ()

    def backward(dy: np.ndarray) -> Any:
        dx = np.zeros_like(array)
        np.put_along_axis(dx, index, dy.reshape(index.shape), along)
        return (dx.reshape(x.shape),)

    backward.__qualname__ = f"{op}.<locals>.backward"
    values = np.take_along_axis(array, index, along).reshape(shape)
    return _TYPES[op](record(values, (x,), backward, saved=()), Tensor(index.reshape(shape)))


def _shared(op: str, x: Tensor, y: Any) -> Tensor:
    """One of all values; elements equal to it share the gradient."""
    array, y = x.array(), np.asarray(y)

    def backward(dy: np.ndarray) -> Any:
        return (ties(dy, (array == y) | (np.isnan(array) & np.isnan(y)), None).reshape(x.shape),)

    backward.__qualname__ = f"{op}.<locals>.backward"
    return record(y, (x,), backward, saved=(x, OUTPUT))


def _extreme(name: str, find: Any, position: Any, of_two: Any) -> Any:
    @numpy_names
    def function(input: Any, dim: Any = None, keepdim: bool = False, *, other: Any = None) -> Any:
        x = tensor(input)
        other = dim if isinstance(dim, Tensor) else other
        if other is not None:
            return of_two(x, other)
        if dim is None:
            if not x.numel():
                raise RuntimeError(f"{name}: input must have elements, got shape {tuple(x.shape)}")
            return _shared(name, x, find(x.array()))
        array, along = _lanes(name, x, dim)
        if not array.shape[along]:
            raise IndexError(
                f"{name}: input must have elements along dim, got shape {tuple(x.shape)}"
            )
        return _picked(name, x, position(array, along, keepdims=True), along, keepdim)

    function.__doc__ = (
        f"{name.capitalize()}imum of all elements; with `dim` those along an axis and their "
        f"indices; with another tensor `{name}imum`."
    )
    return register(name, function, in_place=False)


max = _extreme("max", np.max, np.argmax, maximum)
min = _extreme("min", np.min, np.argmin, minimum)


def _ordered(array: np.ndarray, along: int, descending: bool) -> np.ndarray:
    """Indices that sort the values, stably; NaN is the largest."""
    if not descending:
        return np.argsort(array, along, kind="stable")
    index = np.argsort(np.flip(array, along), along, kind="stable")
    return np.asarray(array.shape[along] - 1 - np.flip(index, along))


@numpy_names
def sort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Any:
    """Sorted values along an axis, and their indices; equal values keep their order."""
    x = tensor(input)
    array, along = _lanes("sort", x, dim)
    return _picked("sort", x, _ordered(array, along, descending), along)


@numpy_names
def argsort(input: Any, dim: int = -1, descending: bool = False, stable: bool = False) -> Tensor:
    """The indices of `sort`."""
    return sort(input, dim, descending).indices  # type: ignore[no-any-return]


@numpy_names
def topk(input: Any, k: int, dim: int = -1, largest: bool = True, sorted: bool = True) -> Any:
    """The `k` largest or smallest values along an axis, in order, and their indices.

    Raises
    ------
    RuntimeError
        If there are fewer.
    """
    x = tensor(input)
    array, along = _lanes("topk", x, dim)
    if not 0 <= k <= array.shape[along]:
        raise RuntimeError(f"topk: k must be in [0, {array.shape[along]}], got {k}")
    index = np.take(_ordered(array, along, largest), range(int(k)), along)
    return _picked("topk", x, index, along)


def _smallest(op: str, x: Tensor, k: Any, dim: Any, keepdim: bool) -> Any:
    """The `k`-th smallest value along an axis, from 0."""
    array, along = _lanes(op, x, dim)
    index = np.take(_ordered(array, along, False), [k], along)
    return _picked(op, x, index, along, keepdim)


@numpy_names
def kthvalue(input: Any, k: int, dim: int = -1, keepdim: bool = False) -> Any:
    """The `k`-th smallest value along an axis, from 1, and its index.

    Raises
    ------
    RuntimeError
        If there are fewer.
    """
    x = tensor(input)
    array, along = _lanes("kthvalue", x, dim)
    if not 1 <= k <= array.shape[along]:
        raise RuntimeError(f"kthvalue: k must be in [1, {array.shape[along]}], got {k}")
    return _smallest("kthvalue", x, int(k) - 1, dim, keepdim)


@numpy_names
def median(input: Any, dim: Any = None, keepdim: bool = False) -> Any:
    """The median, the lower of two; with `dim` along an axis, with its index.

    NaN if there is one.
    """
    x = tensor(input)
    if dim is None:
        if not x.numel():
            with np.errstate(invalid="ignore"):
                lost = np.asarray(np.nan).astype(x.dtype)
            return record(lost, (x,), lambda dy: (np.zeros_like(x.array()),), saved=())
        values = np.sort(x.array(), None)
        return _shared("median", x, values[-1 if np.isnan(values[-1]) else (len(values) - 1) // 2])
    array, along = _lanes("median", x, dim)
    count = array.shape[along]
    if not count:
        raise IndexError(f"median: input must have elements along dim, got shape {tuple(x.shape)}")
    order = _ordered(array, along, False)
    lost = np.isnan(np.take_along_axis(array, np.take(order, [-1], along), along))
    first_lost = np.argmax(np.isnan(array), along, keepdims=True)
    index = np.where(lost, first_lost, np.take(order, [(count - 1) // 2], along))
    return _picked("median", x, index, along, keepdim)


@numpy_names
def unique(
    input: Any,
    sorted: bool = True,
    return_inverse: bool = False,
    return_counts: bool = False,
    dim: Any = None,
) -> Any:
    """The distinct values, sorted; `backward` through them is an error, as in PyTorch.

    Parameters
    ----------
    input : Tensor
    sorted : bool
        The result is always sorted.
    return_inverse : bool
        Also return the index of each element among them.
    return_counts : bool
        Also return how often each occurs.
    dim : int, optional
        Find distinct slices along this axis.

    Returns
    -------
    Tensor or tuple of Tensor
    """
    source = tensor(input)
    x = source.array()
    along = None if dim is None else axis("unique", x.ndim, dim)
    values, inverse, counts = np.unique(x, return_inverse=True, return_counts=True, axis=along)
    found = [record(values, (source,), _underivable, saved=())]
    if return_inverse:
        found.append(Tensor(inverse.reshape(x.shape if along is None else -1)))
    if return_counts:
        found.append(Tensor(counts))
    return tuple(found) if len(found) > 1 else found[0]


def _underivable(dy: np.ndarray) -> Any:
    raise NotImplementedError("unique: its values must not be differentiated, got a gradient")


for _function in (sort, argsort, topk, kthvalue, median, unique):
    register(_function.__name__, _function, in_place=False)
