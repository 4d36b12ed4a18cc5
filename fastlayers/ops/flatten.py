"""Joining of axes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.layout import contiguous

__all__ = ["flatten", "flatten_backward"]


def flatten(input: np.ndarray, start_dim: int = 0, end_dim: int = -1) -> np.ndarray:
    """Join the axes from `start_dim` to `end_dim` into one, in C order of (N, C, H, W).

    Parameters
    ----------
    input : ndarray
        Of any shape and dtype.
    start_dim, end_dim : int
        First and last of the axes to join.

    Returns
    -------
    ndarray
        C-contiguous; a view of the input where that is.

    Raises
    ------
    TypeError, ValueError
        If the input is no array, or the axes do not exist or are in the wrong order.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.flatten.html
    """
    input = check.plain("flatten", "input", input)
    ndim = max(input.ndim, 1)
    first = _axis("start_dim", start_dim, ndim, input)
    last = _axis("end_dim", end_dim, ndim, input)
    if first > last:
        raise ValueError(
            f"flatten: end_dim must not be before start_dim {start_dim}, got {end_dim}"
        )
    joined = math.prod(input.shape[first : last + 1])
    return contiguous(input).reshape(*input.shape[:first], joined, *input.shape[last + 1 :])


def flatten_backward(grad_output: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
    """Input gradient of `flatten`: `grad_output` in the shape `input_shape`."""
    dy = check.array("flatten_backward", "grad_output", grad_output)
    shape = check.shape("flatten_backward", input_shape)
    if dy.size != math.prod(shape):
        raise ValueError(
            f"flatten_backward: grad_output must have {math.prod(shape)} elements, "
            f"got {check.describe(dy)}"
        )
    return contiguous(dy).reshape(shape)


def _axis(name: str, dim: Any, ndim: int, input: np.ndarray) -> int:
    axis = check.integer("flatten", name, dim, -ndim)
    if axis >= ndim:
        raise ValueError(
            f"flatten: {name} must be an axis of the input, got {dim} for shape {input.shape}"
        )
    return axis % ndim
