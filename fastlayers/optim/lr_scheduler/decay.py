"""Schedules that lower the learning rate by a power or along a cosine."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable

from fastlayers.optim import checks
from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.optimizer import Optimizer

__all__ = ["CosineAnnealingLR", "MultiStepLR", "StepLR"]


class StepLR(LRScheduler):
    """``lr = base_lr * gamma^floor(epoch / step_size)``.

    Raises
    ------
    ValueError
        If `step_size` is no positive integer or `gamma` no finite number >= 0.
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        checks.whole_number(self._op, "step_size", step_size)
        checks.number(self._op, "gamma", gamma)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def _lr(self, epoch: int, base_lr: float) -> float:
        return base_lr * self.gamma ** (epoch // self.step_size)


class MultiStepLR(LRScheduler):
    """``lr = base_lr * gamma^k`` after k of the `milestones`; one given twice counts twice.

    Raises
    ------
    ValueError
        If a milestone is no integer >= 0 or `gamma` no finite number >= 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        milestones: Iterable[int],
        gamma: float = 0.1,
        last_epoch: int = -1,
    ) -> None:
        self.milestones, self.gamma = list(milestones), gamma
        for milestone in self.milestones:
            checks.whole_number(self._op, "milestones", milestone, minimum=0)
        checks.number(self._op, "gamma", gamma)
        self.milestones.sort()
        super().__init__(optimizer, last_epoch)

    def _lr(self, epoch: int, base_lr: float) -> float:
        return base_lr * self.gamma ** bisect_right(self.milestones, epoch)


class CosineAnnealingLR(LRScheduler):
    """``lr = eta_min + (base_lr - eta_min) * (1 + cos(pi * epoch / T_max)) / 2``.

    Raises
    ------
    ValueError
        If `T_max` is no positive integer or `eta_min` no finite number >= 0.

    References
    ----------
    Loshchilov, Hutter, "SGDR: Stochastic gradient descent with warm restarts", ICLR 2017,
    equation 5, here without restarts.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        T_max: int,
        eta_min: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        checks.whole_number(self._op, "T_max", T_max)
        checks.number(self._op, "eta_min", eta_min)
        self.T_max, self.eta_min = T_max, eta_min
        super().__init__(optimizer, last_epoch)

    def _lr(self, epoch: int, base_lr: float) -> float:
        part = (1 + math.cos(math.pi * epoch / self.T_max)) / 2
        return self.eta_min + (base_lr - self.eta_min) * part
