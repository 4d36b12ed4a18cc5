"""A small network of depthwise separable convolutions, which `fastlayers.vision.models` lacks."""

from __future__ import annotations

from typing import Any

__all__ = ["mobile"]

# Channels and stride of each block.
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))


def mobile(nn: Any, num_classes: int = 10) -> Any:
    """MobileNet's blocks for images of 3x32x32, of the layers in `nn`: fastlayers' or torch's.

    References
    ----------
    Howard et al., 2017, https://arxiv.org/abs/1704.04861
    """
    layers, before = [*_normed(nn, 3, 32, 3)], 32
    for channels, stride in _BLOCKS:
        layers += _normed(nn, before, before, 3, stride, before)
        layers += _normed(nn, before, channels, 1)
        before = channels
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)
    )


def _normed(
    nn: Any, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[Any]:
    """A convolution, batch norm and ReLU."""
    options = {"padding": kernel // 2, "groups": groups, "bias": False}
    convolution = nn.Conv2d(before, after, kernel, stride, **options)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]
