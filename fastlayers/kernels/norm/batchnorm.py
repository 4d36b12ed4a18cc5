"""Per-channel statistics, normalisation and gradients of a matrix (rows, channels).

Matrices are flat, and cut as `fastlayers.kernels.norm.matrix` says.

Statistics are sums over blocks of `BLOCK` rows of the deviation from the mean of the block's first,
merged by Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing
sample variances", 1979). They stay exact where the mean is far larger than the deviation: since
the pivot is a mean of some of the n values, ``sum((x - pivot)^2)`` is at most 1 + n times
``sum((x - mean)^2)``. Means are merged as differences from the first pixel: otherwise, with a mean
of 1e4 deviations, ``1 / sqrt(var)`` of 64 values came out with an error of 5e-5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from fastlayers.kernels.ir.named import named
from fastlayers.kernels.ir.runs import add_run, flat, view
from fastlayers.kernels.norm.matrix import (
    Channels,
    Facts,
    chunk_rows,
    clear,
    repeat_channels,
    reversed_chunk,
    write_factors,
)
from fastlayers.kernels.norm.rows import (
    FROM_INPUT,
    FROM_OUTPUT,
    PLAIN,
    SCALED,
    Factors,
    Mask,
    Rows,
    add_gradients,
    add_shifted,
    input_gradient,
    merge_run,
    normalise,
)
from fastlayers.kernels.reduce import add_rows, sum_workers
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "BLOCK",
    "FIXED",
    "FROM_INPUT",
    "FROM_OUTPUT",
    "OWN",
    "PLAIN",
    "SHARED",
    "ApplyCall",
    "BackwardCall",
    "StatisticsCall",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_statistics",
    "merge_moments",
]

# Whose statistics a gradient passes through: nobody's, as running ones are fixed; this batch's own;
# those of a larger batch that this one is a part of.
FIXED, OWN, SHARED = 0, 1, 2

BLOCK = 256
# A first row four deviations from the mean would cost the variance 4 bits, a mean of four rows 2.
PIVOT_ROWS = 4
CHANNELS = 64  # of a task that merges statistics


class StatisticsCall(NamedTuple):
    """A matrix, and what changes from call to call.

    Statistics are the batch's, or the running ones, which move by `update`; by NaN not at all.
    """

    facts: Facts
    of_batch: bool
    update: float
    eps: float
    workers: int


class ApplyCall(NamedTuple):
    """A matrix, and what changes from call to call."""

    facts: Facts
    relu: bool
    workers: int


class BackwardCall(NamedTuple):
    """A matrix, and what changes from call to call.

    `mode` says where the mask of a ReLU comes from: `PLAIN` for none; `FROM_INPUT`, from what
    `batch_norm_apply` gives without residual; `FROM_OUTPUT`, from its output. `statistics` are
    `FIXED`, `OWN` or `SHARED`.
    """

    facts: Facts
    mode: int
    statistics: int
    workers: int


@kernel
def _merge(table, left, right, gap, size, count, more):
    """Merge statistics of `more` values into those of `count`; see `merge_run`."""
    share = table.dtype.type(more / (count + more))
    weight = table.dtype.type(count * (more / (count + more)))
    merge_run(table, left, right, gap, size, share, weight)


@kernel
def merge_moments(parts, facts, first, size):
    """Merge the statistics of some channels by pairs of parts, of pairs and so on, into the first.

    The flat array holds ``[mean (channels), sum of squared deviations (channels)]`` of each chunk,
    and then of the short row.
    """
    facts = named(Facts, facts)
    channels, number, step = facts.channels, facts.chunks + 1, 1
    chunk_rows, long_rows = facts.span * facts.folds, facts.rows // facts.folds * facts.folds
    while step < number:
        for part in range(0, number - step, 2 * step):
            start, middle = part * chunk_rows, min((part + step) * chunk_rows, long_rows)
            end = min((part + 2 * step) * chunk_rows, long_rows)
            more = (facts.rows if part + 2 * step >= number else end) - middle
            if more > 0:
                left, right = 2 * channels * part + first, 2 * channels * (part + step) + first
                _merge(parts, left, right, channels, size, middle - start, more)
        step *= 2


@kernel
def _mean_rows(x, at, rows, mean):
    """Mean of some rows, as their deviation from the first."""
    first, share = view(x, at, mean.size), x.dtype.type(1 / rows)
    clear(mean)
    for row in range(1, rows):
        values = view(x, at + row * mean.size, mean.size)
        for c in range(mean.size):
            mean[c] += values[c] - first[c]
    for c in range(mean.size):
        mean[c] = first[c] + mean[c] * share


@kernel
def _block_moments(x, rows, origin, pivot, moments):
    """Means, as differences from `origin`, and sums of squared deviations of a block's columns."""
    period = rows.width
    clear(view(moments, 0, 2 * period))
    _mean_rows(x, rows.start, min(PIVOT_ROWS, rows.number), pivot)
    add_shifted(x, rows, pivot, moments)
    mean, m2 = view(moments, 0, period), view(moments, period, period)
    share, zero = x.dtype.type(1 / rows.number), x.dtype.type(0)
    for c in range(period):
        total = mean[c]
        squares = m2[c] - total * (total * share)
        m2[c] = zero if squares < zero else squares  # NaN stays
        mean[c] = (pivot[c] - origin[c]) + total * share


