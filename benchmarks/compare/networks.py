"""Networks of the comparisons that `fastlayers.vision.models` lacks, from any library's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["networks"]

# Channels and stride of each block of `mobile`, and layers of each stage of `densenet121`.
_BLOCKS = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1))
_STAGES = (6, 12, 24, 16)


def networks(library: Any) -> dict[str, Callable[[], Any]]:
    """Factories by name, from `nn` and `cat` of a library: fastlayers or torch."""
    return {
        "mobile": lambda: _mobile(library.nn),
        "densenet121": lambda: _densenet121(library.nn, library.cat),
    }


def _mobile(nn: Any) -> Any:
    """MobileNet's blocks for images of 3x32x32.

    References
    ----------
    Howard et al., 2017, https://arxiv.org/abs/1704.04861
    """
    layers, before = [*_normed(nn, 3, 32, 3)], 32
    for channels, stride in _BLOCKS:
        layers += _normed(nn, before, before, 3, stride, before)
        layers += _normed(nn, before, channels, 1)
        before = channels
    return nn.Sequential(*layers, *_head(nn, before))


def _densenet121(nn: Any, cat: Callable[[list[Any], int], Any]) -> Any:
    """DenseNet-121 for images of 3x32x32.

    References
    ----------
    Huang et al., 2017, https://arxiv.org/abs/1608.06993
    """
    growth = 32

    class Dense(nn.Module):
        """A layer that gives its input with `growth` channels more."""

        def __init__(self, before: int) -> None:
            super().__init__()
            last = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)
            first = nn.BatchNorm2d(before), nn.ReLU()
            self.layers = nn.Sequential(*first, *_normed(nn, before, 4 * growth, 1), last)

        def forward(self, x: Any) -> Any:
            return cat([x, self.layers(x)], 1)

    before = 2 * growth
    layers = [nn.Conv2d(3, before, 3, padding=1, bias=False)]
    for stage, count in enumerate(_STAGES):
        if stage:
            between = nn.Conv2d(before, before // 2, 1, bias=False)
            layers += [nn.BatchNorm2d(before), nn.ReLU(), between, nn.AvgPool2d(2)]
            before //= 2
        layers += [Dense(before + i * growth) for i in range(count)]
        before += count * growth
    return nn.Sequential(*layers, nn.BatchNorm2d(before), nn.ReLU(), *_head(nn, before))


def _normed(
    nn: Any, before: int, after: int, kernel: int, stride: int = 1, groups: int = 1
) -> list[Any]:
    """A convolution, batch norm and ReLU."""
    options = {"padding": kernel // 2, "groups": groups, "bias": False}
    convolution = nn.Conv2d(before, after, kernel, stride, **options)
    return [convolution, nn.BatchNorm2d(after), nn.ReLU()]


def _head(nn: Any, channels: int) -> list[Any]:
    """Mean of the pixels, and logits of ten classes."""
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 10)]
