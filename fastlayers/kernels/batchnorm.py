"""Per-channel statistics, normalisation and gradients of a matrix (rows, channels).

Statistics are taken in blocks of `BLOCK` rows, two passes over what is still in L1, and merged
by Chan, Golub and LeVeque ("Updating formulae and a pairwise algorithm for computing sample
variances", 1979), so they stay exact where the mean is far larger than the deviation.
"""

from __future__ import annotations

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = [
    "batch_norm",
    "batch_norm_backward",
    "channel_gradients",
    "channel_moments",
    "merge_moments",
]

BLOCK = 32


@kernel
def merge_moments(count, mean, m2, more, more_mean, more_m2):
    """Merge statistics of `more` rows into those of `count` rows, in place; arrays (channels,)."""
    share = mean.dtype.type(more / (count + more))
    weight = mean.dtype.type(count * (more / (count + more)))
    for c in range(mean.size):
        delta = more_mean[c] - mean[c]
        mean[c] += delta * share
        m2[c] += more_m2[c] + delta * delta * weight


@kernel
def _channel_moments_chunk(chunk, worker, x, span, parts):
    mean, m2, block_mean, block_m2 = (
        parts[chunk, 0],
        parts[chunk, 1],
        parts[chunk, 2],
        parts[chunk, 3],
    )
    mean[:] = 0
    m2[:] = 0
    start, stop = chunk * span, min((chunk + 1) * span, x.shape[0])
    for first in range(start, stop, BLOCK):
        last = min(first + BLOCK, stop)
        block_mean[:] = 0
        block_m2[:] = 0
        for i in range(first, last):
            for c in range(x.shape[1]):
                block_mean[c] += x[i, c]
        share = x.dtype.type(1 / (last - first))
        for c in range(x.shape[1]):
            block_mean[c] *= share
        for i in range(first, last):
            for c in range(x.shape[1]):
                delta = x[i, c] - block_mean[c]
                block_m2[c] += delta * delta
        merge_moments(first - start, mean, m2, last - first, block_mean, block_m2)


@kernel
def channel_moments(x, span, workers, parts):
    """Mean and sum of squared deviations of each channel, into ``parts[0, 0]``, ``parts[0, 1]``.

    x (rows, channels); parts (chunks, 4, channels) for chunks of `span` rows, merged in order.
    """
    parallel_for(_channel_moments_chunk, parts.shape[0], workers, (x, span, parts))
    for chunk in range(1, parts.shape[0]):
        count = min(span, x.shape[0] - chunk * span)
        merge_moments(
            chunk * span, parts[0, 0], parts[0, 1], count, parts[chunk, 0], parts[chunk, 1]
        )


@kernel
def _batch_norm_chunk(chunk, worker, x, mean, scale, shift, span, y):
    for i in range(chunk * span, min((chunk + 1) * span, x.shape[0])):
        for c in range(x.shape[1]):
            y[i, c] = (x[i, c] - mean[c]) * scale[c] + shift[c]


@kernel
def batch_norm(x, mean, scale, shift, span, workers, y):
    """``y = (x - mean) * scale + shift`` per channel; the mean is taken off before scaling."""
    chunks = (x.shape[0] + span - 1) // span
    parallel_for(_batch_norm_chunk, chunks, workers, (x, mean, scale, shift, span, y))


@kernel
def _channel_gradients_chunk(chunk, worker, dy, x, mean, span, parts):
    sum_dy, sum_dot = parts[chunk, 0], parts[chunk, 1]
    sum_dy[:] = 0
    sum_dot[:] = 0
    for i in range(chunk * span, min((chunk + 1) * span, x.shape[0])):
        for c in range(x.shape[1]):
            sum_dy[c] += dy[i, c]
            sum_dot[c] += dy[i, c] * (x[i, c] - mean[c])


@kernel
def channel_gradients(dy, x, mean, span, workers, parts):
    """``sum(dy)`` and ``sum(dy * (x - mean))`` per channel, into ``parts[0]``.

    parts (chunks, 2, channels) for chunks of `span` rows, added in order.
    """
    parallel_for(_channel_gradients_chunk, parts.shape[0], workers, (dy, x, mean, span, parts))
    for chunk in range(1, parts.shape[0]):
        for c in range(x.shape[1]):
            parts[0, 0, c] += parts[chunk, 0, c]
            parts[0, 1, c] += parts[chunk, 1, c]


@kernel
def _batch_norm_backward_chunk(chunk, worker, dy, x, mean, scale, slope, offset, span, dx):
    for i in range(chunk * span, min((chunk + 1) * span, x.shape[0])):
        for c in range(x.shape[1]):
            dx[i, c] = dy[i, c] * scale[c] + (x[i, c] - mean[c]) * slope[c] + offset[c]


@kernel
def batch_norm_backward(dy, x, mean, scale, slope, offset, span, workers, dx):
    """``dx = dy * scale + (x - mean) * slope + offset`` per channel."""
    chunks = (x.shape[0] + span - 1) // span
    arguments = (dy, x, mean, scale, slope, offset, span, dx)
    parallel_for(_batch_norm_backward_chunk, chunks, workers, arguments)
