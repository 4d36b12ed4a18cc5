"""Dropout of elements and of whole channels."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers import kernels, random
from fastlayers.ops import _check
from fastlayers.ops.layout import from_channels_last, kernel_ready, like, raveled, to_channels_last
from fastlayers.runtime import memory, threads

__all__ = [
    "dropout",
    "dropout1d",
    "dropout2d",
    "dropout_backward",
    "dropout_forward",
    "feature_dropout_backward",
    "feature_dropout_forward",
]

# Drawing a random word costs about as much as ten multiply-adds.
DRAW_WORK = 10


def _draw(mask: np.ndarray, p: float) -> None:
    """Fill a flat uint8 mask with 0 with probability p, else 1."""
    key, stream = random.dropout_stream()
    threshold = np.uint64(round(p * 2**32))
    kernels.dropout.draw_mask(
        key, stream, threshold, threads.workers_for(DRAW_WORK * mask.size), mask
    )


def _scale(p: float, dtype: np.dtype) -> Any:
    """What kept elements are multiplied by."""
    return dtype.type(1 / (1 - p) if p < 1 else 0)


def dropout_forward(input: np.ndarray, p: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """`dropout` in training, that also returns its mask.

    Returns
    -------
    y : ndarray
        The output.
    mask : ndarray
        uint8, of the input's shape: 0 where dropped, 1 where kept.
    """
    x = _check.array("dropout", "input", input)
    p = _check.probability("dropout", "p", p)
    mask, flat = like(x, np.uint8)
    _draw(flat, p)
    return _apply(x, mask, p), mask


def _apply(x: np.ndarray, mask: np.ndarray, p: float) -> np.ndarray:
    y, flat = like(x)
    workers = threads.workers_for(x.size)
    kernels.dropout.apply_mask(raveled(x), raveled(mask), _scale(p, x.dtype), workers, flat)
    return y


def dropout_backward(grad_output: np.ndarray, mask: np.ndarray, p: float) -> np.ndarray:
    """Gradient of `dropout` by its input: ``grad_output * mask / (1 - p)``.

    Parameters
    ----------
    grad_output : ndarray
        Of the input's shape.
    mask : ndarray
        From `dropout_forward`.
    p : float
        As it was given to `dropout_forward`.
    """
    op = "dropout_backward"
    dy = _check.array(op, "grad_output", grad_output)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8:
        raise TypeError(f"{op}: mask must be a uint8 array, got {_check.describe(mask)}")
    _check.same_shape(op, "mask", mask, dy.shape)
    return _apply(dy, mask, _check.probability(op, "p", p))


def dropout(input: np.ndarray, p: float = 0.5, training: bool = True) -> np.ndarray:
    """Zero each element with probability p and scale the others by ``1 / (1 - p)``.

    Masks follow `fastlayers.manual_seed` and do not depend on the number of threads. A dropped
    element is 0 also if it was NaN or infinite.

    Parameters
    ----------
    input : ndarray
        Of any shape, float32 or float64.
    p : float
        In [0, 1].
    training : bool
        Otherwise the input is returned unchanged.

    Returns
    -------
    ndarray
        Of the input's shape.

    Raises
    ------
    TypeError, ValueError
        For a wrong dtype, or p outside of [0, 1].

    References
    ----------
    Srivastava et al., "Dropout", JMLR 15, 2014, https://jmlr.org/papers/v15/srivastava14a.html
    """
    if training:
        return dropout_forward(input, p)[0]
    _check.probability("dropout", "p", p)
    return _check.array("dropout", "input", input)


def _check_axis(op: str, x: np.ndarray, channel_axis: int) -> None:
    if channel_axis not in (0, 1) or x.ndim <= channel_axis:
        raise ValueError(
            f"{op}: channel_axis must be 0 or 1 and an axis of the input, got {channel_axis} "
            f"for {_check.describe(x)}"
        )


def _channels(x: np.ndarray, channel_axis: int) -> np.ndarray:
    """The array as contiguous (samples, positions, channels)."""
    batched = x if channel_axis else x[None]
    last = to_channels_last(batched) if batched.ndim > 2 else kernel_ready(batched)
    n, c = batched.shape[:2]
    return last.reshape(n, x.size // (n * c) if n * c else 0, c)


def _scale_channels(x: np.ndarray, scale: np.ndarray, channel_axis: int) -> np.ndarray:
    source = _channels(x, channel_axis)
    out = memory.empty(source.shape, x.dtype)
    factors = kernel_ready(scale.reshape(source.shape[0], source.shape[2]))
    kernels.dropout.scale_channels(source, factors, threads.workers_for(x.size), out)
    n, c, *rest = x.shape if channel_axis else (1, *x.shape)
    y = from_channels_last(out.reshape(n, *rest, c)) if rest else out.reshape(n, c)
    return y if channel_axis else y[0]


def feature_dropout_forward(
    input: np.ndarray, p: float = 0.5, channel_axis: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Zero whole channels of each sample, and return the factors of the channels too.

    Parameters
    ----------
    input : ndarray
        (N, C, ...), or (C, ...) for a `channel_axis` of 0.
    p : float
        Probability for a channel to be dropped, in [0, 1].
    channel_axis : {1, 0}

    Returns
    -------
    y : ndarray
        Of the input's shape.
    scale : ndarray
        (N, C) or (C,): 0 for dropped channels, ``1 / (1 - p)`` for kept ones.
    """
    op = "feature_dropout"
    return _feature_dropout(op, _check.array(op, "input", input), p, channel_axis)


