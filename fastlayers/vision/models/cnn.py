"""Small convolutional networks."""

from __future__ import annotations

from typing import Any

from fastlayers import nn
from fastlayers.autograd import Tensor

__all__ = ["CNN", "CifarCNN"]


class CifarCNN(nn.Module):
    """The classic CIFAR-10 network: 5x5 convolutions with 6 and 16 channels, and three linear
    layers.

    Parameters
    ----------
    num_classes : int
    in_channels : int
        Images are (N, in_channels, 32, 32).
    batch_norm : bool
        Batch normalisation after both convolutions.
    dropout : float
        Channel dropout after the convolutions and element dropout between the linear layers.

    References
    ----------
    LeCun et al., "Gradient-based learning applied to document recognition", 1998;
    https://docs.pytorch.org/tutorials/beginner/blitz/cifar10_tutorial.html
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        batch_norm: bool = False,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, 6, 5)
        self.bn1 = nn.BatchNorm2d(6) if batch_norm else nn.Identity()
        self.conv2 = nn.Conv2d(6, 16, 5)
        self.bn2 = nn.BatchNorm2d(16) if batch_norm else nn.Identity()
        self.pool = nn.MaxPool2d(2, 2)
        self.relu = nn.ReLU()
        self.drop2d = nn.Dropout2d(dropout) if dropout else nn.Identity()
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc1 = nn.Linear(16 * 5 * 5, 120)
        self.fc2 = nn.Linear(120, 84)
        self.fc3 = nn.Linear(84, num_classes)

    def forward(self, x: Any) -> Tensor:
        """Logits (N, num_classes)."""
        x = self.drop2d(self.pool(self.relu(self.bn1(self.conv1(x)))))
        x = self.drop2d(self.pool(self.relu(self.bn2(self.conv2(x)))))
        x = x.view(-1, 16 * 5 * 5)
        x = self.drop(self.relu(self.fc1(x)))
        x = self.drop(self.relu(self.fc2(x)))
        return self.fc3(x)  # type: ignore[no-any-return]


class CNN(nn.Sequential):
    """A network of 3x3 convolutions with batch normalisation, for images of 8x8 pixels or more.

    Two blocks of two convolutions, max pooling and channel dropout, then a linear layer on the
    features of every position.

    Parameters
    ----------
    num_classes : int
    in_channels : int
    image_size : int or (int, int)
        Height and width.
    width : int
        Channels of the first block; the second has twice as many.
    dropout : float
        Probability of the channel dropout after each block.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 3,
        image_size: int | tuple[int, int] = 32,
        width: int = 32,
        dropout: float = 0.3,
    ) -> None:
        layers: list[nn.Module] = []
        for before, after in ((in_channels, width), (width, 2 * width)):
            layers += [*_conv(before, after), *_conv(after, after), nn.MaxPool2d(2)]
            layers += [nn.Dropout2d(dropout)]
        height, length = (image_size, image_size) if isinstance(image_size, int) else image_size
        features = 2 * width * (height // 4) * (length // 4)
        super().__init__(*layers, nn.Flatten(), nn.Linear(features, num_classes))


def _conv(before: int, after: int) -> list[nn.Module]:
    return [
        nn.Conv2d(before, after, 3, padding=1, bias=False),
        nn.BatchNorm2d(after),
        nn.ReLU(),
    ]
