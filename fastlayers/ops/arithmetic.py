"""Arithmetic with broadcasting, sums and matrix products, on NumPy but for large sums of two."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops.layout import kernel_ready, like, raveled
from fastlayers.runtime import memory, threads

__all__ = [
    "add",
    "add_backward",
    "div",
    "div_backward",
    "getitem",
    "getitem_backward",
    "matmul",
    "matmul_backward",
    "mean",
    "mean_backward",
    "mul",
    "mul_backward",
    "sub",
    "sub_backward",
    "sum",
    "sum_backward",
]

Pair = tuple[np.ndarray | None, np.ndarray | None]
Needs = tuple[bool, bool]
Axes = int | tuple[int, ...] | None


def _unbroadcast(dy: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Sum a gradient over the axes along which its array was repeated."""
    if dy.shape == shape:
        return dy
    extra = dy.ndim - len(shape)
    dy = dy.sum(axis=tuple(range(extra))) if extra else dy
    repeated = tuple(i for i, size in enumerate(shape) if size == 1 and dy.shape[i] != 1)
    return dy.sum(axis=repeated, keepdims=True) if repeated else dy


# Elements below which NumPy's addition costs no more than a kernel's call.
KERNEL_SIZE = 8192


def add(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a + b``."""
    plain = a.dtype == b.dtype and a.dtype.char in "fd" and a.dtype.isnative
    if a.size < KERNEL_SIZE or a.shape != b.shape or not plain:
        return np.asarray(a + b)
    if a.flags.c_contiguous and b.flags.c_contiguous:
        out = memory.empty(a.shape, a.dtype)
        left, right, total = (kernel_ready(x).reshape(-1) for x in (a, b, out))
    else:
        out, total = like(a)
        left, right = raveled(a), raveled(b)
    kernels.arithmetic.add(left, right, threads.workers_for(a.size), total)
    return out


def add_backward(dy: np.ndarray, a: np.ndarray, b: np.ndarray, needs: Needs) -> Pair:
    """``da = dy``, ``db = dy``, the same array."""
    return (
        _unbroadcast(dy, a.shape) if needs[0] else None,
        _unbroadcast(dy, b.shape) if needs[1] else None,
    )


def sub(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a - b``."""
    return np.asarray(a - b)


def sub_backward(dy: np.ndarray, a: np.ndarray, b: np.ndarray, needs: Needs) -> Pair:
    """``da = dy``, ``db = -dy``."""
    return (
        _unbroadcast(dy, a.shape) if needs[0] else None,
        _unbroadcast(-dy, b.shape) if needs[1] else None,
    )


def mul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a * b``."""
    return np.asarray(a * b)


def mul_backward(dy: np.ndarray, a: np.ndarray, b: np.ndarray, needs: Needs) -> Pair:
    """``da = dy * b``, ``db = dy * a``."""
    return (
        _unbroadcast(dy * b, a.shape) if needs[0] else None,
        _unbroadcast(dy * a, b.shape) if needs[1] else None,
    )


def div(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a / b``."""
    return np.asarray(a / b)


def div_backward(dy: np.ndarray, a: np.ndarray, b: np.ndarray, needs: Needs) -> Pair:
    """``da = dy / b``, ``db = -dy * a / b^2``."""
    return (
        _unbroadcast(dy / b, a.shape) if needs[0] else None,
        _unbroadcast(-dy * a / (b * b), b.shape) if needs[1] else None,
    )


def matmul(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """``a @ b``, with NumPy's rules for vectors and stacks of matrices."""
    return np.asarray(a @ b)


def matmul_backward(dy: np.ndarray, a: np.ndarray, b: np.ndarray, needs: Needs) -> Pair:
    """``da = dy @ b.T``, ``db = a.T @ dy``, summed over repeated stacks."""
    left = a[None, :] if a.ndim == 1 else a
    right = b[:, None] if b.ndim == 1 else b
    dy = dy[..., None, :] if a.ndim == 1 and b.ndim > 1 else dy
    dy = dy[..., None] if b.ndim == 1 else dy
    dy = dy[None] if a.ndim == b.ndim == 1 else dy
    da = db = None
    if needs[0]:
        da = _unbroadcast(dy @ np.swapaxes(right, -1, -2), left.shape).reshape(a.shape)
    if needs[1]:
        db = _unbroadcast(np.swapaxes(left, -1, -2) @ dy, right.shape).reshape(b.shape)
    return da, db


def sum(x: np.ndarray, dim: Axes = None, keepdim: bool = False) -> np.ndarray:
    """Sum over one, several or all axes."""
    return np.asarray(x.sum(axis=dim, keepdims=keepdim))


def sum_backward(dy: np.ndarray, x: np.ndarray, dim: Axes, keepdim: bool) -> np.ndarray:
    """``dx = dy``, repeated along the axes."""
    if dim is not None and not keepdim:
        dy = np.expand_dims(dy, dim)
    return np.broadcast_to(dy, x.shape).copy()


def mean(x: np.ndarray, dim: Axes = None, keepdim: bool = False) -> np.ndarray:
    """Mean over one, several or all axes."""
    return np.asarray(x.mean(axis=dim, keepdims=keepdim))


def mean_backward(dy: np.ndarray, x: np.ndarray, dim: Axes, keepdim: bool) -> np.ndarray:
    """``dx = dy / count``, repeated along the axes."""
    count = x.size // max(dy.size, 1)
    return sum_backward(dy / dy.dtype.type(count), x, dim, keepdim)


def getitem(x: np.ndarray, index: Any) -> np.ndarray:
    """``x[index]``."""
    return np.asarray(x[index])


def getitem_backward(dy: np.ndarray, x: np.ndarray, index: Any) -> np.ndarray:
    """``dx[index] += dy``, where an index that occurs twice counts twice."""
    dx = np.zeros_like(x)
    np.add.at(dx, index, dy)
    return dx
