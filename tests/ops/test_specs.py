"""What `specs` declare of each op: the reference's values, gradients, threads, and errors."""

import pytest
from cases import CASES, DTYPES, check, check_bad, check_gradients, check_threads, params
from specs import SPECS

from fastlayers import ops

BAD = [bad for spec in SPECS.values() for bad in spec.bad]


def test_every_op_has_a_spec():
    found = {spec.op for spec in SPECS.values() if f"{spec.op}_backward" in ops.__all__}
    gradients = {name for name in ops.__all__ if name.endswith("_backward")}
    assert {f"{op}_backward" for op in found} == gradients
    for op in found:
        spec = SPECS[op]
        assert spec.bad and (spec.samples or spec.exact or spec.watched), op


@pytest.mark.parametrize("dtype", DTYPES)
@params(CASES)
def test_agrees_with_reference(case, dtype):
    check(case, dtype)


def differences():
    for spec in SPECS.values():
        own = [case for case in spec.samples if 1 <= case.size <= 500]
        yield from own if spec.differences is None else spec.differences


@params(differences())
def test_gradients_are_central_differences(case):
    check_gradients(case)


@params(CASES, least=10000)
def test_threads_do_not_change_results(case):
    check_threads(case)


@pytest.mark.parametrize("bad", BAD, ids=lambda bad: f"{bad.op}-{bad.argument}")
def test_errors(bad):
    check_bad(bad)
