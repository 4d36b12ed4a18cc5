"""Dropout of elements and of whole channels."""

from __future__ import annotations

import functools
import math
import warnings
from typing import Any

import numpy as np

from fastlayers import random
from fastlayers.kernels import dropout as kernels
from fastlayers.ops import check
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

# Drawing for an element costs about as much as two multiply-adds.
DRAW_WORK = 2
# Elements whose bits are drawn together, as in `kernels.dropout.philox`, and their mask's bytes.
GROUP = 128
GROUP_BYTES = GROUP // 8
# Channels from which one copy of their factors is enough for mostly whole vectors.
LONG = 128
# Bytes that the loop over factors takes at a time: four of the widest vectors.
FACTOR_BYTES = 256


@functools.lru_cache(maxsize=256)
def _threshold(p: float) -> np.uint64:
    """The least 32 random bits with which an element is kept."""
    return np.uint64(round(p * 2**32))


def _scale(p: float) -> float:
    """What kept elements are multiplied by."""
    return 1 / (1 - p) if p < 1 else 0.0


def _mask_size(size: int) -> int:
    return -(-size // GROUP) * GROUP_BYTES


def dropout_forward(input: np.ndarray, p: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """`dropout` in training, that also returns its mask.

    Returns
    -------
    y : ndarray
        The output.
    mask : ndarray
        uint8, for `dropout_backward`: bit ``i % 8`` of byte ``i // 8`` is 1 where the i-th element
        in the order of the output's memory was kept; up to a multiple of 128 elements.
    """
    x = check.array("dropout", "input", input)
    p = check.probability("dropout", "p", p)
    y, flat = like(x)
    mask = memory.empty(_mask_size(x.size), np.uint8)
    key, stream = random.dropout_stream()
    workers = threads.workers_for(DRAW_WORK * x.size)
    kernels.dropout.dropout(raveled(x), key, stream, _threshold(p), _scale(p), workers, mask, flat)
    return y, mask


def dropout_backward(grad_output: np.ndarray, mask: np.ndarray, p: float) -> np.ndarray:
    """Input gradient of `dropout`: ``grad_output * mask / (1 - p)``.

    It is 0 where the element was dropped, also if `grad_output` is NaN or infinite there.

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
    dy = check.array(op, "grad_output", grad_output)
    if not isinstance(mask, np.ndarray) or mask.dtype != np.uint8:
        raise TypeError(f"{op}: mask must be a uint8 array, got {check.describe(mask)}")
    check.same_shape(op, "mask", mask, (_mask_size(dy.size),))
    mask = kernel_ready(check.plain(op, "mask", mask))
    scale = _scale(check.probability(op, "p", p))
    dx, flat = like(dy)
    workers = threads.workers_for(dy.size)
    kernels.dropout.apply_mask(raveled(dy), mask, scale, workers, flat)
    return dx


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
        Otherwise the input itself is returned.

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
    check.probability("dropout", "p", p)
    return check.array("dropout", "input", input)


def _check_axis(op: str, x: np.ndarray, channel_axis: int) -> None:
    axis = check.integer(op, "channel_axis", channel_axis, 0)
    if axis > 1 or x.ndim <= axis:
        raise ValueError(
            f"{op}: channel_axis must be 0 or 1 and an axis of the input, got {channel_axis} "
            f"for {check.describe(x)}"
        )


def _channels(x: np.ndarray, channel_axis: int) -> np.ndarray:
    """The array as contiguous (samples, positions, channels)."""
    batched = x if channel_axis else x[None]
    last = to_channels_last(batched) if batched.ndim > 2 else kernel_ready(batched)
    n, c = batched.shape[:2]
    return last.reshape(n, x.size // (n * c) if n * c else 0, c)


@functools.lru_cache(maxsize=256)
def _pieces(shape: tuple[int, int, int], factors: int) -> tuple[int, int]:
    """Copies of a sample's factors that fill whole blocks of so many, and tasks of a sample."""
    _, positions, channels = shape
    repeats = factors // math.gcd(factors, channels) if channels < LONG else 1
    return repeats, max(1, positions * channels // kernels.dropout.TASK_ELEMENTS)


def _channels_restored(y: np.ndarray, shape: tuple[int, ...], channel_axis: int) -> np.ndarray:
    """An (N, positions, C) result in the shape of the input."""
    if channel_axis == 0:
        return y[0].T.reshape(shape) if len(shape) > 1 else y.reshape(shape)
    n, c, *rest = shape
    return from_channels_last(y.reshape(n, *rest, c)) if rest else y.reshape(n, c)


def feature_dropout_forward(
    input: np.ndarray, p: float = 0.5, channel_axis: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Zero whole channels of each sample, and return the factors of the channels too.

    A dropped channel is 0 also where it was NaN or infinite, and so is its gradient.

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
    return _feature_dropout(op, check.array(op, "input", input), p, channel_axis)


def _feature_dropout(
    op: str, x: np.ndarray, p: Any, channel_axis: int
) -> tuple[np.ndarray, np.ndarray]:
    p = check.probability(op, "p", p)
    _check_axis(op, x, channel_axis)
    scale = memory.empty(x.shape[: channel_axis + 1], x.dtype)
    source = _channels(x, channel_axis)
    bits = memory.empty(_mask_size(scale.size), np.uint8)
    y = memory.empty(source.shape, x.dtype)
    workers = threads.workers_for(x.size)
    repeats, pieces = _pieces(source.shape, FACTOR_BYTES // x.itemsize)
    pattern = memory.empty(workers * repeats * source.shape[2], x.dtype)
    draw = (*random.dropout_stream(), _threshold(p), _scale(p))
    cut = (repeats, pieces)
    kernels.dropout.channel_dropout(source, draw, cut, workers, bits, pattern, scale, y)
    return _channels_restored(y, x.shape, channel_axis), scale


def feature_dropout_backward(
    grad_output: np.ndarray, scale: np.ndarray, channel_axis: int = 1
) -> np.ndarray:
    """Input gradient of `feature_dropout_forward`: ``grad_output * scale``."""
    op = "feature_dropout_backward"
    dy = check.array(op, "grad_output", grad_output)
    _check_axis(op, dy, channel_axis)
    scale = check.array(op, "scale", scale)
    check.same_shape(op, "scale", scale, dy.shape[: channel_axis + 1])
    check.same_dtype(op, "scale", scale, dy.dtype)
    source, factors = _channels(dy, channel_axis), kernel_ready(scale)
    dx = memory.empty(source.shape, dy.dtype)
    workers = threads.workers_for(dy.size)
    repeats, pieces = _pieces(source.shape, FACTOR_BYTES // dy.itemsize)
    pattern = memory.empty(workers * repeats * source.shape[2], dy.dtype)
    kernels.dropout.scale_channels(source, factors, (repeats, pieces), workers, pattern, dx)
    return _channels_restored(dx, dy.shape, channel_axis)


def _channel_dropout(
    op: str, input: Any, p: Any, training: bool, ndims: tuple[int, int]
) -> np.ndarray:
    x = check.array(op, "input", input, ndims)
    check.probability(op, "p", p)
    if not training:
        return x
    return _feature_dropout(op, x, p, 1 if x.ndim > 2 else 0)[0]


def dropout1d(input: np.ndarray, p: float = 0.5, training: bool = True) -> np.ndarray:
    """Zero whole channels of each sample of (N, C, L) or (C, L); otherwise as `dropout2d`."""
    return _channel_dropout("dropout1d", input, p, training, (2, 3))


def dropout2d(input: np.ndarray, p: float = 0.5, training: bool = True) -> np.ndarray:
    """Zero whole channels of each sample with probability p, scale the rest by ``1 / (1 - p)``.

    A dropped channel is 0 also where it was NaN or infinite.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W), or (N, C, L) as in `dropout1d`; float32 or float64.
    p : float
        In [0, 1].
    training : bool
        Otherwise the input itself is returned.

    Returns
    -------
    ndarray
        Of the input's shape.

    Raises
    ------
    TypeError, ValueError
        For a wrong rank or dtype, or p outside of [0, 1].

    Warns
    -----
    UserWarning
        For three axes, which PyTorch 2.13 takes for (N, C, L) too, and will take for (C, H, W).

    References
    ----------
    Tompson et al., "Efficient object localization using convolutional networks", CVPR 2015,
    https://arxiv.org/abs/1411.4280
    """
    op = "dropout2d"
    y = _channel_dropout(op, input, p, training, (3, 4))
    if y.ndim == 3:
        text = "input of three axes is (N, C, L), and will be (C, H, W) in future; call dropout1d"
        warnings.warn(f"{op}: {text} for (N, C, L)", stacklevel=2)
    return y
