"""Triangles and diagonals of matrices."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axis
from fastlayers.functions.registry import NUMPY, register
from fastlayers.functions.table import recorded, result, view
from fastlayers.functions.values import dtype_of
from fastlayers.ops import check

__all__ = ["diag", "diag_embed", "diagonal", "tril", "tril_indices", "triu", "triu_indices"]


def _triangle(name: str, part: Any, doc: str) -> Any:
    def function(x: np.ndarray, diagonal: int = 0) -> Any:
        if x.ndim < 2:
            raise RuntimeError(f"{name}: input must have at least 2 dimensions, got {x.shape}")
        return part(x, diagonal), lambda dy: part(dy, diagonal)

    function.__name__ = name
    function.__doc__ = doc
    return recorded(in_place=True)(function)


tril = _triangle("tril", np.tril, "Each matrix up to a diagonal; above it 0.")
triu = _triangle("triu", np.triu, "Each matrix from a diagonal on; below it 0.")


def _indices(name: str, find: Any, what: str) -> Any:
    def function(
        row: int, col: int, offset: int = 0, *, dtype: Any = None, device: Any = None
    ) -> Tensor:
        check.device(name, device)
        found = np.stack(find(row, offset, col))
        return Tensor(found.astype(dtype_of(name, dtype, np.int64)))

    function.__name__ = function.__qualname__ = name
    function.__doc__ = f"Rows and columns of {what} of a matrix, row by row."
    return function


tril_indices = _indices("tril_indices", np.tril_indices, "the elements up to a diagonal")
triu_indices = _indices("triu_indices", np.triu_indices, "the elements from a diagonal on")


@view
def diagonal(x: np.ndarray, offset: int = 0, dim1: int = 0, dim2: int = 1) -> Any:
    """The diagonal of the matrices along two axes, as a last axis.

    Raises
    ------
    RuntimeError
        If the axes are the same.
    """
    first, second = (axis("diagonal", x.ndim, d) for d in (dim1, dim2))
    if first == second:
        raise RuntimeError(f"diagonal: dim1 and dim2 must differ, got {dim1} and {dim2}")

    def look(array: np.ndarray) -> np.ndarray:
        found = array.diagonal(offset, first, second)
        if array.flags.writeable:
            found.flags.writeable = True
        return found

    def gradient(dy: np.ndarray) -> np.ndarray:
        dx = np.zeros_like(x, dy.dtype)
        look(dx)[...] = dy
        return dx

    return look, gradient


@recorded()
def diag(x: np.ndarray, diagonal: int = 0) -> Any:
    """A matrix with a given diagonal, or a copy of the diagonal of a matrix.

    Raises
    ------
    RuntimeError
        If the input does not have one or two axes.
    """
    if x.ndim not in (1, 2):
        raise RuntimeError(f"diag: input must have 1 or 2 axes, got shape {x.shape}")

    def gradient(dy: np.ndarray) -> np.ndarray:
        if x.ndim == 1:
            return np.diag(dy, diagonal)
        dx = np.zeros_like(x, dy.dtype)
        line = np.diagonal(dx, diagonal)
        line.flags.writeable = True
        line[...] = dy
        return dx

    return np.diag(x, diagonal).copy(), gradient


def diag_embed(input: Tensor, offset: int = 0, dim1: int = -2, dim2: int = -1) -> Tensor:
    """Matrices along two new axes, whose diagonals are the last axis; 0 elsewhere.

    Raises
    ------
    RuntimeError
        If the axes are the same.
    """
    x = input.array()
    first, second = (axis("diag_embed", x.ndim + 1, d) for d in (dim1, dim2))
    if first == second:
        raise RuntimeError(f"diag_embed: dim1 and dim2 must differ, got {dim1} and {dim2}")
    size = x.shape[-1] + abs(offset)
    out = np.zeros((*x.shape[:-1], size, size), x.dtype)

    def line(whole: np.ndarray) -> np.ndarray:
        found = whole.diagonal(offset, -2, -1)
        found.flags.writeable = True
        return found

    line(out)[...] = x

    def gradient(dy: np.ndarray) -> np.ndarray:
        return np.moveaxis(dy, (first, second), (-2, -1)).diagonal(offset, -2, -1)

    return result("diag_embed", np.moveaxis(out, (-2, -1), (first, second)), (input,), gradient)


register("diag_embed", diag_embed, in_place=False)
NUMPY |= {
    np.tril: lambda m, k=0: tril(m, k),
    np.triu: lambda m, k=0: triu(m, k),
    np.diag: lambda v, k=0: diag(v, k),
}
