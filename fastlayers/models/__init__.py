"""The former name of `fastlayers.vision.models`, kept for one version."""

from fastlayers.vision.models import (
    CNN,
    MLP,
    VGG,
    CifarCNN,
    ResNet,
    resnet18,
    resnet20,
    vgg16,
    vgg_small,
)

__all__ = [
    "CNN",
    "MLP",
    "VGG",
    "CifarCNN",
    "ResNet",
    "resnet18",
    "resnet20",
    "vgg16",
    "vgg_small",
]
