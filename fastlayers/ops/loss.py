"""Losses of classification and regression."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from fastlayers import kernels
from fastlayers.ops import check
from fastlayers.ops.layout import kernel_ready, like, raveled
from fastlayers.runtime import backend, memory, threads

__all__ = [
    "binary_cross_entropy_with_logits",
    "binary_cross_entropy_with_logits_backward",
    "cross_entropy",
    "cross_entropy_apply",
    "cross_entropy_backward",
    "cross_entropy_forward",
    "mse_loss",
    "mse_loss_backward",
    "nll_loss",
    "nll_loss_backward",
]

REDUCTIONS = ("none", "mean", "sum")
# Operations that an exponential counts for; it takes 3.5 ns in rows of 10, 0.65 in rows of 1000.
EXP_WORK = 4
# NaN and infinity come without warnings, as they do from kernels.
_quiet = np.errstate(all="ignore")


@functools.lru_cache(maxsize=64)
def _ones(count: int, dtype: np.dtype) -> np.ndarray:
    return np.ones(count, dtype)


def _array(grad_output: Any) -> Any:
    """A number as an array."""
    return np.asarray(grad_output) if isinstance(grad_output, (float, np.floating)) else grad_output


class _Classes:
    """Checked arguments of a loss over classes, as rows of (samples, classes)."""

    def __init__(
        self, op: str, input: Any, target: Any, weight: Any, ignore_index: Any, reduction: Any
    ) -> None:
        self.x = x = check.array(op, "input", input)
        check.one_of(op, "reduction", reduction, REDUCTIONS)
        if x.ndim == 0 or x.shape[min(1, x.ndim - 1)] == 0:
            raise ValueError(
                f"{op}: input must be (N, C), (C,) or (N, C, ...) with classes, "
                f"got {check.describe(x)}"
            )
        self.axis = min(1, x.ndim - 1)
        classes = x.shape[self.axis]
        self.shape = x.shape[: self.axis] + x.shape[self.axis + 1 :]
        self.ignore_index = check.integer(op, "ignore_index", ignore_index, -(2**63))
        labels = check.labels(op, target, self.shape, classes, self.ignore_index)
        self.labels = memory.writable_view(labels).reshape(-1)
        self.weight = (
            _ones(classes, x.dtype)
            if weight is None
            else memory.writable_view(check.vector(op, "weight", weight, classes, x.dtype))
        )
        last = x if self.axis == x.ndim - 1 else np.moveaxis(x, self.axis, -1)
        self.rows = kernel_ready(last).reshape(-1, classes)
        self.reduction = reduction
        self._weighted = weight is not None

    def _mean(self, total: Any) -> Any:
        """A sum over the weights of the targets that are not ignored; NaN where there are none."""
        kept = self.labels != self.ignore_index
        if self._weighted:
            weight = self.weight[self.labels[kept]].sum()
        else:
            weight = self.x.dtype.type(np.count_nonzero(kept))
        return total / weight if weight else np.nan

    def reduce(self, losses: np.ndarray) -> np.ndarray:
        """The rows' losses as the reduction wants them; a mean over nothing is NaN."""
        if self.reduction == "none":
            return losses.reshape(self.shape)
        total = losses.sum()
        if self.reduction == "mean":
            total = self._mean(total)
        return np.asarray(total, self.x.dtype)

    def row_gradients(self, op: str, grad_output: Any) -> np.ndarray:
        """Gradient of each row's loss."""
        shape = self.shape if self.reduction == "none" else ()
        dy = check.gradient(op, _array(grad_output), shape, self.x.dtype)
        if self.reduction == "mean":
            dy = np.asarray(self._mean(dy), self.x.dtype)
        return np.ascontiguousarray(np.broadcast_to(dy, self.shape)).reshape(-1)

    def restore(self, rows: np.ndarray) -> np.ndarray:
        """A result for each row and class in the shape of the input."""
        out = rows.reshape(*self.shape, rows.shape[1])
        return out if self.axis == out.ndim - 1 else np.moveaxis(out, -1, self.axis)


def _labels(op: str, target: Any, shape: tuple[int, ...], classes: int, ignored: int) -> np.ndarray:
    """Flat int64 labels; whether those of int64 are classes is left to the kernel."""
    if type(target) is np.ndarray and target.dtype == np.int64 and target.shape == shape:
        return kernel_ready(target).reshape(-1)
    labels = check.labels(op, target, shape, classes, ignored)
    return memory.writable_view(labels).reshape(-1)


