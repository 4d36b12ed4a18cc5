"""Average pooling of images, over windows of a given size or to an output of a given size."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.pool.avg_routes import MeanShape
from fastlayers.ops.pool.window import (
    IntPair,
    Sizes,
    cached,
    channels_last_gradient,
    channels_last_images,
    check_entries,
    input_shape_of,
    restored,
    window,
)

__all__ = [
    "adaptive_avg_pool2d",
    "adaptive_avg_pool2d_backward",
    "avg_pool2d",
    "avg_pool2d_backward",
    "reasons",
    "reasons_adaptive",
]


def _check_possible(op: str, images: Sizes, out_size: tuple[int, int]) -> None:
    """Refuse an output that is too large for tables or memory."""
    n, height, width, depth = images
    check_entries(op, "output_size", out_size, height + width + out_size[0] + out_size[1])
    check.possible(op, "the output", (n, depth, *out_size), 4)


def _mean_backward(op: str, dy: np.ndarray, shape: MeanShape, ndim: int) -> np.ndarray:
    if dy.shape != shape.out_shape:
        n, h, w, c = shape.out_shape
        raise ValueError(
            f"{op}: grad_output must have shape {(n, c, h, w)[4 - ndim :]}, "
            f"got {restored(dy, ndim).shape}"
        )
    return restored(shape.backward.run(dy), ndim)


@functools.lru_cache(maxsize=256, typed=True)
def _avg_shape(
    op: str,
    images: Sizes,
    dtype: str,
    kernel_size: Any,
    stride: Any,
    padding: Any,
    ceil_mode: bool,
    count_include_pad: bool,
    divisor: Any,
) -> MeanShape:
    """Windows cut off at the image's edge, and the count that each is divided by."""
    if divisor is not None and (
        isinstance(divisor, bool) or not isinstance(divisor, (int, np.integer)) or divisor == 0
    ):
        raise ValueError(f"{op}: divisor_override must be an integer other than 0, got {divisor!r}")
    checked = window(op, kernel_size, stride, padding, 1)
    size = images[1:3]
    out_size = checked.out_size(op, size, ceil_mode)
    _check_possible(op, images, out_size)
    bounds, counts = [], []
    for axis in range(2):
        pad, extent = checked.padding[axis], checked.kernel[axis]
        starts = [i * checked.stride[axis] - pad for i in range(out_size[axis])]
        stops = [min(start + extent, size[axis] + pad) for start in starts]
        whole = list(zip(starts, stops, strict=True))
        cut = [(max(start, 0), min(stop, size[axis])) for start, stop in whole]
        bounds.append(cut)
        counts.append([stop - start for start, stop in (whole if count_include_pad else cut)])
    area = np.multiply.outer(*counts) if divisor is None else np.full(out_size, divisor)
    options = (*checked.geometry[:3], ceil_mode, count_include_pad, divisor)
    return MeanShape(images, bounds[0], bounds[1], area, dtype, options)


