"""Reshaping: views where the memory layout allows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axes, axis
from fastlayers.functions.registry import NUMPY, method, numpy_names
from fastlayers.functions.table import result, view
from fastlayers.ops import layout

__all__ = [
    "flatten",
    "ravel",
    "reshape",
    "squeeze",
    "unflatten",
    "unsqueeze",
]


def sizes(op: str, given: tuple[Any, ...], name: str = "shape") -> tuple[int, ...]:
    """Integers, given as one sequence or one by one.

    Raises
    ------
    TypeError
        If it holds anything but integers.
    """
    several: Any = given
    if len(given) > 1 and type(given[0]) is type(given[-1]) is int:  # nearly always
        for size in given:
            if type(size) is not int:
                break
        else:
            return given
    if len(given) == 1:
        is_number = hasattr(given[0], "__index__") and not getattr(given[0], "ndim", 0)
        several = given if is_number else given[0]
    try:
        return tuple(size.__index__() for size in several)
    except (AttributeError, TypeError):
        raise TypeError(f"{op}: {name} must be integers, got {given!r}") from None


@view
def reshape(x: np.ndarray, *shape: Any) -> Any:
    """The elements in C order of (N, C, H, W) in another shape; one length may be -1.

    Raises
    ------
    RuntimeError
        If the shape holds another number of elements.
    """
    wanted, before = _whole_shape(x, sizes("reshape", shape)), x.shape
    return lambda array: _reshaped(array, wanted), lambda dy: _reshaped(dy, before)


def _whole_shape(x: np.ndarray, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """The shape, with a length in place of -1."""
    known, free, fits = 1, -1, True
    for i, size in enumerate(wanted):  # a loop: comprehensions took 1 us of a training step of 570
        if size >= 0:
            known *= size
        elif size == -1 and free < 0:
            free = i
        else:
            fits = False
    if not fits or (x.size != known if free < 0 else known == 0 or x.size % known):
        raise RuntimeError(
            f"reshape: shape must have the {x.size} elements of shape {x.shape}, got {wanted}"
        )
    return wanted if free < 0 else (*wanted[:free], x.size // known, *wanted[free + 1 :])


def _reshaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` in another shape: a view if strides can express it, else a copy by a fast kernel."""
    if not (array.flags.c_contiguous or _is_dense(array, shape)):
        array = layout.contiguous(array)
    return array.reshape(shape)