def _cross_entropy(
    op: str,
    input: Any,
    target: Any,
    weight: Any,
    ignore_index: Any,
    reduction: Any,
    label_smoothing: Any,
    needs_grad: bool,
) -> tuple[np.ndarray, np.ndarray | None]:
    x = check.array(op, "input", input)
    check.one_of(op, "reduction", reduction, REDUCTIONS)
    axis = 1 if x.ndim > 1 else 0
    if x.ndim == 0 or x.shape[axis] == 0:
        raise ValueError(
            f"{op}: input must be (N, C), (C,) or (N, C, ...) with classes, got {check.describe(x)}"
        )
    classes, dtype = x.shape[axis], x.dtype
    shape = x.shape[:axis] + x.shape[axis + 1 :]
    ignored = check.integer(op, "ignore_index", ignore_index, -(2**63))
    labels = _labels(op, target, shape, classes, ignored)
    if weight is None:
        weight = _ones(classes, dtype)
    else:
        weight = memory.writable_view(check.vector(op, "weight", weight, classes, dtype))
    smoothing = dtype.type(check.probability(op, "label_smoothing", label_smoothing))
    if backend.NUMPY:
        target = check.labels(op, target, shape, classes, ignored).reshape(shape)
        arguments = (x, target, weight, ignored, reduction, float(smoothing))
        found = np.asarray(backend.reference("cross_entropy", *arguments), dtype)
        if not needs_grad:
            return found, None
        dy = np.ones(found.shape, dtype)
        return found, np.asarray(backend.reference("cross_entropy_backward", dy, *arguments))
    last = x if x.ndim <= 2 else np.moveaxis(x, 1, -1)
    workers = threads.workers_for(EXP_WORK * x.size)
    slopes = memory.empty(x.size if needs_grad else 0, dtype)
    losses = memory.empty(labels.size if reduction == "none" else 0, dtype)
    chunks = -(-labels.size // kernels.loss.SPAN)
    parts, work = memory.scratch((chunks, 0 if needs_grad else workers * classes), dtype)
    out = np.empty(1, dtype)
    wrong = kernels.loss.cross_entropy(
        kernel_ready(last).reshape(-1),
        labels,
        weight,
        ignored,
        smoothing,
        reduction == "mean",
        workers,
        losses,
        slopes,
        work,
        parts,
        out,
    )
    if wrong >= 0:
        check.labels(op, target, shape, classes, ignored)  # raises
    loss = losses.reshape(shape) if reduction == "none" else out.reshape(())
    if not needs_grad:
        return loss, None
    slopes = slopes.reshape(*shape, classes)
    return loss, slopes if x.ndim <= 2 else np.moveaxis(slopes, -1, 1)


def cross_entropy_forward(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    needs_grad: bool = True,
) -> tuple[np.ndarray, np.ndarray | None]:
    """As `cross_entropy`, with its gradient by the input from the same pass.

    Returns
    -------
    loss : ndarray
        As `cross_entropy` returns it.
    slopes : ndarray or None
        Of the input's shape: the derivative of the mean or the sum, or without reduction of each
        sample's loss; for `cross_entropy_apply`. None unless `needs_grad`.
    """
    arguments = (input, target, weight, ignore_index, reduction, label_smoothing)
    return _cross_entropy("cross_entropy", *arguments, needs_grad)


def cross_entropy_apply(
    grad_output: np.ndarray, slopes: np.ndarray, reuse: bool = False
) -> np.ndarray:
    """Gradient of a loss by its input: `slopes` times the gradient of the loss.

    With `reuse` the caller gives `slopes` up: they are returned themselves where the gradient of
    the loss is 1. A tape that may ask again must not.
    """
    op = "cross_entropy_apply"
    slopes = check.array(op, "slopes", slopes)
    dy = check.array(op, "grad_output", _array(grad_output))
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

    Logits that hold NaN or infinity, or are all minus infinity, give NaN for their sample. Minus
    infinity is a class that cannot be: infinite loss where it is the target, none elsewhere without
    smoothing. An ignored sample counts for nothing whatever it holds, and its gradient is 0, where
    PyTorch's is NaN if its logits are.

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
    return _cross_entropy("cross_entropy", *arguments, False)[0]


def cross_entropy_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
) -> np.ndarray:
    """Gradient of `cross_entropy` by its input, of the input's shape.

    Without weights and smoothing ``(softmax(input) - onehot(target)) * grad_output``, over the
    number of samples for a mean; the arguments are those of `cross_entropy`.
    """
    op = "cross_entropy_backward"
    arguments = (input, target, weight, ignore_index, reduction, label_smoothing)
    slopes: Any = _cross_entropy(op, *arguments, True)[1]
    shape = target.shape if reduction == "none" else ()
    dy = check.gradient(op, _array(grad_output), shape, slopes.dtype)
    return cross_entropy_apply(dy, slopes, reuse=True)


