"""Integers are exact: not a bit differs from the reference, whatever is summed in which order."""

import dataclasses
import math
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from random import Random
from typing import Any

import numpy as np
import pytest
from cases import CASES, DTYPES, Arrays, Case, compare, like
from exact_cases import ARITHMETIC, CONVOLUTIONS, OTHERS, ROUNDED, mixed
from rounding import errors

from fastlayers import ops, reference
from fastlayers.ops import arithmetic
from fastlayers.runtime import memory, threads

GUARD = 64


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


def named(cases: list[Case]) -> pytest.MarkDecorator:
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


@named(OTHERS)
def test_operation(case, figures, effort):
    for dtype in dtypes_of(case, effort):
        arrays = case.arrays(dtype, "integers")
        got, want = (case.run(module, arrays, "integers") for module in (ops, reference))
        if case.op in ("batch_norm", "linear", "nll_loss"):  # terms in another order
            got, want = unsigned(got), unsigned(want)
        figures.count("exactness", "differing bits", differing_bits(got, want))
    figures.count("exactness", f"{case.op} cases")


def by_numbers(case: Case, arrays: Arrays) -> Arrays:
    """Arithmetic in float64, whose gradients are summed by the numbers of the elements taken."""
    (x, *others), options = arrays.values(), case.options
    places = [np.arange(array.size).reshape(array.shape) for array in arrays.values()]
    if case.op == "getitem":
        taken = places[0][options["index"]]
        y = x.ravel()[taken]
        terms = [(taken, like(y, "integers"))]
    elif case.op in ("sum", "mean"):
        rows = x.sum(options["dim"], keepdims=True)
        count = x.size // rows.size if case.op == "mean" else 1
        y = x.sum(options["dim"], keepdims=options["keepdim"]) / count
        shares = like(y, "integers").reshape(rows.shape) / count
        terms = [(places[0], np.broadcast_to(shares, x.shape))]
    elif case.op == "matmul":
        (z,) = others
        y = x @ z
        dy = like(y, "integers")
        if z.ndim == 1:
            z, places[1], dy = z[:, None], places[1][:, None], dy[..., None]
        if x.ndim == 1:
            x, places[0], dy = x[None], places[0][None], np.expand_dims(dy, -2)
        left, right = (
            np.broadcast_arrays(a[..., None], b[..., None, :, :]) for a, b in ((x, z), places)
        )
        dy = dy[..., None, :]
        terms = [(right[0], dy * left[1]), (right[1], dy * left[0])]
    else:
        (z,) = others
        y, slopes = {
            "add": lambda: (x + z, (1, 1)),
            "sub": lambda: (x - z, (1, -1)),
            "mul": lambda: (x * z, (z, x)),
            "div": lambda: (x / z, (1 / z, -x / (z * z))),
        }[case.op]()
        dy = like(y, "integers")
        terms = [
            (np.broadcast_to(place, y.shape), dy * slope)
            for place, slope in zip(places, slopes, strict=True)
        ]
    gradients = {
        f"d{name}": np.bincount(place.ravel(), values.ravel(), array.size).reshape(array.shape)
        for (name, array), (place, values) in zip(arrays.items(), terms, strict=True)
    }
    return {"y": y, **gradients}


@named(ARITHMETIC)
def test_arithmetic(case, figures, effort):
    forward, backward = (getattr(arithmetic, case.op + suffix) for suffix in ("", "_backward"))
    for dtype in dtypes_of(case, effort):
        arrays = case.arrays(dtype, "integers")
        if case.op == "div":  # by powers of two, so that sums of quotients are exact
            arrays["b"] = np.ldexp(dtype(1), arrays["b"].astype(int))
        y = forward(*arrays.values(), **case.options)
        rest = ((True, True),) if "b" in arrays else case.options.values()
        gradients = backward(like(y, "integers"), *arrays.values(), *rest)
        gradients = gradients if isinstance(gradients, tuple) else (gradients,)
        got = {"y": y} | {f"d{n}": d for n, d in zip(arrays, gradients, strict=True)}
        want = by_numbers(case, {n: a.astype(np.float64) for n, a in arrays.items()})
        want = {n: np.asarray(a, dtype) for n, a in want.items()}
        bits = differing_bits(unsigned(got), unsigned(want))
        figures.count("exactness", "differing bits", bits)
    figures.count("exactness", f"{case.op} cases")


@named(ROUNDED)
def test_rounded_operation(case, figures):
    """What rounds by its nature is within a number of ulps of the magnitudes that it adds."""
    for name, (share, ulps) in errors(case).items():
        assert share <= 1, f"{name}: {share:.3g} of the bound"
        figures.most("exactness", f"{case.op}, largest error of {name} in ulp", ulps)
    figures.count("exactness", f"{case.op} cases")


def test_cases_are_as_many_as_promised():
    assert len({case.id for case in CONVOLUTIONS}) == len(CONVOLUTIONS) >= 500
    cases = [*OTHERS, *ARITHMETIC, *ROUNDED]
    assert len({case.id for case in cases}) == len(cases)
    counts = Counter(case.op for case in cases)
    assert min(counts.values()) >= 100, counts
    assert {case.op for case in CASES} <= {"conv2d", *counts}
