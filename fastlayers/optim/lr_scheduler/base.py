"""The base of the schedulers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, ClassVar

from fastlayers.optim import checks
from fastlayers.optim.optimizer import Group, Optimizer

__all__ = ["LRScheduler"]


class LRScheduler:
    """Base of the schedulers: sets every group's learning rate by the number of steps so far.

    Parameters
    ----------
    optimizer
        Its groups' "lr" is the base of the schedule, and is kept there as "initial_lr".
    last_epoch
        Number of the last step, to resume; -1 starts anew. The schedule goes on with the next
        number at once, and the groups must have their "initial_lr".

    Raises
    ------
    TypeError
        If `optimizer` is none.
    ValueError
        If `last_epoch` is not an integer >= -1.
    KeyError
        If a resumed group lacks an option that the schedule starts from.
    """

    # Options of a group that a resumed schedule builds on.
    _group_names: ClassVar[tuple[str, ...]] = ("initial_lr",)

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self._check_arguments(optimizer, last_epoch)
        for group in optimizer.param_groups if last_epoch != -1 else []:
            if missing := [name for name in self._group_names if name not in group]:
                raise KeyError(
                    f"{self._op}: with last_epoch {last_epoch}, every param group must have "
                    f"{list(self._group_names)}, got none of {missing}"
                )
        self.optimizer = optimizer
        self.base_lrs: list[float] = [
            group["initial_lr" if "initial_lr" in group else "lr"]
            for group in optimizer.param_groups
        ]
        self.last_epoch = last_epoch
        self.step()
        for group, base_lr in zip(optimizer.param_groups, self.base_lrs, strict=True):
            group.setdefault("initial_lr", base_lr)

    @property
    def _op(self) -> str:
        return type(self).__name__

    def step(self) -> None:
        """Go on to the next learning rates; call it after the optimiser's step."""
        epoch, groups = self.last_epoch + 1, self.optimizer.param_groups
        if len(groups) != len(self.base_lrs):
            raise ValueError(
                f"{self._op}: optimizer must have the {len(self.base_lrs)} param groups that it "
                f"was given with, got {len(groups)}"
            )
        pairs = zip(self.base_lrs, groups, strict=True)
        options = [self._options(epoch, base_lr, group) for base_lr, group in pairs]
        for group, new in zip(groups, options, strict=True):
            group.update(new)
        self.last_epoch = epoch
        self._last_lr = [group["lr"] for group in groups]

    def get_last_lr(self) -> list[float]:
        """Learning rate of each group, as of the last step."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Copy of all attributes but the optimiser."""
        return copy.deepcopy({k: v for k, v in vars(self).items() if k != "optimizer"})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over the attributes; the optimiser's own state has its learning rates.

        Raises
        ------
        ValueError
            If it is not the state of such a scheduler for as many groups.
        """
        expected = vars(self).keys() - {"optimizer"}
        if set(state_dict) != expected:
            raise ValueError(
                f"{self._op}: state_dict must have {sorted(expected)}, got {sorted(state_dict)}"
            )
        given = len(state_dict["base_lrs"])
        if given != len(self.base_lrs):
            raise ValueError(
                f"{self._op}: state_dict must have {len(self.base_lrs)} base_lrs, got {given}"
            )
        vars(self).update(copy.deepcopy(dict(state_dict)))

    def _options(self, epoch: int, base_lr: float, group: Group) -> dict[str, Any]:
        """Options of a group from step number `epoch` on."""
        return {"lr": self._lr(epoch, base_lr)}

    def _lr(self, epoch: int, base_lr: float) -> float:
        raise NotImplementedError(f"{self._op}: a scheduler must define _lr or _options, got none")

    def _check_arguments(self, optimizer: Any, last_epoch: Any) -> None:
        checks.whole_number(self._op, "last_epoch", last_epoch, minimum=-1)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{self._op}: optimizer must be an Optimizer, got {type(optimizer).__name__}"
            )
