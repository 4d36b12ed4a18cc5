"""What a matrix product is of: the arguments of `gemm`, its panels and its tiles.

A product is ``C = max(floor, start + sum over r of A[r] @ B[r])``: k is cut into runs r of equal
length. Arrays are flat; offsets and strides count elements; an empty table stands for zeros.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from fastlayers.kernels.ir.named import Element, Elements, Offsets

__all__ = [
    "FETCH",
    "PLAIN",
    "STORE",
    "STREAM",
    "Batch",
    "Bias",
    "Block",
    "Epilogue",
    "Left",
    "Right",
    "Size",
    "Target",
]

# How C is written: as it comes, prefetched before the sums, or by non-temporal stores of whole
# tiles, for which rows of C are aligned to vectors.
STORE, FETCH, STREAM = 0, 1, 2


class Size(NamedTuple):
    """Every A[r] is (rows, length), every B[r] is (length, columns)."""

    rows: int
    columns: int
    runs: int
    length: int


class Left(NamedTuple):
    """Element (i, p) of A[r] at ``offset + i * row + rows[i] + runs[r] + p * step``, step not 0."""

    array: Elements
    offset: int
    row: int
    step: int
    rows: Offsets
    runs: Offsets


class Right(NamedTuple):
    """Row p of panel q of B[r] at ``offset + q * panel + runs[r] + p * step``.

    Panels have `panel_width` columns, which lie side by side and are read up to the full width.
    """

    array: Elements
    offset: int
    panel: int
    step: int
    runs: Offsets


class Bias(NamedTuple):
    """One row that is added to all of C."""

    array: Elements
    offset: int


class Target(NamedTuple):
    """Row i of C at ``offset + i * row + rows[i]``."""

    array: Elements
    offset: int
    row: int
    rows: Offsets


class Epilogue(NamedTuple):
    """The least value of C, whether C itself takes the place of the bias (1), and how to write it.

    A floor of minus infinity changes nothing; a NaN stays.
    """

    floor: Element
    add: int
    write: int


class Batch(NamedTuple):
    """Products one after the other, and elements from an operand of one to that of the next."""

    products: int
    left: int
    right: int
    target: int


class Block(NamedTuple):
    """What a tile or panel computes: rows from `row` on, the first columns, and some runs."""

    row: int
    columns: int
    run: int
    end_run: int  # one behind the last
    length: int


PLAIN = Epilogue(-np.inf, 0, STORE)
