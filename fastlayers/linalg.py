"""Norms, under their names in PyTorch's `linalg`.

References
----------
https://docs.pytorch.org/docs/stable/linalg.html
"""

from __future__ import annotations

from typing import Any

from fastlayers.autograd import Tensor
from fastlayers.functions.norms import norm as _norm
from fastlayers.functions.registry import numpy_names

__all__ = ["norm", "vector_norm"]


@numpy_names
def vector_norm(
    x: Any, ord: Any = 2, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """``(sum |x|^ord)^(1 / ord)`` of all elements, or over axes; see `fastlayers.norm`."""
    return _norm(x, ord, dim, keepdim, dtype)


@numpy_names
def norm(
    A: Any, ord: Any = None, dim: Any = None, keepdim: bool = False, *, dtype: Any = None
) -> Tensor:
    """`vector_norm`, where `ord` is None or "fro", or there is one axis.

    Raises
    ------
    NotImplementedError
        If another matrix norm is requested.
    """
    if ord is not None and ord != "fro":
        axes = len(dim) if isinstance(dim, (tuple, list)) else 1
        if axes != 1 or (dim is None and A.ndim != 1):
            raise NotImplementedError(
                f"linalg.norm: ord must be None or 'fro' for matrices, got {ord!r}"
            )
    return _norm(A, 2 if ord is None else ord, dim, keepdim, dtype)
