"""The one-cycle schedule."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

from fastlayers.ops.check import one_of
from fastlayers.optim import checks
from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.optimizer import Group, Optimizer

__all__ = ["OneCycleLR"]


class OneCycleLR(LRScheduler):
    """Learning rate up from ``max_lr / div_factor`` to `max_lr`, then down to almost zero.

    The rise takes the fraction `pct_start` of all steps, and the final rate is the initial one
    divided by `final_div_factor`; with `three_phase`, the fall back to the initial rate takes as
    long as the rise, and the rest is a third phase. Momentum, or Adam's beta1, goes the opposite
    way between `max_momentum` and `base_momentum`. From a to b, `anneal_strategy` "cos" gives ``b +
    (a - b) * (1 + cos(pi * part)) / 2`` and "linear" ``a + (b - a) * part``. The rates depend on
    the number of the step alone: this schedule overwrites rates set by others, or by hand.

    Raises
    ------
    ValueError
        If a number is out of range, `total_steps` is given neither directly nor by `epochs` and
        `steps_per_epoch`, the optimiser has no momentum to cycle, or, in `step`, if there were more
        than `total_steps` steps.

    References
    ----------
    Smith, Topin, "Super-convergence: Very fast training of neural networks using large learning
    rates", arXiv:1708.07120.
    """

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
        one_of(self._op, "anneal_strategy", anneal_strategy, ("cos", "linear"))
        self.total_steps = self._total(total_steps, epochs, steps_per_epoch)
        self._anneal_func_type = anneal_strategy
        self._schedule_phases = self._phases(pct_start, three_phase)
        self.cycle_momentum = cycle_momentum
        limits = {"max_lr": max_lr}
        if cycle_momentum:
            self.use_beta1 = self._momentum_option(optimizer) == "betas"
            limits |= {"base_momentum": base_momentum, "max_momentum": max_momentum}
        starts = self._starts(limits, div_factor, final_div_factor, len(optimizer.param_groups))
        if last_epoch == -1:
            for group, start in zip(optimizer.param_groups, starts, strict=True):
                group.update(start)
        super().__init__(optimizer, last_epoch)

    @property
    def _group_names(self) -> tuple[str, ...]:
        momenta = ("base_momentum", "max_momentum") if self.cycle_momentum else ()
        return ("initial_lr", "max_lr", "min_lr", *momenta)

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

    def _phases(self, pct_start: float, three_phase: bool) -> list[dict[str, Any]]:
        """Each phase's last step, and the options of a group that it begins and ends with."""
        checks.fraction(self._op, "pct_start", pct_start)
        rise = float(pct_start * self.total_steps) - 1
        back = float(2 * pct_start * self.total_steps) - 2
        last = self.total_steps - 1
        if three_phase:
            rows = [
                (rise, "initial_lr", "max_lr", "max_momentum", "base_momentum"),
                (back, "max_lr", "initial_lr", "base_momentum", "max_momentum"),
                (last, "initial_lr", "min_lr", "max_momentum", "max_momentum"),
            ]
        else:
            rows = [
                (rise, "initial_lr", "max_lr", "max_momentum", "base_momentum"),
                (last, "max_lr", "min_lr", "base_momentum", "max_momentum"),
            ]
        names = ("end_step", "start_lr", "end_lr", "start_momentum", "end_momentum")
        return [dict(zip(names, row, strict=True)) for row in rows]

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
            values = self._per_group(name, limit, count)
            for start, value in zip(starts, values, strict=True):
                checks.number(self._op, name, value)
                start[name] = value
        for start in starts:
            start["initial_lr"] = start["max_lr"] / div_factor
            start["min_lr"] = start["initial_lr"] / final_div_factor
        return starts

    def get_lr(self) -> list[float]:
        """The rates of step number `last_epoch`; with `cycle_momentum` it sets the momentum too."""
        if self.last_epoch > self.total_steps:
            raise ValueError(
                f"{self._op}: step must be called at most total_steps = {self.total_steps} times, "
                f"got call {self.last_epoch}"
            )
        groups = [group for group, _ in self._with_base_lrs()]
        phase, part = self._place()
        for group in groups if self.cycle_momentum else []:
            momentum = self._between(group, phase["start_momentum"], phase["end_momentum"], part)
            if self.use_beta1:
                group["betas"] = (momentum, *group["betas"][1:])
            else:
                group["momentum"] = momentum
        return [self._between(group, phase["start_lr"], phase["end_lr"], part) for group in groups]

    def _place(self) -> tuple[dict[str, Any], float]:
        """The phase of step number `last_epoch`, and the completed fraction of it."""
        start, phases = 0.0, self._schedule_phases
        while len(phases) > 1 and self.last_epoch > phases[0]["end_step"]:
            start, phases = phases[0]["end_step"], phases[1:]
        length = phases[0]["end_step"] - start
        # A phase without length is over at once.
        return phases[0], (self.last_epoch - start) / length if length else 1.0

    def _between(self, group: Group, first: str, last: str, part: float) -> float:
        start: float = group[first]
        end: float = group[last]
        if self._anneal_func_type == "linear":
            return (end - start) * part + start
        return end + (start - end) / 2.0 * (math.cos(math.pi * part) + 1)
