"""One schedule after the other."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from typing import Any

from fastlayers.optim import checks
from fastlayers.optim.lr_scheduler.base import LRScheduler
from fastlayers.optim.lr_scheduler.plateau import ReduceLROnPlateau
from fastlayers.optim.optimizer import Optimizer

__all__ = ["SequentialLR"]


class SequentialLR(LRScheduler):
    """Schedulers of one optimiser, each from its milestone on; the first from step 0.

    Raises
    ------
    TypeError
        If a scheduler does not compute its rates from the number of steps alone, as is the case for
        `ReduceLROnPlateau` and another `SequentialLR`.
    ValueError
        If a scheduler belongs to another optimiser, or there is not exactly one milestone fewer
        than schedulers.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        schedulers: Sequence[LRScheduler],
        milestones: Sequence[int],
        last_epoch: int = -1,
    ) -> None:
        self._check_arguments(optimizer, last_epoch)
        self._check_schedulers(optimizer, schedulers)
        if len(milestones) != len(schedulers) - 1:
            raise ValueError(
                f"{self._op}: milestones must be one less than {len(schedulers)} schedulers, "
                f"got {len(milestones)}"
            )
        for milestone in milestones:
            checks.whole_number(self._op, "milestones", milestone, minimum=0)
        self.optimizer = optimizer
        self._schedulers, self._milestones = list(schedulers), list(milestones)
        self.last_epoch = last_epoch + 1
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"]
        for scheduler in schedulers:  # undo the step of its constructor
            scheduler.last_epoch -= 1
        first = self._schedulers[bisect_right(self._milestones, 0)]
        first._initial_step()
        self._last_lr = first.get_last_lr()

    def _check_schedulers(self, optimizer: Optimizer, schedulers: Sequence[Any]) -> None:
        for scheduler in schedulers:
            other = isinstance(scheduler, ReduceLROnPlateau | SequentialLR)
            if other or not isinstance(scheduler, LRScheduler):
                raise TypeError(
                    f"{self._op}: schedulers must compute rates from the number of steps, "
                    f"got {type(scheduler).__name__}"
                )
            if scheduler.optimizer is not optimizer:
                raise ValueError(
                    f"{self._op}: schedulers must be of the optimizer, got one of another"
                )

    def step(self) -> None:  # type: ignore[override]
        """Step the scheduler whose turn it is."""
        number = self.last_epoch + 1
        index = bisect_right(self._milestones, number)
        scheduler = self._schedulers[index]
        if index > 0 and self._milestones[index - 1] == number:
            scheduler._update_lr(0)
        else:
            scheduler.step()
        self.last_epoch = number
        self._last_lr = scheduler.get_last_lr()

    def state_dict(self) -> dict[str, Any]:
        """Copy of all attributes except the optimiser; of the schedulers, their states."""
        states = [scheduler.state_dict() for scheduler in self._schedulers]
        return self._copied(vars(self) | {"_schedulers": states})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the attributes, and the states of the schedulers."""
        schedulers = self._schedulers
        super().load_state_dict(state_dict)
        states, self._schedulers = self._schedulers, schedulers
        for scheduler, state in zip(schedulers, states, strict=True):
            scheduler.load_state_dict(state)  # type: ignore[arg-type]

    def _of_groups(self) -> dict[str, list[Any]]:
        return {"_schedulers": self._schedulers, "_milestones": self._milestones}
