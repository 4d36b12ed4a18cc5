"""How arrays are read by the kernels of batch normalisation, and the checks of its arguments.

Internal to `ops.norm`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.kernels import norm as kernels
from fastlayers.ops import check
from fastlayers.ops.cuts import LEAST_BYTES, MOST_CHUNKS, chunks
from fastlayers.ops.layout import kernel_ready, to_channels_last
from fastlayers.runtime import cpu, memory, threads
from fastlayers.runtime.facts import plain

__all__ = [
    "EMPTY",
    "Layout",
    "are_ready",
    "flat_elements",
    "input_array",
    "layout_of",
    "optional_vector",
    "vector",
]

# Bytes of the rows that kernels read: shorter ones are read several at a time, until they fill
# whole cache lines or would be longer than the upper limit.
SHORTEST, LONGEST = 512, 4608
# Long rows of a chunk at least: to merge its statistics with others' costs as much as about two.
LEAST_ROWS = 16

# Bytes from which gradients are written by non-temporal stores: 8 MiB take 0.65 ms with them, 1.03
# without. Outputs are where input and output together are larger than the cache: 8 MiB that fit
# take 0.20 ms on 2 threads without, 0.25 with them.
STREAMED = 8 << 20

EMPTY = {np.dtype(kind): np.empty(0, kind) for kind in (np.float32, np.float64)}
# Looked up once: the quick test takes 0.9 us with them, 1.2 otherwise.
_FLOATS, _ndarray = tuple(EMPTY), np.ndarray


@dataclass(frozen=True)
class Layout:
    """How an array of one shape is read: see `fastlayers.kernels.norm.matrix`."""

    rows: int
    channels: int
    folds: int
    period: int
    span: int
    chunks: int
    size: int
    memory_shape: tuple[int, ...]
    axes: tuple[int, ...]  # of the memory, in the order of the array's
    strides: tuple[int, ...]  # of the array
    itemsize: int

    @functools.cached_property
    def facts(self) -> Any:
        """What kernels take; see `fastlayers.kernels.norm.matrix.Facts`."""
        aligned = self.period * self.itemsize % memory.ALIGNMENT == 0
        nbytes = self.size * self.itemsize
        return plain(
            kernels.matrix.Facts(
                rows=self.rows,
                channels=self.channels,
                folds=self.folds,
                period=self.period,
                span=self.span,
                chunks=self.chunks,
                stream_output=aligned and 2 * nbytes > cpu.cache_bytes(),
                stream_gradient=aligned and nbytes >= STREAMED,
            )
        )

    def flat(self, x: np.ndarray) -> np.ndarray:
        """The elements in the order of channels-last memory."""
        if x.strides == self.strides and x.flags.behaved:
            return x.ravel("K")
        return (to_channels_last(x) if x.ndim > 2 else kernel_ready(x)).reshape(-1)

    def shaped(self, flat: np.ndarray) -> np.ndarray:
        """The array whose elements `flat` gives."""
        return flat.reshape(self.memory_shape).transpose(self.axes)

    def empty(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """A new array of this shape, and its memory as a flat array."""
        last = memory.empty(self.memory_shape, dtype)
        return last.transpose(self.axes), last.reshape(-1)


@functools.lru_cache(maxsize=4096)
def layout_of(shape: tuple[int, ...], itemsize: int) -> Layout:
    """The layout of arrays of this shape."""
    n, channels, *spatial = shape
    rows, folds = n * math.prod(spatial), 1
    width = channels * itemsize
    while width < SHORTEST or width % memory.ALIGNMENT:
        if 2 * width > LONGEST or 2 * folds > rows:
            break
        folds, width = 2 * folds, 2 * width
    long_rows, size = rows // folds, rows * channels
    most = max(1, min(MOST_CHUNKS, long_rows // LEAST_ROWS))
    if size < threads.SERIAL_WORK:
        most = 1
    span = max(1, -(-long_rows // chunks(2 * size * itemsize, LEAST_BYTES, most)))
    memory_shape, rank = (n, *spatial, channels), len(shape)
    strides = [itemsize * math.prod(memory_shape[i + 1 :]) for i in range(rank)]
    return Layout(
        rows=rows,
        channels=channels,
        folds=folds,
        period=folds * channels,
        span=span,
        chunks=max(1, -(-long_rows // span)),
        size=size,
        memory_shape=memory_shape,
        axes=(0, rank - 1, *range(1, rank - 1)),
        strides=(strides[0], strides[-1], *strides[1:-1]),
        itemsize=itemsize,
    )


def are_ready(shape: tuple[int, ...], dtype: np.dtype, *vectors: Any) -> bool:
    """Whether an input may have this shape and dtype, and kernels take its vectors as they are.

    It is the quick test for what `input_array` and `vector` check, or make ready, one by one.
    """
    if dtype not in _FLOATS or not 2 <= len(shape) <= 4:
        return False
    per_channel = shape[1:2]
    for value in vectors:
        if value is not None and not (
            type(value) is _ndarray
            and value.dtype is dtype
            and value.shape == per_channel
            and value.flags.carray
        ):
            return False
    return shape[1] > 0


def input_array(op: str, input: Any) -> tuple[np.ndarray, Layout]:
    """The input as an array, and its layout."""
    x = check.array(op, "input", input, (2, 3, 4))
    if x.shape[1] == 0:
        raise ValueError(f"{op}: input must have channels, got shape {x.shape}")
    return x, layout_of(x.shape, x.itemsize)


def vector(op: str, name: str, value: Any, channels: int, dtype: np.dtype) -> np.ndarray:
    """An array of one value a channel, as kernels take it."""
    return kernel_ready(check.vector(op, name, value, channels, dtype))


def optional_vector(op: str, name: str, value: Any, channels: int, dtype: np.dtype) -> np.ndarray:
    """As `vector`, an empty array for None."""
    return EMPTY[dtype] if value is None else vector(op, name, value, channels, dtype)


def flat_elements(op: str, name: str, value: Any, layout: Layout, x: np.ndarray) -> np.ndarray:
    """The elements of an array that must have the shape and dtype of `x`."""
    if not (type(value) is np.ndarray and value.dtype is x.dtype and value.shape == x.shape):
        value = check.array(op, name, value)
        check.same_shape(op, name, value, x.shape)
        check.same_dtype(op, name, value, x.dtype)
    return layout.flat(value)
