"""The public names of `fastlayers.data`, where PyTorch has them."""

from fastlayers import data
from fastlayers.data import *  # noqa: F403
from fastlayers.utils.data import distributed

__all__ = [*data.__all__, "distributed"]  # noqa: PLE0604