def _feature_dropout(
    op: str, x: np.ndarray, p: Any, channel_axis: int
) -> tuple[np.ndarray, np.ndarray]:
    p = _check.probability(op, "p", p)
    _check_axis(op, x, channel_axis)
    mask = memory.empty(int(np.prod(x.shape[: channel_axis + 1])), np.uint8)
    _draw(mask, p)
    scale = mask.reshape(x.shape[: channel_axis + 1]) * _scale(p, x.dtype)
    return _scale_channels(x, scale, channel_axis), scale


def feature_dropout_backward(
    grad_output: np.ndarray, scale: np.ndarray, channel_axis: int = 1
) -> np.ndarray:
    """Gradient of `feature_dropout_forward` by its input: ``grad_output * scale``."""
    op = "feature_dropout_backward"
    dy = _check.array(op, "grad_output", grad_output)
    _check_axis(op, dy, channel_axis)
    scale = _check.array(op, "scale", scale)
    _check.same_shape(op, "scale", scale, dy.shape[: channel_axis + 1])
    _check.same_dtype(op, "scale", scale, dy.dtype)
    return _scale_channels(dy, scale, channel_axis)


def _channel_dropout(
    op: str, input: Any, p: Any, training: bool, ndims: tuple[int, int]
) -> np.ndarray:
    x = _check.array(op, "input", input, ndims)
    _check.probability(op, "p", p)
    if not training:
        return x
    return _feature_dropout(op, x, p, 1 if x.ndim == ndims[1] else 0)[0]


def dropout1d(input: np.ndarray, p: float = 0.5, training: bool = True) -> np.ndarray:
    """Zero whole channels of each sample of (N, C, L) or (C, L); otherwise as `dropout2d`."""
    return _channel_dropout("dropout1d", input, p, training, (2, 3))


def dropout2d(input: np.ndarray, p: float = 0.5, training: bool = True) -> np.ndarray:
    """Zero whole channels of each sample with probability p, scale the rest by ``1 / (1 - p)``.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    p : float
        In [0, 1].
    training : bool
        Otherwise the input is returned unchanged.

    Returns
    -------
    ndarray
        Of the input's shape.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank or dtype, or p outside of [0, 1].

    References
    ----------
    Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015,
    https://arxiv.org/abs/1411.4280
    """
    return _channel_dropout("dropout2d", input, p, training, (3, 4))
