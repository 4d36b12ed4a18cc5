"""Per-channel statistics, normalisation and gradients of a matrix (rows, channels).

Matrices are flat. `folds` of their rows, a power of two, are read as one of `period` elements, so
that few channels fill the vectors too: ``form = (rows, channels, folds, span)``, a chunk being
`span` long rows. What is left behind the long rows, a short one, belongs to the last chunk.

Statistics are sums over blocks of `BLOCK` rows of the deviation from the mean of the block's first,
merged by Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing
sample variances", 1979). They stay exact where the mean is far larger than the deviation: since
the pivot is a mean of some of the n values, ``sum((x - pivot)^2)`` is at most 1 + n times
``sum((x - mean)^2)``, and means are merged as differences from the first pixel, with 1e4 times the
deviation as the mean ``1 / sqrt(var)`` of 64 values came out with an error of 5e-5 otherwise.
"""

from __future__ import annotations

import math

import numpy as np

from fastlayers.kernels.ir.runs import add_run, clear_run, copy_run, view
from fastlayers.kernels.norm.rows import (
    FROM_INPUT,
    FROM_OUTPUT,
    PLAIN,
    SCALED,
    add_gradients,
    add_shifted,
    input_gradient,
    normalise,
)
from fastlayers.runtime.cache import kernel
from fastlayers.runtime.parallel import parallel_for

__all__ = [
    "BLOCK",
    "FROM_INPUT",
    "FROM_OUTPUT",
    "PART",
    "PLAIN",
    "RUNNING",
    "WHOLE",
    "batch_norm_apply",
    "batch_norm_backward",
    "batch_norm_statistics",
    "merge_moments",
    "mirrored",
]

# Whose mean and variance a gradient passes through: nobody's, as running ones are fixed; the
# batch's; those of a larger batch that this one is a part of.
RUNNING, WHOLE, PART = 0, 1, 2

BLOCK = 256
# A first row four deviations from the mean would cost the variance 4 bits, a mean of four rows 2.
PIVOT_ROWS = 4


