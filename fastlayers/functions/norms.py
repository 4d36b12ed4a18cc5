"""Vector norms of all elements, or along axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axes, ties
from fastlayers.functions.table import recorded

__all__ = ["norm"]


def _total(x: np.ndarray, p: float, over: tuple[int, ...]) -> np.ndarray:
    """The norm, with axes of length 1."""
    size = np.abs(x)
    if math.isinf(p):
        return np.asarray(size.max(over, keepdims=True) if p > 0 else size.min(over, keepdims=True))
    if p == 0:
        return np.asarray((size != 0).sum(over, keepdims=True), x.dtype)
    if p == 1:
        return np.asarray(size.sum(over, keepdims=True))
    if p == 2:
        return np.asarray(np.sqrt(np.square(x).sum(over, keepdims=True)))
    return np.asarray((size**p).sum(over, keepdims=True) ** (1 / p), x.dtype)


def _part(dy: np.ndarray, x: np.ndarray, y: np.ndarray, p: float, over: tuple[int, ...]) -> Any:
    """The gradient; 0 where the norm is 0."""
    if p == 0:
        return np.zeros_like(x)
    if p == 1:
        return np.sign(x) * dy
    if math.isinf(p):
        return np.sign(x) * ties(np.broadcast_to(dy, x.shape), np.abs(x) == y, over)
    if p == 2:
        return np.where(y == 0, 0, x * (dy / y)).astype(x.dtype)
    scale = np.where(y == 0, 0, dy / y ** (p - 1))
    power = np.where(x == 0, 0, np.abs(x) ** (p - 1)) if p < 2 else np.abs(x) ** (p - 1)
    return (np.sign(x) * power * scale).astype(x.dtype)


@recorded(saves=(0,), saves_output=True)
def norm(
    x: np.ndarray, p: Any = "fro", dim: Any = None, keepdim: bool = False, dtype: Any = None
) -> Any:
    """``(sum |x|^p)^(1/p)`` over one, several or all axes.

    Parameters
    ----------
    x : Tensor
        Floating point.
    p : float or str
        "fro", the default, is 2; inf and -inf give the largest and smallest magnitude; 0 counts
        nonzeros.
    dim : int or sequence, optional
    keepdim : bool
    dtype : dtype, optional
        The dtype of the computation.

    Raises
    ------
    RuntimeError
        If the input and `dtype` are not floating point, or there are no elements for an infinite
        `p`.
    NotImplementedError
        If `p` is "nuc", the norm of singular values.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.norm.html
    """
    if p == "nuc":
        raise NotImplementedError("norm: p must be 'fro' or a number, got 'nuc'")
    order = 2.0 if p == "fro" or p is None else float(p.item() if isinstance(p, Tensor) else p)
    a = x if dtype is None else x.astype(dtype)
    if a.dtype.kind != "f":
        raise RuntimeError(f"norm: input must be floating point, got {a.dtype}")
    over = axes("norm", x.ndim, dim)
    if math.isinf(order) and not math.prod(x.shape[i] for i in over):
        raise RuntimeError(f"norm: input must have elements for p={order}, got shape {x.shape}")
    y = _total(a, order, over)

    def gradient(dy: np.ndarray) -> Any:
        whole = dy.reshape(y.shape)
        return np.asarray(_part(whole, a, y, order, over), x.dtype)

    return y if keepdim else y.reshape(
        [n for i, n in enumerate(x.shape) if i not in over]
    ), gradient
