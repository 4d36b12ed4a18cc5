"""Other shapes of the same elements: views where the memory allows."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from fastlayers.autograd import inplace
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.reduction import axes, axis
from fastlayers.functions.table import NUMPY, method, result, tensor, unbroadcast, view
from fastlayers.ops import layout

__all__ = [
    "broadcast_tensors",
    "broadcast_to",
    "flatten",
    "moveaxis",
    "movedim",
    "narrow",
    "permute",
    "ravel",
    "reshape",
    "select",
    "squeeze",
    "swapaxes",
    "swapdims",
    "t",
    "transpose",
    "unflatten",
    "unsqueeze",
]


def sizes(op: str, given: tuple[Any, ...], name: str = "shape") -> tuple[int, ...]:
    """Integers, given as one sequence or one by one.

    Raises
    ------
    TypeError
        If it holds other than integers.
    """
    several: Any = given
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
    wanted, before = sizes("reshape", shape), x.shape
    known = math.prod(size for size in wanted if size != -1)
    fits = wanted.count(-1) <= 1 and min(wanted, default=0) >= -1
    if not fits or (x.size != known if -1 not in wanted else known == 0 or x.size % known):
        raise RuntimeError(
            f"reshape: shape must have the {x.size} elements of shape {before}, got {wanted}"
        )
    wanted = tuple(x.size // known if size == -1 else size for size in wanted)
    return lambda array: _reshaped(array, wanted), lambda dy: _reshaped(dy, before)


def _reshaped(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` in another shape: a view where strides can say it, else a copy by a fast kernel."""
    if not (array.flags.c_contiguous or _is_dense(array, shape)):
        array = layout.contiguous(array)
    return array.reshape(shape)


def _is_dense(array: np.ndarray, shape: tuple[int, ...]) -> bool:
    """Whether axes that `shape` joins or divides lie in memory as one."""
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
        while chunk > 1:
            if not left or chunk % left[0]:
                return False
            chunk //= left.pop(0)
    return True


def _view(self: Tensor, *shape: Any, dtype: Any = None) -> Tensor:
    """The elements in another shape, as `reshape`; or the memory read as another dtype.

    PyTorch's refuses a shape that the memory does not allow without a copy. Here images lie in
    memory with their channels last, so it copies them instead; a later change in place of the copy
    does not reach the tensor then.

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


def unflatten(input: Tensor, dim: int, sizes: Any) -> Tensor:
    """One axis as several of these lengths; one length may be -1.

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


def _reordered(order: tuple[int, ...]) -> Any:
    back = tuple(int(i) for i in np.argsort(order))
    return lambda array: array.transpose(order), lambda dy: dy.transpose(back)


@view
def permute(x: np.ndarray, *dims: Any) -> Any:
    """The axes in the order `dims`.

    Raises
    ------
    RuntimeError
        If `dims` does not name each axis once.
    """
    given = sizes("permute", dims, "dims")
    if len(given) != x.ndim:
        raise RuntimeError(f"permute: dims must name the {x.ndim} axes once each, got {given}")
    return _reordered(axes("permute", x.ndim, given))


@view
def transpose(x: np.ndarray, dim0: int, dim1: int) -> Any:
    """Exchange two axes."""
    first, second = axis("transpose", x.ndim, dim0), axis("transpose", x.ndim, dim1)
    order = list(range(x.ndim))
    if order:
        order[first], order[second] = second, first
    return _reordered(tuple(order))


@view
def t(x: np.ndarray) -> Any:
    """The transpose of a matrix; tensors of fewer axes as they are.

    Raises
    ------
    RuntimeError
        If there are more axes.
    """
    if x.ndim > 2:
        raise RuntimeError(f"t: input must have at most 2 axes, got shape {x.shape}")
    return _reordered(tuple(range(x.ndim))[::-1])


def _T(self: Tensor) -> Tensor:
    """The axes in reverse order."""
    return permute(self, *reversed(range(self.ndim)))


def _mT(self: Tensor) -> Tensor:
    """Each matrix of the last two axes transposed.

    Raises
    ------
    RuntimeError
        If there are fewer axes.
    """
    if self.ndim < 2:
        raise RuntimeError(f"mT: the tensor must have at least 2 axes, got {tuple(self.shape)}")
    return transpose(self, -2, -1)


@view
def movedim(x: np.ndarray, source: Any, destination: Any) -> Any:
    """Move axes to other places; the rest keep their order.

    Raises
    ------
    RuntimeError
        If an axis is named twice, or not as many places as axes.
    """
    pair = [list(d) if isinstance(d, (tuple, list)) else [d] for d in (source, destination)]
    old, new = ([axis("movedim", x.ndim, d) for d in dims] for dims in pair)
    if len(old) != len(new) or len(set(old)) < len(old) or len(set(new)) < len(new):
        raise RuntimeError(
            f"movedim: source and destination must each name as many axes once, "
            f"got {source} and {destination}"
        )
    order = [i for i in range(x.ndim) if i not in old]
    for to, at in sorted(zip(new, old, strict=True)):
        order.insert(to, at)
    return _reordered(tuple(order) if x.ndim else ())


@view
def squeeze(x: np.ndarray, dim: Any = None) -> Any:
    """Drop axes of length 1: all, or those of them in `dim`."""
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


