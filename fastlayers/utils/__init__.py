"""`fastlayers.data` under PyTorch's name, ``utils.data``."""

from fastlayers.utils import data

__all__ = ["data"]
