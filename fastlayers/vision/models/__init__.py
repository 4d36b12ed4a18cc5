"""Well-known networks, built from `fastlayers.nn`."""

from fastlayers.vision.models.cnn import CNN, CifarCNN
from fastlayers.vision.models.mlp import MLP
from fastlayers.vision.models.resnet import ResNet, resnet18, resnet20
from fastlayers.vision.models.vgg import VGG, vgg16, vgg_small

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
