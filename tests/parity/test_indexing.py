"""Indexing, changes through views, padding and one-hot against PyTorch, on random arguments."""

import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")

import torch
from parity.functions_harness import Arguments, Draw, Ours, Row, Steady, Theirs, check

from fastlayers import functions
from fastlayers.autograd import inplace
from fastlayers.functions.masks import one_hot
from fastlayers.functions.padding import pad

CASES = 200


def _compare(monkeypatch: Any, ours: dict[str, Any], theirs: dict[str, Any], row: Row) -> None:
    """Compare a function that is none of PyTorch's namespace."""
    monkeypatch.setattr(Ours, "module", SimpleNamespace(**ours))
    monkeypatch.setattr(Theirs, "module", SimpleNamespace(**theirs))
    compared = 0
    for seed in range(CASES):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                compared += check(row, "function", seed)
        except Exception as error:
            raise AssertionError(f"{row.name}, seed {seed}: {error}") from error
    assert compared >= CASES // 2


def _slice(draw: Draw) -> slice:
    ends = [draw.pick(None, int(draw.rng.integers(-5, 6))) for _ in range(2)]
    return slice(*ends, draw.pick(None, 1, 2))


def _index(draw: Draw, shape: tuple[int, ...], unique: bool = False) -> Any:
    """An index of any kind; with `unique` it names no element twice."""
    parts: list[Any] = []
    left = list(shape)
    together = (3,) if unique else draw.pick((3,), (2, 1), (), (1,))
    while left and draw.rng.random() < 0.8:
        size = left.pop(0)
        kind = int(draw.rng.integers(8))
        high = size + (draw.rng.random() < 0.03)
        if kind == 0:
            parts.append(int(draw.rng.integers(-size, high)) if size else 0)
        elif kind == 1:
            parts.append(_slice(draw))
        elif kind == 2:
            parts.append(Steady(np.asarray(draw.rng.random(size) < 0.5)))
            if not unique and draw.rng.random() < 0.3:
                parts[-1] = Steady(parts[-1].values.astype(np.uint8))
        elif kind == 3 and not unique and size:
            index = np.asarray(draw.rng.integers(-size, high, together))
            parts.append(draw.pick(Steady(index), Steady(index.astype(np.int32)), index.tolist()))
        elif kind == 4 and left:
            parts.append(Steady(np.asarray(draw.rng.random((size, left.pop(0))) < 0.5)))
        elif kind == 5 and size:
            parts.append(Steady(np.asarray(draw.rng.integers(size))))
        else:
            parts.append(slice(None))
        if draw.rng.random() < 0.15:
            parts.append(None)
    if draw.rng.random() < 0.3:
        parts.append(...)
    if unique and sum(isinstance(p, Steady) and p.values.ndim > 0 for p in parts) > 1:
        return ...
    return parts[0] if len(parts) == 1 and draw.rng.random() < 0.5 else tuple(parts)


def _getitem(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(most=4))
    return (x, _index(draw, x.shape)), {}


def test_getitem(monkeypatch: pytest.MonkeyPatch) -> None:
    def get(x: Any, index: Any) -> Any:
        return x[index]

    row = Row("get", _getitem, views=True, strides=False)
    _compare(monkeypatch, {"get": get}, {"get": get}, row)


def _setitem(draw: Draw) -> Arguments:
    x = draw.tensor(draw.shape(most=4))
    index = _index(draw, x.shape, unique=True)
    plain = _plain(index)
    try:
        shape = np.empty(x.shape)[plain].shape
    except IndexError:
        shape = ()
    shape = tuple(1 if draw.rng.random() < 0.2 else n for n in shape)[draw.pick(0, 0, 1) :]
    value: Any = draw.pick(2.5, draw.tensor(shape, dtypes=(x.dtype.name,)))
    return (x, index, value), {}


def _plain(index: Any) -> Any:
    if isinstance(index, tuple):
        return tuple(_plain(part) for part in index)
    return index.values if isinstance(index, Steady) else index


def test_setitem(monkeypatch: pytest.MonkeyPatch) -> None:
    def put(x: Any, index: Any, value: Any) -> Any:
        y = x * 1 if x.requires_grad else x
        y[index] = value
        return y

    _compare(monkeypatch, {"put": put}, {"put": put}, Row("put", _setitem))


def _program(draw: Draw) -> Arguments:
    """A tensor, views of views of it, and which of them is changed and how, in turn."""
    x = draw.tensor((2, 3, 4), dtypes=("float64",))
    steps = [
        (int(draw.rng.integers(10)), int(draw.rng.integers(12)), int(draw.rng.integers(8)))
        for _ in range(draw.rng.integers(1, 7))
    ]
    return (x, draw.tensor((4,), dtypes=("float64",)), [list(step) for step in steps]), {}


VIEWS: list[Any] = [
    lambda v: v[0] if v.ndim else v,
    lambda v: v[..., 1:] if v.ndim and v.shape[-1] > 2 else v[..., None],
    lambda v: v.transpose(0, -1) if v.ndim > 1 else v.unsqueeze(0),
    lambda v: v.unsqueeze(-1),
    lambda v: v.squeeze(),
    lambda v: v.permute(*reversed(range(v.ndim))),
    lambda v: v.diagonal() if v.ndim > 1 else v.view_as(v),
    lambda v: v.select(0, -1) if v.ndim else v.unsqueeze(0),
    lambda v: v.view(-1) if v.is_contiguous() else v.unsqueeze(1),
    lambda v: v.narrow(0, 0, 1) if v.ndim else v,
    lambda v: v.unsqueeze(0).expand(2, *v.shape),
    lambda v: v.unfold(-1, 2, 1) if v.ndim and v.shape[-1] > 1 else v.unsqueeze(0),
]
CHANGES: list[Any] = [
    lambda v, w: v.mul_(2),
    lambda v, w: v.zero_(),
    lambda v, w: v.add_(w[0]),
    lambda v, w: v.mul_(w[1]),
    lambda v, w: v.copy_(w[2]),
    lambda v, w: v.fill_(w[3]),
    lambda v, w: v.masked_fill_(v.detach() > 0, 0.5),
    lambda v, w: v.__setitem__(..., w[0] * 2),
]


