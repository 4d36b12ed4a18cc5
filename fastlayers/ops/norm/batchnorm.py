"""Batch normalisation over all axes but the channels'."""

from __future__ import annotations

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.norm.layout import flat_elements, input_array
from fastlayers.ops.norm.normalisation import Grads, prepare, prepare_with

__all__ = [
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_statistics",
]


def batch_norm_statistics(
    input: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and ``1 / sqrt(var + eps)`` that `batch_norm` normalises each channel by.

    In training, and without running statistics, they are the batch's; in training the running
    arrays are updated in place. In evaluation they are the running ones.

    Parameters
    ----------
    input, running_mean, running_var, training, momentum, eps
        As for `batch_norm`.

    Returns
    -------
    (ndarray, ndarray)
        (C,) each.

    Raises
    ------
    TypeError, ValueError
        As `batch_norm`; the running statistics are then unchanged.
    """
    arguments = (running_mean, running_var, None, None, training, momentum, eps)
    return prepare("batch_norm", input, *arguments).statistics


def batch_norm_apply(
    input: np.ndarray,
    mean: np.ndarray,
    invstd: np.ndarray,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    *,
    residual: np.ndarray | None = None,
    activation: str | None = None,
) -> np.ndarray:
    """Normalise by given statistics: ``y = act((x - mean) * (invstd * weight) + bias + residual)``.

    Parameters
    ----------
    input : ndarray
        (N, C), (N, C, L) or (N, C, H, W), float32 or float64.
    mean, invstd : ndarray
        (C,), such as `batch_norm_statistics` gives.
    weight, bias : ndarray, optional
        (C,); 1 and 0 by default.
    residual : ndarray, optional
        Of the input's shape.
    activation : {None, "relu"}
        What is applied to the sum.

    Returns
    -------
    ndarray
        Of the input's shape.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype, size or activation.
    """
    op = "batch_norm_apply"
    norm = prepare_with(op, input, mean, invstd, weight, bias, False)
    other = None
    if residual is not None:
        other = flat_elements(op, "residual", residual, norm.layout, norm.x)
    return norm.forward(other, check.is_relu(op, activation))


def batch_norm_forward(
    input: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    *,
    residual: np.ndarray | None = None,
    activation: str | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`batch_norm` that also returns what its gradient needs.

    `residual` and `activation` are those of `batch_norm_apply`.

    Returns
    -------
    y, mean, invstd : ndarray
        The output, and the mean and ``1 / sqrt(var + eps)`` that it was normalised by, (C,).
    """
    op = "batch_norm"
    # All is checked before the running statistics are updated.
    other, relu = None, check.is_relu(op, activation)
    if residual is not None:
        x, layout = input_array(op, input)
        other = flat_elements(op, "residual", residual, layout, x)
    arguments = (running_mean, running_var, weight, bias, training, momentum, eps)
    norm = prepare(op, input, *arguments)
    return norm.forward(other, relu), *norm.statistics


def batch_norm(
    input: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> np.ndarray:
    """Normalise each channel: ``y = (x - mean) / sqrt(var + eps) * weight + bias``.

    In training, and without running statistics, mean and (biased) variance are the batch's;
    in training the running arrays are updated in place, ``running = (1 - momentum) * running
    + momentum * batch``, with the unbiased variance. In evaluation they are the running ones.

    NaN or infinity stays in its channel. With the batch's statistics all of the channel is NaN, and
    so is its gradient; its running statistics are NaN or infinite from then on. In evaluation only
    the element is NaN or infinite.

    Parameters
    ----------
    input : ndarray
        (N, C), (N, C, L) or (N, C, H, W), float32 or float64.
    running_mean, running_var : ndarray, optional
        (C,), both or none; in training any arrays that can be written to.
    weight, bias : ndarray, optional
        (C,); 1 and 0 by default.
    training : bool
    momentum : float
        Any finite number.
    eps : float

    Returns
    -------
    ndarray
        Of the input's shape.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size, or one value per channel in training; the running
        statistics are then unchanged, as they are by a batch without values.

    References
    ----------
    Ioffe and Szegedy, "Batch normalization", 2015, https://arxiv.org/abs/1502.03167;
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.batch_norm.html
    """
    return batch_norm_forward(
        input, running_mean, running_var, weight, bias, training, momentum, eps
    )[0]


def batch_norm_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    weight: np.ndarray | None,
    mean: np.ndarray,
    invstd: np.ndarray,
    training: bool,
    needs: tuple[bool, ...] = (True, True, True),
    *,
    bias: np.ndarray | None = None,
    activation: str | None = None,
    output: np.ndarray | None = None,
) -> Grads:
    """Input, weight and bias gradient of `batch_norm`, each only where `needs` asks for it.

    With ``xhat = (x - mean) * invstd``: ``dbias = sum(dy)``, ``dweight = sum(dy * xhat)`` and, with
    batch statistics, ``dx = weight * invstd * (dy - mean(dy) - xhat * mean(dy * xhat))``. Where
    there was a ReLU, dy counts where it was not 0; without a residual that is found from the input
    once more.

    Parameters
    ----------
    grad_output, input : ndarray
        Of the same shape.
    weight : ndarray or None
        (C,).
    mean, invstd : ndarray
        (C,), from `batch_norm_forward` or `batch_norm_statistics`.
    training : bool
        Whether the statistics are the batch's; they are also without running arrays.
    needs : (bool, bool, bool) or (bool, bool, bool, bool)
        Which of the gradients to compute; the others are None. The fourth is that of a residual.
    bias : ndarray, optional
        (C,), as it was given to `batch_norm_apply`; needed for a ReLU without residual.
    activation : {None, "relu"}
        As it was given to `batch_norm_apply`.
    output : ndarray, optional
        What `batch_norm_apply` gave; needed for a ReLU behind a residual.

    Returns
    -------
    tuple of (ndarray or None)
        Of the input's shape, (C,), (C,) and, with four needs, the input's shape: the residual's
        gradient, which without an activation may be a view of `grad_output`.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size, or an output that is missing.
    """
    op = "batch_norm_backward"
    norm = prepare_with(op, input, mean, invstd, weight, bias, bool(training))
    dy = flat_elements(op, "grad_output", grad_output, norm.layout, norm.x)
    needs = check.needs(op, needs, 3, 4)
    relu, residual, y = check.is_relu(op, activation), len(needs) == 4, None
    if residual and relu:
        if output is None:
            raise ValueError(
                f"{op}: output must be given for an activation behind a residual, got None"
            )
        y = flat_elements(op, "output", output, norm.layout, norm.x)
    dx, dw, db, masked = norm.backward(dy, needs, relu, y)
    if not residual:
        return dx, dw, db
    return dx, dw, db, (masked if relu else norm.layout.shaped(dy)) if needs[3] else None
