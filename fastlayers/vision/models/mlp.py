"""Multilayer perceptrons."""

from __future__ import annotations

from collections.abc import Sequence

from fastlayers import nn

__all__ = ["MLP"]


class MLP(nn.Sequential):
    """Linear layers with batch normalisation, an activation and dropout between them.

    Parameters
    ----------
    in_features : int
        Elements of one sample, which is flattened.
    hidden : sequence of int
        Sizes of the hidden layers.
    num_classes : int
    batch_norm : {"before", "after", None}
        Before or after the activation, or none; without it, the linear layers have a bias.
    dropout : float
        Probability; 0 for none.
    """

    def __init__(
        self,
        in_features: int = 784,
        hidden: Sequence[int] = (128, 64),
        num_classes: int = 10,
        batch_norm: str | None = "before",
        dropout: float = 0.2,
    ) -> None:
        if batch_norm not in ("before", "after", None):
            raise ValueError(f"MLP: batch_norm must be before, after or None, got {batch_norm!r}")
        layers: list[nn.Module] = [nn.Flatten()]
        before = in_features
        for after in hidden:
            layers.append(nn.Linear(before, after, bias=batch_norm is None))
            steps: list[nn.Module] = [nn.ReLU()]
            if batch_norm:
                steps.insert(0 if batch_norm == "before" else 1, nn.BatchNorm1d(after))
            layers += [*steps, *([nn.Dropout(dropout)] if dropout else [])]
            before = after
        super().__init__(*layers, nn.Linear(before, num_classes))
