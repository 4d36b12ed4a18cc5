"""Batch normalisation and max pooling in one, over windows that tile a channels-last image."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import view
from fastlayers.kernels.norm.matrix import Channels, clear, reversed_chunk, write_factors
from fastlayers.kernels.norm.window_loops import Facts, Pooled, Start
from fastlayers.kernels.norm.windows import add_row, pool_row, spread_row
from fastlayers.kernels.reduce import add_rows
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "BackwardCall",
    "Facts",
    "ForwardCall",
    "batch_norm_max_pool2d",
    "batch_norm_max_pool2d_backward",
]


class ForwardCall(NamedTuple):
    """Images, and what changes from call to call."""

    facts: Facts
    relu: bool
    workers: int


class BackwardCall(NamedTuple):
    """Images, and what changes from call to call.

    The statistics are this batch's own, or `shared` with a larger batch that it is a part of.
    """

    facts: Facts
    relu: bool
    shared: bool
    workers: int


@kernel
def _chunk_rows(chunk, facts):
    """The rows of windows of a chunk, counted through all images."""
    rows = facts.images * (facts.height // facts.window_rows)
    return range(chunk * facts.span, min((chunk + 1) * facts.span, rows))


@kernel
def _row_start(row, facts):
    """Where a row of windows starts."""
    rows = facts.height // facts.window_rows
    image = (row // rows * facts.height + row % rows * facts.window_rows) * facts.width
    pooled = row * (facts.width // facts.window_columns)
    return Start(image * facts.channels, pooled * facts.channels)


@kernel
def _forward_chunk(chunk, worker, x, facts, factors, floor, pooled):
    for row in _chunk_rows(chunk, facts):
        pool_row(x, _row_start(row, facts), facts, factors, floor, pooled)


@kernel(opt=3)
def batch_norm_max_pool2d(x, channels, call, work, y, cells):
    """Maxima of ``act((x - mean) * (invstd * weight) + bias)`` and the cells that hold them.

    `channels` are `Channels`, and `call` is a `ForwardCall`. Arrays are flat; `work` holds
    3 * channels elements.
    """
    call = named(ForwardCall, call)
    facts = call.facts
    write_factors(named(Channels, channels), facts.channels, work)
    floor = x.dtype.type(0 if call.relu else -np.inf)
    arguments = (x, facts, work, floor, Pooled(y, cells))
    parallel_for(_forward_chunk, facts.chunks, call.workers, arguments)


@kernel
def _sums_chunk(chunk, worker, dy, pooled, x, call, work):
    facts = call.facts
    sums = view(work, (5 + 2 * chunk) * facts.channels, 2 * facts.channels)
    clear(sums)
    for row in _chunk_rows(chunk, facts):
        add_row(dy, pooled, x, _row_start(row, facts), facts, work, call.relu, sums)


@kernel
def _gradient_of_run(x, at, pixels, channels, factors, dx):
    """Input gradient of some pixels that no window covers."""
    for pixel in range(pixels):
        start = at + pixel * channels
        for c in range(channels):
            delta = x[start + c] - factors[c]
            dx[start + c] = delta * factors[3 * channels + c] + factors[4 * channels + c]


@kernel
def _input_chunk(chunk, worker, dy, pooled, x, call, work, dx):
    facts = call.facts
    height, width, channels = facts.height, facts.width, facts.channels
    rows, columns = height // facts.window_rows, width // facts.window_columns
    chunk = reversed_chunk(chunk, facts.chunks, call.workers)
    covered, below = columns * facts.window_columns, rows * facts.window_rows
    for row in _chunk_rows(chunk, facts):
        start = _row_start(row, facts)
        spread_row(dy, pooled, x, start, facts, work, call.relu, dx)
        if covered < width:
            for r in range(facts.window_rows):
                at = start.image + (r * width + covered) * channels
                _gradient_of_run(x, at, width - covered, channels, work, dx)
        if row % rows == rows - 1:
            at = start.image + facts.window_rows * width * channels
            _gradient_of_run(x, at, (height - below) * width, channels, work, dx)


@kernel(opt=3)
def batch_norm_max_pool2d_backward(dy, pooled, x, channels, call, work, dx, grads):
    """Input, weight and bias gradient, into dx, ``grads[0]`` and ``grads[1]``.

    `pooled` is `Pooled`, `channels` are `Channels`, and `call` is a `BackwardCall`. Where the
    statistics are shared, grads are read: they hold the means of ``dy * xhat`` and of dy over the
    whole batch. dx may be empty, and is then not computed. `work` holds
    (5 + 2 * max(chunks, 1)) * channels elements.
    """
    call, channels = named(BackwardCall, call), named(Channels, channels)
    pooled, facts, invstd = named(Pooled, pooled), call.facts, channels.invstd
    size, chunks = facts.channels, facts.chunks
    write_factors(channels, size, work)
    if not call.shared:
        parallel_for(_sums_chunk, chunks, call.workers, (dy, pooled, x, call, work))
        sums = view(work, 5 * size, 2 * max(chunks, 1) * size)
        if chunks == 0:
            clear(sums)
        add_rows(sums, 2 * size, chunks, call.workers)
        for c in range(size):
            grads[0, c] = sums[size + c] * invstd[c]
            grads[1, c] = sums[c]
    if dx.size == 0:
        return
    share = x.dtype.type(1 if call.shared else 1 / (facts.images * facts.height * facts.width))
    for c in range(size):
        scale = work[size + c] * share
        work[3 * size + c] = -scale * invstd[c] * grads[0, c]
        work[4 * size + c] = -scale * grads[1, c]
    parallel_for(_input_chunk, chunks, call.workers, (dy, pooled, x, call, work, dx))
