"""VGG networks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastlayers import nn
from fastlayers.autograd import Tensor

__all__ = ["VGG", "vgg16", "vgg_small"]

# Channels of each 3x3 convolution; "M" is a 2x2 max pooling.
_VGG16 = (64, 64, "M", 128, 128, "M", 256, 256, 256, "M", 512, 512, 512, "M", 512, 512, 512, "M")
_SMALL = (32, 32, "M", 64, 64, "M", 128, 128, "M")


class VGG(nn.Module):
    """Blocks of 3x3 convolutions and max pooling, then linear layers.

    Parameters
    ----------
    plan : sequence
        Channels of each convolution, or "M" for a max pooling.
    features : int
        Elements per image after the last block.
    hidden : sequence of int
        Sizes of the hidden linear layers.
    num_classes, in_channels : int
    batch_norm : bool
    dropout : float
        Element dropout after each hidden linear layer.
    dropout2d : float
        Channel dropout after each pooling.

    References
    ----------
    Simonyan and Zisserman, 2014, https://arxiv.org/abs/1409.1556
    """

    def __init__(
        self,
        plan: Sequence[int | str],
        features: int,
        hidden: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        batch_norm: bool = False,
        dropout: float = 0.5,
        dropout2d: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for item in plan:
            if isinstance(item, str):
                layers.append(nn.MaxPool2d(2))
                layers += [nn.Dropout2d(dropout2d)] if dropout2d else []
                continue
            layers.append(nn.Conv2d(in_channels, item, 3, padding=1))
            layers += [nn.BatchNorm2d(item)] if batch_norm else []
            layers.append(nn.ReLU())
            in_channels = item
        self.features = nn.Sequential(*layers)
        head: list[nn.Module] = []
        for size in hidden:
            head += [nn.Linear(features, size), nn.ReLU(), nn.Dropout(dropout)]
            features = size
        self.classifier = nn.Sequential(*head, nn.Linear(features, num_classes))

    def forward(self, x: Any) -> Tensor:
        """Logits (N, num_classes)."""
        return self.classifier(self.features(x).flatten(1))  # type: ignore[no-any-return]


def vgg16(num_classes: int = 1000, batch_norm: bool = False, dropout: float = 0.5) -> VGG:
    """VGG-16 for images of 3x224x224."""
    hidden = (4096, 4096)
    return VGG(_VGG16, 512 * 7 * 7, hidden, num_classes, batch_norm=batch_norm, dropout=dropout)


def vgg_small(
    num_classes: int = 10,
    in_channels: int = 3,
    image_size: int = 32,
    dropout: float = 0.5,
    dropout2d: float = 0.1,
) -> VGG:
    """A VGG of six convolutions with batch normalisation, for images of 8x8 pixels or more."""
    features = 128 * (image_size // 8) ** 2
    return VGG(_SMALL, features, (256,), num_classes, in_channels, True, dropout, dropout2d)
