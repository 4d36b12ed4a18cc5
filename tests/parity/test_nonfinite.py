"""One NaN or infinity in the input, or in a gradient, against PyTorch."""

from typing import Any

import numpy as np
import pytest
from cases import DTYPES, compare
from parity.test_ops import by_torch, random_cases

from fastlayers import nn, ops, optim

torch = pytest.importorskip("torch")

VALUES = (np.nan, np.inf, -np.inf)


def cases() -> Any:
    for name, case, rng in random_cases(24):
        if 0 not in case.shapes["input"]:
            yield pytest.param(case, rng.integers(1 << 30), id=name)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize(("case", "seed"), list(cases()))
def test_agrees_with_torch(case, seed, dtype):
    for k, value in enumerate(VALUES):
        arrays = case.arrays(dtype)
        x = arrays["input"]
        x.flat[(seed + k) % x.size] = value
        got = case.run(ops, arrays)
        want = by_torch(case, arrays, got)
        pair = {name: got[name] for name in want}, want
        # The differences that docstrings tell of, or where PyTorch's own paths differ.
        if case.spec.reconcile is not None:
            pair = case.spec.reconcile(case, arrays, value, *pair)
        if pair is not None:
            compare(*pair)


@pytest.mark.parametrize("make", ["SGD", "Adam", "AdamW", "Adadelta"])
@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
def test_a_step_by_such_a_gradient(make, value, dtype):
    options: Any = {"SGD": {"momentum": 0.9}, "Adadelta": {}}.get(make, {"amsgrad": True})
    data, grad = np.arange(1, 9, dtype=dtype), np.ones(8, dtype)
    grad[3] = value
    ours = nn.Parameter(data.copy())
    theirs = torch.nn.Parameter(torch.tensor(data))
    ours.grad, theirs.grad = grad, torch.tensor(grad)
    for module, p in ((optim, ours), (torch.optim, theirs)):
        optimizer = getattr(module, make)([p], lr=0.1, **options)
        optimizer.step()
        if module is optim:
            state = optimizer.state[p]
    want = {n: t.numpy() for n, t in optimizer.state[theirs].items() if n != "step"}
    compare({n: state[n] for n in want}, want)
    compare({"p": ours.array()}, {"p": theirs.detach().numpy()})
