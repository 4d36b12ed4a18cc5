"""What every op must satisfy, at the samples that `specs` declare."""

from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
from specs import SPECS
from specs.batchnorm import norm
from specs.conv_sizes import conv
from specs.dropout import unpacked
from specs.loss import paired
from specs.loss_of_labels import labelled
from specs.spec import DTYPES, Arrays, Bad, Case, like
from specs.windows import pool

from fastlayers import ops, reference
from fastlayers.runtime.threads import set_num_threads
from fastlayers.testing import numerical_gradient

__all__ = [
    "CASES",
    "DTYPES",
    "LAYOUTS",
    "TOLERANCES",
    "Arrays",
    "Case",
    "check",
    "check_bad",
    "check_error",
    "check_exact",
    "check_gradients",
    "check_threads",
    "compare",
    "conv",
    "labelled",
    "like",
    "norm",
    "paired",
    "params",
    "pool",
    "unpacked",
]

# (relative, absolute); the absolute one is in units of the largest value.
TOLERANCES = {np.dtype(np.float32): (1e-4, 1e-5), np.dtype(np.float64): (1e-10, 1e-10)}
CASES: tuple[Case, ...] = tuple(case for spec in SPECS.values() for case in spec.samples)


def params(cases: Iterable[Case], least: int = 0, most: float = np.inf) -> pytest.MarkDecorator:
    """Parametrise a test by the cases of sizes in [least, most]."""
    chosen = [case for case in cases if least <= case.size <= most]
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.id)


def _wide(a: np.ndarray) -> np.ndarray:
    """Give a copy whose elements lie two apart."""
    wide = np.empty((*a.shape, 2), a.dtype)
    wide[..., 0] = a
    return wide[..., 0]


def _reversed(a: np.ndarray) -> np.ndarray:
    """Give a copy with negative strides."""
    backwards = (slice(None, None, -1),) * a.ndim
    return a[*backwards, ...].copy()[*backwards, ...]


def _channels_last(a: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.moveaxis(a, 1, -1).copy(), -1, 1) if a.ndim > 2 else a.copy()


def _read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


def _fortran(a: np.ndarray) -> np.ndarray:
    return np.array(a, order="F")


LAYOUTS = (np.array, _fortran, _channels_last, _wide, _reversed, _read_only)


def compare(got: Arrays, want: Arrays, tolerances: tuple[float, float] | None = None) -> None:
    """Assert that results have the same names, shapes, dtypes and, within tolerance, values."""
    assert got.keys() == want.keys()
    for name, expected in want.items():
        value = got[name]
        assert value.shape == expected.shape, name
        assert value.dtype == expected.dtype, name
        rtol, atol = tolerances or TOLERANCES.get(expected.dtype, (0, 0))
        scale = np.abs(expected[np.isfinite(expected)]).max(initial=1)
        np.testing.assert_allclose(value, expected, rtol, atol * scale, err_msg=name)


def check(case: Case, dtype: Any) -> None:
    """Assert that an operation agrees with its reference for any layout of its arguments."""
    arrays = case.arrays(dtype)
    want = case.run(reference, arrays)
    for layout in LAYOUTS:
        given = {name: layout(a) for name, a in arrays.items()}
        compare(case.run(ops, given), want)
        for name, a in arrays.items():
            np.testing.assert_array_equal(given[name], a, err_msg=f"{name} was changed")


def check_exact(case: Case) -> None:
    """Assert that an operation agrees with its reference to the bit on float32 integers."""
    arrays = case.arrays(np.float32, "integers")
    got, want = case.run(ops, arrays, "integers"), case.run(reference, arrays, "integers")
    compare(got, want, (0, 0))


def check_threads(case: Case, dtype: Any = np.float32) -> None:
    """Assert that results are the same to the bit for 1, 2 and 4 threads."""
    arrays, results = case.arrays(dtype), []
    for threads in (1, 2, 4):
        set_num_threads(threads)
        results.append(case.run(ops, arrays))
    for other in results[1:]:
        compare(other, results[0], (0, 0))


def check_gradients(case: Case) -> None:
    """Assert that the gradients of an operation are those of central differences."""
    arrays = case.arrays(np.float64, "distinct")
    results = case.run(ops, arrays)
    for name in arrays.keys() & set(case.spec.learnt):

        def output(value: np.ndarray, name: str = name) -> np.ndarray:
            return case.run(ops, arrays | {name: value})["y"]

        expected = numerical_gradient(output, arrays[name], like(results["y"]))
        np.testing.assert_allclose(results[f"d{name}"], expected, 1e-3, 1e-5, err_msg=name)


def check_error(op: str, error: type[Exception], argument: str, *args: Any, **kwargs: Any) -> None:
    """Assert that a call fails with a message of operation, argument and what was given."""
    with pytest.raises(
        error, match=rf"(?s)^{op.removesuffix('_forward')}: .*\b{argument}\b.*\b(got|given)\b"
    ):
        getattr(ops, op)(*args, **kwargs)


def check_bad(bad: Bad) -> None:
    """Assert that a call fails as declared, and that it changes none of its arguments."""
    given = [a for a in (*bad.args, *bad.options.values()) if isinstance(a, np.ndarray)]
    before = [a.tobytes() for a in given]
    check_error(bad.op, bad.error, bad.argument, *bad.args, **bad.options)
    assert [a.tobytes() for a in given] == before
