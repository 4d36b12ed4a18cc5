"""Learning rates that change from step to step, with PyTorch's values.

Most schedules go on from the groups' present rates, so several of them can work on one optimiser,
and a rate set by hand is lowered from there.
"""

from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.lr_scheduler.decay import (
    CosineAnnealingLR,
    ExponentialLR,
    MultiStepLR,
    StepLR,
)
from fastlayers.optim.lr_scheduler.factor import ConstantLR, LambdaLR, LinearLR
from fastlayers.optim.lr_scheduler.one_cycle import OneCycleLR
from fastlayers.optim.lr_scheduler.plateau import ReduceLROnPlateau
from fastlayers.optim.lr_scheduler.sequential import SequentialLR

__all__ = [
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
]
