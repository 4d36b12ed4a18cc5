"""Compiles kernels beside the tests that will need them: ``python tests/ahead.py``."""

from cases import CASES, DTYPES
from trust import test_any_array

from fastlayers import ops

if __name__ == "__main__":
    for dtype in test_any_array.DTYPES:
        for call in test_any_array.calls(dtype):
            call.run({name: array.copy() for name, array in call.arrays.items()})
    for case in CASES:
        for kind in DTYPES:
            case.run(ops, case.arrays(kind))
