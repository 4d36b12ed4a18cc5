"""Integers are exact: not a bit differs from the reference, whatever is summed in which order."""

import dataclasses
import math
import zlib
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from cases import DTYPES, Arrays, Case, compare
from rounding import errors
from specs import SPECS
from specs.conv_sizes import BLOCK_K, mixed

from fastlayers import ops, reference
from fastlayers.kernels.gemm import gemm
from fastlayers.runtime import memory, threads

GUARD = 64
CONVOLUTIONS = SPECS["conv2d"].exact
# The other ops have one algorithm each.
EXACT = [case for spec in SPECS.values() for case in spec.exact if spec.op != "conv2d"]
ROUNDED = [case for spec in SPECS.values() for case in spec.rounded]


@pytest.fixture(autouse=True)
def restored_threads() -> Iterator[None]:
    before = threads.get_num_threads()
    yield
    threads.set_num_threads(before)


@pytest.fixture
def always_parallel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)


@pytest.fixture
def guarded_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fill all memory with NaN, so that what is read before it is written is seen.

    The same before and behind each array shows what is written outside of it.
    """
    blocks = []

    def empty(shape: int | tuple[int, ...], dtype: np.dtype) -> np.ndarray:
        size = shape if isinstance(shape, int) else math.prod(shape)
        blocks.append(np.full(size + 2 * GUARD, np.nan, dtype))
        return blocks[-1][GUARD : GUARD + size].reshape(shape)

    def scratch(counts: tuple[int, ...], dtype: np.dtype) -> tuple[np.ndarray, ...]:
        return tuple(empty(count, dtype) for count in counts)

    monkeypatch.setattr(memory, "empty", empty)
    monkeypatch.setattr(memory, "scratch", scratch)
    yield
    for block in blocks:
        assert np.isnan(block[:GUARD]).all() and np.isnan(block[-GUARD:]).all()


def differing_bits(got: Arrays, want: Arrays) -> int:
    """Count the bits that differ, those of the signs of zeros too."""
    compare(got, want, (0, 0))
    total = 0
    for name, expected in want.items():
        pair = (np.frombuffer(array.tobytes(), np.uint8) for array in (got[name], expected))
        bits = int(np.bitwise_count(np.bitwise_xor(*pair)).sum())
        assert bits == 0, f"{name}: {bits} bits of zeros differ"
        total += bits
    return total


def named(cases: Sequence[Case]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("case", cases, ids=lambda case: case.id)


def differing_bits_of_convolution(case: Case, counts: Sequence[int] = (1, 2, 3)) -> int:
    """Of all passes of direct convolution, for numbers of threads."""
    direct = dataclasses.replace(case, options={**case.options, "algorithm": "direct"})
    total = 0
    for dtype in DTYPES:
        arrays = case.arrays(dtype, "integers")
        want = case.run(reference, arrays, "integers")
        for n in counts:
            threads.set_num_threads(n)
            total += differing_bits(direct.run(ops, arrays, "integers"), want)
    return total


@named(CONVOLUTIONS)
def test_convolution(case, figures, effort, always_parallel, guarded_memory):
    """In the short form for 1, 2 or 3 threads."""
    counts = effort([1 + zlib.crc32(case.id.encode()) % 3], (1, 2, 3))
    figures.count("exactness", "differing bits", differing_bits_of_convolution(case, counts))
    figures.count("exactness", "convolution shapes")


def test_random_convolutions(effort, figures, always_parallel):
    known = {case.id for case in CONVOLUTIONS}
    for seed in range(1000, effort(1010, 3000)):
        case = mixed(Random(seed).choice)
        if case.id not in known:
            known.add(case.id)
            print(f"case {seed}: {case}")  # shown where it fails
            figures.count("exactness", "differing bits", differing_bits_of_convolution(case))
            figures.count("exactness", "convolution shapes")


def unsigned(results: Arrays) -> Arrays:
    """Give results without the sign of zeros, which is that of the term that was added last."""
    return {name: np.asarray(a + a.dtype.type(0), a.dtype) for name, a in results.items()}


def dtypes_of(case: Case, effort: Any) -> Sequence[Any]:
    """In the short form one of the two, of each op for half of the cases."""
    return effort(DTYPES[zlib.crc32(case.id.encode()) % 2 :][:1], DTYPES)


@named(EXACT)
def test_operation(case, figures, effort):
    for dtype in dtypes_of(case, effort):
        arrays = case.arrays(dtype, "integers")
        got, want = (case.run(module, arrays, "integers") for module in (ops, reference))
        if not case.spec.signed_zeros:
            got, want = unsigned(got), unsigned(want)
        figures.count("exactness", "differing bits", differing_bits(got, want))
    figures.count("exactness", f"{case.op} cases")


@named(ROUNDED)
def test_rounded_operation(case, figures):
    """What rounds by its nature is within a number of ulps of the magnitudes that it adds."""
    for name, (share, ulps) in errors(case).items():
        assert share <= 1, f"{name}: {share:.3g} of the bound"
        figures.most("exactness", f"{case.op}, largest error of {name} in ulp", ulps)
    figures.count("exactness", f"{case.op} cases")


def test_cases_are_as_many_as_promised():
    assert len(CONVOLUTIONS) >= 500 and BLOCK_K == gemm.BLOCK_K
    for spec in SPECS.values():
        cases = [*spec.exact, *spec.rounded]
        assert len({case.id for case in cases}) == len(cases)
        assert len(cases) >= 100 or not (spec.samples or spec.bound), spec.op
