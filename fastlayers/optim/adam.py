"""Adam and AdamW."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.optim import checks
from fastlayers.optim.optimizer import Group, Optimizer, Parameter, Params

__all__ = ["Adam", "AdamW"]


class Adam(Optimizer):
    """Adam: steps scaled by running means of the gradient and of its square.

    With ``d = grad + weight_decay * p`` (``-grad`` in place of ``grad`` to `maximize`), step number
    t does ``m = beta1 * m + (1 - beta1) * d``, ``v = beta2 * v + (1 - beta2) * d^2`` and ``p -= lr
    * m_hat / (sqrt(v_hat) + eps)``, where ``m_hat = m / (1 - beta1^t)`` and ``v_hat = v / (1 -
    beta2^t)``. With `amsgrad`, the largest v so far takes v's place. An element whose gradient is
    NaN or infinite becomes NaN for good; others are not affected. With `decoupled_weight_decay`
    this is `AdamW`. `foreach` and `fused`, which choose one of PyTorch's loops, change nothing.

    Raises
    ------
    ValueError
        If a number is negative or not finite, a beta is not in [0, 1), or `capturable` or
        `differentiable` is True.

    References
    ----------
    Kingma, Ba, "Adam: A method for stochastic optimization", ICLR 2015, algorithm 1.
    Reddi, Kale, Kumar, "On the convergence of Adam and beyond", ICLR 2018, algorithm 2 (AMSGrad).
    """

    _state_names = frozenset({"step", "exp_avg", "exp_avg_sq"})
    _optional_state_names = frozenset({"max_exp_avg_sq"})

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0,
        amsgrad: bool = False,
        *,
        foreach: bool | None = None,
        maximize: bool = False,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
        decoupled_weight_decay: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "maximize": maximize,
            "foreach": foreach,
            "capturable": capturable,
            "differentiable": differentiable,
            "fused": fused,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults)

    def _check_options(self, group: Group) -> None:
        for name in ("lr", "eps", "weight_decay"):
            checks.number(self._op, name, group[name])
        for name in ("amsgrad", "maximize", "decoupled_weight_decay"):
            checks.flag(self._op, name, group[name])
        betas = group["betas"]
        pair = isinstance(betas, tuple | list) and len(betas) == 2
        if not pair or not all(checks.is_number(beta) and beta < 1 for beta in betas):
            raise ValueError(f"{self._op}: betas must be two numbers in [0, 1), got {betas!r}")

    def _arrays(self, group: Group) -> tuple[str, ...]:
        return ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")[: 3 if group["amsgrad"] else 2]

    def _parts(self, group: Group, params: list[Parameter]) -> list[tuple[Any, list[Parameter]]]:
        """Separated by the number of their step."""
        steps = [self.state[p]["step"] + 1 if p in self.state else 1 for p in params]
        if steps.count(steps[0]) == len(steps):
            return [(steps[0], params)]
        return [
            (step, [p for p, own in zip(params, steps, strict=True) if own == step])
            for step in sorted(set(steps))
        ]

    def _update(
        self,
        group: Group,
        key: Any,
        params: list[Parameter],
        like: np.ndarray,
        table: Any,
        workers: int,
    ) -> None:
        lr, weight_decay = float(group["lr"]), float(group["weight_decay"])
        decoupled = group["decoupled_weight_decay"]
        beta1, beta2 = map(float, group["betas"])
        for p in params:
            self.state[p]["step"] = key
        options = (  # in the order of `AdamOptions`
            key,
            -1.0 if group["maximize"] else 1.0,
            0.0 if decoupled else weight_decay,
            1 - lr * weight_decay if decoupled else 1.0,
            lr,
            beta1,
            beta2,
            float(group["eps"]),
        )
        kernels.optimizer.adam(like, table, options, workers)


class AdamW(Adam):
    """Adam with decoupled weight decay: ``p *= 1 - lr * weight_decay`` before a step.

    Here d is just the gradient; everything else is as for `Adam`.

    Raises
    ------
    ValueError
        As for `Adam`.

    References
    ----------
    Loshchilov, Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2.
    """

    def __init__(
        self,
        params: Params,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            params,
            lr,
            betas,
            eps,
            weight_decay,
            amsgrad,
            foreach=foreach,
            maximize=maximize,
            capturable=capturable,
            differentiable=differentiable,
            fused=fused,
            decoupled_weight_decay=True,
        )

    def _options(self, group: Mapping[str, Any]) -> Group:
        return super()._options(group) | {"decoupled_weight_decay": True}
