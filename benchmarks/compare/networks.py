"""Networks of the comparisons that `fastlayers.vision.models` lacks, from any library's layers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["networks"]


def networks(library: Any) -> dict[str, Callable[..., Any]]:
    """Factories by name, of `nn` and `cat` of a library: fastlayers or torch."""
    nn, cat = library.nn, library.cat

    def normed(
        before: int, after: int, kernel: int, stride: int = 1, groups: int = 1, act: Any = nn.ReLU
    ) -> list[Any]:
        """A convolution, batch norm and an activation."""
        options = {"padding": kernel // 2, "groups": groups, "bias": False}
        convolution = nn.Conv2d(before, after, kernel, stride, **options)
        return [convolution, nn.BatchNorm2d(after), *([act()] if act else [])]

    def mobile(num_classes: int = 10) -> Any:
        """MobileNet's blocks for images of 3x32x32: Howard et al., https://arxiv.org/abs/1704.04861."""
        layers, before = [*normed(3, 32, 3)], 32
        for channels, stride in (
            (64, 1),
            (128, 2),
            (128, 1),
            (256, 2),
            (256, 1),
            (512, 2),
            (512, 1),
        ):
            layers += [*normed(before, before, 3, stride, before), *normed(before, channels, 1)]
            before = channels
        pooled = [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_classes)]
        return nn.Sequential(*layers, *pooled)

    class Inverted(nn.Module):
        """MobileNetV2's block: wider, depthwise, narrower, and the input added."""

        def __init__(self, before: int, after: int, stride: int, factor: int) -> None:
            super().__init__()
            wide, act = before * factor, nn.ReLU6
            first = normed(before, wide, 1, act=act) if factor > 1 else []
            middle = normed(wide, wide, 3, stride, wide, act)
            self.layers = nn.Sequential(*first, *middle, *normed(wide, after, 1, act=None))
            self.adds = stride == 1 and before == after

        def forward(self, x: Any) -> Any:
            return x + self.layers(x) if self.adds else self.layers(x)

    def mobilenet_v2(num_classes: int = 1000) -> Any:
        """MobileNetV2 at width 1, 3.5 million parameters: Sandler et al., https://arxiv.org/abs/1801.04381."""
        layers, before = normed(3, 32, 3, 2, act=nn.ReLU6), 32
        # Factor, channels, blocks and stride of each stage.
        for factor, channels, count, stride in (
            (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
            (6, 160, 3, 2), (6, 320, 1, 1),
        ):  # fmt: skip
            for i in range(count):
                layers.append(Inverted(before, channels, 1 if i else stride, factor))
                before = channels
        layers += [*normed(before, 1280, 1, act=nn.ReLU6), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Dropout(0.2), nn.Linear(1280, num_classes))

    class Dense(nn.Module):
        """DenseNet's layer, which gives its input with `growth` channels more."""

        def __init__(self, before: int, growth: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.BatchNorm2d(before),
                nn.ReLU(),
                *normed(before, 4 * growth, 1),
                nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
            )

        def forward(self, x: Any) -> Any:
            return cat([x, self.layers(x)], 1)

    def densenet121(num_classes: int = 10, growth: int = 32) -> Any:
        """DenseNet-121 for images of 3x32x32: Huang et al., https://arxiv.org/abs/1608.06993."""
        before = 2 * growth
        layers = [nn.Conv2d(3, before, 3, padding=1, bias=False)]
        for stage, count in enumerate((6, 12, 24, 16)):
            if stage:
                layers += [nn.BatchNorm2d(before), nn.ReLU()]
                layers += [nn.Conv2d(before, before // 2, 1, bias=False), nn.AvgPool2d(2)]
                before //= 2
            layers += [Dense(before + i * growth, growth) for i in range(count)]
            before += count * growth
        layers += [nn.BatchNorm2d(before), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return nn.Sequential(*layers, nn.Linear(before, num_classes))

    class UNet(nn.Module):
        """A U-Net of four levels: Ronneberger et al., https://arxiv.org/abs/1505.04597."""

        def __init__(
            self, num_classes: int = 10, widths: tuple[int, ...] = (16, 32, 64, 128)
        ) -> None:
            super().__init__()
            befores, below = (3, *widths[:-1]), widths[:0:-1]

            def twice(before: int, after: int) -> Any:
                return nn.Sequential(*normed(before, after, 3), *normed(after, after, 3))

            self.down = nn.ModuleList([twice(*pair) for pair in zip(befores, widths, strict=True)])
            self.pool = nn.MaxPool2d(2)
            self.up = nn.ModuleList([nn.ConvTranspose2d(c, c // 2, 2, 2) for c in below])
            self.merge = nn.ModuleList([twice(c, c // 2) for c in below])
            self.head = nn.Conv2d(widths[0], num_classes, 1)

        def forward(self, x: Any) -> Any:
            skips = []
            for i, level in enumerate(self.down):
                x = level(self.pool(x) if i else x)
                skips.append(x)
            for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
                x = merge(cat([skip, up(x)], 1))
            return self.head(x)

    class Residual1d(nn.Module):
        """A basic block of a ResNet over sequences."""

        def __init__(self, before: int, after: int, stride: int) -> None:
            super().__init__()
            self.layers = nn.Sequential(
                nn.Conv1d(before, after, 3, stride, padding=1, bias=False),
                nn.BatchNorm1d(after),
                nn.ReLU(),
                nn.Conv1d(after, after, 3, padding=1, bias=False),
                nn.BatchNorm1d(after),
            )
            same = stride == 1 and before == after
            shortcut = nn.Conv1d(before, after, 1, stride, bias=False)
            self.shortcut = (
                nn.Identity() if same else nn.Sequential(shortcut, nn.BatchNorm1d(after))
            )
            self.relu = nn.ReLU()

        def forward(self, x: Any) -> Any:
            return self.relu(self.layers(x) + self.shortcut(x))

    def resnet1d(num_classes: int = 10, channels: int = 8) -> Any:
        """A ResNet of 18 layers over sequences: Wang et al., https://arxiv.org/abs/1611.06455."""
        layers = [nn.Conv1d(channels, 32, 7, 2, padding=3, bias=False), nn.BatchNorm1d(32)]
        layers += [nn.ReLU(), nn.MaxPool1d(3, 2, 1)]
        before = 32
        for stage, width in enumerate((32, 64, 128, 256)):
            layers += [Residual1d(before, width, 2 if stage else 1), Residual1d(width, width, 1)]
            before = width
        return nn.Sequential(
            *layers, nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(before, num_classes)
        )

    return {
        "mobile": mobile,
        "mobilenet_v2": mobilenet_v2,
        "densenet121": densenet121,
        "unet": UNet,
        "resnet1d": resnet1d,
    }
