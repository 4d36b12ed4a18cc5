"""Reference for `fastlayers.ops.linear`."""

import numpy as np

from fastlayers.reference.types import Array, Gradients

__all__ = ["linear", "linear_backward"]


def linear(input: Array, weight: Array, bias: Array | None = None) -> Array:
    """Give ``y = x weight^T + bias``: (..., I) with weight (O, I) gives (..., O).

    https://pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """
    y = input @ weight.T
    return y if bias is None else y + bias


def linear_backward(
    grad_output: Array,
    input: Array,
    weight: Array,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Gradients:
    """Give the gradients of `linear` by input, weight and bias, None where not needed.

    ``dx = dy weight``, ``dweight = dy^T x`` and ``dbias = sum(dy)`` over all rows.
    """
    rows = tuple(range(input.ndim - 1))
    return (
        grad_output @ weight if needs[0] else None,
        np.tensordot(grad_output, input, (rows, rows)) if needs[1] else None,
        grad_output.sum(rows) if needs[2] else None,
    )
