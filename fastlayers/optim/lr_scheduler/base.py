"""The base of the schedulers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

from fastlayers.optim import checks
from fastlayers.optim.optimizer import Group, Optimizer

__all__ = ["LRScheduler"]

# PyTorch's own bookkeeping, which its states also hold.
_FOREIGN = frozenset({"_get_lr_called_within_step", "_is_initial", "_step_count", "verbose"})


class LRScheduler:
    """Base of the schedulers, which change every group's learning rate at each `step`.

    A subclass defines `get_lr`, which computes the rates of step number `last_epoch`, usually from
    the groups' current rates: several schedulers may then work on one optimiser, and the schedule
    continues from a rate that was set by hand.

    Parameters
    ----------
    optimizer
        Each group's "lr" is stored in the group as "initial_lr", unless an earlier scheduler did
        so.
    last_epoch
        Number of the last step, to resume; -1 starts from 0. With any other number the groups must
        have their "initial_lr".

    Attributes
    ----------
    base_lrs : list of float
        Each group's "initial_lr".
    last_epoch : int
        Number of the last step; 0 after construction.

    Raises
    ------
    TypeError
        If `optimizer` is not an Optimizer.
    ValueError
        If `last_epoch` is not an integer >= -1.
    KeyError
        If a resumed group lacks an option that the schedule starts from.

    References
    ----------
    https://docs.pytorch.org/docs/stable/optim.html#how-to-adjust-learning-rate
    """

    # Whether the step of the constructor is taken.
    _is_initial = False

    def __init__(self, optimizer: Optimizer, last_epoch: int = -1) -> None:
        self._check_arguments(optimizer, last_epoch)
        for group in optimizer.param_groups if last_epoch != -1 else []:
            if missing := [name for name in self._group_names if name not in group]:
                raise KeyError(
                    f"{self._op}: with last_epoch {last_epoch}, every param group must have "
                    f"{list(self._group_names)}, got none of {missing}"
                )
        self.optimizer = optimizer
        new = [group for group in optimizer.param_groups if "initial_lr" not in group]
        for group in new:
            group["initial_lr"] = group["lr"]
        self.base_lrs: list[float] = [group["initial_lr"] for group in optimizer.param_groups]
        self.last_epoch = last_epoch
        try:
            self._initial_step()
        except BaseException:
            for group in new:
                del group["initial_lr"]
            raise

    @property
    def _op(self) -> str:
        return type(self).__name__

    @property
    def _group_names(self) -> tuple[str, ...]:
        """Options of a group that a resumed schedule builds on."""
        return ("initial_lr",)

    def _initial_step(self) -> None:
        self._is_initial = True
        try:
            self._update_lr()
        finally:
            del self._is_initial

    def get_lr(self) -> list[float]:
        """Learning rate of each group at step number `last_epoch`; defined by each subclass."""
        raise NotImplementedError(f"{self._op}: a scheduler must define get_lr, got none")

    def step(self, epoch: int | None = None) -> None:
        """Move on to the next learning rates; call it after the optimiser's step.

        Parameters
        ----------
        epoch
            Go to this step instead, by the closed form of the schedule where it has one.
        """
        self._update_lr(epoch)

    def _update_lr(self, epoch: int | None = None) -> None:
        before, self.last_epoch = self.last_epoch, self.last_epoch + 1 if epoch is None else epoch
        try:
            closed = None if epoch is None else getattr(self, "_get_closed_form_lr", None)
            rates = self.get_lr() if closed is None else closed()
        except BaseException:
            self.last_epoch = before
            raise
        for group, lr in zip(self.optimizer.param_groups, rates, strict=True):
            group["lr"] = lr
        self._last_lr = self._rates()

    def _rates(self) -> list[float]:
        """Current learning rate of each group."""
        return [group["lr"] for group in self.optimizer.param_groups]

    def _with_base_lrs(self) -> list[tuple[Group, float]]:
        """Each group and its base rate, where the schedule needs it."""
        groups = self.optimizer.param_groups
        if len(groups) != len(self.base_lrs):
            raise ValueError(
                f"{self._op}: optimizer must have the {len(self.base_lrs)} param groups that it "
                f"was given with, got {len(groups)}"
            )
        return list(zip(groups, self.base_lrs, strict=True))

    def get_last_lr(self) -> list[float]:
        """Learning rate of each group, as of the last step."""
        return list(self._last_lr)

    def state_dict(self) -> dict[str, Any]:
        """Copy of all attributes except the optimiser."""
        return self._copied(vars(self))

    @staticmethod
    def _copied(attributes: Mapping[str, Any]) -> dict[str, Any]:
        return copy.deepcopy({k: v for k, v in attributes.items() if k != "optimizer"})

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load the attributes, also PyTorch's; the learning rates are in the optimiser's state.

        Raises
        ------
        ValueError
            If it is not the state of such a scheduler for the same number of groups.
        """
        expected = vars(self).keys() - {"optimizer"}
        given = {name: value for name, value in state_dict.items() if name not in _FOREIGN}
        if given.keys() != expected:
            raise ValueError(
                f"{self._op}: state_dict must have {sorted(expected)}, got {sorted(state_dict)}"
            )
        for name, value in self._of_groups().items():
            if len(given[name]) != len(value):
                raise ValueError(
                    f"{self._op}: state_dict must have {len(value)} {name}, got {len(given[name])}"
                )
        vars(self).update(copy.deepcopy(given))

    def _of_groups(self) -> dict[str, list[Any]]:
        """The attributes with one item per group."""
        return {"base_lrs": self.base_lrs}

    def _per_group(self, name: str, value: Any, count: int) -> list[Any]:
        """A value for each group, from a single value or a list."""
        values = list(value) if isinstance(value, list | tuple) else [value] * count
        if len(values) != count:
            raise ValueError(
                f"{self._op}: {name} must have a value for each of {count} param groups, "
                f"got {len(values)}"
            )
        return values

    def _check_arguments(self, optimizer: Any, last_epoch: Any = -1) -> None:
        checks.whole_number(self._op, "last_epoch", last_epoch, minimum=-1)
        if not isinstance(optimizer, Optimizer):
            raise TypeError(
                f"{self._op}: optimizer must be an Optimizer, got {type(optimizer).__name__}"
            )

    def __repr__(self) -> str:
        shown = {k: v for k, v in vars(self).items() if k != "optimizer" and k[0] != "_"}
        return f"{self._op}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