def _is_dense(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether axes that `shape` joins or splits are contiguous in memory."""
    # Channels-last images to rows: decided immediately, as this happens in every training step.
    if (
        len(shape) == 2
        and array.ndim == 4
        and shape[0] == array.shape[0]
        and array.shape[1] > 1 < array.shape[3]
        and array.strides[1] < array.strides[3]
    ):
        return False
    chunks: list[int] = []
    last = 0
    for size, step in zip(array.shape, array.strides, strict=True):
        if size != 1:
            if chunks and last == size * step:
                chunks[-1] *= size
            else:
                chunks.append(size)
            last = step
    left = [size for size in shape if size != 1]
    for chunk in chunks:
        joined = 1
        while joined < chunk and left:
            joined *= left.pop(0)
        if joined != chunk:
            return False
    return True


def _view(self: Tensor, *shape: Any, dtype: Any = None) -> Tensor:
    """The elements in another shape, as `reshape`; or the memory read as another dtype.

    PyTorch's rejects a shape that the memory layout does not allow without a copy. Here images are
    channels-last in memory, so it copies them instead; a later in-place change of the copy does not
    reach the tensor then.

    Raises
    ------
    RuntimeError
        As `reshape`; if the last axis can't be read as the dtype.
    """
    if dtype is None and len(shape) == 1 and isinstance(shape[0], (np.dtype, type)):
        dtype = shape[0]
    if dtype is None:
        return reshape(self, *shape)
    try:
        array = self.settled().view(np.dtype(dtype))
    except ValueError as error:
        raise RuntimeError(
            f"view: the last axis of shape {tuple(self.shape)} and {self.dtype} must be "
            f"contiguous and hold whole elements of {np.dtype(dtype)}: {error}"
        ) from None
    out = Tensor(array)
    out._storage = self.storage  # so that changes through it are counted
    return out


def flatten(input: Tensor, start_dim: int = 0, end_dim: int = -1) -> Tensor:
    """Join the axes from `start_dim` to `end_dim` into one.

    Raises
    ------
    IndexError, RuntimeError
        If there are no such axes, or the second comes before the first.
    """
    shape = tensor(input).shape
    first, last = (axis("flatten", len(shape), dim) for dim in (start_dim, end_dim))
    if first > last:
        raise RuntimeError(
            f"flatten: start_dim must not come after end_dim, got {start_dim} and {end_dim}"
        )
    joined = math.prod(shape[first : last + 1])
    return reshape(input, *shape[:first], joined, *shape[last + 1 :])


def ravel(input: Tensor) -> Tensor:
    """All elements along one axis."""
    return reshape(input, -1) if tensor(input).numel() else reshape(input, 0)


@numpy_names
def unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    """Split an axis into several of these lengths; one length may be -1.

    Raises
    ------
    RuntimeError
        If the lengths don't multiply to that of the axis.
    """
    shape, lengths = tensor(input).shape, tuple(sizes)
    at = axis("unflatten", len(shape), dim)
    known = math.prod(size for size in lengths if size != -1)
    whole = known == shape[at] if -1 not in lengths else known and shape[at] % known == 0
    if not lengths or lengths.count(-1) > 1 or not whole:
        raise RuntimeError(
            f"unflatten: sizes must multiply up to the size {shape[at]} of dim {dim}, got {lengths}"
        )
    lengths = tuple(shape[at] // known if size == -1 else size for size in lengths)
    return reshape(input, *shape[:at], *lengths, *shape[at + 1 :])


@view
def squeeze(x: np.ndarray, dim: Any = None) -> Any:
    """Drop axes of length 1: all, or those in `dim`."""
    dims = range(x.ndim) if dim is None else axes("squeeze", x.ndim, dim)
    if isinstance(dim, (tuple, list)) and not dim:
        dims = ()
    over, before = tuple(i for i in dims if x.shape[i] == 1), x.shape
    return lambda array: array.squeeze(over), lambda dy: dy.reshape(before)


@view
def unsqueeze(x: np.ndarray, dim: int) -> Any:
    """A new axis of length 1 at `dim`."""
    at, before = axis("unsqueeze", x.ndim + 1, dim), x.shape
    return lambda array: np.expand_dims(array, at), lambda dy: dy.reshape(before)


def _contiguous(self: Tensor, memory_format: Any = None) -> Tensor:
    """The tensor itself if its memory is in C order, else a copy that is.

    With `channels_last` or `channels_last_3d` the channels are last in memory, in that order.
    """
    array, name = self.array(), str(memory_format or "torch.contiguous_format")
    if name == "torch.preserve_format":
        return self
    if name.startswith("torch.channels_last"):
        ndim = 5 if name.endswith("3d") else 4
        if array.ndim != ndim:
            raise RuntimeError(
                f"contiguous: the tensor must have {ndim} axes for {name}, got {array.shape}"
            )
        out = layout.from_channels_last(layout.to_channels_last(array))
    else:
        out = array if array.flags.c_contiguous else layout.contiguous(array)
    if out is array or np.may_share_memory(out, array):
        return self
    return result("clone", out, (self,), lambda dy: dy)


def in_place(function: Any, *names: str) -> None:
    """The in-place form of a function that changes the shape."""

    def reshaped(self: Tensor, *args: Any, **options: Any) -> Tensor:
        return inplace.reshape(names[0], self, lambda whole: function(whole, *args, **options))

    reshaped.__name__ = reshaped.__qualname__ = names[0]
    reshaped.__doc__ = f"`{function.__name__}` of the tensor itself, whose memory stays."
    method(reshaped, *names)


method(_view, "view")
method(lambda self, other: reshape(self, other.shape), "view_as", "reshape_as")
method(flatten, "flatten")
method(unflatten, "unflatten")
method(ravel, "ravel")
method(_contiguous, "contiguous")
in_place(squeeze, "squeeze_")
in_place(unsqueeze, "unsqueeze_")


def _numpy_reshape(a: Tensor, shape: Any) -> Tensor:
    return reshape(a, shape)


NUMPY |= {
    np.reshape: _numpy_reshape,
    np.ravel: ravel,
    np.squeeze: squeeze,
    np.expand_dims: unsqueeze,
}
