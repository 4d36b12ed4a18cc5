"""Batch normalisation over all axes but the channels'."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check
from fastlayers.ops.layout import kernel_ready, to_channels_last
from fastlayers.runtime import memory, threads

__all__ = [
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_statistics",
]

Grads = tuple[np.ndarray | None, ...]

# Bytes of the rows that kernels read: shorter ones are read several at a time, until they fill
# whole cache lines or would be longer than the upper limit.
SHORTEST, LONGEST = 512, 4608
# Chunks of at least 256 long rows, or an eighth of all, and at most 32 of them; one where the work
# is serial. The order of additions is fixed by the shape, not by the threads.
SPAN, CHUNKS, FEWEST = 256, 32, 8

# Bytes from which arrays are written past the caches: with a pass that reads the result, from 1.05
# to 0.87 ms forward for 8 MiB and from 0.30 to 0.34 for 4 MiB; no other time with a convolution.
STREAMED = 8 << 20

_NOTHING = {np.dtype(kind): np.empty(0, kind) for kind in (np.float32, np.float64)}
_NO_GRADS = {dtype: np.empty((2, 0), dtype) for dtype in _NOTHING}


@dataclass(frozen=True, slots=True)
class Form:
    """How an array of one shape is read: see `fastlayers.kernels.batchnorm`."""

    rows: tuple[int, int, int, int]  # rows, channels, folds, span
    chunks: int
    period: int
    size: int
    last: tuple[int, ...]  # the shape in memory, and the strides of the array
    axes: tuple[int, ...]
    strides: tuple[int, ...]
    vector: tuple[int]
    stream: int  # whether arrays are written past the caches

    def flat(self, x: np.ndarray) -> np.ndarray:
        """The elements in the order of channels-last memory."""
        if x.strides == self.strides and x.flags.behaved:
            return x.ravel("K")
        return (to_channels_last(x) if x.ndim > 2 else kernel_ready(x)).reshape(-1)

    def empty(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """A new array of this shape, and its memory as a flat array."""
        last = memory.empty(self.last, dtype)
        return last.transpose(self.axes), last.reshape(-1)


@functools.lru_cache(maxsize=4096)
def form_of(shape: tuple[int, ...], itemsize: int) -> Form:
    n, channels, *spatial = shape
    rows, folds = n * math.prod(spatial), 1
    width = channels * itemsize
    while width < SHORTEST or width % memory.ALIGNMENT:
        if 2 * width > LONGEST or 2 * folds > rows:
            break
        folds, width = 2 * folds, 2 * width
    long_rows, size = rows // folds, rows * channels
    span = max(-(-long_rows // CHUNKS), min(SPAN, -(-long_rows // FEWEST)))
    if size < threads.SERIAL_WORK:
        span = max(long_rows, 1)
    last, rank = (n, *spatial, channels), len(shape)
    strides = [itemsize * math.prod(last[i + 1 :]) for i in range(rank)]
    return Form(
        rows=(rows, channels, folds, span),
        chunks=max(1, -(-long_rows // span)),
        period=folds * channels,
        size=size,
        last=last,
        axes=(0, rank - 1, *range(1, rank - 1)),
        strides=(strides[0], strides[-1], *strides[1:-1]),
        vector=(channels,),
        stream=int(size * itemsize >= STREAMED and width % memory.ALIGNMENT == 0),
    )


def _input(op: str, input: Any) -> tuple[np.ndarray, Form]:
    x = _check.array(op, "input", input, (2, 3, 4))
    if x.shape[1] == 0:
        raise ValueError(f"{op}: input must have channels, got shape {x.shape}")
    return x, form_of(x.shape, x.itemsize)


def _optional(op: str, name: str, value: Any, form: Form, dtype: np.dtype) -> np.ndarray:
    """As `_channels`, an empty array for None."""
    return _NOTHING[dtype] if value is None else _channels(op, name, value, form, dtype)


def _channels(op: str, name: str, value: Any, form: Form, dtype: np.dtype) -> np.ndarray:
    """An array of one value a channel, as kernels take it."""
    if (
        type(value) is np.ndarray
        and value.shape == form.vector
        and value.dtype is dtype
        and value.flags.carray
    ):
        return value
    value = _check.vector(op, name, value, form.vector[0], dtype)
    return kernel_ready(value)


def _tensor(op: str, name: str, value: Any, form: Form, x: np.ndarray) -> np.ndarray:
    """The elements of an array of the shape and dtype of the input."""
    if not (type(value) is np.ndarray and value.dtype is x.dtype and value.shape == x.shape):
        value = _check.array(op, name, value)
        _check.same_shape(op, name, value, x.shape)
        _check.same_dtype(op, name, value, x.dtype)
    return form.flat(value)


def _running(
    op: str, form: Form, x: np.ndarray, mean: Any, var: Any, training: bool
) -> tuple[np.ndarray, np.ndarray]:
    """The running statistics as kernels take them; copies where they are no plain arrays."""
    if (mean is None) != (var is None):
        raise ValueError(f"{op}: running_mean and running_var must both be given or both be None")
    ready = []
    for name, value in (("running_mean", mean), ("running_var", var)):
        ready.append(_optional(op, name, value, form, x.dtype))
        if training and value is not None and not value.flags.writeable:
            raise ValueError(f"{op}: {name} must be writable in training")
    return ready[0], ready[1]


def check_channels(shape: tuple[int, ...], dtype: np.dtype, **vectors: np.ndarray | None) -> None:
    """Check weight, bias or statistics for an input of this shape and dtype."""
    if len(shape) < 2 or shape[1] == 0 or dtype not in _NOTHING:
        return  # the input's own check says what is wrong
    form = form_of(shape, dtype.itemsize)
    for name, value in vectors.items():
        _optional("batch_norm", name, value, form, dtype)


def running_statistics(
    running_mean: np.ndarray, running_var: np.ndarray, eps: float
) -> tuple[np.ndarray, np.ndarray]:
    """`batch_norm_statistics` of evaluation, for arrays that were checked."""
    small = running_var.dtype.type(_check.epsilon("batch_norm", "eps", eps))
    return running_mean.copy(), 1 / np.sqrt(running_var + small)


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
    op = "batch_norm"
    x, form = _input(op, input)
    return _statistics(op, x, form, running_mean, running_var, training, momentum, eps)


def _statistics(
    op: str,
    x: np.ndarray,
    form: Form,
    running_mean: Any,
    running_var: Any,
    training: bool,
    momentum: Any,
    eps: Any,
) -> tuple[np.ndarray, np.ndarray]:
    mean, var = _running(op, form, x, running_mean, running_var, training)
    momentum = _check.probability(op, "momentum", momentum)
    eps = _check.epsilon(op, "eps", eps)
    of_batch, dtype = training or running_mean is None, x.dtype
    if of_batch and form.rows[0] < 2:
        raise ValueError(
            f"{op}: input must have more than one value per channel in training, "
            f"got shape {x.shape}"
        )
    out = memory.empty((2, form.vector[0]), dtype)
    workers, update = threads.workers_for(form.size), training and mean.size
    parts = (form.chunks + 1) * (2 * form.vector[0] + 1)
    kernels.batchnorm.batch_norm_statistics(
        form.flat(x) if of_batch else _NOTHING[dtype],
        form.rows,
        of_batch,
        mean,
        var,
        momentum if update else -1.0,
        eps,
        workers,
        memory.empty(parts + workers * 5 * form.period if of_batch else parts, dtype),
        out,
    )
    if update:
        for given, updated in ((running_mean, mean), (running_var, var)):
            if updated is not given:
                given[...] = updated
    return out[0], out[1]


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
    x, form = _input(op, input)
    dtype = x.dtype
    mean = _channels(op, "mean", mean, form, dtype)
    invstd = _channels(op, "invstd", invstd, form, dtype)
    weight = _optional(op, "weight", weight, form, dtype)
    bias = _optional(op, "bias", bias, form, dtype)
    other = _NOTHING[dtype]
    if residual is not None:
        other = _tensor(op, "residual", residual, form, x)
    return _apply(x, form, mean, invstd, weight, bias, other, _check.is_relu(op, activation))


def _apply(
    x: np.ndarray,
    form: Form,
    mean: np.ndarray,
    invstd: np.ndarray,
    weight: np.ndarray,
    bias: np.ndarray,
    residual: np.ndarray,
    relu: bool,
) -> np.ndarray:
    work = memory.empty(3 * form.period, x.dtype)
    y, flat = form.empty(x.dtype)
    kernels.batchnorm.batch_norm_apply(
        form.flat(x),
        residual,
        form.rows,
        mean,
        invstd,
        weight,
        bias,
        relu,
        form.stream,
        threads.workers_for(form.size),
        work,
        flat,
    )
    return y


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
    x, form = _input(op, input)
    weight = _optional(op, "weight", weight, form, x.dtype)
    bias = _optional(op, "bias", bias, form, x.dtype)
    other, relu = _NOTHING[x.dtype], _check.is_relu(op, activation)
    if residual is not None:
        other = _tensor(op, "residual", residual, form, x)
    mean, invstd = _statistics(op, x, form, running_mean, running_var, training, momentum, eps)
    return _apply(x, form, mean, invstd, weight, bias, other, relu), mean, invstd


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

    Parameters
    ----------
    input : ndarray
        (N, C), (N, C, L) or (N, C, H, W), float32 or float64.
    running_mean, running_var : ndarray, optional
        (C,), both or none.
    weight, bias : ndarray, optional
        (C,); 1 and 0 by default.
    training : bool
    momentum : float
        In [0, 1].
    eps : float

    Returns
    -------
    ndarray
        Of the input's shape.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size, or one value per channel in training; the running
        statistics are then unchanged.

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
        Of the input's shape, (C,), (C,) and, with four needs, the input's shape.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size, or an output that is missing.
    """
    op, home = "batch_norm_backward", kernels.batchnorm
    x, form = _input(op, input)
    dtype = x.dtype
    dy = _tensor(op, "grad_output", grad_output, form, x)
    vectors = (
        _channels(op, "mean", mean, form, dtype),
        _channels(op, "invstd", invstd, form, dtype),
        _optional(op, "weight", weight, form, dtype),
        _optional(op, "bias", bias, form, dtype),
    )
    relu, residual = _check.is_relu(op, activation), len(needs) == 4
    nothing = y = masked = flat = _NOTHING[dtype]
    dx = dresidual = None
    mode = home.FROM_INPUT if relu else home.PLAIN
    if residual and relu:
        if output is None:
            raise ValueError(f"{op}: output must be given for an activation behind a residual")
        y, mode = _tensor(op, "output", output, form, x), home.FROM_OUTPUT
        dresidual, masked = form.empty(dtype)
    elif residual:
        dresidual = grad_output
    if needs[0]:
        dx, flat = form.empty(dtype)
    by_channel = needs[1] or needs[2]
    grads = memory.empty((2, form.vector[0]), dtype) if by_channel else _NO_GRADS[dtype]
    if needs[0] or by_channel or masked is not nothing:
        home.batch_norm_backward(
            mode,
            dy,
            form.flat(x),
            y,
            form.rows,
            *vectors,
            training,
            form.stream,
            threads.workers_for(form.size),
            memory.empty((5 + 2 * form.chunks) * form.period, dtype),
            masked,
            flat,
            grads,
        )
    found = dx, grads[0] if needs[1] else None, grads[1] if needs[2] else None
    return (*found, dresidual if needs[3] else None) if residual else found
