"""Activation layers."""

from __future__ import annotations

from typing import Any

from fastlayers.autograd import Tensor
from fastlayers.nn import functional
from fastlayers.nn.module import Module
from fastlayers.ops import check

__all__ = [
    "GELU",
    "Hardswish",
    "LeakyReLU",
    "LogSoftmax",
    "ReLU",
    "SiLU",
    "Sigmoid",
    "Softmax",
    "Tanh",
]


class _InPlace(Module):
    """With `inplace`, a tensor that is given gets the result."""

    def __init__(self, inplace: bool = False) -> None:
        super().__init__()
        self.inplace = inplace

    def extra_repr(self) -> str:
        """The option, where it is given."""
        return "inplace=True" if self.inplace else ""


class ReLU(_InPlace):
    """``max(x, 0)``; with `inplace`, a tensor that is given gets the result."""

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.relu(input, self.inplace)


class LeakyReLU(Module):
    """``x`` where positive, else ``negative_slope * x``; `inplace` as for `ReLU`."""

    def __init__(self, negative_slope: float = 0.01, inplace: bool = False) -> None:
        super().__init__()
        self.negative_slope, self.inplace = negative_slope, inplace

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.leaky_relu(input, self.negative_slope, self.inplace)

    def extra_repr(self) -> str:
        """The options."""
        return f"negative_slope={self.negative_slope}" + ", inplace=True" * self.inplace


class SiLU(_InPlace):
    """``x / (1 + exp(-x))``; `inplace` as for `ReLU`."""

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.silu(input, self.inplace)


class Sigmoid(Module):
    """``1 / (1 + exp(-x))``."""

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.sigmoid(input)


class Tanh(Module):
    """Hyperbolic tangent."""

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.tanh(input)


class GELU(Module):
    """``x * Phi(x)``; see `fastlayers.ops.gelu`."""

    def __init__(self, approximate: str = "none") -> None:
        super().__init__()
        check.one_of("GELU", "approximate", approximate, ("none", "tanh"))
        self.approximate = approximate

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.gelu(input, self.approximate)

    def extra_repr(self) -> str:
        """The approximation."""
        return f"approximate={self.approximate!r}"


class Hardswish(_InPlace):
    """``x * min(max(x + 3, 0), 6) / 6``; `inplace` as for `ReLU`."""

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.hardswish(input, self.inplace)


class _AlongAxis(Module):
    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def extra_repr(self) -> str:
        """The axis."""
        return f"dim={self.dim}"


class Softmax(_AlongAxis):
    """Probabilities, which sum to 1 along an axis that must be given."""

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.softmax(input, self.dim)


class LogSoftmax(_AlongAxis):
    """Logarithm of `Softmax`."""

    def forward(self, input: Any) -> Tensor:
        """Apply the function."""
        return functional.log_softmax(input, self.dim)
