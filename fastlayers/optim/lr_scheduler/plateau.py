"""A schedule driven by a measured value."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, SupportsFloat

from fastlayers.ops.check import one_of
from fastlayers.optim import checks
from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.optimizer import Optimizer

__all__ = ["ReduceLROnPlateau"]


class ReduceLROnPlateau(LRScheduler):
    """``lr = max(lr * factor, min_lr)`` when a value has not improved for `patience` steps.

    A value improves on the best one if it is lower (`mode` "min") or higher ("max"), by the
    fraction `threshold` of the best ("rel") or by `threshold` itself ("abs"). For `cooldown` steps
    after a change, steps without improvement are not counted; changes of at most `eps` are not
    made.

    Raises
    ------
    TypeError
        If `optimizer` is not an Optimizer.
    ValueError
        If `factor` is not in [0, 1), another number is out of range, or `mode` or `threshold_mode`
        is unknown.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.optim.lr_scheduler.ReduceLROnPlateau.html
    """

    def __init__(
        self,
        optimizer: Optimizer,
        mode: Literal["min", "max"] = "min",
        factor: float = 0.1,
        patience: int = 10,
        threshold: float = 1e-4,
        threshold_mode: Literal["rel", "abs"] = "rel",
        cooldown: int = 0,
        min_lr: float | Sequence[float] = 0,
        eps: float = 1e-8,
    ) -> None:
        self._check_arguments(optimizer)
        self._check_options(mode, factor, threshold_mode)
        for name, value in {"patience": patience, "cooldown": cooldown}.items():
            checks.whole_number(self._op, name, value, minimum=0)
        for name, number in {"threshold": threshold, "eps": eps}.items():
            checks.number(self._op, name, number)
        self.min_lrs = self._per_group("min_lr", min_lr, len(optimizer.param_groups))
        for number in self.min_lrs:
            checks.number(self._op, "min_lr", number)
        self.optimizer = optimizer
        self.factor, self.patience, self.cooldown, self.eps = factor, patience, cooldown, eps
        self.default_min_lr = None if isinstance(min_lr, list | tuple) else min_lr
        self.mode, self.threshold, self.threshold_mode = mode, threshold, threshold_mode
        self.mode_worse = math.inf if mode == "min" else -math.inf
        self.last_epoch = 0
        self._last_lr = self._rates()
        self.best: float = self.mode_worse
        self.cooldown_counter = self.num_bad_epochs = 0

    def _check_options(self, mode: Any, factor: Any, threshold_mode: Any) -> None:
        checks.fraction(self._op, "factor", factor)
        if factor == 1:
            raise ValueError(f"{self._op}: factor must be < 1, got {factor!r}")
        one_of(self._op, "mode", mode, ("min", "max"))
        one_of(self._op, "threshold_mode", threshold_mode, ("rel", "abs"))

    @property
    def in_cooldown(self) -> bool:
        """Whether steps without improvement are not counted."""
        return self.cooldown_counter > 0

    def step(self, metrics: SupportsFloat, epoch: int | None = None) -> None:  # type: ignore[override]
        """Take the value `metrics`, and lower the rates if it has stopped improving."""
        current = float(metrics)
        if self._is_better(current):
            self.best, self.num_bad_epochs = current, 0
        else:
            self.num_bad_epochs += 1
        if self.in_cooldown:
            self.cooldown_counter -= 1
            self.num_bad_epochs = 0
        if self.num_bad_epochs > self.patience:
            self._reduce_lr()
            self.cooldown_counter, self.num_bad_epochs = self.cooldown, 0
        self.last_epoch = self.last_epoch + 1 if epoch is None else epoch
        self._last_lr = self._rates()

    def _is_better(self, value: float) -> bool:
        sign = -1 if self.mode == "min" else 1
        if self.threshold_mode == "rel":
            return sign * value > sign * self.best * (1.0 + sign * self.threshold)
        return sign * value > sign * (self.best + sign * self.threshold)

    def _reduce_lr(self) -> None:
        groups = self.optimizer.param_groups
        if self.default_min_lr is not None:
            self.min_lrs = [self.default_min_lr] * len(groups)
        limits = self._per_group("min_lr", self.min_lrs, len(groups))
        for group, limit in zip(groups, limits, strict=True):
            lr = max(group["lr"] * self.factor, limit)
            if group["lr"] - lr > self.eps:
                group["lr"] = lr

    def _of_groups(self) -> dict[str, list[Any]]:
        return {"min_lrs": self.min_lrs}