@_quiet
def nll_loss(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> np.ndarray:
    """Negative log-likelihood of class indices, ``loss = -w[t] * input[t]``.

    Parameters
    ----------
    input : ndarray
        Log-probabilities (N, C), (C,) or (N, C, d1, ...), float32 or float64.
    target, weight, ignore_index, reduction
        As in `cross_entropy`.

    Returns
    -------
    ndarray
        A scalar (0-d), or the target's shape without reduction.

    Raises
    ------
    TypeError, ValueError
        For wrong shapes, dtypes or options, and targets that are no class.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.nll_loss.html
    """
    classes = _Classes("nll_loss", input, target, weight, ignore_index, reduction)
    kept = np.flatnonzero(classes.labels != classes.ignore_index)
    losses = memory.zeros(len(classes.rows), classes.x.dtype)
    label = classes.labels[kept]
    losses[kept] = -classes.weight[label] * classes.rows[kept, label]
    return classes.reduce(losses)


@_quiet
def nll_loss_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
) -> np.ndarray:
    """Gradient of `nll_loss` by its input: ``-w[t] * grad_output`` at each target, else 0."""
    op = "nll_loss_backward"
    classes = _Classes(op, input, target, weight, ignore_index, reduction)
    kept = np.flatnonzero(classes.labels != classes.ignore_index)
    dx = memory.zeros(classes.rows.shape, classes.x.dtype)
    label = classes.labels[kept]
    dx[kept, label] = -classes.weight[label] * classes.row_gradients(op, grad_output)[kept]
    return classes.restore(dx)


def _reduce(losses: np.ndarray, reduction: str) -> np.ndarray:
    if reduction == "none":
        return losses
    # In one order, whatever that of the arguments is: NumPy's sums follow it.
    total = raveled(losses).sum() / losses.dtype.type(losses.size if reduction == "mean" else 1)
    return np.asarray(total, losses.dtype)


def _elementwise_gradient(op: str, grad_output: Any, x: np.ndarray, reduction: str) -> np.ndarray:
    """Gradient of each element's loss, to be broadcast."""
    shape = x.shape if reduction == "none" else ()
    dy = check.gradient(op, _array(grad_output), shape, x.dtype)
    return dy / x.dtype.type(x.size) if reduction == "mean" and x.size else dy


def _same(op: str, input: Any, target: Any, reduction: Any) -> tuple[np.ndarray, np.ndarray]:
    x = check.array(op, "input", input)
    t = check.array(op, "target", target)
    check.same_shape(op, "target", t, x.shape)
    check.same_dtype(op, "target", t, x.dtype)
    check.one_of(op, "reduction", reduction, REDUCTIONS)
    return x, t


@_quiet
def mse_loss(input: np.ndarray, target: np.ndarray, reduction: str = "mean") -> np.ndarray:
    """Squared error, ``loss = (input - target)^2``.

    Parameters
    ----------
    input, target : ndarray
        Of the same shape and dtype, float32 or float64.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    ndarray
        A scalar (0-d), or the input's shape without reduction.

    Raises
    ------
    TypeError, ValueError
        For shapes or dtypes that differ, and unknown reductions.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.mse_loss.html
    """
    x, t = _same("mse_loss", input, target, reduction)
    return _reduce(np.asarray((x - t) ** 2), reduction)


@_quiet
def mse_loss_backward(
    grad_output: np.ndarray, input: np.ndarray, target: np.ndarray, reduction: str = "mean"
) -> np.ndarray:
    """Gradient of `mse_loss` by its input: ``2 * (input - target) * grad_output``."""
    op = "mse_loss_backward"
    x, t = _same(op, input, target, reduction)
    slope = x.dtype.type(2) * (x - t)
    return np.asarray(slope * _elementwise_gradient(op, grad_output, x, reduction))


