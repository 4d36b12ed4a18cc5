"""Stochastic gradient descent."""

from __future__ import annotations

import numpy as np

from fastlayers import kernels
from fastlayers.optim import checks
from fastlayers.optim.optimizer import Group, Optimizer, Parameter, Params

__all__ = ["SGD"]


class SGD(Optimizer):
    """Gradient descent with momentum, as PyTorch defines it.

    With ``d = grad + weight_decay * p``, or ``-grad`` there to `maximize`, a step does
    ``b = momentum * b + (1 - dampening) * d`` (at first ``b = d``) and ``p -= lr * b``, or with
    `nesterov` ``p -= lr * (d + momentum * b)``.

    Raises
    ------
    ValueError
        If a number is negative or not finite, or `nesterov` is given without momentum or with
        dampening.

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
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "dampening": dampening,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
            "maximize": maximize,
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

    def _update(
        self, p: Parameter, data: np.ndarray, grad: np.ndarray, group: Group, workers: int
    ) -> None:
        momentum = float(group["momentum"])
        first = p not in self.state
        kernels.optimizer.sgd(
            data,
            grad,
            self._buffer(p, "momentum_buffer") if momentum else np.empty(0, data.dtype),
            -1.0 if group["maximize"] else 1.0,
            float(group["weight_decay"]),
            float(group["lr"]),
            momentum,
            0.0 if first else float(group["dampening"]),
            group["nesterov"],
            workers,
        )
