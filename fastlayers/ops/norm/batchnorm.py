"""Batch normalisation over all axes but the channels'."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from fastlayers.kernels import norm as kernels
from fastlayers.ops import check
from fastlayers.ops.norm.form import (
    NOTHING,
    Form,
    batch,
    elements,
    form_of,
    optional,
    vector,
)
from fastlayers.runtime import backend, memory, threads

__all__ = [
    "Normalisation",
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_statistics",
]

Grads = tuple[np.ndarray | None, ...]

_NO_GRADS = {dtype: np.empty((2, 0), dtype) for dtype in NOTHING}


class Normalisation:
    """A checked input, and what each of its channels is normalised by."""

    __slots__ = ("bias", "form", "invstd", "mean", "of_batch", "weight", "x")
    # Where the input is a part of a batch: from its sums of ``dy * xhat`` and dy, the means of all.
    exchange: Callable[[Any, Any], np.ndarray] | None = None

    def __init__(
        self,
        x: np.ndarray,
        form: Form,
        statistics: tuple[np.ndarray, np.ndarray],
        weight: np.ndarray,
        bias: np.ndarray,
        of_batch: bool,
    ) -> None:
        self.x, self.form, self.weight, self.bias = x, form, weight, bias
        self.mean, self.invstd = statistics
        self.of_batch = of_batch  # not running ones: then the gradient passes through them

    def forward(self, residual: np.ndarray | None, relu: bool) -> np.ndarray:
        """The input normalised; the residual is flat, in the order of its memory."""
        if backend.NUMPY:
            other = None if residual is None else self.form.shaped(residual)
            arguments = (self.mean, self.invstd, *self._affine(), other, "relu" if relu else None)
            return np.asarray(backend.reference("batch_norm_apply", self.x, *arguments))
        form, dtype = self.form, self.x.dtype
        y, flat = form.empty(dtype)
        kernels.batchnorm.batch_norm_apply(
            form.flat(self.x),
            NOTHING[dtype] if residual is None else residual,
            form.rows,
            self.mean,
            self.invstd,
            self.weight,
            self.bias,
            relu,
            form.stream,
            threads.workers_for(form.size),
            memory.scratch((3 * form.period,), dtype)[0],
            flat,
        )
        return y

    def backward(
        self,
        dy: np.ndarray,
        needs: tuple[bool, ...],
        relu: bool = False,
        output: np.ndarray | None = None,
        means: np.ndarray | None = None,
    ) -> Grads:
        """Gradients by input, weight and bias, and with `output`, of a ReLU, by the residual.

        `dy` and `output` are flat, in the order of their memory. `means` of ``dy * xhat`` and dy,
        (2, C), take the place of the batch's; then only the input's gradient is computed.
        """
        if backend.NUMPY:
            return self._reference_backward(dy, needs, relu, output, means)
        form, x, home = self.form, self.x, kernels.batchnorm
        dtype = x.dtype
        if relu and output is None and not self.of_batch:
            # Not from the input, by which the gradient isn't: infinity * 0 would be added to it.
            output = form.flat(self.forward(None, True))
        y = masked = flat = nothing = NOTHING[dtype]
        dx = dresidual = None
        mode = home.FROM_INPUT if relu else home.PLAIN
        if output is not None:
            y, mode = output, home.FROM_OUTPUT
            dresidual, masked = form.empty(dtype)
        if needs[0]:
            dx, flat = form.empty(dtype)
        by_channel = needs[1] or needs[2]
        grads, through = means, home.PART
        if grads is None:
            grads = np.empty((2, form.vector[0]), dtype) if by_channel else _NO_GRADS[dtype]
            through = home.WHOLE if self.of_batch else home.RUNNING
        if needs[0] or by_channel or masked is not nothing:
            home.batch_norm_backward(
                mode,
                dy,
                form.flat(x),
                y,
                form.rows,
                self.mean,
                self.invstd,
                self.weight,
                self.bias,
                through,
                form.stream_back,
                threads.workers_for(form.size),
                memory.scratch(((5 + 2 * form.chunks) * form.period,), dtype)[0],
                masked,
                flat,
                grads,
            )
        return dx, grads[0] if needs[1] else None, grads[1] if needs[2] else None, dresidual

    def _affine(self) -> tuple[np.ndarray | None, np.ndarray | None]:
        """Weight and bias, None for none."""
        return self.weight if self.weight.size else None, self.bias if self.bias.size else None

    def _reference_backward(
        self,
        dy: np.ndarray,
        needs: tuple[bool, ...],
        relu: bool,
        output: np.ndarray | None,
        means: np.ndarray | None,
    ) -> Grads:
        dy = self.form.shaped(dy)
        if output is not None:
            dy = backend.reference("relu_backward", dy, self.form.shaped(output))
        elif relu:
            dy = backend.reference("relu_backward", dy, self.forward(None, False))
        fixed = (self.x, self._affine()[0], self.mean, self.invstd)
        if means is not None:
            dx = backend.reference("batch_norm_input_gradient", dy, *fixed, *means)
            return dx, None, None, None
        grads = backend.reference("batch_norm_backward", dy, *fixed, self.of_batch, needs[:3])
        return *grads, None if output is None else dy


def normalisation(
    op: str,
    input: Any,
    running_mean: Any,
    running_var: Any,
    weight: Any,
    bias: Any,
    training: bool,
    momentum: Any,
    eps: Any,
) -> Normalisation:
    """Check everything, then take the statistics, and update the running ones in training."""
    x, form = batch(op, input)
    dtype = x.dtype
    weight = optional(op, "weight", weight, form, dtype)
    bias = optional(op, "bias", bias, form, dtype)
    of_batch = bool(training or running_mean is None)
    mean, var = running(op, form, dtype, running_mean, running_var, training)
    momentum, eps = check.finite(op, "momentum", momentum), check.epsilon(op, "eps", eps)
    if of_batch and form.rows[0] == 0:  # no value to normalise, and none to learn from
        return Normalisation(x, form, _of_nothing(form, dtype), weight, bias, False)
    if of_batch and form.rows[0] < 2:
        raise ValueError(
            f"{op}: input must have more than one value per channel in training, "
            f"got shape {x.shape}"
        )
    out = np.empty((2, form.vector[0]), dtype)
    workers, update = threads.workers_for(form.size), training and mean.size
    if backend.NUMPY:
        arguments = (*((mean, var) if mean.size else (None, None)), bool(training), momentum, eps)
        out[:] = backend.reference("batch_norm_statistics", x, *arguments)
    else:
        parts = (form.chunks + 1) * (2 * form.vector[0] + 1)
        kernels.batchnorm.batch_norm_statistics(
            form.flat(x) if of_batch else NOTHING[dtype],
            form.rows,
            of_batch,
            mean,
            var,
            momentum if update else math.nan,
            eps,
            workers,
            memory.scratch((parts + workers * 6 * form.period if of_batch else parts,), dtype)[0],
            out,
        )
    if update:
        for given, updated in ((running_mean, mean), (running_var, var)):
            if updated is not given:
                np.asarray(given)[...] = updated
    return Normalisation(x, form, (out[0], out[1]), weight, bias, of_batch)


def _of_nothing(form: Form, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    channels = form.vector[0]
    return np.zeros(channels, dtype), np.ones(channels, dtype)


def given(
    op: str, input: Any, mean: Any, invstd: Any, weight: Any, bias: Any, of_batch: bool
) -> Normalisation:
    """Check an input, and what its channels shall be normalised by."""
    x, form = batch(op, input)
    dtype = x.dtype
    statistics = (
        vector(op, "mean", mean, form, dtype),
        vector(op, "invstd", invstd, form, dtype),
    )
    weight = optional(op, "weight", weight, form, dtype)
    bias = optional(op, "bias", bias, form, dtype)
    return Normalisation(x, form, statistics, weight, bias, of_batch)


def running(
    op: str, form: Form, dtype: np.dtype, mean: Any, var: Any, training: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The running statistics as kernels take them; copies where they are no plain arrays."""
    if (mean is None) != (var is None):
        alone = "running_var" if mean is None else "running_mean"
        raise ValueError(
            f"{op}: running_mean and running_var must both be given or both be None, "
            f"got {alone} alone"
        )
    if mean is None:
        return NOTHING[dtype], NOTHING[dtype]
    ready_mean = vector(op, "running_mean", mean, form, dtype)
    ready_var = vector(op, "running_var", var, form, dtype)
    if training:
        for name, given, ready in (
            ("running_mean", mean, ready_mean),
            ("running_var", var, ready_var),
        ):
            if ready is not given:
                check.writable(op, name, given)
    return ready_mean, ready_var


