"""Changes of images before training, by torchvision's names.

They take arrays (H, W, C) or (H, W), images of PIL, which become such arrays, and Tensors
(C, H, W). Random numbers come from the generator of `fastlayers.manual_seed`, which each worker of
a loader has its own of.
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