def expanded(op: str, array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """`array` repeated along axes of length 1 and new ones, in the memory that it has.

    Raises
    ------
    RuntimeError
        If it has other lengths.
    """
    extra = len(shape) - array.ndim
    fits = extra >= 0 and -1 not in shape[:extra] and min(shape, default=0) >= -1
    if fits:
        whole = tuple(
            array.shape[i - extra] if size == -1 else size for i, size in enumerate(shape)
        )
        lengths = zip(array.shape, whole[extra:], strict=True)
        fits = all(old in (1, new) for old, new in lengths)
    if not fits:
        raise RuntimeError(
            f"{op}: shape must have the lengths of {array.shape} but for those of 1 and new axes "
            f"in front (the expanded size must match the existing size), got {shape}"
        )
    strides = (0,) * extra + tuple(
        0 if old == 1 != new else step
        for old, new, step in zip(array.shape, whole[extra:], array.strides, strict=True)
    )
    return np.lib.stride_tricks.as_strided(array, whole, strides)


@view
def expand(x: np.ndarray, *size: Any, implicit: bool = False) -> Any:
    """Repeat axes of length 1, and along new axes in front, without copies; -1 keeps a length.

    Raises
    ------
    RuntimeError
        If another axis would change.
    """
    shape, before = sizes("expand", size, "size"), x.shape
    return lambda array: expanded("expand", array, shape), lambda dy: unbroadcast(dy, before)


def broadcast_to(input: Tensor, size: Any) -> Tensor:
    """`Tensor.expand`."""
    return expand(input, size)


def broadcast_tensors(*tensors: Any) -> tuple[Tensor, ...]:
    """All tensors, each expanded to the shape that they have together.

    Raises
    ------
    RuntimeError
        If the shapes don't broadcast.
    """
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        tensors = tuple(tensors[0])
    return tuple(expand(x, together("broadcast_tensors", *tensors)) for x in tensors)


def together(op: str, *tensors: Any) -> tuple[int, ...]:
    """The shape that tensors broadcast to.

    Raises
    ------
    RuntimeError
        If there is none.
    """
    shapes = [tuple(np.shape(x) if not isinstance(x, Tensor) else x.shape) for x in tensors]
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError:
        raise RuntimeError(
            f"{op}: shapes must be the same or 1 along each axis (the size of tensor a must match "
            f"the size of tensor b), got {', '.join(map(str, shapes))}"
        ) from None


@view
def narrow(x: np.ndarray, dim: int, start: Any, length: int) -> Any:
    """The elements from `start` on along an axis, `length` of them.

    Raises
    ------
    IndexError, RuntimeError
        If they are not in the tensor.
    """
    at, start, length = axis("narrow", x.ndim, dim), int(start), int(length)
    size = x.shape[at] if x.ndim else 0
    if not -size <= start <= size:
        raise IndexError(f"narrow: start must be in [{-size}, {size}], got {start}")
    start += size if start < 0 else 0
    if length < 0 or start + length > size:
        raise RuntimeError(
            f"narrow: start + length must be at most the size {size} of dim {dim}, got "
            f"{start} + {length}"
        )
    return _part((*(slice(None),) * at, slice(start, start + length)), x)


@view
def select(x: np.ndarray, dim: int, index: Any) -> Any:
    """The part at one index of an axis, without that axis.

    Raises
    ------
    IndexError
        If the index is out of range.
    """
    at, index = axis("select", x.ndim, dim), int(index)
    size = x.shape[at] if x.ndim else 0
    if not -size <= index < size:
        raise IndexError(f"select: index must be in [{-size}, {size - 1}], got {index}")
    return _part((*(slice(None),) * at, index, ...), x)


def _part(where: tuple[Any, ...], x: np.ndarray) -> Any:
    """The view ``x[where]``, and a function to its gradient."""

    def gradient(dy: np.ndarray) -> np.ndarray:
        dx = np.zeros_like(x, dy.dtype)
        dx[where] = dy
        return dx

    return lambda array: array[where], gradient


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


def _in_place(function: Any, *names: str) -> None:
    """The form of a function that gives the tensor itself another shape."""

    def reshaped(self: Tensor, *args: Any, **options: Any) -> Tensor:
        return inplace.reshape(names[0], self, lambda whole: function(whole, *args, **options))

    reshaped.__name__ = reshaped.__qualname__ = names[0]
    reshaped.__doc__ = f"`{function.__name__}` of the tensor itself, whose memory stays."
    method(reshaped, *names)


method(_view, "view")
method(lambda self, other: reshape(self, other.shape), "view_as", "reshape_as")
method(lambda self, other: expand(self, other.shape), "expand_as")
method(flatten, "flatten")
method(unflatten, "unflatten")
method(ravel, "ravel")
method(broadcast_to, "broadcast_to")
method(_contiguous, "contiguous")
Tensor.T, Tensor.mT = property(_T), property(_mT)  # type: ignore[attr-defined]
swapaxes = swapdims = transpose
method(transpose, "swapaxes", "swapdims")
moveaxis = movedim
method(movedim, "moveaxis")
_in_place(squeeze, "squeeze_")
_in_place(unsqueeze, "unsqueeze_")
_in_place(transpose, "transpose_", "swapaxes_", "swapdims_")
_in_place(t, "t_")


def _numpy_transpose(a: Tensor, axes: Any = None) -> Tensor:
    return _T(a) if axes is None else permute(a, axes)


NUMPY |= {
    np.reshape: reshape,
    np.ravel: ravel,
    np.transpose: _numpy_transpose,
    np.swapaxes: transpose,
    np.moveaxis: movedim,
    np.squeeze: squeeze,
    np.expand_dims: unsqueeze,
    np.broadcast_to: broadcast_to,
}
