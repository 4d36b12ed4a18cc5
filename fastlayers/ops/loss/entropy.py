"""Cross entropy of logits and class indices."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import check
from fastlayers.ops.cuts import chunks
from fastlayers.ops.layout import kernel_ready, like
from fastlayers.ops.loss.common import REDUCTIONS, as_array, class_axis, class_weights
from fastlayers.runtime import memory, threads

__all__ = [
    "cross_entropy",
    "cross_entropy_apply",
    "cross_entropy_backward",
    "cross_entropy_forward",
]

# Operations that an exponential counts for; it takes 3.5 ns in rows of 10, 0.65 in rows of 1000.
EXP_WORK = 4
ROW_WORK = 64  # operations that a row's logarithm and reductions of vectors count for; 20 ns
Losses = tuple[np.ndarray, np.ndarray | None]
Options = tuple[np.ndarray, int, str, float]  # weight, ignore_index, reduction, label_smoothing


def _labels(op: str, target: Any, shape: tuple[int, ...], classes: int, ignored: int) -> np.ndarray:
    """Flat int64 labels; whether those of int64 are classes is left to the kernel."""
    if type(target) is np.ndarray and target.dtype == np.int64 and target.shape == shape:
        return kernel_ready(target).reshape(-1)
    labels = check.labels(op, target, shape, classes, ignored)
    return memory.writable_view(labels).reshape(-1)


def _loss_and_slopes(
    op: str,
    input: Any,
    target: Any,
    weight: Any,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    needs_grad: bool,
) -> Losses:
    """The loss and, where it is needed, the input gradient."""
    x = check.array(op, "input", input)
    check.one_of(op, "reduction", reduction, REDUCTIONS)
    axis = class_axis(op, x)
    classes, shape = x.shape[axis], x.shape[:axis] + x.shape[axis + 1 :]
    ignored = check.integer(op, "ignore_index", ignore_index, -(2**63))
    labels = _labels(op, target, shape, classes, ignored)
    weights = class_weights(op, weight, classes, x.dtype)
    smoothing = check.probability(op, "label_smoothing", label_smoothing)
    options = (weights, ignored, reduction, smoothing)
    wrong, loss, slopes = _by_kernel(x, labels, options, needs_grad)
    if wrong >= 0:
        check.labels(op, target, shape, classes, ignored)  # raises
    loss = loss.reshape(shape if reduction == "none" else ())
    if not needs_grad:
        return loss, None
    slopes = slopes.reshape(*shape, classes)
    return loss, slopes if x.ndim <= 2 else np.moveaxis(slopes, -1, 1)


@functools.lru_cache(1024)
def _cut(rows: int, classes: int) -> tuple[int, int, int]:
    """Operations for a matrix of logits, the rows of a chunk, and the number of chunks."""
    work = rows * (EXP_WORK * classes + ROW_WORK)
    chunk_rows = max(1, -(-rows // chunks(work)))
    return work, chunk_rows, -(-rows // chunk_rows)


def _by_kernel(
    x: np.ndarray, labels: np.ndarray, options: Options, needs_grad: bool
) -> tuple[int, np.ndarray, np.ndarray]:
    """First row whose label is no class, or -1; flat loss; flat derivative, empty if not needed."""
    weight, ignored, reduction, smoothing = options
    last = x if x.ndim <= 2 else np.moveaxis(x, 1, -1)
    work, chunk_rows, parts = _cut(labels.size, weight.size)
    workers, dtype = threads.workers_for(work), x.dtype
    slopes = memory.empty(x.size if needs_grad else 0, dtype)
    losses = memory.empty(labels.size if reduction == "none" else 0, dtype)
    elements = 3 * parts + (0 if needs_grad else workers * weight.size)
    (scratch,) = memory.scratch((elements,), dtype)
    total = np.empty(1, dtype)
    call = (ignored, smoothing, reduction == "mean", chunk_rows, workers)
    rows = kernel_ready(last).reshape(-1)
    wrong = kernels.loss.cross_entropy(rows, labels, weight, call, losses, slopes, scratch, total)
    return wrong, losses if reduction == "none" else total, slopes


def cross_entropy_forward(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    needs_grad: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `cross_entropy`, with its input gradient from the same pass.

    Returns
    -------
    loss : ndarray
        As `cross_entropy` returns it.
    slopes : ndarray or None
        Of the input's shape: the derivative of the mean or the sum, or without reduction of each
        sample's loss; for `cross_entropy_apply`. None unless `needs_grad`.
    """
    arguments = (input, target, weight, ignore_index, reduction, label_smoothing)
    return _loss_and_slopes("cross_entropy", *arguments, needs_grad)


def cross_entropy_apply(
    grad_output: np.ndarray, slopes: np.ndarray, reuse: bool = False
) -> np.ndarray:
    """Input gradient of a loss: `slopes` times the gradient of the loss.

    With `reuse` the caller gives `slopes` up: they are returned themselves where the gradient of
    the loss is 1. A tape that may need them again must not.
    """
    op = "cross_entropy_apply"
    slopes = check.array(op, "slopes", slopes)
    dy = check.array(op, "grad_output", as_array(grad_output))
    shape = slopes.shape[:1] + slopes.shape[2:] if dy.ndim else ()
    dy = check.gradient(op, dy, shape, slopes.dtype)
    if reuse and dy.ndim == 0 and dy == 1:
        return slopes
    out = like(slopes)[0]
    with np.errstate(all="ignore"):
        np.multiply(slopes, np.expand_dims(dy, 1) if dy.ndim else dy, out=out)
    return out


def cross_entropy(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> np.ndarray:
    """Negative log-likelihood of class indices under the softmax of logits.

    ``loss = (1 - s) * w[t] * -log p[t] + s / C * sum_c w[c] * -log p[c]`` with
    ``p = softmax(input)`` and s the label smoothing; the mean divides by the sum of ``w[t]``.

    Logits that hold NaN or infinity, or are all minus infinity, give NaN for their sample. A logit
    of minus infinity is an impossible class: infinite loss where it is the target, none elsewhere
    without smoothing. An ignored sample counts for nothing whatever it holds, and its gradient is
    0, where PyTorch's is NaN if its logits are.

    Parameters
    ----------
    input : ndarray
        Logits (N, C), (C,) or (N, C, d1, ...), float32 or float64.
    target : ndarray
        Integer class indices, of the input's shape without C.
    weight : ndarray, optional
        (C,).
    ignore_index : int
        A target that counts for nothing.
    reduction : {"mean", "sum", "none"}
    label_smoothing : float
        In [0, 1].

    Returns
    -------
    ndarray
        A scalar (0-d), or the target's shape without reduction.

    Raises
    ------
    TypeError, ValueError
        For wrong shapes, dtypes or options, and targets that are no class. Class probabilities
        as targets are not supported.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.cross_entropy.html
    """
    arguments = (input, target, weight, ignore_index, reduction, label_smoothing)
    return _loss_and_slopes("cross_entropy", *arguments, False)[0]


def cross_entropy_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> np.ndarray:
    """Input gradient of `cross_entropy`, of the input's shape.

    Without weights and smoothing ``(softmax(input) - onehot(target)) * grad_output``, over the
    number of samples for a mean; the arguments are those of `cross_entropy`.
    """
    op = "cross_entropy_backward"
    arguments = (input, target, weight, ignore_index, reduction, label_smoothing)
    slopes: Any = _loss_and_slopes(op, *arguments, True)[1]
    shape = target.shape if reduction == "none" else ()
    dy = check.gradient(op, as_array(grad_output), shape, slopes.dtype)
    return cross_entropy_apply(dy, slopes, reuse=True)
