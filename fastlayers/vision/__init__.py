"""Images: datasets, transforms and networks, with torchvision's names."""

from fastlayers.vision import datasets, models, transforms

__all__ = ["datasets", "models", "transforms"]
