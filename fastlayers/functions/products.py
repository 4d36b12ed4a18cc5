"""Products of vectors, matrices and tensors."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.arithmetic import add, matmul, mul
from fastlayers.functions.axes import permute
from fastlayers.functions.einstein import einsum
from fastlayers.functions.expansion import expand
from fastlayers.functions.reduction import axis
from fastlayers.functions.registry import NUMPY, method, register
from fastlayers.functions.shape import reshape, unsqueeze

__all__ = ["addmm", "baddbmm", "bmm", "dot", "einsum", "mm", "mv", "outer", "tensordot"]


def _check(op: str, wanted: dict[str, tuple[Tensor, int]]) -> None:
    """Reject tensors with other numbers of axes, or different dtypes."""
    for name, (x, ndim) in wanted.items():
        if x.ndim != ndim:
            raise RuntimeError(f"{op}: {name} must have {ndim} axes, got shape {tuple(x.shape)}")
    dtypes = [x.dtype for x, _ in wanted.values()]
    if any(dtype != dtypes[0] for dtype in dtypes):
        raise RuntimeError(
            f"{op}: {' and '.join(wanted)} must have the same dtype, "
            f"got {' and '.join(map(str, dtypes))}"
        )


def _meets(op: str, left: Tensor, right: Tensor, at: int) -> None:
    if left.shape[-1] != right.shape[at]:
        raise RuntimeError(
            f"{op}: the last axis of the first must match that of the second (size mismatch), "
            f"got {tuple(left.shape)} and {tuple(right.shape)}"
        )


def outer(input: Tensor, vec2: Tensor) -> Tensor:
    """The products of all pairs of elements of two vectors."""
    for name, x in (("input", input), ("vec2", vec2)):
        if x.ndim != 1:
            raise RuntimeError(f"outer: {name} must have 1 axis, got shape {tuple(x.shape)}")
    return mul(unsqueeze(input, 1), vec2)


def dot(input: Tensor, tensor: Tensor) -> Tensor:
    """The sum of the products of two vectors' elements."""
    _check("dot", {"input": (input, 1), "tensor": (tensor, 1)})
    _meets("dot", input, tensor, 0)
    return matmul(input, tensor)


def mv(input: Tensor, vec: Tensor) -> Tensor:
    """The product of a matrix and a vector."""
    _check("mv", {"input": (input, 2), "vec": (vec, 1)})
    _meets("mv", input, vec, 0)
    return matmul(input, vec)


def mm(input: Tensor, mat2: Tensor) -> Tensor:
    """The product of two matrices."""
    _check("mm", {"input": (input, 2), "mat2": (mat2, 2)})
    _meets("mm", input, mat2, 0)
    return matmul(input, mat2)


def bmm(input: Tensor, mat2: Tensor) -> Tensor:
    """The products of pairs of matrices, along the first axis."""
    _check("bmm", {"input": (input, 3), "mat2": (mat2, 3)})
    _meets("bmm", input, mat2, 1)
    if len(input) != len(mat2):
        raise RuntimeError(
            f"bmm: input and mat2 must have as many matrices, "
            f"got {tuple(input.shape)} and {tuple(mat2.shape)}"
        )
    return matmul(input, mat2)


def _scaled(
    op: str, ndim: int, input: Tensor, a: Tensor, b: Tensor, beta: Any, alpha: Any
) -> Tensor:
    _check(
        op, {"input": (input, input.ndim), "the first matrix": (a, ndim), "the second": (b, ndim)}
    )
    _meets(op, a, b, -2)
    wide = expand(input, *a.shape[:-1], b.shape[-1])
    product = matmul(a, b)
    if alpha != 1:
        product = mul(product, alpha)
    # PyTorch's rule: with beta 0 the input does not matter, even if it is NaN.
    return product if beta == 0 else add(product, wide if beta == 1 else mul(wide, beta))


def addmm(input: Tensor, mat1: Tensor, mat2: Tensor, *, beta: Any = 1, alpha: Any = 1) -> Tensor:
    """``beta * input + alpha * mat1 @ mat2``."""
    return _scaled("addmm", 2, input, mat1, mat2, beta, alpha)


def baddbmm(
    input: Tensor, batch1: Tensor, batch2: Tensor, *, beta: Any = 1, alpha: Any = 1
) -> Tensor:
    """``beta * input + alpha * batch1 @ batch2`` for each pair of matrices."""
    return _scaled("baddbmm", 3, input, batch1, batch2, beta, alpha)


def tensordot(a: Tensor, b: Tensor, dims: Any = 2) -> Tensor:
    """Sum of products over several axes.

    Parameters
    ----------
    a, b : Tensor
    dims : int, or pair of sequences of int
        The number of last axes of `a` and first axes of `b`, or the axes of both.

    Raises
    ------
    RuntimeError
        If the lengths of the axes differ.
    """
    a, b = tensor(a), tensor(b)
    dims = dims.tolist() if isinstance(dims, Tensor) else dims
    if isinstance(dims, int):
        if not 0 <= dims <= min(a.ndim, b.ndim):
            raise RuntimeError(f"tensordot: dims must be from 0 to the number of axes, got {dims}")
        dims = (range(a.ndim - dims, a.ndim), range(dims))
    left, right = (
        [axis("tensordot", x.ndim, int(d)) for d in side]
        for x, side in zip((a, b), dims, strict=True)
    )
    lengths = [a.shape[i] for i in left]
    if (
        len(set(left)) < len(left)
        or len(set(right)) < len(right)
        or lengths != [b.shape[i] for i in right]
    ):
        raise RuntimeError(
            f"tensordot: dims must name axes of the same lengths (contracted dimensions need to "
            f"match), got {left} of {tuple(a.shape)} and {right} of {tuple(b.shape)}"
        )
    over = math.prod(lengths)
    rows, columns = [
        [i for i in range(x.ndim) if i not in side] for x, side in ((a, left), (b, right))
    ]
    shape = [a.shape[i] for i in rows], [b.shape[i] for i in columns]
    first = reshape(permute(a, rows + left), math.prod(shape[0]), over)
    second = reshape(permute(b, right + columns), over, math.prod(shape[1]))
    return reshape(matmul(first, second), *shape[0], *shape[1])


for _function in (outer, dot, mv, mm, bmm):
    method(_function, _function.__name__)
register("addmm", addmm)
register("baddbmm", baddbmm)
method(outer, "ger")
NUMPY[np.outer] = outer
NUMPY[np.einsum] = einsum
NUMPY[np.tensordot] = lambda a, b, axes=2: tensordot(a, b, axes)
