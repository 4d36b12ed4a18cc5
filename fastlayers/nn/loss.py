"""Losses as modules."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd import Tensor
from fastlayers.nn import functional
from fastlayers.nn.module import Module
from fastlayers.ops import check

__all__ = ["BCEWithLogitsLoss", "CrossEntropyLoss", "MSELoss", "NLLLoss"]

Weight = Tensor | np.ndarray | None


class _Loss(Module):
    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        check.one_of(type(self).__name__, "reduction", reduction, ("none", "mean", "sum"))
        self.reduction = reduction

    def _register(self, name: str, weight: Weight) -> None:
        if not (weight is None or isinstance(weight, np.ndarray)):
            weight = np.asarray(weight)
        self.register_buffer(name, weight)


class CrossEntropyLoss(_Loss):
    """Loss of logits against class indices; see `fastlayers.ops.cross_entropy`."""

    def __init__(
        self,
        weight: Weight = None,
        ignore_index: int = -100,
        reduction: str = "mean",
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__(reduction)
        check.probability("CrossEntropyLoss", "label_smoothing", label_smoothing)
        self.ignore_index, self.label_smoothing = ignore_index, label_smoothing
        self._register("weight", weight)

    def forward(self, input: Any, target: Any) -> Tensor:
        """The loss."""
        return functional.cross_entropy(
            input, target, self.weight, self.ignore_index, self.reduction, self.label_smoothing
        )


class NLLLoss(_Loss):
    """Loss of log-probabilities against class indices; see `fastlayers.ops.nll_loss`."""

    def __init__(
        self, weight: Weight = None, ignore_index: int = -100, reduction: str = "mean"
    ) -> None:
        super().__init__(reduction)
        self.ignore_index = ignore_index
        self._register("weight", weight)

    def forward(self, input: Any, target: Any) -> Tensor:
        """The loss."""
        return functional.nll_loss(input, target, self.weight, self.ignore_index, self.reduction)


class MSELoss(_Loss):
    """Squared error; see `fastlayers.ops.mse_loss`."""

    def forward(self, input: Any, target: Any) -> Tensor:
        """The loss."""
        return functional.mse_loss(input, target, self.reduction)


class BCEWithLogitsLoss(_Loss):
    """Loss of logits against binary targets.

    See `fastlayers.ops.binary_cross_entropy_with_logits`.
    """

    def __init__(
        self, weight: Weight = None, reduction: str = "mean", pos_weight: Weight = None
    ) -> None:
        super().__init__(reduction)
        self._register("weight", weight)
        self._register("pos_weight", pos_weight)

    def forward(self, input: Any, target: Any) -> Tensor:
        """The loss."""
        return functional.binary_cross_entropy_with_logits(
            input, target, self.weight, self.reduction, self.pos_weight
        )
