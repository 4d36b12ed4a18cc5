"""`DistributedSampler`, where PyTorch has it."""

from fastlayers.data.distributed import DistributedSampler

__all__ = ["DistributedSampler"]