@kernel
def _chunk_count(form):
    rows, _, folds, span = form
    return max(1, (rows // folds + span - 1) // span)


@kernel(inner=True)
def mirrored(chunk, chunks, workers):
    """The chunk that stands as far from the end of its worker's share as `chunk` from the start.

    A pass in the reverse order of the one before finds in the caches what that has read last.
    """
    for worker in range(workers):
        first, last = worker * chunks // workers, (worker + 1) * chunks // workers
        if chunk < last:
            return first + last - 1 - chunk
    return chunk


@kernel
def _merge(count, mean, m2, more, more_mean, more_m2):
    """Merge statistics of `more` values into those of `count`; arrays (channels,)."""
    share = mean.dtype.type(more / (count + more))
    weight = mean.dtype.type(count * (more / (count + more)))
    for c in range(mean.size):
        delta = more_mean[c] - mean[c]
        mean[c] += delta * share
        m2[c] += more_m2[c] + delta * delta * weight


@kernel
def merge_moments(parts, rows, stride, channels):
    """Merge statistics by pairs, of pairs and so on, into the first row.

    Each of the `rows`, `stride` elements apart in the flat array, holds ``[mean (channels), sum of
    squared deviations (channels), count]``; a count may be 0.
    """
    step = 1
    while step < rows:
        for row in range(0, rows - step, 2 * step):
            left, right = row * stride, (row + step) * stride
            count, more = parts[left + 2 * channels], parts[right + 2 * channels]
            if more > 0:
                _merge(
                    count,
                    view(parts, left, channels),
                    view(parts, left + channels, channels),
                    more,
                    view(parts, right, channels),
                    view(parts, right + channels, channels),
                )
                parts[left + 2 * channels] = count + more
        step *= 2


@kernel
def _mean_rows(x, at, rows, mean):
    """Mean of some rows, as their deviation from the first."""
    first, share = view(x, at, mean.size), x.dtype.type(1 / rows)
    clear_run(mean, 0, mean.size)
    for row in range(1, rows):
        values = view(x, at + row * mean.size, mean.size)
        for c in range(mean.size):
            mean[c] += values[c] - first[c]
    for c in range(mean.size):
        mean[c] = first[c] + mean[c] * share


@kernel
def _moments_chunk(chunk, worker, x, form, parts, work):
    rows, channels, folds, span = form
    period, start = folds * channels, chunk * span
    stop = min(start + span, rows // folds)
    base = 6 * period * worker
    mean, m2 = view(work, base, period), view(work, base + period, period)
    origin = view(work, base + 4 * period, period)
    for c in range(channels):
        origin[c] = x[c]
    _repeat(origin, form, 0, 1)
    count = 0
    while start < stop:
        n = min(BLOCK, stop - start)
        # The first block's statistics are those to which the others are merged.
        at = base + (2 * period if count else 0)
        clear_run(work, at, 2 * period)
        pivot = view(work, base + 5 * period, period)
        _mean_rows(x, start * period, min(PIVOT_ROWS, n), pivot)
        add_shifted(x, start * period, n, period, pivot, view(work, at, 2 * period))
        block_mean, block_m2 = view(work, at, period), view(work, at + period, period)
        share, zero = x.dtype.type(1 / n), x.dtype.type(0)
        for c in range(period):
            total = block_mean[c]
            squares = block_m2[c] - total * (total * share)
            block_m2[c] = zero if squares < zero else squares  # NaN stays
            block_mean[c] = (pivot[c] - origin[c]) + total * share
        if count:
            _merge(count, mean, m2, n, block_mean, block_m2)
        count, start = count + n, start + n
    while period > channels:  # halves of the row, down to one fold
        period //= 2
        upper, upper_m2 = view(mean, period, period), view(m2, period, period)
        mean, m2 = view(mean, 0, period), view(m2, 0, period)
        _merge(count, mean, m2, count, upper, upper_m2)
        count *= 2
    out = chunk * (2 * channels + 1)
    for c in range(channels):
        parts[out + c] = mean[c]
        parts[out + channels + c] = m2[c]
    parts[out + 2 * channels] = count


@kernel
def _moments_rest(x, form, parts, out):
    """Statistics of the rows behind the long ones, fewer than `folds`."""
    rows, channels, folds, _ = form
    first = rows // folds * folds
    count = rows - first
    for c in range(channels):
        mean = m2 = x.dtype.type(0)
        for row in range(first, rows):
            mean += x[row * channels + c] - x[c]
        mean /= x.dtype.type(max(count, 1))
        for row in range(first, rows):
            delta = (x[row * channels + c] - x[c]) - mean
            m2 += delta * delta
        parts[out + c] = mean
        parts[out + channels + c] = m2
    parts[out + 2 * channels] = count


@kernel(unroll=True)
def batch_norm_statistics(
    x, form, of_batch, running_mean, running_var, update, eps, workers, work, out
):
    """Mean and ``1 / sqrt(var + eps)`` of each channel, into ``out[0]`` and ``out[1]``.

    With `of_batch` they are the batch's, and with a momentum `update` the running arrays are moved,
    with the unbiased variance; NaN leaves them alone. Otherwise they are the running arrays.
    work holds (chunks + 1) * (2 * channels + 1) elements, and 6 * folds * channels a worker; it is
    left with the batch's means, as differences from the first pixel, and then with its sums of
    squared deviations.
    """
    rows, channels, folds, _ = form
    dtype = out.dtype.type
    chunks, stride = _chunk_count(form), 2 * channels + 1
    parts = view(work, 0, (chunks + 1) * stride)
    if of_batch:
        scratch = view(work, parts.size, workers * 6 * folds * channels)
        parallel_for(_moments_chunk, chunks, workers, (x, form, parts, scratch))
        _moments_rest(x, form, parts, chunks * stride)
        merge_moments(parts, chunks + 1, stride, channels)
    for c in range(channels):
        if of_batch:
            mean, m2 = x[c] + parts[c], parts[channels + c]
            var = m2 / dtype(rows)
            if not math.isnan(update):
                # Not running + update * (batch - running): of 1 nothing old may remain.
                share = dtype(update)
                keep = dtype(1) - share
                running_mean[c] = keep * running_mean[c] + share * mean
                running_var[c] = keep * running_var[c] + share * (m2 / dtype(rows - 1))
        else:
            mean, var = running_mean[c], running_var[c]
        out[0, c] = mean
        out[1, c] = dtype(1) / math.sqrt(var + dtype(eps))


@kernel
def _repeat(factors, form, row, count):
    """Repeat the first `channels` elements of a row throughout its period, for `count` rows."""
    _, channels, folds, _ = form
    for k in range(row, row + count):
        width = channels
        while width < folds * channels:
            copy_run(factors, k * folds * channels + width, factors, k * folds * channels, width)
            width *= 2


@kernel
def _spread(form, mean, invstd, weight, bias, factors):
    """Write mean, scale and shift of every element of a long row."""
    _, channels, folds, _ = form
    period = folds * channels
    for c in range(channels):
        factors[c] = mean[c]
        factors[period + c] = invstd[c] * weight[c] if weight.size else invstd[c]
        factors[2 * period + c] = bias[c] if bias.size else bias.dtype.type(0)
    _repeat(factors, form, 0, 3)


@kernel
def _piece(k, chunk, form):
    """First element, rows and width of a chunk's long rows, and of the short one behind them."""
    rows, channels, folds, span = form
    long_rows, period = rows // folds, folds * channels
    first, last = chunk * span, min((chunk + 1) * span, long_rows)
    if k == 0:
        return first * period, last - first, period
    return long_rows * period, int(last == long_rows), (rows - long_rows * folds) * channels


@kernel
def _apply_chunk(chunk, worker, x, residual, form, factors, floor, workers, y, stream):
    chunk = mirrored(chunk, _chunk_count(form), workers)
    period = form[1] * form[2]
    for k in range(2):
        at, rows, width = _piece(k, chunk, form)
        if residual.size:
            normalise(1, x, residual, at, rows, width, factors, period, floor, y, stream)
        else:
            normalise(0, x, residual, at, rows, width, factors, period, floor, y, stream)


@kernel(unroll=True)
def batch_norm_apply(x, residual, form, mean, invstd, weight, bias, relu, stream, workers, work, y):
    """``y = (x - mean) * (invstd * weight) + bias + residual``, or the greater of that and 0.

    weight, bias and residual may be empty; work holds 3 * folds * channels elements.
    """
    _spread(form, mean, invstd, weight, bias, work)
    floor = x.dtype.type(0 if relu else -np.inf)
    arguments = (x, residual, form, work, floor, workers, y, stream)
    parallel_for(_apply_chunk, _chunk_count(form), workers, arguments)


@kernel
def _gradients_chunk(chunk, worker, mode, dy, x, y, form, work, masked, stream):
    period = form[1] * form[2]
    sums = (5 + 2 * chunk) * period
    clear_run(work, sums, 2 * period)
    for k in range(2):
        at, rows, width = _piece(k, chunk, form)
        if mode == FROM_OUTPUT:
            add_gradients(
                FROM_OUTPUT, dy, x, y, at, rows, width, work, period, masked, work, sums, stream
            )
        elif mode == FROM_INPUT:
            add_gradients(
                FROM_INPUT, dy, x, y, at, rows, width, work, period, masked, work, sums, stream
            )
        else:
            add_gradients(
                PLAIN, dy, x, y, at, rows, width, work, period, masked, work, sums, stream
            )


@kernel
def _input_chunk(chunk, worker, mode, dy, x, form, work, workers, dx, stream):
    chunk = mirrored(chunk, _chunk_count(form), workers)
    period = form[1] * form[2]
    for k in range(2):
        at, rows, width = _piece(k, chunk, form)
        if mode == FROM_INPUT:
            input_gradient(FROM_INPUT, dy, x, at, rows, width, work, period, dx, stream)
        elif mode == PLAIN:
            input_gradient(PLAIN, dy, x, at, rows, width, work, period, dx, stream)
        else:
            input_gradient(SCALED, dy, x, at, rows, width, work, period, dx, stream)


@kernel
def _add_folds(form, sums):
    """Add the chunks' sums, then the folds', into the first `channels` of either row."""
    _, channels, folds, _ = form
    period = folds * channels
    for chunk in range(1, _chunk_count(form)):
        add_run(sums, 0, sums, 2 * chunk * period, 2 * period)
    width = period
    while width > channels:
        width //= 2
        add_run(sums, 0, sums, width, width)
        add_run(sums, period, sums, period + width, width)


@kernel
def batch_norm_backward(
    mode,
    dy,
    x,
    y,
    form,
    mean,
    invstd,
    weight,
    bias,
    of_batch,
    stream,
    workers,
    work,
    masked,
    dx,
    grads,
):
    """Gradients by the input, weight and bias, ``dx``, ``grads[0]`` and ``grads[1]``.

    `mode` says where the mask of a ReLU comes from: `PLAIN` for none; `FROM_INPUT`, from what
    `batch_norm_apply` gives without residual; `FROM_OUTPUT`, from y, and then dy after the mask
    is written to `masked`. dx and, with running statistics, grads may be empty, and are then not
    computed. `of_batch` is `RUNNING`, `WHOLE` or `PART`, for which grads are read: they hold the
    means of ``dy * xhat`` and of dy over the whole batch; its mode is not `FROM_OUTPUT`. work holds
    (5 + 2 * chunks) * folds * channels elements.
    """
    rows, channels, folds, _ = form
    period, chunks = folds * channels, _chunk_count(form)
    _spread(form, mean, invstd, weight, bias, work)
    sums = view(work, 5 * period, 2 * chunks * period)
    if of_batch != PART and (of_batch == WHOLE or grads.size or mode == FROM_OUTPUT):
        arguments = (mode, dy, x, y, form, work, masked, stream)
        parallel_for(_gradients_chunk, chunks, workers, arguments)
        _add_folds(form, sums)
        for c in range(grads.size // 2):
            grads[0, c] = sums[period + c] * invstd[c]
            grads[1, c] = sums[c]
    if dx.size == 0:
        return
    clear_run(work, 3 * period, 2 * period)
    if of_batch != RUNNING:
        for c in range(channels):
            scale, dot, total = work[period + c], grads[0, c], grads[1, c]
            if of_batch == WHOLE:
                scale *= x.dtype.type(1 / rows)
                dot, total = sums[period + c] * invstd[c], sums[c]
            work[3 * period + c] = -scale * invstd[c] * dot
            work[4 * period + c] = -scale * total
        _repeat(work, form, 3, 2)
    gradient = dy
    if mode == FROM_OUTPUT:
        mode, gradient = PLAIN, masked
    if mode == PLAIN and of_batch == RUNNING:
        mode = SCALED
    arguments = (mode, gradient, x, form, work, workers, dx, stream)
    parallel_for(_input_chunk, chunks, workers, arguments)
