"""Schedules that multiply the learning rate by a factor that is temporary, moves or is computed."""

from __future__ import annotations

import types
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastlayers.optim import checks
from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.optimizer import Optimizer

__all__ = ["ConstantLR", "LambdaLR", "LinearLR"]

Lambda = Callable[[int], float]


class ConstantLR(LRScheduler):
    """``lr *= factor`` at first, and divided by it again at step number `total_iters`.

    Raises
    ------
    ValueError
        If `factor` is not a number in [0, 1], or `total_iters` not an integer >= 0.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        factor: float = 1.0 / 3,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        checks.fraction(self._op, "factor", factor)
        checks.whole_number(self._op, "total_iters", total_iters, minimum=0)
        self.factor, self.total_iters = factor, total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The current rates, lowered at step 0 and raised again at `total_iters`."""
        if self.last_epoch == 0:
            return [lr * self.factor for lr in self._rates()]
        if self.last_epoch != self.total_iters:
            return self._rates()
        return [lr * (1.0 / self.factor) for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        over = self.last_epoch >= self.total_iters
        return [base_lr * (self.factor + over * (1 - self.factor)) for base_lr in self.base_lrs]


class LinearLR(LRScheduler):
    """``lr`` times a factor that moves from `start_factor` to `end_factor` in `total_iters` steps.

    Raises
    ------
    ValueError
        If a factor is not a number in [0, 1], `start_factor` is 0, or `total_iters` not a positive
        integer.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        start_factor: float = 1.0 / 3,
        end_factor: float = 1.0,
        total_iters: int = 5,
        last_epoch: int = -1,
    ) -> None:
        checks.fraction(self._op, "start_factor", start_factor)
        if start_factor == 0:
            raise ValueError(f"{self._op}: start_factor must be > 0, got {start_factor!r}")
        checks.fraction(self._op, "end_factor", end_factor)
        checks.whole_number(self._op, "total_iters", total_iters)
        self.start_factor, self.end_factor = start_factor, end_factor
        self.total_iters = total_iters
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The current rates, times the ratio of two steps' factors."""
        if self.last_epoch == 0:
            return [lr * self.start_factor for lr in self._rates()]
        if self._is_initial or self.last_epoch > self.total_iters:
            return self._rates()
        rise = self.end_factor - self.start_factor
        before = self.total_iters * self.start_factor + (self.last_epoch - 1) * rise
        return [lr * (1.0 + rise / before) for lr in self._rates()]

    def _get_closed_form_lr(self) -> list[float]:
        rise, step = self.end_factor - self.start_factor, min(self.total_iters, self.last_epoch)
        factor = self.start_factor + rise * step / self.total_iters
        return [base_lr * factor for base_lr in self.base_lrs]


class LambdaLR(LRScheduler):
    """``lr = base_lr * lr_lambda(epoch)``, with a function for all groups or one for each.

    The state holds the attributes of callable objects, but not functions: pass those again.

    Raises
    ------
    ValueError
        If the number of functions differs from that of groups.
    """

    def __init__(
        self, optimizer: Optimizer, lr_lambda: Lambda | Sequence[Lambda], last_epoch: int = -1
    ) -> None:
        self._check_arguments(optimizer, last_epoch)
        self.lr_lambdas: list[Any] = self._per_group(
            "lr_lambda", lr_lambda, len(optimizer.param_groups)
        )
        super().__init__(optimizer, last_epoch)

    def get_lr(self) -> list[float]:
        """The base rates, each times its function of the number of the step."""
        pairs = zip(self._with_base_lrs(), self.lr_lambdas, strict=True)
        return [base_lr * function(self.last_epoch) for (_, base_lr), function in pairs]

    def state_dict(self) -> dict[str, Any]:
        """Copy of all attributes except the optimiser and functions."""
        functions, state = self.lr_lambdas, vars(self).copy()
        state["lr_lambdas"] = [
            None if isinstance(f, types.FunctionType) else vars(f).copy() for f in functions
        ]
        return self._copied(state)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the attributes, and those of callable objects."""
        functions = self.lr_lambdas
        super().load_state_dict(state_dict)
        saved, self.lr_lambdas = self.lr_lambdas, functions
        for function, attributes in zip(functions, saved, strict=True):
            if attributes is not None:
                vars(function).update(attributes)

    def _of_groups(self) -> dict[str, list[Any]]:
        return super()._of_groups() | {"lr_lambdas": self.lr_lambdas}
