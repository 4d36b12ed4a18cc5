"""Adadelta."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.optim import checks
from fastlayers.optim.optimizer import Group, Optimizer, Parameter, Params

__all__ = ["Adadelta"]


class Adadelta(Optimizer):
    """Adadelta: steps of the size of earlier ones, scaled by the gradient over its running size.

    With ``d = grad + weight_decay * p`` (``-grad`` in place of ``grad`` to `maximize`), a step does
    ``v = rho * v + (1 - rho) * d^2``, ``delta = sqrt(u + eps) / sqrt(v + eps) * d``,
    ``u = rho * u + (1 - rho) * delta^2`` and ``p -= lr * delta``. An element whose gradient is NaN
    or infinite becomes NaN for good; others are not affected.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or `rho` is above 1.

    References
    ----------
    Zeiler, "ADADELTA: An adaptive learning rate method", arXiv:1212.5701, algorithm 1.
    """

    _state_names = frozenset({"step", "square_avg", "acc_delta"})

    def __init__(
        self,
        params: Params,
        lr: float = 1.0,
        rho: float = 0.9,
        eps: float = 1e-6,
        weight_decay: float = 0,
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "rho": rho,
            "eps": eps,
            "weight_decay": weight_decay,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: Group) -> None:
        for name in ("lr", "rho", "eps", "weight_decay"):
            checks.number(self._op, name, group[name])
        checks.flag(self._op, "maximize", group["maximize"])
        checks.fraction(self._op, "rho", group["rho"])

    def _arrays(self, group: Group) -> tuple[str, ...]:
        return ("square_avg", "acc_delta")

    def _parts(self, group: Group, params: list[Parameter]) -> list[tuple[Any, list[Parameter]]]:
        return [(None, params)]

    def _update(
        self,
        group: Group,
        key: Any,
        params: list[Parameter],
        like: np.ndarray,
        table: Any,
        workers: int,
    ) -> None:
        for p in params:
            state = self.state[p]
            state["step"] = state.get("step", 0) + 1
        options = (  # in the order of `AdadeltaOptions`
            -1.0 if group["maximize"] else 1.0,
            float(group["weight_decay"]),
            float(group["lr"]),
            float(group["rho"]),
            float(group["eps"]),
        )
        kernels.optimizer.adadelta(like, table, options, workers)
