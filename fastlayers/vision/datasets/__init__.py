"""Image datasets, with torchvision's names."""

from fastlayers.vision.datasets.base import VisionDataset
from fastlayers.vision.datasets.cifar import CIFAR10, CIFAR100
from fastlayers.vision.datasets.fake import FakeData
from fastlayers.vision.datasets.mnist import MNIST, FashionMNIST

__all__ = ["CIFAR10", "CIFAR100", "MNIST", "FakeData", "FashionMNIST", "VisionDataset"]
