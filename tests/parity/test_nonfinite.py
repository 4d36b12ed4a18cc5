"""One NaN or infinity in the input, or in a gradient, against PyTorch."""

from typing import Any

import numpy as np
import pytest
from cases import DTYPES, compare
from parity.test_ops import GENERATORS, by_torch

from fastlayers import nn, ops, optim

torch = pytest.importorskip("torch")

VALUES = (np.nan, np.inf, -np.inf)


def cases() -> Any:
    for generator, count in GENERATORS:
        for seed in range(min(count, 24)):
            rng = np.random.default_rng(seed)
            case = generator(lambda *choices, rng=rng: choices[rng.integers(len(choices))])
            if case.op not in ("dropout", "feature_dropout") and 0 not in case.shapes["input"]:
                yield pytest.param(case, rng.integers(1 << 30), id=f"{seed}-{case.id}")


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize(("case", "seed"), list(cases()))
def test_agrees_with_torch(case, seed, dtype):
    for k, value in enumerate(VALUES):
        arrays = case.arrays(dtype)
        x = arrays["input"]
        x.flat[(seed + k) % x.size] = value
        got, want = case.run(ops, arrays), by_torch(case, arrays, None)
        got = {name: got[name] for name in want}
        # The differences that docstrings tell of, or where PyTorch's own paths differ.
        if case.op == "gelu" and value == np.inf:  # its vectors give NaN, its scalars infinity
            continue
        if case.op == "binary_cross_entropy_with_logits" and value == -np.inf:
            assert np.isnan(want["y"]).any() and not np.isnan(got["dinput"]).any()
            continue
        if case.op == "cross_entropy":  # an ignored sample counts for nothing
            ignored = np.expand_dims(arrays["target"] == case.options["ignore_index"], x.ndim > 1)
            want["dinput"] = np.where(ignored, 0, want["dinput"]).astype(dtype)
        for name in ("running_mean", "running_var"):  # a mean of infinity there, NaN here
            if name in got:
                got[name], want[name] = (
                    np.where(np.isfinite(a[name]), a[name], np.nan) for a in (got, want)
                )
        compare(got, want)


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
