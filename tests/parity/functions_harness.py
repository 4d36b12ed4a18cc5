"""Functions of tensors against PyTorch's: values, dtypes, shapes, views, gradients and errors.

A `Row` names a function and draws its arguments, in which NumPy arrays stand for tensors, `Steady`
for one that needs no gradient, and NumPy's dtypes for PyTorch's. It is called as a function, as a
method and in place, as far as PyTorch has these forms.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest

from fastlayers import autograd, functions
from fastlayers.autograd import Tensor

torch = pytest.importorskip("torch")

FLOATS = ("float32", "float64")
ALL = ("float32", "float64", "int64", "int32", "uint8", "bool")
Arguments = tuple[tuple[Any, ...], dict[str, Any]]


class Draw:
    """Draws arguments."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def pick(self, *choices: Any) -> Any:
        """One of the choices."""
        return choices[self.rng.integers(len(choices))]

    def shape(self, least: int = 0, most: int = 3, empty: bool = True) -> tuple[int, ...]:
        """Lengths of axes, rarely with a 0 among them."""
        shape = [int(self.rng.integers(1, 5)) for _ in range(self.rng.integers(least, most + 1))]
        if empty and shape and self.rng.random() < 0.1:
            shape[self.rng.integers(len(shape))] = 0
        return tuple(shape)

    def pair(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Two shapes that are broadcast together."""
        shapes = []
        whole = self.shape()
        for _ in range(2):
            part = whole[self.rng.integers(len(whole) + 1) :] if self.rng.random() < 0.3 else whole
            shapes.append(tuple(1 if self.rng.random() < 0.2 else size for size in part))
        return shapes[0], shapes[1]

    def tensor(
        self,
        shape: tuple[int, ...] | None = None,
        dtypes: tuple[str, ...] = ALL,
        low: float = -3,
        high: float = 3,
        ties: bool = False,
    ) -> np.ndarray:
        """Values in any memory layout; with `ties` a few that occur often."""
        shape = self.shape() if shape is None else shape
        dtype = self.pick(*FLOATS, *dtypes) if dtypes == ALL else self.pick(*dtypes)
        values = self.rng.uniform(low, high, shape)
        if ties or dtype.startswith("int"):
            values = np.round(values)
        if dtype in ("uint8", "bool"):
            values = np.abs(np.round(values)) if dtype == "uint8" else values > 0
        return self.layout(np.asarray(values, dtype))

    def layout(self, a: np.ndarray) -> np.ndarray:
        """The same values in a memory layout of any kind, without negative steps."""
        how = self.rng.integers(4)
        if how == 0 and a.ndim > 1:
            return np.ascontiguousarray(np.swapaxes(a, 0, -1)).swapaxes(0, -1)
        if how == 1 and a.ndim:
            return np.repeat(a, 2, -1)[..., ::2]
        return a.copy()

    def dim(self, ndim: int) -> int:
        """An axis from either end; rarely one that does not exist."""
        most = max(ndim, 1)
        if self.rng.random() < 0.05:
            return int(self.pick(most, -most - 1))
        return int(self.rng.integers(-most, most))

    def dims(self, ndim: int) -> Any:
        """Some axes: None, one, or a tuple or list of several."""
        if self.rng.random() < 0.2:
            return None
        if self.rng.random() < 0.4 or not ndim:
            return self.dim(ndim)
        chosen = self.rng.permutation(ndim)[: self.rng.integers(1, ndim + 1)]
        given = [int(d - ndim if self.rng.random() < 0.5 else d) for d in chosen]
        return self.pick(tuple(given), given)


@dataclass(frozen=True)
class Steady:
    """A tensor that requires no gradient."""

    values: np.ndarray


@dataclass(frozen=True)
class Row:
    """A function, and how its arguments are drawn."""

    name: str
    draw: Callable[[Draw], Arguments]
    # Those of "function", "method", "in_place" that it must have; those of PyTorch by default.
    forms: tuple[str, ...] | None = None
    tolerance: float = 1.0
    # Whether the result must be a view where PyTorch's is.
    views: bool = False
    # Whether the strides must be PyTorch's.
    strides: bool = False

    def __str__(self) -> str:
        return self.name


class Side:
    """One of the two libraries."""

    error: BaseException | None = None

    def call(self, row: Row, form: str, args: tuple[Any, ...], options: dict[str, Any]) -> None:
        """Call the function; an error is kept."""
        self.leaves: list[Any] = []
        args = tuple(self.given(value) for value in args)
        options = {key: self.given(value) for key, value in options.items()}
        if form == "in_place":
            args = (args[0] * 1.0 if args[0].requires_grad else args[0], *args[1:])
        try:
            if form == "function":
                result = getattr(self.module, row.name)(*args, **options)
            else:
                name = row.name + "_" * (form == "in_place")
                result = getattr(args[0], name)(*args[1:], **options)
        except Exception as error:  # compared
            self.error = error
            return
        if form == "in_place":
            assert result is args[0]
        self.first = next((a for a in args if isinstance(a, self.kind)), None)
        self.results = self.flat(result)

    def flat(self, result: Any) -> list[Any]:
        if isinstance(result, (tuple, list)) and not isinstance(result, (torch.Size,)):
            return [part for value in result for part in self.flat(value)]
        return [result]

    def given(self, value: Any) -> Any:
        if isinstance(value, Steady):
            return self.tensor(copied(value.values))
        if isinstance(value, np.ndarray):
            out = self.tensor(copied(value))
            if value.dtype.kind == "f":
                self.leaves.append(out.requires_grad_())
            return out
        if isinstance(value, (list, tuple)):
            parts = [self.given(part) for part in value]
            return type(value)(parts)
        return self.dtype(value) if isinstance(value, np.dtype) else value

    def gradients(self, dys: list[np.ndarray]) -> list[Any]:
        outputs = [y for y in self.results if isinstance(y, self.kind) and y.requires_grad]
        dys = [self.tensor(dy.copy()) for dy in dys]
        return list(self.grad(outputs, self.leaves, dys, allow_unused=True))


class Ours(Side):
    module, kind = functions, Tensor
    grad = staticmethod(autograd.grad)
    tensor = staticmethod(Tensor)

    def dtype(self, dtype: np.dtype) -> Any:
        return dtype


class Theirs(Side):
    module, kind = torch, torch.Tensor
    grad = staticmethod(torch.autograd.grad)
    tensor = staticmethod(torch.from_numpy)

    def dtype(self, dtype: np.dtype) -> Any:
        return getattr(torch, dtype.name)


def copied(a: np.ndarray) -> np.ndarray:
    """The values in memory of their own with the same strides."""
    if not a.size:
        return a.copy()
    span = sum((n - 1) * s for n, s in zip(a.shape, a.strides, strict=True)) + a.itemsize
    memory = np.zeros(span // a.itemsize, a.dtype)
    out = np.lib.stride_tricks.as_strided(memory, a.shape, a.strides)
    out[...] = a
    return out


def forms(row: Row) -> list[str]:
    """The forms that PyTorch has."""
    if row.forms is not None:
        return list(row.forms)
    found = ["function"] if hasattr(torch, row.name) else []
    found += ["method"] if hasattr(torch.Tensor, row.name) else []
    return found + (["in_place"] if hasattr(torch.Tensor, row.name + "_") else [])


def check(row: Row, form: str, seed: int) -> bool:
    """Compare one call, and tell whether it gave a result that could be compared."""
    draw = Draw(seed)
    args, options = row.draw(draw)
    ours, theirs = Ours(), Theirs()
    ours.call(row, form, args, options)
    theirs.call(row, form, args, options)
    if theirs.error is not None:
        if is_gap(theirs.error):
            return False
        assert ours.error is not None, f"PyTorch raises {theirs.error!r}, got {ours.results}"
        if isinstance(theirs.error, IndexError):
            assert isinstance(ours.error, IndexError), f"{ours.error!r} for {theirs.error!r}"
        return False
    if ours.error is not None:
        raise ours.error
    row = replace(row, tolerance=row.tolerance * coarsest(args, options))
    assert len(ours.results) == len(theirs.results)
    for y, expected in zip(ours.results, theirs.results, strict=True):
        compare(row, y, expected)
        if row.views and isinstance(expected, torch.Tensor) and expected.numel():
            is_view = meets(theirs.first.detach().numpy(), expected.detach().numpy())
            assert meets(ours.first.array(), y.array()) == is_view, f"a view: {is_view}"
    compare_gradients(row, draw, ours, theirs)
    return True


def coarsest(*values: Any) -> float:
    """The tolerance for what was computed with these, in one of their dtypes."""
    units = [1e-11]
    for value in values:
        if isinstance(value, np.ndarray) and value.dtype.kind == "f":
            units.append({2: 1e-2, 4: 2e-5, 8: 1e-11}[value.dtype.itemsize])
        elif isinstance(value, (tuple, list)):
            units.append(coarsest(*value))
        elif isinstance(value, dict):
            units.append(coarsest(*value.values()))
        elif isinstance(value, Steady):
            units.append(coarsest(value.values))
    return max(units)


def is_gap(error: BaseException) -> bool:
    """Whether PyTorch's error says that it hasn't got something."""
    gaps = ("not implemented", "not support", "Bad in-place call")
    return any(gap in str(error) for gap in gaps)


def meets(a: np.ndarray, b: np.ndarray) -> bool:
    return np.may_share_memory(a, b)


def compare(row: Row, y: Any, expected: Any) -> None:
    """A result, which may be other than a tensor, with PyTorch's."""
    if not isinstance(expected, torch.Tensor):
        if isinstance(expected, torch.Size):
            assert tuple(y) == tuple(expected)
        else:
            assert y == expected or (np.isnan(y) and np.isnan(expected))
            assert type(y) is type(expected)
        return
    assert isinstance(y, Tensor), f"a Tensor expected, got {type(y)}"
    assert f"torch.{y.dtype}" == str(expected.dtype)
    assert tuple(y.shape) == tuple(expected.shape)
    assert y.requires_grad == expected.requires_grad
    if row.strides and expected.numel():
        assert y.stride() == expected.stride()
    close(row, y.array(), expected.detach().numpy())


def close(row: Row, a: np.ndarray, b: np.ndarray) -> None:
    if b.dtype.kind == "f":
        unit = max(row.tolerance, 2e-5 if b.dtype.itemsize < 8 else 0)
        np.testing.assert_allclose(a, b, rtol=unit, atol=unit)
    else:
        np.testing.assert_array_equal(a, b)


def compare_gradients(row: Row, draw: Draw, ours: Side, theirs: Side) -> None:
    outputs = [y for y in theirs.results if isinstance(y, torch.Tensor) and y.requires_grad]
    if not outputs:
        return
    dys = [
        np.asarray(draw.rng.standard_normal(tuple(y.shape)), str(y.dtype).removeprefix("torch."))
        for y in outputs
    ]
    try:
        right = theirs.gradients(dys)
    except RuntimeError as error:
        assert is_gap(error)
        return
    for dx, expected in zip(ours.gradients(dys), right, strict=True):
        if expected is None:
            assert dx is None or not dx.array().any()
            continue
        if dx is None and not expected.any():
            continue
        assert dx is not None, "no gradient"
        assert f"torch.{dx.dtype}" == str(expected.dtype)
        close(row, dx.array(), expected.numpy())
