"""Elements chosen by masks, and counts of elements."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.expansion import broadcast_tensors, together
from fastlayers.functions.registry import method, register
from fastlayers.functions.selection import number_of
from fastlayers.functions.shape import reshape
from fastlayers.functions.table import result, unbroadcast
from fastlayers.functions.values import scalar

__all__ = ["bincount", "masked_fill", "masked_scatter", "masked_select", "nonzero"]

_LONG = np.dtype(np.int64)


def _mask(op: str, mask: Any) -> Tensor:
    where: Tensor = tensor(mask)
    if where.dtype != np.bool_:
        raise RuntimeError(f"{op}: mask must be a boolean tensor, got {where.dtype}")
    return where


def masked_fill(input: Tensor, mask: Tensor, value: Any) -> Tensor:
    """A copy with a number, or a tensor without axes, where the mask is true.

    Raises
    ------
    RuntimeError
        If the mask is not boolean, or the value has axes or is of a higher kind.
    """
    x, where = tensor(input), _mask("masked_fill", mask).array()
    source, number = number_of("masked_fill", value)
    shape = together("masked_fill", x, where)
    array = np.broadcast_to(x.array(), shape)
    out = np.where(where, scalar("masked_fill", number, array.dtype), array)

    def gradient(dy: np.ndarray) -> Any:
        dx = unbroadcast(np.where(where, 0, dy), x.shape)
        return dx, None if source is None else np.asarray(dy[np.broadcast_to(where, shape)].sum())

    return result("masked_fill", out, (x, source), gradient)


def masked_select(input: Tensor, mask: Tensor) -> Tensor:
    """The elements where the mask is true, in C order; both are broadcast.

    Raises
    ------
    RuntimeError
        If the mask is not boolean, or the shapes don't broadcast.
    """
    wide, where = broadcast_tensors(tensor(input), _mask("masked_select", mask))
    return wide[where] if wide.ndim else reshape(wide, 1)[reshape(where, 1)]


def masked_scatter(input: Tensor, mask: Tensor, source: Tensor) -> Tensor:
    """A copy with the first elements of `source` where the mask is true, in C order.

    Raises
    ------
    RuntimeError
        If the mask is not boolean, or `source` has too few elements or another dtype.
    """
    x, where, given = tensor(input), _mask("masked_scatter", mask).array(), tensor(source)
    shape = together("masked_scatter", x, where)
    places = np.broadcast_to(where, shape)
    count = int(places.sum())
    if given.dtype != x.dtype or given.numel() < count:
        raise RuntimeError(
            f"masked_scatter: source must have at least {count} elements of {x.dtype}, "
            f"got {given.numel()} of {given.dtype}"
        )
    out = np.array(np.broadcast_to(x.array(), shape))
    out[places] = given.array().reshape(-1)[:count]

    def gradient(dy: np.ndarray) -> Any:
        found = np.zeros(given.shape, dy.dtype)
        found.reshape(-1)[:count] = dy[places]
        return unbroadcast(np.where(places, 0, dy), x.shape), found

    return result("masked_scatter", out, (x, given), gradient)


def nonzero(input: Tensor, *, as_tuple: bool = False) -> Any:
    """The indices of the elements that are not 0: one row per element, or one tensor per axis."""
    array = tensor(input).array()
    if not as_tuple:
        return Tensor(np.argwhere(array))
    return tuple(Tensor(index) for index in np.nonzero(np.atleast_1d(array)))


def one_hot(tensor: Tensor, num_classes: int = -1) -> Tensor:
    """A new last axis that is 1 at the class of each element, an int64, and 0 elsewhere.

    Raises
    ------
    RuntimeError
        If the classes are not int64, negative, or not below `num_classes`.
    """
    classes = tensor.array()
    if classes.dtype != _LONG:
        raise RuntimeError(f"one_hot: tensor must be an int64 (LongTensor), got {classes.dtype}")
    if classes.size == 0 and num_classes < 1:
        raise RuntimeError("one_hot: num_classes must be given for an empty tensor, got none")
    if classes.size and classes.min() < 0:
        raise RuntimeError(f"one_hot: class values must be non-negative, got {classes.min()}")
    count = int(classes.max()) + 1 if num_classes == -1 else num_classes
    if classes.size and classes.max() >= count:
        raise RuntimeError(
            f"one_hot: class values must be smaller than num_classes {count}, got {classes.max()}"
        )
    return Tensor((classes[..., None] == np.arange(count)).astype(np.int64))


def bincount(input: Tensor, weights: Tensor | None = None, minlength: int = 0) -> Tensor:
    """How often each non-negative integer occurs, or the sum of its weights.

    Raises
    ------
    RuntimeError
        If the input is not a 1-d tensor of non-negative integers, or the weights have another
        length.
    """
    array = tensor(input).array()
    if array.ndim != 1 or array.dtype.kind not in "iu" or (array.size and array.min() < 0):
        raise RuntimeError(
            f"bincount: input must be 1-d non-negative integers, got {array.dtype} of shape "
            f"{array.shape}"
        )
    if minlength < 0:
        raise RuntimeError(f"bincount: minlength must be >= 0, got {minlength}")
    if weights is None:
        return Tensor(np.bincount(array, minlength=minlength).astype(np.int64))
    given = tensor(weights).array()
    if given.shape != array.shape:
        raise RuntimeError(f"bincount: weights must have shape {array.shape}, got {given.shape}")
    out = np.bincount(array, given, minlength)
    return Tensor(out.astype(np.float32 if given.dtype == np.float32 else np.float64))


for _function in (masked_fill, masked_scatter):
    register(_function.__name__, _function)
for _other in (masked_select, nonzero, bincount):
    method(_other, _other.__name__)
