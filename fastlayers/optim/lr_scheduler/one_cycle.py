"""The one-cycle schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from fastlayers.optim import checks
from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.optimizer import Group, Optimizer

__all__ = ["OneCycleLR"]

# The momentum that goes with a learning rate: it is low while the rate is high.
_MOMENTUM = {
    "initial_lr": "max_momentum",
    "max_lr": "base_momentum",
    "min_lr": "max_momentum",
}


class OneCycleLR(LRScheduler):
    """Learning rate up from ``max_lr / div_factor`` to `max_lr`, then down to nearly nothing.

    The rise takes the part `pct_start` of all steps, and the end is the start divided by
    `final_div_factor`; with `three_phase`, the fall to the start takes as long as the rise, and
    the rest is a third phase. Momentum, or Adam's beta1, goes the opposite way between
    `max_momentum` and `base_momentum`. From a to b, `anneal_strategy` "cos" gives
    ``b + (a - b) * (1 + cos(pi * part)) / 2`` and "linear" ``a + (b - a) * part``.

    Raises
    ------
    ValueError
        If a number is out of its range, `total_steps` is given neither directly nor by `epochs`
        and `steps_per_epoch`, the optimiser has no momentum to cycle, or, from `step`, if there
        were more than `total_steps` steps.

    References
    ----------
    Smith, Topin, "Super-convergence: Very fast training of neural networks using large learning
    rates", arXiv:1708.07120.
    """

    _group_names = ("initial_lr", "max_lr", "min_lr", "base_momentum", "max_momentum")

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
    ) -> None:
        self._check_arguments(optimizer, last_epoch)
        for name, value in {"cycle_momentum": cycle_momentum, "three_phase": three_phase}.items():
            checks.flag(self._op, name, value)
        if anneal_strategy not in ("cos", "linear"):
            raise ValueError(
                f"{self._op}: anneal_strategy must be 'cos' or 'linear', got {anneal_strategy!r}"
            )
        self.total_steps = self._total(total_steps, epochs, steps_per_epoch)
        self.anneal_strategy = anneal_strategy
        self.phases = self._phases(pct_start, three_phase)
        self.cycled = self._momentum_option(optimizer) if cycle_momentum else None
        limits = {"max_lr": max_lr, "base_momentum": base_momentum, "max_momentum": max_momentum}
        starts = self._starts(limits, div_factor, final_div_factor, len(optimizer.param_groups))
        if last_epoch == -1:
            for group, start in zip(optimizer.param_groups, starts, strict=True):
                group.update(start)
        super().__init__(optimizer, last_epoch)

    def _total(self, total_steps: int | None, epochs: int | None, per_epoch: int | None) -> int:
        if total_steps is not None:
            checks.whole_number(self._op, "total_steps", total_steps)
            return total_steps
        if epochs is None or per_epoch is None:
            raise ValueError(
                f"{self._op}: total_steps, or epochs and steps_per_epoch, must be given, "
                f"got epochs {epochs} and steps_per_epoch {per_epoch}"
            )
        checks.whole_number(self._op, "epochs", epochs)
        checks.whole_number(self._op, "steps_per_epoch", per_epoch)
        return epochs * per_epoch

    def _phases(self, pct_start: float, three_phase: bool) -> list[tuple[float, str, str]]:
        """Each phase's last step, and the rates that it begins and ends with."""
        if not checks.is_number(pct_start) or pct_start > 1:
            raise ValueError(f"{self._op}: pct_start must be a number in [0, 1], got {pct_start!r}")
        rise, last = pct_start * self.total_steps, self.total_steps - 1
        up = (rise - 1, "initial_lr", "max_lr")
        if three_phase:
            return [up, (2 * rise - 2, "max_lr", "initial_lr"), (last, "initial_lr", "min_lr")]
        return [up, (last, "max_lr", "min_lr")]

    def _momentum_option(self, optimizer: Optimizer) -> str:
        for name in ("betas", "momentum"):
            if name in optimizer.defaults:
                return name
        raise ValueError(
            f"{self._op}: cycle_momentum must have an optimizer with momentum or betas, "
            f"got {type(optimizer).__name__}"
        )

    def _starts(
        self, limits: dict[str, Any], div_factor: float, final_div_factor: float, count: int
    ) -> list[Group]:
        """Options of each group that the schedule moves between."""
        for name, value in {"div_factor": div_factor, "final_div_factor": final_div_factor}.items():
            if not checks.is_number(value) or value == 0:
                raise ValueError(f"{self._op}: {name} must be a finite number > 0, got {value!r}")
        starts: list[Group] = [{} for _ in range(count)]
        for name, limit in limits.items():
            values = list(limit) if isinstance(limit, list | tuple) else [limit] * count
            if len(values) != count:
                raise ValueError(
                    f"{self._op}: {name} must have a value for each of {count} param groups, "
                    f"got {len(values)}"
                )
            for start, value in zip(starts, values, strict=True):
                checks.number(self._op, name, value)
                start[name] = value
        for start in starts:
            start["initial_lr"] = start["max_lr"] / div_factor
            start["min_lr"] = start["initial_lr"] / final_div_factor
        return starts

    def _options(self, epoch: int, base_lr: float, group: Group) -> dict[str, Any]:
        if epoch > self.total_steps:
            raise ValueError(
                f"{self._op}: step must be called at most total_steps = {self.total_steps} times, "
                f"got call {epoch}"
            )
        ends = [end for end, _, _ in self.phases]
        i = next((i for i, end in enumerate(ends) if epoch <= end), len(ends) - 1)
        begin, (end, source, target) = ends[i - 1] if i else 0.0, self.phases[i]
        # A phase without length is over at once.
        part = (epoch - begin) / (end - begin) if end != begin else 1.0
        options: dict[str, Any] = {"lr": self._anneal(group[source], group[target], part)}
        if self.cycled:
            momentum = self._anneal(group[_MOMENTUM[source]], group[_MOMENTUM[target]], part)
            betas = self.cycled == "betas"
            options[self.cycled] = (momentum, group["betas"][1]) if betas else momentum
        return options

    def _anneal(self, start: float, end: float, part: float) -> float:
        if self.anneal_strategy == "linear":
            return start + (end - start) * part
        return end + (start - end) * (1 + math.cos(math.pi * part)) / 2
