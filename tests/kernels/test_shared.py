"""Kernels called by address, and operands with names."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
from numba import types
from numba.core.errors import NumbaError

from fastlayers.kernels.ir.named import Element, Elements, Offsets, named, type_of
from fastlayers.kernels.ir.shared import shared_kernel
from fastlayers.runtime.cache import kernel


class Line(NamedTuple):
    array: Elements
    offset: int


class Other(NamedTuple):
    array: Elements
    offset: int


class Facts(NamedTuple):
    line: Line
    pair: tuple[int, int]
    scale: Element
    table: Offsets


@shared_kernel
def scaled(source: Line, factor: Element, out: Line) -> None:
    """Scale one element."""
    out.array[out.offset] = factor * source.array[source.offset]


prepare_scaled = scaled.prepare


@kernel
def scale(x, factor, out):
    prepare_scaled(x)
    scaled(Line(x, 1), factor, Line(out, 2))


@kernel
def scale_other(x, out):
    scaled(Line(x, 1), 2.0, Other(out, 2))


@kernel
def read(facts):
    return named(Line, facts).offset


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "factor", [3, 3.0, np.float32(3)], ids=lambda factor: type(factor).__name__
)
def test_a_shared_kernel_takes_names_and_casts_numbers(dtype, factor):
    x, out = np.arange(3, dtype=dtype), np.zeros(3, dtype)
    scale(x, factor, out)
    assert out.tolist() == [0, 0, 3]


def test_other_names_are_refused():
    with pytest.raises((NumbaError, TypeError), match="Other"):
        scale_other(np.ones(3), np.ones(3))


def test_of_no_elements():
    with pytest.raises(TypeError, match="no argument has elements"):
        kernel(lambda n: scaled(n, n, n))(3)


def test_body_and_signature():
    assert scaled.__doc__ == "Scale one element."
    line = types.BaseTuple.from_types((types.Array(types.float32, 1, "C"), types.int64), Line)
    assert scaled.signature(types.float32) == (line, types.float32, line)
    assert scaled.kernels[types.float64].symbol == "fastlayers_scaled_float64"
    with pytest.raises(TypeError, match="only compiled code"):
        scaled.body(1)


def test_types_of_nested_names():
    line, pair, scale, table = type_of(Facts, types.float64).types
    assert line.instance_class is Line and pair == types.UniTuple(types.int64, 2)
    assert (scale, table) == (types.float64, types.Array(types.int64, 1, "C"))


def test_named():
    assert read((np.ones(2), 5)) == 5
    with pytest.raises(TypeError, match="Line has 2 fields, got 1"):
        read((1,))
