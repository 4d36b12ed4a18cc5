"""Batch normalisation over all axes but the channels'."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import _check
from fastlayers.ops.layout import kernel_ready, like, to_channels_last
from fastlayers.runtime import memory, threads

__all__ = ["batch_norm", "batch_norm_backward", "batch_norm_forward"]

Grads = tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]

# Rows of few channels are read as longer rows of so many copies of the channels, since a loop
# over 6 channels takes as long as one over 48.
WIDE = 64
# Chunks of at least 256 wide rows, and at most 32 of them: the order of additions is fixed by
# the shape, not by the threads.
SPAN = 256
CHUNKS = 32


@dataclass(frozen=True)
class _Rows:
    """How a matrix (rows, channels) is read: `folds` rows at a time, in chunks of `span`."""

    rows: int
    channels: int

    @functools.cached_property
    def folds(self) -> int:
        folds = 1
        while 2 * folds * self.channels <= WIDE and self.rows % (2 * folds) == 0:
            folds *= 2
        return folds

    @functools.cached_property
    def span(self) -> int:
        return max(SPAN, -(-(self.rows // self.folds) // CHUNKS))

    @functools.cached_property
    def chunks(self) -> int:
        return max(1, -(-(self.rows // self.folds) // self.span))

    @property
    def workers(self) -> int:
        return threads.workers_for(self.rows * self.channels)

    def fold(self, x: np.ndarray) -> np.ndarray:
        return x.reshape(self.rows // self.folds, self.folds * self.channels)

    def repeat(self, values: np.ndarray) -> np.ndarray:
        return values if self.folds == 1 else np.tile(values, self.folds)


@functools.lru_cache(maxsize=1024)
def _rows(shape: tuple[int, int]) -> _Rows:
    return _Rows(*shape)


def _matrix(x: np.ndarray) -> np.ndarray:
    """The elements as a contiguous (rows, channels) array."""
    last = to_channels_last(x) if x.ndim > 2 else kernel_ready(x)
    return last.reshape(-1, x.shape[1]) if x.size else last.reshape(0, x.shape[1])


def _channel_vector(
    op: str, name: str, value: np.ndarray | None, x: np.ndarray
) -> np.ndarray | None:
    return None if value is None else _check.vector(op, name, value, x.shape[1], x.dtype)


def _input(op: str, input: Any) -> np.ndarray:
    x = _check.array(op, "input", input, (2, 3, 4))
    if x.shape[1] == 0:
        raise ValueError(f"{op}: input must have channels, got shape {x.shape}")
    return x


def _batch_statistics(matrix: np.ndarray, rows: _Rows) -> tuple[np.ndarray, np.ndarray]:
    """Mean and sum of squared deviations of each channel."""
    wide = rows.fold(matrix)
    parts = memory.empty((rows.chunks, 4, wide.shape[1]), wide.dtype)
    kernels.batchnorm.channel_moments(wide, rows.span, rows.workers, parts)
    means, m2s = parts[0, :2].reshape(2, rows.folds, rows.channels)
    mean, m2 = means[0].copy(), m2s[0].copy()
    for fold in range(1, rows.folds):
        kernels.batchnorm.merge_moments(
            fold * len(wide), mean, m2, len(wide), means[fold], m2s[fold]
        )
    return mean, m2


def _update(running: np.ndarray, batch: np.ndarray, momentum: float) -> None:
    # Not running + momentum * (batch - running): with a momentum of 1 nothing old may remain.
    share = running.dtype.type(momentum)
    running[...] = (1 - share) * running + share * batch


def _check_options(
    op: str, x: np.ndarray, statistics: tuple[Any, Any], training: bool, momentum: Any, eps: Any
) -> None:
    mean, var = statistics
    if (mean is None) != (var is None):
        raise ValueError(f"{op}: running_mean and running_var must both be given or both be None")
    for name, value in (("running_mean", mean), ("running_var", var)):
        _channel_vector(op, name, value, x)
        if training and value is not None and not value.flags.writeable:
            raise ValueError(f"{op}: {name} must be writable in training")
    _check.probability(op, "momentum", momentum)
    _check.epsilon(op, "eps", eps)
    if (training or mean is None) and x.size // x.shape[1] < 2:
        raise ValueError(
            f"{op}: input must have more than one value per channel in training, "
            f"got shape {x.shape}"
        )


def batch_norm_forward(
    input: np.ndarray,
    running_mean: np.ndarray | None = None,
    running_var: np.ndarray | None = None,
    weight: np.ndarray | None = None,
    bias: np.ndarray | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`batch_norm` that also returns what its gradient needs.

    Returns
    -------
    y, mean, invstd : ndarray
        The output, and the mean and ``1 / sqrt(var + eps)`` that it was normalised by, (C,).
    """
    op = "batch_norm"
    x = _input(op, input)
    w, b = (_channel_vector(op, n, v, x) for n, v in (("weight", weight), ("bias", bias)))
    _check_options(op, x, (running_mean, running_var), training, momentum, eps)
    matrix = _matrix(x)
    rows = _rows(matrix.shape)
    if training or running_mean is None or running_var is None:
        mean, m2 = _batch_statistics(matrix, rows)
        var = m2 / m2.dtype.type(rows.rows)
        if training and running_mean is not None and running_var is not None:
            _update(running_mean, mean, momentum)
            _update(running_var, m2 / m2.dtype.type(rows.rows - 1), momentum)
    else:
        mean, var = running_mean.copy(), running_var
    invstd = 1 / np.sqrt(var + var.dtype.type(eps))
    scale = invstd if w is None else invstd * w
    shift = np.zeros_like(scale) if b is None else b
    y, flat = like(x)
    vectors = (rows.repeat(v) for v in (mean, scale, shift))
    kernels.batchnorm.batch_norm(
        rows.fold(matrix), *vectors, rows.span, rows.workers, rows.fold(flat)
    )
    return y, mean, invstd


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
    needs: tuple[bool, bool, bool] = (True, True, True),
) -> Grads:
    """Gradients of `batch_norm` by input, weight and bias, each only where `needs` asks for it.

    With ``xhat = (x - mean) * invstd``: ``dbias = sum(dy)``, ``dweight = sum(dy * xhat)`` and, with
    batch statistics, ``dx = weight * invstd * (dy - mean(dy) - xhat * mean(dy * xhat))``.

    Parameters
    ----------
    grad_output, input : ndarray
        Of the same shape.
    weight : ndarray or None
        (C,).
    mean, invstd : ndarray
        (C,), from `batch_norm_forward`.
    training : bool
        Whether the statistics are the batch's; they are also without running arrays.
    needs : (bool, bool, bool)
        Which of the three gradients to compute; the others are None.

    Returns
    -------
    (ndarray or None, ndarray or None, ndarray or None)
        Of the input's shape, (C,) and (C,).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size.
    """
    op = "batch_norm_backward"
    x = _input(op, input)
    dy = _matrix(_check.gradient(op, grad_output, x.shape, x.dtype))
    w = _channel_vector(op, "weight", weight, x)
    mean = _check.vector(op, "mean", mean, x.shape[1], x.dtype)
    invstd = _check.vector(op, "invstd", invstd, x.shape[1], x.dtype)
    matrix = _matrix(x)
    rows = _rows(matrix.shape)
    wide_dy, wide_x, wide_mean = rows.fold(dy), rows.fold(matrix), rows.repeat(mean)
    parts = memory.empty((rows.chunks, 2, wide_dy.shape[1]), x.dtype)
    kernels.batchnorm.channel_gradients(wide_dy, wide_x, wide_mean, rows.span, rows.workers, parts)
    sums = parts[0].reshape(2, rows.folds, rows.channels).sum(axis=1)
    sum_dy, dweight = sums[0], sums[1] * invstd
    dx = None
    if needs[0]:
        scale = invstd if w is None else invstd * w
        share = x.dtype.type(1 / max(rows.rows, 1)) if training else x.dtype.type(0)
        vectors = (scale, -scale * invstd * dweight * share, -scale * sum_dy * share)
        dx, flat = like(x)
        kernels.batchnorm.batch_norm_backward(
            wide_dy,
            wide_x,
            wide_mean,
            *(rows.repeat(v) for v in vectors),
            rows.span,
            rows.workers,
            rows.fold(flat),
        )
    return dx, dweight if needs[1] else None, sum_dy if needs[2] else None
