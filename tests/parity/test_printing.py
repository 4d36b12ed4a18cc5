"""The text of tensors against PyTorch's."""

from typing import Any

import numpy as np
import pytest

import fastlayers as fl
from fastlayers.autograd import printing

torch = pytest.importorskip("torch")

DTYPES = ("float32", "float64", "float16", "int64", "int32", "int8", "uint8", "bool")


def drawn(rng: np.random.Generator) -> np.ndarray:
    ndim = rng.integers(0, 5)
    most = [1, 1200, 60, 14, 8][ndim] if rng.random() < 0.3 else 6
    shape = tuple(rng.integers(0 if rng.random() < 0.1 else 1, most + 1, ndim))
    x = rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 11)
    if rng.random() < 0.4:
        x = np.round(rng.standard_normal(shape) * 10.0 ** rng.integers(0, 4))
    if rng.random() < 0.3:
        x = x * 10.0 ** rng.integers(-3, 4, shape)
    if rng.random() < 0.3:
        x = np.where(rng.random(shape) < 0.3, rng.choice([0.0, np.inf, -np.inf, np.nan], shape), x)
    with np.errstate(all="ignore"):
        return np.asarray(x).astype(DTYPES[rng.integers(len(DTYPES))])


OPTIONS: list[dict[str, Any]] = [
    {},
    {"precision": 2},
    {"sci_mode": True},
    {"sci_mode": False, "precision": 3},
    {"threshold": 10},
    {"threshold": 5, "edgeitems": 1},
    {"threshold": 5, "edgeitems": 0},
    {"linewidth": 40},
    {"profile": "short"},
    {"profile": "full", "linewidth": 120},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_the_text_is_pytorchs(options: dict[str, Any]) -> None:
    with printing.printoptions(**options), torch._tensor_str.printoptions(**options):
        for seed in range(60):
            rng = np.random.default_rng(seed)
            x = drawn(rng)
            grads = x.dtype.kind == "f" and bool(rng.integers(2))
            ours = fl.tensor(x, requires_grad=grads)
            theirs = torch.tensor(x, requires_grad=grads)
            assert repr(ours) == repr(theirs), f"seed {seed}"
            assert str(ours.shape) == str(theirs.shape)
            if grads:
                assert repr(ours * 2) == repr(theirs * 2)
    assert printing.get_printoptions() == torch._tensor_str.get_printoptions()


@pytest.mark.parametrize("name", ["max", "min", "sort", "median", "topk", "kthvalue"])
def test_results_with_names_print_as_pytorchs(name: str) -> None:
    x, args = np.array([[3.0, 1.0], [2.0, 5.0]]), (1,) if name in ("topk", "kthvalue") else ()
    ours = getattr(fl.tensor(x), name)(*args, dim=1)
    assert repr(ours) == repr(getattr(torch.tensor(x), name)(*args, dim=1))


def test_functions_that_made_tensors_have_pytorchs_names() -> None:
    functions: list[Any] = [lambda t: t + 1, lambda t: t - 1, lambda t: t * t, lambda t: t / 2]
    for name in ("exp", "log", "sqrt", "tanh", "abs", "neg", "sum", "mean"):
        functions.append(lambda t, name=name: getattr(t, name)())
    for function in functions:
        x = np.array([1.0, 2.0])
        ours = function(fl.tensor(x, requires_grad=True))
        theirs = function(torch.tensor(x, requires_grad=True))
        assert repr(ours) == repr(theirs)
