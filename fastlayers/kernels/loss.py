"""Cross entropy of logits (rows, classes) against class indices, fused with log-softmax."""

from __future__ import annotations

import math

from fastlayers.runtime.cache import kernel
from fastlayers.runtime.threads import parallel_for

__all__ = ["cross_entropy", "cross_entropy_backward"]

SPAN = 64


@kernel
def _log_softmax_parts(x, i):
    """Maximum m of a row, and the logarithm of the sum of exp(x - m).

    They are kept apart: log p is (x - m) - log(sum), of which m + log(sum) would round the second
    part away for large m.
    """
    top = x[i, 0]
    for c in range(1, x.shape[1]):
        top = max(top, x[i, c])
    total = x.dtype.type(0)
    for c in range(x.shape[1]):
        total += math.exp(x[i, c] - top)
    return top, math.log(total)


@kernel
def _cross_entropy_chunk(chunk, worker, x, target, weight, ignore_index, smoothing, losses):
    classes = x.shape[1]
    one = x.dtype.type(1)
    spread = smoothing / x.dtype.type(classes)
    for i in range(chunk * SPAN, min((chunk + 1) * SPAN, x.shape[0])):
        label = target[i]
        losses[i] = 0
        if label != ignore_index:
            top, log_sum = _log_softmax_parts(x, i)
            loss = (one - smoothing) * weight[label] * (log_sum - (x[i, label] - top))
            if smoothing > 0:
                for c in range(classes):
                    loss += spread * weight[c] * (log_sum - (x[i, c] - top))
            losses[i] = loss


@kernel
def cross_entropy(x, target, weight, ignore_index, smoothing, workers, losses):
    """Loss of each row, 0 where the target is `ignore_index`.

    ``(1 - s) * w[t] * -log p[t] + s / C * sum_c w[c] * -log p[c]`` with ``p = softmax(x)``;
    `smoothing` has the dtype of x, target is int64 and within the classes.
    """
    chunks = (x.shape[0] + SPAN - 1) // SPAN
    arguments = (x, target, weight, ignore_index, smoothing, losses)
    parallel_for(_cross_entropy_chunk, chunks, workers, arguments)


@kernel
def _cross_entropy_backward_chunk(
    chunk, worker, dy, x, target, weight, ignore_index, smoothing, dx
):
    classes = x.shape[1]
    one, all_weights = x.dtype.type(1), x.dtype.type(0)
    spread = smoothing / x.dtype.type(classes)
    for c in range(classes):
        all_weights += weight[c]
    for i in range(chunk * SPAN, min((chunk + 1) * SPAN, x.shape[0])):
        label = target[i]
        if label == ignore_index:
            dx[i] = 0
            continue
        top, log_sum = _log_softmax_parts(x, i)
        hard = (one - smoothing) * weight[label]
        for c in range(classes):
            share = math.exp((x[i, c] - top) - log_sum)
            dx[i, c] = dy[i] * (hard * share + spread * (all_weights * share - weight[c]))
        dx[i, label] -= dy[i] * hard


@kernel
def cross_entropy_backward(dy, x, target, weight, ignore_index, smoothing, workers, dx):
    """Gradient of `cross_entropy` for the rows' gradients dy (rows,)."""
    chunks = (x.shape[0] + SPAN - 1) // SPAN
    arguments = (dy, x, target, weight, ignore_index, smoothing, dx)
    parallel_for(_cross_entropy_backward_chunk, chunks, workers, arguments)
