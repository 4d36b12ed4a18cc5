"""Learning rates that change from step to step.

Every value is a closed form of the number of steps: a change that is made by hand to a
scheduled option lasts until the scheduler's next step.
"""

from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.lr_scheduler.decay import CosineAnnealingLR, MultiStepLR, StepLR
from fastlayers.optim.lr_scheduler.one_cycle import OneCycleLR

__all__ = ["CosineAnnealingLR", "LRScheduler", "MultiStepLR", "OneCycleLR", "StepLR"]
