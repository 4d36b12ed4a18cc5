"""Dtypes, copies, and new tensors."""

from typing import Any

import numpy as np
from parity.functions_harness import ALL, Arguments, Draw, Row, Steady

DTYPES = (*ALL, "float16", "int16", "int8")


def _dtype(draw: Draw) -> np.dtype:
    return np.dtype(draw.pick(*DTYPES))


def _to(draw: Draw) -> Arguments:
    x = draw.tensor()
    choices: tuple[Arguments, ...] = (
        ((x, _dtype(draw)), {}),
        ((x, "cpu"), {}),
        ((x, "cpu", _dtype(draw)), {}),
        ((x, draw.tensor()), {}),
        ((x,), {"dtype": _dtype(draw), "copy": True}),
        ((x, _dtype(draw), True, True), {}),
        ((x, "cuda"), {}),
    )
    return choices[int(draw.rng.integers(len(choices)))]


def _plain(draw: Draw) -> Arguments:
    return (draw.tensor(),), {}


def _pair(draw: Draw) -> Arguments:
    return (draw.tensor(), draw.tensor()), {}


def _type(draw: Draw) -> Arguments:
    names = ("torch.FloatTensor", "torch.LongTensor", "torch.BoolTensor", "torch.XTensor")
    return (draw.tensor(), *draw.pick((), (_dtype(draw),), (draw.pick(*names),))), {}


def _size(draw: Draw) -> Arguments:
    shape = draw.shape()
    options = {"dtype": _dtype(draw)} if draw.rng.random() < 0.5 else {}
    if shape and draw.rng.random() < 0.5:
        return shape, options
    return draw.pick(
        ((shape,), options), ((list(shape),), options), ((), options | {"size": shape})
    )


def _like(draw: Draw) -> Arguments:
    return (draw.tensor(),), {"dtype": _dtype(draw)} if draw.rng.random() < 0.5 else {}


def _full(draw: Draw) -> Arguments:
    value = draw.pick(2, 1.5, True, -1, float("inf"))
    return (draw.shape(), value), {"dtype": _dtype(draw)} if draw.rng.random() < 0.5 else {}


def _full_like(draw: Draw) -> Arguments:
    return (draw.tensor(), draw.pick(2, 1.5, 300)), {}


def _new(draw: Draw) -> Arguments:
    (*size,), options = _size(draw)
    options.pop("size", None)
    return (draw.tensor(), *(size or (2,))), options


def _new_full(draw: Draw) -> Arguments:
    return (draw.tensor(), draw.shape(), draw.pick(2, 1)), {}


def _arange(draw: Draw) -> Arguments:
    numbers = [int(n) for n in draw.rng.integers(-6, 7, 3)]
    if draw.rng.random() < 0.5:
        numbers[int(draw.rng.integers(3))] += 0.25
    if numbers[1] > numbers[0]:
        numbers[2] = abs(numbers[2]) or 1
    options = {"dtype": _dtype(draw)} if draw.rng.random() < 0.3 else {}
    return tuple(numbers[: draw.pick(2, 3, 3)]) if draw.rng.random() < 0.7 else (
        abs(numbers[0]),
    ), options


def _linspace(draw: Draw) -> Arguments:
    bounds = [draw.pick(int, float)(n) for n in draw.rng.uniform(-5, 5, 2)]
    options = {"dtype": _dtype(draw)} if draw.rng.random() < 0.3 else {}
    if "dtype" in options and options["dtype"].kind in "bu":
        options = {}
    return (*bounds, int(draw.rng.integers(0, 6))), options


def _eye(draw: Draw) -> Arguments:
    n, m = (int(k) for k in draw.rng.integers(0, 5, 2))
    return draw.pick((n,), (n, m)), {"dtype": _dtype(draw)} if draw.rng.random() < 0.5 else {}


def _values(draw: Draw) -> Arguments:
    choices: tuple[Any, ...] = (
        [1, 2, 3],
        [[1.5, 2], [3, 4]],
        [True, False],
        [True, 2],
        [],
        [[], []],
        3,
        2.5,
        True,
        [np.float32(1), np.float64(2)],
        np.float64(2),
        range(4),
        ((1, 2), (3, 4)),
        "abc",
        None,
        [[1, 2], [3]],
        300,
    )
    value = choices[int(draw.rng.integers(len(choices)))]
    return (value,), {"dtype": _dtype(draw)} if draw.rng.random() < 0.4 else {}


def _of_dtypes(draw: Draw) -> Arguments:
    return (_dtype(draw), _dtype(draw)), {}


def _fill(draw: Draw) -> Arguments:
    x = draw.tensor()
    value: Any = draw.pick(2, 1.5, Steady(draw.tensor(())))
    if x.dtype.kind == "f" and draw.rng.random() < 0.4:
        value = draw.tensor((), dtypes=("float32",))
    return (x, value), {}


def _copy(draw: Draw) -> Arguments:
    a, b = draw.pair()
    return (draw.tensor(np.broadcast_shapes(a, b)), draw.tensor(a)), {}


ROWS = [
    Row("to", _to, views=True),
    Row("clone", _plain, views=True),
    *(
        Row(name, _plain, views=True)
        for name in ("float", "double", "half", "char", "short", "int", "long", "byte", "bool")
    ),
    Row("cpu", _plain, views=True),
    Row("type", _type),
    Row("type_as", _pair, views=True),
    Row("is_floating_point", _plain),
    Row("numel", _plain),
    Row("is_tensor", _plain),
    Row("zeros", _size),
    Row("ones", _size),
    Row("zeros_like", _like),
    Row("ones_like", _like),
    Row("full", _full),
    Row("full_like", _full_like),
    Row("new_zeros", _new),
    Row("new_ones", _new),
    Row("new_full", _new_full),
    Row("arange", _arange, tolerance=50),
    Row("linspace", _linspace, tolerance=50),
    Row("logspace", _linspace, tolerance=50),
    Row("eye", _eye),
    Row("tensor", _values),
    Row("as_tensor", _values),
    Row("asarray", _values),
    Row("can_cast", _of_dtypes),
    Row("fill", _fill, forms=("in_place",)),
    Row("copy", _copy, forms=("in_place",)),
    Row("zero", _plain, forms=("in_place",)),
]
