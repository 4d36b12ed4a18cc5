"""Each function of `function_cases` against PyTorch's, on random arguments."""

import importlib
import pkgutil
import warnings
from typing import Any

import numpy as np
import pytest
from parity import function_cases
from parity.functions_harness import Row, check, forms, torch

from fastlayers import functions, linalg

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


@pytest.mark.parametrize(
    ("name", "ord", "dim"),
    [
        *(("vector_norm", p, dim) for p in (1, 2, 3.0, np.inf) for dim in (None, 1, (0, 1))),
        *(("norm", p, 0) for p in (None, 1, 2, np.inf)),
        *(("norm", p, dim) for p in (None, "fro") for dim in (None, (0, 1))),
    ],
)
def test_norms_of_linalg(name: str, ord: Any, dim: Any) -> None:
    x = np.array([[1.0, -2.0, 0.0], [3.0, 0.5, -3.0]])
    ours, theirs = functions.tensor(x, requires_grad=True), torch.tensor(x, requires_grad=True)
    for keepdim in (False, True):
        y = getattr(linalg, name)(ours, ord, dim, keepdim)
        expected = getattr(torch.linalg, name)(theirs, ord, dim, keepdim)
        np.testing.assert_allclose(y.detach().numpy(), expected.detach().numpy())
        y.sum().backward()
        expected.sum().backward()
        np.testing.assert_allclose(ours.grad.numpy(), theirs.grad.numpy())


def test_other_norms_of_matrices_are_refused() -> None:
    x = functions.tensor([[1.0, 2.0]])
    for ord, dim in ((1, None), (2, (0, 1)), ("nuc", None)):
        with pytest.raises(NotImplementedError):
            linalg.norm(x, ord, dim)
