"""Each function of `function_cases` against PyTorch's, on random arguments."""

import importlib
import pkgutil
import warnings

import pytest

pytest.importorskip("torch")

from parity import function_cases
from parity.functions_harness import Row, check, forms

ROWS = [
    row
    for module in pkgutil.iter_modules(function_cases.__path__)
    for row in importlib.import_module(f"parity.function_cases.{module.name}").ROWS
]
CASES = 24


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_the_function_is_pytorchs(row: Row) -> None:
    compared = 0
    for form in forms(row):
        for seed in range(CASES):
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", module="torch")
                warnings.filterwarnings("ignore", category=UserWarning)
                try:
                    compared += check(row, form, seed)
                except Exception as error:
                    raise AssertionError(f"{row.name} as {form}, seed {seed}: {error}") from error
    assert compared >= CASES // 2
