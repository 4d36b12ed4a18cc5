"""Gradients of several outputs, returned or accumulated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.autograd.tape import run_backward
from fastlayers.autograd.tensor import Tensor

__all__ = ["backward", "grad"]

Tensors = Tensor | Sequence[Tensor]


def _listed(op: str, name: str, values: Any) -> tuple[Tensor, ...]:
    listed = (values,) if isinstance(values, Tensor) else tuple(values)
    for value in listed:
        if not isinstance(value, Tensor):
            raise TypeError(f"{op}: {name} must hold Tensors, got {type(value).__name__}")
    return listed


def _roots(op: str, outputs: Tensors, gradients: Any, create_graph: bool) -> tuple[Any, Any]:
    """Where the backward pass begins, and the gradients there."""
    listed = _listed(op, "outputs", outputs)
    if gradients is None or isinstance(gradients, (Tensor, np.ndarray)):
        gradients = [gradients] * len(listed) if gradients is None else [gradients]
    if len(gradients) != len(listed):
        raise RuntimeError(
            f"{op}: there must be a gradient for each of {len(listed)} outputs, "
            f"got {len(gradients)}"
        )
    pairs = zip(listed, gradients, strict=True)
    roots, seeds = zip(*(y.root(op, dy, create_graph) for y, dy in pairs), strict=True)
    return roots, seeds


def backward(
    tensors: Tensors,
    grad_tensors: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
) -> None:
    """Add the gradients of several tensors to `grad` of the leaves that they depend on.

    As `Tensor.backward` for each, but ops that they share are visited once.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.autograd.backward.html
    """
    roots, seeds = _roots("backward", tensors, grad_tensors, create_graph)
    run_backward(roots, seeds, bool(retain_graph))


def grad(
    outputs: Tensors,
    inputs: Tensors,
    grad_outputs: Any = None,
    retain_graph: bool | None = None,
    create_graph: bool = False,
    allow_unused: bool | None = None,
    materialize_grads: bool = False,
) -> tuple[Tensor | None, ...]:
    """The gradients of `outputs` with respect to `inputs`; no `grad` is changed.

    Parameters
    ----------
    outputs : Tensor or sequence
    inputs : Tensor or sequence
        Leaves, or results of ops.
    grad_outputs : Tensor or sequence, optional
        Gradients of the outputs; 1 for a scalar.
    retain_graph : bool
        Keep the recorded ops, so that they can be used again.
    create_graph : bool
        Must be False: gradients are not recorded.
    allow_unused : bool
        Give None for an input that the outputs do not depend on, which is an error otherwise.
    materialize_grads : bool
        Give zeros for it.

    Returns
    -------
    tuple of Tensor or None

    Raises
    ------
    RuntimeError
        If a tensor does not require a gradient, an input was not used, or as `Tensor.backward`.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.autograd.grad.html
    """
    wanted = _listed("grad", "inputs", inputs)
    for t in wanted:
        if not t.requires_grad:
            raise RuntimeError("grad: inputs must require gradients, got one that does not")
    roots, seeds = _roots("grad", outputs, grad_outputs, create_graph)
    keys = [id(t if t.grad_fn is None else t.grad_fn) for t in wanted]
    found = run_backward(roots, seeds, bool(retain_graph), set(keys))
    if not (allow_unused or materialize_grads) and any(key not in found for key in keys):
        raise RuntimeError(
            "grad: inputs must have been used by the outputs, got one that was not (one of the "
            "differentiated tensors appears to not have been used in the graph); "
            "allow_unused=True gives None for it"
        )
    gradients = [found.get(key) for key in keys]
    return tuple(
        None
        if g is None and not materialize_grads
        else Tensor(np.zeros(t.shape, t.dtype) if g is None else g.copy())
        for t, g in zip(wanted, gradients, strict=True)
    )
