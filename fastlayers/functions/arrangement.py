"""Elements in another order, or repeated."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastlayers.autograd.recording import tensor
from fastlayers.autograd.tensor import Tensor
from fastlayers.functions.expansion import expand
from fastlayers.functions.reduction import axes, axis
from fastlayers.functions.registry import NUMPY, method, numpy_names
from fastlayers.functions.shape import ravel, reshape, sizes
from fastlayers.functions.table import recorded, result

__all__ = [
    "flip",
    "fliplr",
    "flipud",
    "meshgrid",
    "repeat_interleave",
    "roll",
    "rot90",
    "tile",
]


def add_at(like: np.ndarray, at: int, index: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """The gradient of ``like.take(index, at)``: elements taken twice count twice."""
    dx = np.zeros_like(like, dy.dtype)
    np.add.at(np.moveaxis(dx, at, 0), index, np.moveaxis(dy, at, 0))
    return dx


@recorded()
def flip(x: np.ndarray, *dims: Any) -> Any:
    """The elements in reverse order along axes.

    Raises
    ------
    RuntimeError
        If an axis is named twice.
    """
    given = sizes("flip", dims, "dims")
    over = axes("flip", x.ndim, given) if given else ()
    return np.flip(x, over).copy(), lambda dy: np.flip(dy, over)


def fliplr(input: Tensor) -> Tensor:
    """The elements in reverse order along the second axis."""
    return flip(input, (1,))


def flipud(input: Tensor) -> Tensor:
    """The elements in reverse order along the first axis."""
    return flip(input, (0,))


@recorded()
def roll(x: np.ndarray, shifts: Any, dims: Any = None) -> Any:
    """The elements shifted along axes; those beyond the end wrap around. Flat without axes.

    Raises
    ------
    RuntimeError
        If the numbers of shifts and axes differ.
    """
    by = sizes("roll", (shifts,), "shifts") if isinstance(shifts, (tuple, list)) else (int(shifts),)
    flat = dims is None or (isinstance(dims, (tuple, list)) and not dims)
    over = () if flat else dims if isinstance(dims, (tuple, list)) else (dims,)
    if len(by) != (1 if flat else len(over)):
        raise RuntimeError(
            f"roll: shifts and dimensions must align, got {len(by)} shifts and {len(over)} dims"
        )
    along = None if flat or not x.ndim else tuple(axis("roll", x.ndim, d) for d in over)
    back = tuple(-shift for shift in by)
    if along is None:
        by, back = by[0], back[0]  # type: ignore[assignment]
    return np.roll(x, by, along), lambda dy: np.roll(dy, back, along)


@recorded()
def rot90(x: np.ndarray, k: int = 1, dims: Any = (0, 1)) -> Any:
    """Rotate by `k` times 90 degrees, from the first of two axes to the second.

    Raises
    ------
    RuntimeError
        If there are not two axes.
    """
    if x.ndim < 2 or len(dims) != 2:
        raise RuntimeError(f"rot90: dims must name 2 axes, got {dims} for shape {x.shape}")
    first, second = axes("rot90", x.ndim, tuple(dims))
    pair = first, second
    return np.rot90(x, k, pair).copy(), lambda dy: np.rot90(dy, -k, pair)


def _repeat(self: Tensor, *repeats: Any) -> Tensor:
    """The tensor repeated along each axis; additional numbers make new axes in front.

    Raises
    ------
    RuntimeError
        If there are fewer numbers than axes, or one is negative.
    """
    times = sizes("repeat", repeats, "repeats")
    if len(times) < self.ndim or min(times, default=0) < 0:
        raise RuntimeError(
            f"repeat: repeats must be a number of times for each axis (number of dimensions) of "
            f"shape {tuple(self.shape)}, got {times}"
        )
    return _tiled(self, times)


@recorded()
def _tiled(x: np.ndarray, times: tuple[int, ...]) -> Any:
    shape = (1,) * (len(times) - x.ndim) + x.shape
    pairs = tuple(n for pair in zip(times, shape, strict=True) for n in pair)
    over = tuple(range(0, 2 * len(times), 2))
    return np.tile(x, times), lambda dy: dy.reshape(pairs).sum(over).reshape(x.shape)


_tiled.__name__ = _tiled.__qualname__ = "repeat"


def tile(input: Tensor, *dims: Any) -> Tensor:
    """`Tensor.repeat`, but fewer numbers than axes apply to the last ones."""
    times, x = sizes("tile", dims, "dims"), tensor(input)
    return _repeat(x, (1,) * (x.ndim - len(times)) + times)


@numpy_names
def repeat_interleave(
    input: Tensor, repeats: Any = None, dim: int | None = None, *, output_size: int | None = None
) -> Tensor:
    """Each element repeated in place, along an axis or over all elements in C order.

    With `repeats` as the only argument, the indices, each repeated so often.

    Raises
    ------
    TypeError, RuntimeError
        If `repeats` is not an integer or an integer tensor of one axis, is negative, or has another
        length than the axis; if `output_size` is not the length of the result.
    """
    if repeats is None:
        return repeat_interleave(Tensor(np.arange(input.numel())), input, 0)
    x = ravel(input) if dim is None else tensor(input)
    at = axis("repeat_interleave", x.ndim, dim or 0)
    size = x.shape[at] if x.ndim else 1
    times = repeats.array() if isinstance(repeats, Tensor) else repeats
    if not isinstance(times, (int, np.integer, np.ndarray)) or np.asarray(times).dtype.kind != "i":
        raise TypeError(
            f"repeat_interleave: repeats must be an integer or a tensor of integers, "
            f"got {repeats!r}"
        )
    times = np.asarray(times)
    if times.ndim > 1 or times.size not in (1, size) or (times < 0).any():
        raise RuntimeError(
            f"repeat_interleave: repeats must be non-negative and have the same size as input "
            f"along dim, {size}, got {repeats!r}"
        )
    index = np.repeat(np.arange(size), times)
    if output_size is not None and output_size != len(index):
        raise RuntimeError(
            f"repeat_interleave: output_size must be {len(index)}, got {output_size}"
        )
    return taken("repeat_interleave", x, at, index)


def taken(op: str, input: Tensor, at: int, index: np.ndarray) -> Tensor:
    """The parts at `index`, of one axis and checked, along an axis; 0-d tensors have one too."""
    whole = input.array()
    x = whole.reshape(1) if not input.ndim else whole
    return result(
        op, x.take(index, at), (input,), lambda dy: add_at(x, at, index, dy).reshape(whole.shape)
    )


def meshgrid(*tensors: Any, indexing: str | None = None) -> tuple[Tensor, ...]:
    """Coordinates of a grid: each 1-d tensor along its own axis, as views.

    Parameters
    ----------
    *tensors : Tensor
        Of one axis, or a number.
    indexing : str
        "ij", the default, for axes in the order of the tensors; "xy" exchanges the first two.

    Raises
    ------
    RuntimeError
        If the tensors have more axes or several dtypes, or `indexing` is unknown.
    """
    if len(tensors) == 1 and isinstance(tensors[0], (tuple, list)):
        tensors = tuple(tensors[0])
    if indexing not in (None, "ij", "xy"):
        raise RuntimeError(f"meshgrid: indexing must be 'ij' or 'xy', got {indexing!r}")
    given = [tensor(x) for x in tensors]
    if not given or any(x.ndim > 1 or x.dtype != given[0].dtype for x in given):
        raise RuntimeError(
            "meshgrid: tensors must be one or several (non-empty) of at most one axis and the "
            "same dtype, got others"
        )
    order = list(range(len(given)))
    if indexing == "xy" and len(given) > 1:
        order[:2] = 1, 0
    shape = [0] * len(given)
    for place, x in zip(order, given, strict=True):
        shape[place] = x.numel()
    lines = ([-1 if i == place else 1 for i in range(len(given))] for place in order)
    return tuple(
        expand(reshape(x, line if x.numel() else [0 if n < 0 else n for n in line]), shape)
        for x, line in zip(given, lines, strict=True)
    )


method(_repeat, "repeat")
method(tile, "tile")
method(fliplr, "fliplr")
method(flipud, "flipud")
method(repeat_interleave, "repeat_interleave")


def _numpy_flip(m: Tensor, dim: Any = None) -> Tensor:
    every = range(m.ndim) if dim is None else dim if isinstance(dim, (tuple, list)) else (dim,)
    return flip(m, tuple(every))


def _numpy_roll(a: Tensor, shift: Any, dim: Any = None) -> Tensor:
    many = isinstance(shift, (tuple, list)), isinstance(dim, (tuple, list))
    return roll(a, (shift,) * len(dim) if many == (False, True) else shift, dim)


def _counts(repeats: Any) -> Any:
    return np.asarray(repeats) if isinstance(repeats, (tuple, list)) else repeats


NUMPY |= {
    np.flip: _numpy_flip,
    np.roll: _numpy_roll,
    np.rot90: lambda m, k=1, axes=(0, 1): rot90(m, k, axes),
    np.tile: lambda A, reps: tile(A, reps if isinstance(reps, (tuple, list)) else (reps,)),
    np.repeat: lambda a, repeats, dim=None: repeat_interleave(a, _counts(repeats), dim),
    np.meshgrid: lambda *xi, indexing="xy": meshgrid(*xi, indexing=indexing),
}