def check_channels(shape: tuple[int, ...], dtype: np.dtype, *vectors: np.ndarray | None) -> None:
    """Check running mean and variance, weight and bias for an input of this shape and dtype."""
    if len(shape) < 2 or shape[1] == 0 or dtype not in NOTHING:
        return  # the input's own check says what is wrong
    form = form_of(shape, dtype.itemsize)
    for name, value in zip(("running_mean", "running_var", "weight", "bias"), vectors, strict=True):
        optional("batch_norm", name, value, form, dtype)


def running_statistics(
    running_mean: np.ndarray, running_var: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """`batch_norm_statistics` of evaluation, for arrays that were checked."""
    small = running_var.dtype.type(check.epsilon("batch_norm", "eps", eps))
    with np.errstate(all="ignore"):
        return np.array(running_mean), 1 / np.sqrt(np.asarray(running_var) + small)


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
    found = normalisation("batch_norm", input, *arguments)
    return found.mean, found.invstd


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
    found = given(op, input, mean, invstd, weight, bias, False)
    other = None
    if residual is not None:
        other = elements(op, "residual", residual, found.form, found.x)
    return found.forward(other, check.is_relu(op, activation))


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
        x, form = batch(op, input)
        other = elements(op, "residual", residual, form, x)
    arguments = (running_mean, running_var, weight, bias, training, momentum, eps)
    found = normalisation(op, input, *arguments)
    return found.forward(other, relu), found.mean, found.invstd


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
    """Gradients of `batch_norm` by input, weight and bias, each only where `needs` asks for it.

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
    found = given(op, input, mean, invstd, weight, bias, bool(training))
    dy = elements(op, "grad_output", grad_output, found.form, found.x)
    needs = check.needs(op, needs, 3, 4)
    relu, residual, y = check.is_relu(op, activation), len(needs) == 4, None
    if residual and relu:
        if output is None:
            raise ValueError(
                f"{op}: output must be given for an activation behind a residual, got None"
            )
        y = elements(op, "output", output, found.form, found.x)
    dx, dw, db, masked = found.backward(dy, needs, relu, y)
    if not residual:
        return dx, dw, db
    return dx, dw, db, (masked if relu else found.form.shaped(dy)) if needs[3] else None
