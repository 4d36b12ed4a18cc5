"""Reference for `fastlayers.ops.norm.batchnorm`."""

import numpy as np

from fastlayers.reference.types import Array, Gradients

__all__ = [
    "batch_norm",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_forward",
    "batch_norm_input_gradient",
    "batch_norm_moments",
    "batch_norm_statistics",
]


def batch_norm(
    input: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Array:
    """Normalise each channel, by the batch in training and by the running statistics otherwise.

    ``y = (x - mean) / sqrt(var + eps) * weight + bias`` for (N, C, ...), with one mean, biased
    variance, weight and bias a channel. Training moves the running statistics, in place, by
    ``running = (1 - momentum) running + momentum batch``, with the unbiased variance.
    Ioffe and Szegedy, https://arxiv.org/abs/1502.03167, algorithm 1;
    https://pytorch.org/docs/stable/generated/torch.nn.BatchNorm2d.html
    """
    arguments = running_mean, running_var, weight, bias, training, momentum, eps
    return batch_norm_forward(input, *arguments)[0]


def batch_norm_forward(
    input: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    weight: Array | None = None,
    bias: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, Array, Array]:
    """Give what `batch_norm` gives, and the mean and ``1 / sqrt(var + eps)``, (C,), it used."""
    arguments = running_mean, running_var, training, momentum, eps
    mean, invstd = batch_norm_statistics(input, *arguments)
    y = batch_norm_apply(input, mean, invstd, weight, bias)
    return y, mean.astype(input.dtype), invstd.astype(input.dtype)


def batch_norm_statistics(
    input: Array,
    running_mean: Array | None = None,
    running_var: Array | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[Array, Array]:
    """Give the mean and ``1 / sqrt(var + eps)``, (C,) and float64, that `batch_norm` uses.

    Those of no values are 0 and 1, and leave the running statistics alone.
    """
    axes, _ = _axes(input)
    count = input.size // input.shape[1]
    if count == 0 and (training or running_mean is None):
        return np.zeros(input.shape[1]), np.ones(input.shape[1])
    if running_mean is not None and running_var is not None and not training:
        mean, var = running_mean.astype(np.float64), running_var.astype(np.float64)
    else:
        mean, var = input.mean(axes, np.float64), input.var(axes, np.float64)
    if training and running_mean is not None:
        running_mean[:] = (1 - momentum) * running_mean + momentum * mean
    if training and running_var is not None:
        unbiased = var * (count / (count - 1))
        running_var[:] = (1 - momentum) * running_var + momentum * unbiased
    return mean, 1 / np.sqrt(var + eps)


def batch_norm_apply(
    input: Array,
    mean: Array,
    invstd: Array,
    weight: Array | None = None,
    bias: Array | None = None,
    residual: Array | None = None,
    activation: str | None = None,
) -> Array:
    """Give ``y = act((x - mean) * invstd * weight + bias + residual)``."""
    _, channels = _axes(input)
    y = (input - mean.reshape(channels)) * invstd.reshape(channels)
    y = y if weight is None else y * weight.reshape(channels)
    y = y if bias is None else y + bias.reshape(channels)
    y = y if residual is None else y + residual
    return np.asarray(np.maximum(y, 0) if activation else y, input.dtype)


def batch_norm_backward(
    grad_output: Array,
    input: Array,
    weight: Array | None,
    mean: Array,
    invstd: Array,
    training: bool,
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Gradients:
    """Give the gradients of `batch_norm` by input, weight and bias, None where not needed.

    With ``xhat = (x - mean) * invstd`` and means over each channel: ``dbias = sum(dy)``,
    ``dweight = sum(dy xhat)``, ``dx = weight invstd dy`` and in training
    ``dx = weight invstd (dy - mean(dy) - xhat mean(dy xhat))``.
    """
    axes, channels = _axes(input)
    dy = grad_output.astype(np.float64)
    xhat = (input - mean.reshape(channels).astype(np.float64)) * invstd.reshape(channels)
    dbias, dweight = dy.sum(axes), (dy * xhat).sum(axes)
    if training:
        count = input.size // input.shape[1]
        dy = dy - (dbias.reshape(channels) + xhat * dweight.reshape(channels)) / count
    scale = invstd if weight is None else invstd * weight
    gradients = dy * scale.reshape(channels), dweight, dbias
    dx, dweight, dbias = (
        d.astype(input.dtype) if needed else None
        for d, needed in zip(gradients, needs, strict=True)
    )
    return dx, dweight, dbias


def batch_norm_moments(input: Array) -> tuple[Array, Array]:
    """Give the mean and the sum of squared deviations from it of each channel, (C,) and float64."""
    axes, channels = _axes(input)
    mean = input.mean(axes, np.float64)
    return mean, ((input - mean.reshape(channels)) ** 2).sum(axes)


def batch_norm_input_gradient(
    grad_output: Array,
    input: Array,
    weight: Array | None,
    mean: Array,
    invstd: Array,
    dot: Array,
    total: Array,
) -> Array:
    """Give ``dx = weight invstd (dy - total - xhat dot)``, with means over all of a batch.

    `dot` is that of ``dy xhat`` and `total` that of dy, of a batch that the input is a part of.
    """
    _, channels = _axes(input)
    xhat = (input - mean.reshape(channels).astype(np.float64)) * invstd.reshape(channels)
    dx = grad_output - total.reshape(channels) - xhat * dot.reshape(channels)
    scale = invstd if weight is None else invstd * weight
    return np.asarray(dx * scale.reshape(channels), input.dtype)


def _axes(x: Array) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Give the axes of a channel's values, and the shape of (C,) beside (N, C, ...)."""
    return (0, *range(2, x.ndim)), (-1, *[1] * (x.ndim - 2))
