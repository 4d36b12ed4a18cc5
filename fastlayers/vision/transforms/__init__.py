"""Image transforms before training, with torchvision's names.

They take arrays (H, W, C) or (H, W), PIL images, which become such arrays, and Tensors (C, H, W).
Random numbers come from the generator of `fastlayers.manual_seed`; each worker of a loader has its
own.
"""

from fastlayers.vision.transforms.compose import Compose, RandomApply, RandomChoice, RandomOrder
from fastlayers.vision.transforms.convert import (
    ConvertImageDtype,
    Lambda,
    Normalize,
    PILToTensor,
    ToTensor,
)
from fastlayers.vision.transforms.geometry import (
    CenterCrop,
    Pad,
    RandomCrop,
    RandomHorizontalFlip,
    RandomVerticalFlip,
)

__all__ = [
    "CenterCrop",
    "Compose",
    "ConvertImageDtype",
    "Lambda",
    "Normalize",
    "PILToTensor",
    "Pad",
    "RandomApply",
    "RandomChoice",
    "RandomCrop",
    "RandomHorizontalFlip",
    "RandomOrder",
    "RandomVerticalFlip",
    "ToTensor",
]
