"""Schedules that lower the learning rate by factors or along a cosine."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fastlayers.optim import checks
from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.optimizer import Optimizer

__all__ = ["CosineAnnealingLR", "ExponentialLR", "MultiStepLR", "StepLR"]


class StepLR(LRScheduler):
    """``lr *= gamma`` every `step_size` steps, so ``base_lr * gamma^floor(epoch / step_size)``.

    Raises
    ------
    ValueError
        If `step_size` is not a positive integer or `gamma` not a finite number >= 0.
    """

    def __init__(
        self, optimizer: Optimizer, step_size: int, gamma: float = 0.1, last_epoch: int = -1
    ) -> None:
        checks.whole_number(self._op, "step_size", step_size)
        checks.number(self._op, "gamma", gamma)
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The current rates, lowered at a multiple of `step_size` above 0."""
        if self.last_epoch == 0 or self.last_epoch % self.step_size:
            return self._rates()
        return [lr * self.gamma for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        power = self.last_epoch // self.step_size
        return [base_lr * self.gamma**power for base_lr in self.base_lrs]


class MultiStepLR(LRScheduler):
    """``lr *= gamma`` at each of the `milestones`; one given twice counts twice.

    Raises
    ------
    ValueError
        If a milestone is not an integer >= 0 or `gamma` not a finite number >= 0.
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

    def get_lr(self) -> list[float]:
        """The current rates, lowered at a milestone."""
        if count := self.milestones.count(self.last_epoch):
            return [lr * self.gamma**count for lr in self._rates()]
        return self._rates()

    def _get_closed_form_lr(self) -> list[float]:
        power = bisect_right(self.milestones, self.last_epoch)
        return [base_lr * self.gamma**power for base_lr in self.base_lrs]

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the attributes; PyTorch's state counts each milestone in a mapping."""
        milestones = state_dict.get("milestones")
        if isinstance(milestones, Mapping):
            state_dict = {**state_dict, "milestones": sorted(Counter(milestones).elements())}
        super().load_state_dict(state_dict)


class ExponentialLR(LRScheduler):
    """``lr *= gamma`` every step, so ``base_lr * gamma^epoch``.

    Raises
    ------
    ValueError
        If `gamma` is not a finite number >= 0.
    """

    def __init__(self, optimizer: Optimizer, gamma: float, last_epoch: int = -1) -> None:
        checks.number(self._op, "gamma", gamma)
        self.gamma = gamma
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The current rates, lowered at every step except the constructor's."""
        rates = self._rates()
        return rates if self._is_initial else [lr * self.gamma for lr in rates]

    def _get_closed_form_lr(self) -> list[float]:
        return [base_lr * self.gamma**self.last_epoch for base_lr in self.base_lrs]


class CosineAnnealingLR(LRScheduler):
    """``lr = eta_min + (base_lr - eta_min) * (1 + cos(pi * epoch / T_max)) / 2``, by recurrence.

    With ``c(t) = 1 + cos(pi * t / T_max)``, step t does
    ``lr = eta_min + (lr - eta_min) * c(t) / c(t - 1)``.

    Raises
    ------
    ValueError
        If `T_max` is not a positive integer or `eta_min` not a finite number >= 0.

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

    def get_lr(self) -> list[float]:
        """The current rates, moved along the cosine."""
        t, low = self.last_epoch, self.eta_min
        if self._is_initial:
            return self._rates()
        if (t - 1 - self.T_max) % (2 * self.T_max) == 0:  # c(t - 1) is 0
            rise = 1 - math.cos(math.pi / self.T_max)
            return [g["lr"] + (base_lr - low) * rise / 2 for g, base_lr in self._with_base_lrs()]
        factor = self._height(t) / self._height(t - 1)
        return [factor * (lr - low) + low for lr in self._rates()]

    def _height(self, t: int) -> float:
        return 1 + math.cos(math.pi * t / self.T_max)

    def _get_closed_form_lr(self) -> list[float]:
        low, height = self.eta_min, self._height(self.last_epoch)
        return [low + (base_lr - low) * height / 2 for base_lr in self.base_lrs]
