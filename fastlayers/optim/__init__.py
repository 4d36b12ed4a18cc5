"""Optimisers and learning rate schedules, with PyTorch's interface and values."""

from fastlayers.optim import lr_scheduler
from fastlayers.optim.adadelta import Adadelta
from fastlayers.optim.adam import Adam, AdamW
from fastlayers.optim.lr_scheduler import (
    CosineAnnealingLR,
    LRScheduler,
    MultiStepLR,
    OneCycleLR,
    StepLR,
)
from fastlayers.optim.optimizer import Optimizer
from fastlayers.optim.sgd import SGD

__all__ = [
    "SGD",
    "Adadelta",
    "Adam",
    "AdamW",
    "CosineAnnealingLR",
    "LRScheduler",
    "MultiStepLR",
    "OneCycleLR",
    "Optimizer",
    "StepLR",
    "lr_scheduler",
]
