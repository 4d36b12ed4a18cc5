"""Stochastic gradient descent."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.optim import checks
from fastlayers.optim.optimizer import Group, Optimizer, Parameter, Params

__all__ = ["SGD"]


class SGD(Optimizer):
    """Gradient descent with momentum, as PyTorch defines it.

    With ``d = grad + weight_decay * p`` (``-grad`` in place of ``grad`` to `maximize`), a step does
    ``b = momentum * b + (1 - dampening) * d`` (at first ``b = d``) and ``p -= lr * b``, or with
    `nesterov` ``p -= lr * (d + momentum * b)``. An element whose gradient is NaN becomes NaN for
    good, as does its b; other elements are not affected. `foreach` and `fused`, which choose one of
    PyTorch's loops, change nothing.

    Raises
    ------
    ValueError
        If a number is negative or not finite, `nesterov` is given without momentum or with
        dampening, or `differentiable` is True.

    References
    ----------
    Sutskever, Martens, Dahl, Hinton, "On the importance of initialization and momentum in deep
    learning", ICML 2013, equations 1-4; there the learning rate is a factor in b instead.
    """

    _state_names = frozenset({"momentum_buffer"})

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        momentum: float = 0,
        dampening: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
            "foreach": foreach,
            "differentiable": differentiable,
            "fused": fused,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: Group) -> None:
        for name in ("lr", "momentum", "dampening", "weight_decay"):
            checks.number(self._op, name, group[name])
        for name in ("nesterov", "maximize"):
            checks.flag(self._op, name, group[name])
        momentum, dampening = group["momentum"], group["dampening"]
        if group["nesterov"] and (momentum == 0 or dampening != 0):
            raise ValueError(
                f"{self._op}: nesterov must have momentum > 0 and dampening 0, "
                f"got momentum {momentum!r} and dampening {dampening!r}"
            )

    def _arrays(self, group: Group) -> tuple[str, ...]:
        return ("momentum_buffer",) if group["momentum"] else ()

    def _parts(self, group: Group, params: list[Parameter]) -> list[tuple[Any, list[Parameter]]]:
        """Separated by their dampening, which begins at the second step."""
        dampening = float(group["dampening"])
        if not (dampening and group["momentum"]):
            return [(0.0, params)]
        first = [p for p in params if p not in self.state]
        later = [p for p in params if p in self.state]
        return [part for part in ((0.0, first), (dampening, later)) if part[1]]

    def _update(
        self,
        group: Group,
        key: Any,
        params: list[Parameter],
        like: np.ndarray,
        table: Any,
        workers: int,
    ) -> None:
        options = (  # in the order of `SGDOptions`
            -1.0 if group["maximize"] else 1.0,
            float(group["weight_decay"]),
            float(group["lr"]),
            float(group["momentum"]),
            key,
            group["nesterov"],
        )
        kernels.optimizer.sgd(like, table, options, workers)