def _factor(op: str, name: str, value: Any, x: np.ndarray) -> np.ndarray | None:
    """A factor that broadcasts against the input."""
    if value is None:
        return None
    factor = check.array(op, name, value)
    check.same_dtype(op, name, factor, x.dtype)
    try:
        fits = np.broadcast_shapes(factor.shape, x.shape) == x.shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(
            f"{op}: {name} must broadcast to the input's shape {x.shape}, "
            f"got {check.describe(value)}"
        )
    return factor


@_quiet
def binary_cross_entropy_with_logits(
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    reduction: str = "mean",
    pos_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Cross entropy of independent yes-no targets under the sigmoid of logits.

    ``loss = weight * (pos_weight * t * softplus(-x) + (1 - t) * softplus(x))`` with
    ``softplus(x) = log(1 + exp(x))``, without overflow.

    Of an infinite logit the loss is infinite, or NaN where its target is sure to agree with it, as
    0 times infinity is; PyTorch's is NaN for all targets of minus infinity. The gradient is finite.

    Parameters
    ----------
    input, target : ndarray
        Logits, and targets in [0, 1], of the same shape and dtype, float32 or float64.
    weight, pos_weight : ndarray, optional
        Factors that broadcast against the input, of all losses and of those of yes.
    reduction : {"mean", "sum", "none"}

    Returns
    -------
    ndarray
        A scalar (0-d), or the input's shape without reduction.

    Raises
    ------
    TypeError, ValueError
        For shapes or dtypes that do not fit, and unknown reductions.

    References
    ----------
    https://docs.pytorch.org/docs/stable/generated/torch.nn.functional.binary_cross_entropy_with_logits.html
    """
    op = "binary_cross_entropy_with_logits"
    x, t = _same(op, input, target, reduction)
    factors = _factor(op, "weight", weight, x), _factor(op, "pos_weight", pos_weight, x)
    yes = t if factors[1] is None else t * factors[1]
    losses = yes * np.logaddexp(0, -x) + (1 - t) * np.logaddexp(0, x)
    return _reduce(np.asarray(losses if factors[0] is None else losses * factors[0]), reduction)


@_quiet
def binary_cross_entropy_with_logits_backward(
    grad_output: np.ndarray,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    reduction: str = "mean",
    pos_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `binary_cross_entropy_with_logits` by its input.

    ``weight * ((1 - t) * sigmoid(x) - pos_weight * t * sigmoid(-x)) * grad_output``.
    """
    op = "binary_cross_entropy_with_logits_backward"
    x, t = _same(op, input, target, reduction)
    factors = _factor(op, "weight", weight, x), _factor(op, "pos_weight", pos_weight, x)
    yes = t if factors[1] is None else t * factors[1]
    # exp(-softplus(-x)) is sigmoid(x), exact at both ends.
    slope = (1 - t) * np.exp(-np.logaddexp(0, -x)) - yes * np.exp(-np.logaddexp(0, x))
    slope = slope if factors[0] is None else slope * factors[0]
    return np.asarray(slope * _elementwise_gradient(op, grad_output, x, reduction))


@_quiet
def binary_cross_entropy_with_logits_by_target(
    grad_output: np.ndarray,
    input: np.ndarray,
    target: np.ndarray,
    weight: np.ndarray | None = None,
    reduction: str = "mean",
    pos_weight: np.ndarray | None = None,
) -> np.ndarray:
    """Gradient of `binary_cross_entropy_with_logits` by its target.

    ``weight * (pos_weight * softplus(-x) - softplus(x)) * grad_output``, without a pos_weight
    ``-weight * x * grad_output``.
    """
    op = "binary_cross_entropy_with_logits_by_target"
    x, _ = _same(op, input, target, reduction)
    factors = _factor(op, "weight", weight, x), _factor(op, "pos_weight", pos_weight, x)
    slope = -x
    if factors[1] is not None:
        slope = factors[1] * np.logaddexp(0, -x) - np.logaddexp(0, x)
    slope = slope if factors[0] is None else slope * factors[0]
    return np.asarray(slope * _elementwise_gradient(op, grad_output, x, reduction))