@kernel
def _moments_chunk(chunk, worker, x, facts, origin, parts, work):
    """Statistics of a chunk's long rows: of all columns, then of columns of one channel merged."""
    channels, period, start = facts.channels, facts.period, chunk * facts.span
    width, stop = period, min(start + facts.span, facts.rows // facts.folds)
    base = 5 * period * worker
    pivot = view(work, base + 4 * period, period)
    count = 0
    while start < stop:
        n = min(BLOCK, stop - start)
        # The first block's statistics are those to which the others are merged.
        at = base + (2 * period if count else 0)
        rows = Rows(start * period, n, period)
        _block_moments(x, rows, origin, pivot, view(work, at, 2 * period))
        if count:
            _merge(work, base, at, period, period, count, n)
        count, start = count + n, start + n
    while width > channels:  # halves of the row, down to one fold
        width //= 2
        _merge(work, base, base + width, period, width, count, count)
        count *= 2
    mean, m2 = view(work, base, channels), view(work, base + period, channels)
    out = view(parts, 2 * channels * chunk, 2 * channels)
    for c in range(channels):
        out[c] = mean[c]
        out[channels + c] = m2[c]


@kernel
def _moments_of_short_row(x, facts, parts, out):
    """Statistics of the rows behind the long ones, fewer than `folds`."""
    rows, channels = facts.rows, facts.channels
    first = rows // facts.folds * facts.folds
    count = rows - first
    if count == 0:
        return
    for c in range(channels):
        mean = m2 = x.dtype.type(0)
        for row in range(first, rows):
            mean += x[row * channels + c] - x[c]
        mean /= x.dtype.type(count)
        for row in range(first, rows):
            delta = (x[row * channels + c] - x[c]) - mean
            m2 += delta * delta
        parts[out + c] = mean
        parts[out + channels + c] = m2


@kernel
def _finish_block(block, worker, x, running, call, parts, most, out):
    """Merge the statistics of at most so many channels, and write those of the batch."""
    facts, dtype = call.facts, out.dtype.type
    channels, first = facts.channels, block * most
    size = min(most, channels - first)
    means, invstds = view(out, first, size), view(out, channels + first, size)
    old_mean, old_var = view(running[0], first, size), view(running[1], first, size)
    eps = dtype(call.eps)
    if not call.of_batch:
        for c in range(size):
            means[c] = old_mean[c]
            invstds[c] = dtype(1) / math.sqrt(old_var[c] + eps)
        return
    merge_moments(parts, facts, first, size)
    origin, mean = view(x, first, size), view(parts, first, size)
    m2 = view(parts, channels + first, size)
    for c in range(size):
        means[c] = origin[c] + mean[c]
        invstds[c] = dtype(1) / math.sqrt(m2[c] / dtype(facts.rows) + eps)
    if not math.isnan(call.update):
        # Not running + update * (batch - running): of 1 nothing old may remain.
        share = dtype(call.update)
        keep = dtype(1) - share
        for c in range(size):
            old_mean[c] = keep * old_mean[c] + share * means[c]
            old_var[c] = keep * old_var[c] + share * (m2[c] / dtype(facts.rows - 1))


@kernel(unroll=True)
def batch_norm_statistics(x, running_mean, running_var, call, work, out):
    """Mean and ``1 / sqrt(var + eps)`` of each channel, into ``out[0]`` and ``out[1]``.

    `call` is a `StatisticsCall`. The running arrays are moved with the unbiased variance. `work`
    holds (chunks + 1) * 2 * channels + period elements, and 5 * period a worker. Where the
    statistics are the batch's, it is left with the means, as differences from the first pixel, and
    then the sums of squared deviations.
    """
    call = named(StatisticsCall, call)
    facts, workers = call.facts, call.workers
    chunks, channels = facts.chunks, facts.channels
    parts = view(work, 0, (chunks + 1) * 2 * channels)
    if call.of_batch:
        origin = view(work, parts.size, facts.period)
        for c in range(channels):
            origin[c] = x[c]
        repeat_channels(origin, facts, 0, 1)
        scratch = view(work, parts.size + facts.period, workers * 5 * facts.period)
        parallel_for(_moments_chunk, chunks, workers, (x, facts, origin, parts, scratch))
        _moments_of_short_row(x, facts, parts, chunks * 2 * channels)
    shared = call.of_batch and sum_workers(parts.size, workers) > 1
    most = CHANNELS if shared else channels
    arguments = (x, (running_mean, running_var), call, parts, most, flat(out))
    blocks = (channels + most - 1) // most
    parallel_for(_finish_block, blocks, workers if shared else 1, arguments)


@kernel
def _apply_chunk(chunk, worker, x, residual, call, work, floor, y):
    facts = call.facts
    chunk = reversed_chunk(chunk, facts.chunks, call.workers)
    factors, stream = Factors(work, facts.period), facts.stream_output
    for short in (False, True):
        rows = chunk_rows(short, chunk, facts)
        if residual.size:
            normalise(1, x, residual, rows, factors, floor, y, stream)
        else:
            normalise(0, x, residual, rows, factors, floor, y, stream)


@kernel(unroll=True)
def batch_norm_apply(x, residual, channels, call, work, y):
    """``y = (x - mean) * (invstd * weight) + bias + residual``, or the greater of that and 0.

    `channels` are `Channels`, and `call` is an `ApplyCall`. The residual may be empty; `work` holds
    3 * period elements.
    """
    call = named(ApplyCall, call)
    facts = call.facts
    write_factors(named(Channels, channels), facts.period, work)
    repeat_channels(work, facts, 0, 3)
    floor = x.dtype.type(0 if call.relu else -np.inf)
    parallel_for(_apply_chunk, facts.chunks, call.workers, (x, residual, call, work, floor, y))


@kernel
def _gradients_chunk(chunk, worker, dy, x, mask, call, work):
    facts, mode = call.facts, call.mode
    factors, stream = Factors(work, facts.period), facts.stream_gradient
    sums = (5 + 2 * chunk) * facts.period
    clear(view(work, sums, 2 * facts.period))
    for short in (False, True):
        rows = chunk_rows(short, chunk, facts)
        if mode == FROM_OUTPUT:
            add_gradients(FROM_OUTPUT, dy, x, mask, rows, factors, sums, stream)
        elif mode == FROM_INPUT:
            add_gradients(FROM_INPUT, dy, x, mask, rows, factors, sums, stream)
        else:
            add_gradients(PLAIN, dy, x, mask, rows, factors, sums, stream)


@kernel
def _add_folds(facts, sums):
    """Add the folds' sums into the first `channels` of either row."""
    period = width = facts.period
    while width > facts.channels:
        width //= 2
        add_run(sums, 0, sums, width, width)
        add_run(sums, period, sums, period + width, width)


@kernel
def _input_chunk(chunk, worker, mode, dy, x, call, work, dx):
    facts = call.facts
    chunk = reversed_chunk(chunk, facts.chunks, call.workers)
    factors, stream = Factors(work, facts.period), facts.stream_gradient
    for short in (False, True):
        rows = chunk_rows(short, chunk, facts)
        if mode == FROM_INPUT:
            input_gradient(FROM_INPUT, dy, x, rows, factors, dx, stream)
        elif mode == PLAIN:
            input_gradient(PLAIN, dy, x, rows, factors, dx, stream)
        else:
            input_gradient(SCALED, dy, x, rows, factors, dx, stream)


@kernel
def _write_slopes(call, invstd, sums, grads, work):
    """Write slope and offset of each column: what passes through mean and variance."""
    facts = call.facts
    period = facts.period
    clear(view(work, 3 * period, 2 * period))
    if call.statistics == FIXED:
        return
    for c in range(facts.channels):
        scale, dot, total = work[period + c], grads[0, c], grads[1, c]
        if call.statistics == OWN:
            scale *= work.dtype.type(1 / facts.rows)
            dot, total = sums[period + c] * invstd[c], sums[c]
        work[3 * period + c] = -scale * invstd[c] * dot
        work[4 * period + c] = -scale * total
    repeat_channels(work, facts, 3, 5)


@kernel
def batch_norm_backward(dy, x, mask, channels, call, work, dx, grads):
    """Input, weight and bias gradient, into dx, ``grads[0]`` and ``grads[1]``.

    `channels` are `Channels`, and `call` is a `BackwardCall`. With `FROM_OUTPUT`, `mask` is a
    `Mask`, and dy after it is written there; otherwise its arrays are empty. dx and, with `FIXED`
    statistics, grads may be empty, and are then not computed. With `SHARED` ones grads are read:
    they hold the means of ``dy * xhat`` and of dy over the whole batch; the mode is then not
    `FROM_OUTPUT`. `work` holds (5 + 2 * chunks) * period elements.
    """
    call, channels, mask = named(BackwardCall, call), named(Channels, channels), named(Mask, mask)
    facts, mode, invstd = call.facts, call.mode, channels.invstd
    period, chunks, workers = facts.period, facts.chunks, call.workers
    write_factors(channels, period, work)
    repeat_channels(work, facts, 0, 3)
    sums = view(work, 5 * period, 2 * chunks * period)
    through = call.statistics
    if through != SHARED and (through == OWN or grads.size or mode == FROM_OUTPUT):
        parallel_for(_gradients_chunk, chunks, workers, (dy, x, mask, call, work))
        add_rows(sums, 2 * period, chunks, workers)
        _add_folds(facts, sums)
        for c in range(grads.size // 2):
            grads[0, c] = sums[period + c] * invstd[c]
            grads[1, c] = sums[c]
    if dx.size == 0:
        return
    _write_slopes(call, invstd, sums, grads, work)
    gradient = dy
    if mode == FROM_OUTPUT:
        mode, gradient = PLAIN, mask.masked
    if mode == PLAIN and through == FIXED:
        mode = SCALED
    parallel_for(_input_chunk, chunks, workers, (mode, gradient, x, call, work, dx))