def _run(x: Any, w: Any, steps: list[list[int]]) -> Any:
    y = x * 3
    views = [y]
    for which, view, change in steps:
        source = views[which % len(views)]
        views.append(VIEWS[view](source))
        target = views[(which + change) % len(views)]
        if not inplace.overlaps(np.asarray(target.detach())):
            CHANGES[change](target, w)
    return [y * 2, *(v * 1 for v in views)]


def test_changes_in_place_of_views_have_pytorchs_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    _compare(monkeypatch, {"run": _run}, {"run": _run}, Row("run", _program))


def _pad(draw: Draw) -> Arguments:
    mode = draw.pick("constant", "reflect", "replicate", "circular")
    if mode == "constant":
        x = draw.tensor()
        axes = int(draw.rng.integers(0, x.ndim + 1))
        options = draw.pick({}, {"value": 2}, {"value": 1.5})
        return (x, [int(n) for n in draw.rng.integers(-2, 4, 2 * axes)]), options
    axes = int(draw.rng.integers(1, 4))
    x = draw.tensor(
        tuple(int(n) for n in draw.rng.integers(2, 5, axes + draw.pick(1, 2))),
        dtypes=("float32", "float64"),
    )
    # PyTorch's circular padding leaves memory as it finds it where a number is negative.
    low = -1 if draw.rng.random() < 0.3 and mode != "circular" else 0
    widths = [int(n) for n in draw.rng.integers(low, 3, 2 * axes)]
    return (x, widths, mode), {}


def test_pad(monkeypatch: pytest.MonkeyPatch) -> None:
    _compare(monkeypatch, {"pad": pad}, {"pad": torch.nn.functional.pad}, Row("pad", _pad))


def _one_hot(draw: Draw) -> Arguments:
    x = np.asarray(draw.rng.integers(-1 if draw.rng.random() < 0.1 else 0, 5, draw.shape()))
    return (x,), draw.pick({}, {"num_classes": 6}, {"num_classes": 3})


def test_one_hot(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = torch.nn.functional.one_hot
    _compare(monkeypatch, {"one_hot": one_hot}, {"one_hot": theirs}, Row("one_hot", _one_hot))


def test_dtypes_of_results() -> None:
    names = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "bool")
    for first in names:
        for second in names:
            found = functions.promote_types(np.dtype(first), np.dtype(second))
            wanted = torch.promote_types(getattr(torch, first), getattr(torch, second))
            assert f"torch.{found}" == str(wanted)
            for shapes in (((), (2,)), ((2,), ()), ((), ())):
                ours = [
                    functions.ones(s, dtype=np.dtype(d))
                    for s, d in zip(shapes, (first, second), strict=True)
                ]
                theirs = [
                    torch.ones(s, dtype=getattr(torch, d))
                    for s, d in zip(shapes, (first, second), strict=True)
                ]
                found = functions.result_type(*ours)
                assert f"torch.{found}" == str(torch.result_type(*theirs))


@pytest.mark.parametrize("dtype", ["float32", "float64", "int64", "uint8", "bool", "float16"])
def test_dlpack_both_ways(dtype: str) -> None:
    ours = functions.ones(2, 3, dtype=np.dtype(dtype))
    theirs = torch.from_dlpack(ours)
    assert theirs.dtype == getattr(torch, dtype)
    theirs[0, 1] = 0
    assert not ours[0, 1].item()
    back = functions.from_dlpack(theirs)
    back[1, 2] = 0
    assert not theirs[1, 2].item()
    assert torch.utils.dlpack.from_dlpack(functions.to_dlpack(ours)).shape == (2, 3)


def test_dlpack_of_odd_memory() -> None:
    values = np.arange(6.0).reshape(2, 3)
    flipped = functions.from_numpy(values[:, ::-1])
    np.testing.assert_array_equal(torch.from_dlpack(flipped).numpy(), values[:, ::-1])
    values.flags.writeable = False
    fixed = torch.from_dlpack(functions.from_numpy(values))
    np.testing.assert_array_equal(fixed.numpy(), values)
    transposed = functions.arange(6.0).reshape(2, 3).t()
    np.testing.assert_array_equal(torch.from_dlpack(transposed).numpy(), values.T)
    with pytest.raises(BufferError, match="detach"):
        torch.from_dlpack(functions.ones(2, requires_grad=True))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_limits_of_dtypes(dtype: str) -> None:
    ours, theirs = functions.finfo(np.dtype(dtype)), torch.finfo(getattr(torch, dtype))
    names = ("bits", "eps", "max", "min", "tiny", "smallest_normal", "resolution", "dtype")
    assert [getattr(ours, name) for name in names] == [getattr(theirs, name) for name in names]
    assert repr(functions.iinfo(np.dtype("int16"))).startswith("iinfo(bits=16")
