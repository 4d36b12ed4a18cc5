"""Operations against PyTorch, forward and backward, for random shapes and options."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from cases import DTYPES, LOSSES, Arrays, Case, compare, like
from random_cases import (
    activation_cases,
    adaptive_cases,
    avg_pool_cases,
    conv_cases,
    dropout_cases,
    elementwise_loss_cases,
    label_cases,
    linear_cases,
    max_pool_cases,
    norm_cases,
    softmax_cases,
)

from fastlayers import ops

torch = pytest.importorskip("torch")

GENERATORS = (
    (conv_cases, 80),
    (max_pool_cases, 40),
    (avg_pool_cases, 40),
    (adaptive_cases, 20),
    (norm_cases, 40),
    (dropout_cases, 15),
    (linear_cases, 25),
    (activation_cases, 40),
    (softmax_cases, 20),
    (label_cases, 50),
    (elementwise_loss_cases, 30),
)


def random_cases() -> Iterator[Any]:
    for generator, count in GENERATORS:
        for seed in range(count):
            rng = np.random.default_rng(seed)

            def pick(*choices: Any, rng: np.random.Generator = rng) -> Any:
                return choices[rng.integers(len(choices))]

            case = generator(pick)
            yield pytest.param(case, id=f"{seed}-{case.id}")


def by_torch(case: Case, arrays: Arrays, mask: np.ndarray | None) -> Arrays:
    """Give what `Case.run` gives, by PyTorch and its automatic differentiation."""
    tensors = {name: torch.tensor(a) for name, a in arrays.items()}
    options, results = dict(case.options), {}
    learnt = (
        ["input"] if case.op in LOSSES else [n for n in ("input", "weight", "bias") if n in arrays]
    )
    for name in learnt:
        tensors[name].requires_grad_()
    if mask is not None:
        y = torch.where(torch.tensor(mask) > 0, tensors["input"] / (1 - options["p"] or 1), 0)
    else:
        function = getattr(torch.nn.functional, case.op)
        if case.op == "batch_norm":
            tensors = dict.fromkeys(("running_mean", "running_var")) | tensors
            options["training"] |= "running_mean" not in arrays
        if case.op == "max_pool2d":
            results["indices"] = function(tensors["input"], **options, return_indices=True)[1]
        y = function(**tensors, **options)
    y.backward(torch.tensor(like(y.detach().numpy())))
    results |= {
        name: t for name, t in tensors.items() if name.startswith("running") and t is not None
    }
    results |= {f"d{name}": tensors[name].grad for name in learnt}
    return {"y": y.detach().numpy(), **{name: t.numpy() for name, t in results.items()}}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", list(random_cases()))
def test_agrees_with_torch(case, dtype):
    arrays = case.arrays(dtype)
    got = case.run(ops, arrays)
    mask = got.get("dropped")
    if mask is not None:
        mask = np.broadcast_to(
            mask.reshape(*mask.shape, *[1] * (got["y"].ndim - mask.ndim)), got["y"].shape
        )
    want = by_torch(case, arrays, mask)
    assert got.keys() >= want.keys()
    compare({name: got[name] for name in want}, want)
