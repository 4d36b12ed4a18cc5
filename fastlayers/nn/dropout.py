"""Dropout layers: identity in evaluation."""

from __future__ import annotations

from typing import Any

from fastlayers.autograd import Tensor
from fastlayers.nn import functional
from fastlayers.nn.module import Module
from fastlayers.ops import check

__all__ = ["Dropout", "Dropout1d", "Dropout2d"]


class _Dropout(Module):
    """With `inplace`, a tensor that is given gets the result."""

    def __init__(self, p: float = 0.5, inplace: bool = False) -> None:
        super().__init__()
        check.probability(type(self).__name__, "p", p)
        self.p, self.inplace = p, inplace

    def extra_repr(self) -> str:
        """The options."""
        return f"p={self.p}, inplace={self.inplace}"


class Dropout(_Dropout):
    """Zero elements with probability p, scale the rest; see `fastlayers.ops.dropout`."""

    def forward(self, input: Any) -> Tensor:
        """Drop elements in training."""
        return functional.dropout(input, self.p, self.training, self.inplace)


class Dropout1d(_Dropout):
    """Zero whole channels of (N, C, L) or (C, L); see `fastlayers.ops.dropout1d`."""

    def forward(self, input: Any) -> Tensor:
        """Drop channels in training."""
        return functional.dropout1d(input, self.p, self.training, self.inplace)


class Dropout2d(_Dropout):
    """Zero whole channels of (N, C, H, W) or (N, C, L); see `fastlayers.ops.dropout2d`."""

    def forward(self, input: Any) -> Tensor:
        """Drop channels in training."""
        return functional.dropout2d(input, self.p, self.training, self.inplace)
