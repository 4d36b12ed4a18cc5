"""Residual networks (He et al., 2015, https://arxiv.org/abs/1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastlayers import nn
from fastlayers.autograd import Tensor

__all__ = ["ResNet", "resnet18", "resnet20"]


class _Block(nn.Module):
    """Two 3x3 convolutions, with the input added before the last activation."""

    def __init__(self, before: int, after: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(after)
        self.conv2 = nn.Conv2d(after, after, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(after)
        self.relu = nn.ReLU()
        self.downsample: nn.Module | None = None
        if stride != 1 or before != after:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, after, 1, stride, bias=False), nn.BatchNorm2d(after)
            )

    def forward(self, x: Any) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(out + shortcut)  # type: ignore[no-any-return]


class ResNet(nn.Module):
    """Stages of residual blocks, all but the first halving the image, then a mean and a linear
    layer.

    Parameters
    ----------
    blocks : sequence of int
        Blocks of each stage.
    widths : sequence of int
        Channels of each stage.
    num_classes, in_channels : int
    large_images : bool
        Start with a 7x7 convolution of stride 2 and a max pooling, for images of 224x224 pixels,
        instead of a 3x3 convolution.
    """

    def __init__(
        self,
        blocks: Sequence[int],
        widths: Sequence[int],
        num_classes: int,
        in_channels: int = 3,
        large_images: bool = False,
    ) -> None:
        super().__init__()
        kernel, stride, padding = (7, 2, 3) if large_images else (3, 1, 1)
        self.conv1 = nn.Conv2d(in_channels, widths[0], kernel, stride, padding, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1) if large_images else nn.Identity()
        before = widths[0]
        stages = []
        for i, (count, width) in enumerate(zip(blocks, widths, strict=True)):
            strides = [1 if i == 0 else 2] + [1] * (count - 1)
            sizes = [before] + [width] * (count - 1)
            pairs = zip(sizes, strides, strict=True)
            stages.append(nn.Sequential(*(_Block(size, width, s) for size, s in pairs)))
            before = width
        self.layers = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(before, num_classes)

    def forward(self, x: Any) -> Tensor:
        """Logits (N, num_classes)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.fc(self.avgpool(self.layers(x)).flatten(1))  # type: ignore[no-any-return]


def resnet18(num_classes: int = 1000, in_channels: int = 3) -> ResNet:
    """ResNet-18 for images of 224x224 pixels."""
    return ResNet((2, 2, 2, 2), (64, 128, 256, 512), num_classes, in_channels, large_images=True)


def resnet20(num_classes: int = 10, in_channels: int = 3) -> ResNet:
    """ResNet-20 for images of 32x32 pixels."""
    return ResNet((3, 3, 3), (16, 32, 64), num_classes, in_channels)
