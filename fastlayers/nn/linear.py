"""Linear layers and reshaping."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.nn import functional, init
from fastlayers.nn.module import Module, Parameter
from fastlayers.ops import check

__all__ = ["Flatten", "Linear"]


class Linear(Module):
    """Affine map of the last axis, ``y = x @ weight.T + bias``.

    Parameters
    ----------
    in_features, out_features : int
    bias : bool
    device : "cpu" or None
    dtype : dtype, optional
        float32 by default.

    Attributes
    ----------
    weight : Parameter
        (out_features, in_features).
    bias : Parameter or None
        (out_features,).

    Raises
    ------
    TypeError, ValueError
        If a size is not a positive integer.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.Linear.html
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: type | np.dtype | None = None,
    ) -> None:
        super().__init__()
        check.device("Linear", device)
        self.in_features = check.integer("Linear", "in_features", in_features, 1)
        self.out_features = check.integer("Linear", "out_features", out_features, 1)
        shape = self.out_features, self.in_features
        self.weight = Parameter(init.new("Linear", shape, dtype))
        values = Parameter(init.new("Linear", shape[:1], dtype)) if bias else None
        self.register_parameter("bias", values)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw weight and bias again."""
        init.reset_affine(self.weight, self.bias)

    def forward(self, input: Any) -> Tensor:
        """Map the input."""
        return functional.linear(input, self.weight, self.bias)

    def extra_repr(self) -> str:
        """The sizes."""
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )


class Flatten(Module):
    """Join the axes from `start_dim` to `end_dim` into one."""

    def __init__(self, start_dim: int = 1, end_dim: int = -1) -> None:
        super().__init__()
        self.start_dim, self.end_dim = start_dim, end_dim

    def forward(self, input: Any) -> Tensor:
        """Flatten the input."""
        return functional.flatten(input, self.start_dim, self.end_dim)

    def extra_repr(self) -> str:
        """The axes."""
        return f"start_dim={self.start_dim}, end_dim={self.end_dim}"