def avg_pool2d(
    input: np.ndarray,
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Mean of each window: ``y[i, j] = sum over r, s of input[...] / cells``.

    NaN or infinity reaches the means of the windows that hold it, and no others.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    kernel_size, stride, padding : int or (int, int)
        As in `max_pool2d`; padding counts as 0.
    ceil_mode : bool
        Round the output's size up.
    count_include_pad : bool
        Count the padding's cells in the divisor.
    divisor_override : int, optional
        Divide by this instead of the number of cells.

    Returns
    -------
    ndarray
        (N, C, OH, OW) or (C, OH, OW).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or option, or a window larger than the padded input.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.avg_pool2d.html
    """
    op = "avg_pool2d"
    x = channels_last_images(op, input)
    options = (kernel_size, stride, padding, bool(ceil_mode), bool(count_include_pad))
    shape = cached(_avg_shape, op, x.shape, x.dtype.char, *options, divisor_override)
    return restored(shape.forward.run(x), input.ndim)


def avg_pool2d_backward(
    grad_output: np.ndarray,
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> np.ndarray:
    """Input gradient of `avg_pool2d`, of shape `input_shape`.

    Every cell of a window gets the output's gradient divided by the window's divisor; the other
    arguments are those of `avg_pool2d`.
    """
    op = "avg_pool2d_backward"
    images, ndim = input_shape_of(op, input_shape), len(input_shape)
    dy = channels_last_gradient(op, grad_output, ndim)
    options = (kernel_size, stride, padding, bool(ceil_mode), bool(count_include_pad))
    shape = cached(_avg_shape, op, images, dy.dtype.char, *options, divisor_override)
    return _mean_backward(op, dy, shape, ndim)


@functools.lru_cache(maxsize=256, typed=True)
def _adaptive_shape(op: str, images: Sizes, dtype: str, output_size: Any) -> MeanShape:
    """Windows that give an output size: those of row i go from floor(i * H / OH) on."""
    given = images[1:3]
    if output_size is None:
        output_size = given
    elif isinstance(output_size, Sequence) and len(output_size) == 2:
        pairs = zip(output_size, given, strict=True)
        output_size = tuple(size if wanted is None else wanted for wanted, size in pairs)
    wanted = check.pair(op, "output_size", output_size, 1)
    _check_possible(op, images, wanted)
    bounds = [
        [(i * size // out, -(-(i + 1) * size // out)) for i in range(out)]
        for size, out in zip(given, wanted, strict=True)
    ]
    counts = np.multiply.outer(*([stop - start for start, stop in axis] for axis in bounds))
    return MeanShape(images, bounds[0], bounds[1], counts, dtype)


def adaptive_avg_pool2d(
    input: np.ndarray, output_size: int | Sequence[int | None] | None
) -> np.ndarray:
    """Means over windows that are chosen so that the output has a given size.

    Row i averages the input's rows ``floor(i * H / OH)`` to ``ceil((i + 1) * H / OH) - 1``. NaN or
    infinity reaches the means of the windows that hold it, and no others.

    Parameters
    ----------
    input : ndarray
        (N, C, H, W) or (C, H, W), float32 or float64.
    output_size : int or (int or None, int or None)
        Height and width; None keeps the input's.

    Returns
    -------
    ndarray
        (N, C, OH, OW) or (C, OH, OW).

    Raises
    ------
    TypeError, ValueError
        For a wrong rank, dtype or size.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.AdaptiveAvgPool2d.html
    """
    op = "adaptive_avg_pool2d"
    x = channels_last_images(op, input)
    shape = cached(_adaptive_shape, op, x.shape, x.dtype.char, output_size)
    return restored(shape.forward.run(x), input.ndim)


def adaptive_avg_pool2d_backward(
    grad_output: np.ndarray, input_shape: tuple[int, ...]
) -> np.ndarray:
    """Input gradient of `adaptive_avg_pool2d`, of shape `input_shape`."""
    op = "adaptive_avg_pool2d_backward"
    images, ndim = input_shape_of(op, input_shape), len(input_shape)
    dy = channels_last_gradient(op, grad_output, ndim)
    shape = cached(_adaptive_shape, op, images, dy.dtype.char, dy.shape[1:3])
    return _mean_backward(op, dy, shape, ndim)


def reasons(
    input_shape: tuple[int, ...],
    kernel_size: IntPair,
    stride: IntPair | None = None,
    padding: IntPair = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> list[tuple[str, str, str]]:
    """Each pass of `avg_pool2d` of an input of shape `input_shape`, what computes it, and why."""
    op, options = "avg_pool2d", (kernel_size, stride, padding, bool(ceil_mode))
    given = (input_shape_of(op, input_shape), "f", *options, bool(count_include_pad))
    shape: MeanShape = cached(_avg_shape, op, *given, divisor_override)
    return shape.reasons()


def reasons_adaptive(
    input_shape: tuple[int, ...], output_size: int | Sequence[int | None] | None
) -> list[tuple[str, str, str]]:
    """Each pass of `adaptive_avg_pool2d`, what computes it, and why."""
    op = "adaptive_avg_pool2d"
    images = input_shape_of(op, input_shape)
    shape: MeanShape = cached(_adaptive_shape, op, images, "f", output_size)
    return shape.reasons()
