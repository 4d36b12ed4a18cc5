"""How arrays are read by the kernels of batch normalisation, and the checks of its arguments.

Internal to `ops.norm.batchnorm` and `ops.norm.pooled`.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fastlayers.ops import check
from fastlayers.ops.layout import kernel_ready, to_channels_last
from fastlayers.runtime import backend, cpu, memory, threads

__all__ = ["NOTHING", "Form", "batch", "elements", "form_of", "optional", "vector"]

# Bytes of the rows that kernels read: shorter ones are read several at a time, until they fill
# whole cache lines or would be longer than the upper limit.
SHORTEST, LONGEST = 512, 4608
# Chunks of at least 256 long rows, or an eighth of all, and at most 32 of them; one where the work
# is serial. The order of additions is fixed by the shape, not by the threads.
SPAN, CHUNKS, FEWEST = 256, 32, 8

# Bytes from which gradients are written past the caches: 0.65 ms for 8 MiB, 1.03 not so. Outputs
# are where input and output together pass the cache: 8 MiB take 0.20 ms on 2 threads, 0.25 so.
STREAMED = 8 << 20

NOTHING = {np.dtype(kind): np.empty(0, kind) for kind in (np.float32, np.float64)}


@dataclass(frozen=True, slots=True)
class Form:
    """How an array of one shape is read: see `fastlayers.kernels.norm.batchnorm`."""

    rows: tuple[int, int, int, int]  # rows, channels, folds, span
    chunks: int
    period: int
    size: int
    last: tuple[int, ...]  # the shape in memory, and the strides of the array
    axes: tuple[int, ...]
    strides: tuple[int, ...]
    vector: tuple[int]
    stream: int  # whether outputs are written past the caches
    stream_back: int  # whether gradients are

    def flat(self, x: np.ndarray) -> np.ndarray:
        """The elements in the order of channels-last memory."""
        if x.strides == self.strides and x.flags.behaved:
            return x.ravel("K")
        return (to_channels_last(x) if x.ndim > 2 else kernel_ready(x)).reshape(-1)

    def shaped(self, flat: np.ndarray) -> np.ndarray:
        """The array whose elements `flat` gives."""
        return flat.reshape(self.last).transpose(self.axes)

    def empty(self, dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
        """A new array of this shape, and its memory as a flat array."""
        last = memory.empty(self.last, dtype)
        return last.transpose(self.axes), last.reshape(-1)


@functools.lru_cache(maxsize=4096)
def form_of(shape: tuple[int, ...], itemsize: int) -> Form:
    """The form of arrays of this shape."""
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
        stream=int(
            not backend.NUMPY
            and 2 * size * itemsize > cpu.cache_bytes()
            and width % memory.ALIGNMENT == 0
        ),
        stream_back=int(size * itemsize >= STREAMED and width % memory.ALIGNMENT == 0),
    )


def batch(op: str, input: Any) -> tuple[np.ndarray, Form]:
    """The input as an array, and its form."""
    x = check.array(op, "input", input, (2, 3, 4))
    if x.shape[1] == 0:
        raise ValueError(f"{op}: input must have channels, got shape {x.shape}")
    return x, form_of(x.shape, x.itemsize)


def optional(op: str, name: str, value: Any, form: Form, dtype: np.dtype) -> np.ndarray:
    """As `vector`, an empty array for None."""
    return NOTHING[dtype] if value is None else vector(op, name, value, form, dtype)


def vector(op: str, name: str, value: Any, form: Form, dtype: np.dtype) -> np.ndarray:
    """An array of one value a channel, as kernels take it."""
    if (
        type(value) is np.ndarray
        and value.shape == form.vector
        and value.dtype is dtype
        and value.flags.carray
    ):
        return value
    value = check.vector(op, name, value, form.vector[0], dtype)
    return kernel_ready(value)


def elements(op: str, name: str, value: Any, form: Form, x: np.ndarray) -> np.ndarray:
    """The elements of an array of the shape and dtype of the input."""
    if not (type(value) is np.ndarray and value.dtype is x.dtype and value.shape == x.shape):
        value = check.array(op, name, value)
        check.same_shape(op, name, value, x.shape)
        check.same_dtype(op, name, value, x.dtype)
    return form.flat(value)
