"""Gradients and parameters of several tensors as one vector: clipping, and flattening."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from fastlayers.autograd import Tensor, no_grad
from fastlayers.functions.joining import cat
from fastlayers.functions.norms import norm

__all__ = [
    "clip_grad_norm_",
    "clip_grad_value_",
    "parameters_to_vector",
    "vector_to_parameters",
]

Tensors = Tensor | Iterable[Tensor]


def _gradients(parameters: Tensors) -> list[Tensor]:
    tensors = [parameters] if isinstance(parameters, Tensor) else parameters
    return [p.grad for p in tensors if p.grad is not None]


@no_grad()
def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
) -> Tensor:
    """Scale all gradients by ``min(1, max_norm / (norm + 1e-6))``, and return the norm before that.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
        Those whose gradients are scaled in place.
    max_norm : float
    norm_type : float
        The p of the norm of all gradients as one vector; may be infinite.
    error_if_nonfinite : bool
        Raise an error instead of scaling by a norm that is not finite.
    foreach : bool, optional
        PyTorch's hint, which changes nothing.

    Returns
    -------
    Tensor
        The norm, a scalar; 0 without gradients.

    Raises
    ------
    RuntimeError
        If the norm is not finite and `error_if_nonfinite` is true; no gradient is changed then.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_norm_.html
    """
    gradients = _gradients(parameters)
    if not gradients:
        return Tensor(0.0)
    parts = [norm(gradient, float(norm_type)) for gradient in gradients]
    total: Tensor = norm(cat([part.reshape(1) for part in parts]), float(norm_type))
    if error_if_nonfinite and not np.isfinite(total.item()):
        raise RuntimeError(
            f"clip_grad_norm_: the norm of the gradients must be finite, got {total.item()}"
        )
    scale = (float(max_norm) / (total + 1e-6)).clamp(max=1.0)
    for gradient in gradients:
        gradient.mul_(scale)
    return total


@no_grad()
def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Clamp each gradient, in place, to ``[-clip_value, clip_value]``.

    Parameters
    ----------
    parameters : Tensor or iterable of Tensor
    clip_value : float
    foreach : bool, optional
        PyTorch's hint, which changes nothing.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.clip_grad_value_.html
    """
    for gradient in _gradients(parameters):
        gradient.clamp_(min=-float(clip_value), max=float(clip_value))


def parameters_to_vector(parameters: Iterable[Tensor]) -> Tensor:
    """All elements of the parameters as one vector, in their order; gradients reach them.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.parameters_to_vector.html
    """
    return cat([p.reshape(-1) for p in parameters])


def vector_to_parameters(vec: Tensor, parameters: Iterable[Tensor]) -> None:
    """Make the elements of a vector the values of the parameters, which share its memory.

    Raises
    ------
    TypeError
        If `vec` is no tensor.
    ValueError
        If it has not as many elements as the parameters.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.utils.vector_to_parameters.html
    """
    if not isinstance(vec, Tensor):
        raise TypeError(f"vector_to_parameters: vec must be a tensor, got {type(vec).__name__}")
    parameters = list(parameters)
    count = sum(p.numel() for p in parameters)
    if tuple(vec.shape) != (count,):
        raise ValueError(
            f"vector_to_parameters: vec must have shape {(count,)}, got {tuple(vec.shape)}"
        )
    start = 0
    for p in parameters:
        p.data = vec[start : start + p.numel()].view_as(p).data
        start += p.numel()
