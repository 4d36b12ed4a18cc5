"""Optimisers and learning rate schedules, with PyTorch's interface and values."""

from typing import Any

from fastlayers.names import absent
from fastlayers.optim import lr_scheduler
from fastlayers.optim.adadelta import Adadelta
from fastlayers.optim.adam import Adam, AdamW
from fastlayers.optim.lr_scheduler import (
    ConstantLR,
    CosineAnnealingLR,
    ExponentialLR,
    LambdaLR,
    LinearLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
    StepLR,
)
from fastlayers.optim.optimizer import Optimizer
from fastlayers.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adam",
    "AdamW",
    "ConstantLR",
    "CosineAnnealingLR",
    "ExponentialLR",
    "LRScheduler",
    "LambdaLR",
    "LinearLR",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "ReduceLROnPlateau",
    "SequentialLR",
    "StepLR",
    "lr_scheduler",
]


def __getattr__(name: str) -> Any:
    raise absent("optim", name, __all__)
