"""Joining of axes, as in https://docs.pytorch.org/docs/stable/generated/torch.flatten.html."""

from __future__ import annotations

import numpy as np

__all__ = ["flatten", "flatten_backward"]


def flatten(input: np.ndarray, start_dim: int = 0, end_dim: int = -1) -> np.ndarray:
    """Join the axes from `start_dim` to `end_dim` of an array of any shape into one."""
    first, last = start_dim % max(input.ndim, 1), end_dim % max(input.ndim, 1)
    joined = int(np.prod(input.shape[first : last + 1]))
    return input.reshape((*input.shape[:first], joined, *input.shape[last + 1 :]), order="C")


def flatten_backward(grad_output: np.ndarray, input_shape: tuple[int, ...]) -> np.ndarray:
    """Give `grad_output` the shape `input_shape`."""
    return grad_output.reshape(input_shape, order="C")
