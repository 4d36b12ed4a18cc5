"""Learning rates that change from step to step, with PyTorch's values.

Most schedules continue from the groups' current rates, so several of them can work on one
optimiser, and a rate set by hand is where they continue from.
"""

from typing import Any

from fastlayers.names import absent
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


def __getattr__(name: str) -> Any:
    raise absent("optim.lr_scheduler", name, __all__)
