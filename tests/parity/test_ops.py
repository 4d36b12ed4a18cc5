"""Operations against PyTorch, forward and backward, for random shapes and options."""

from collections.abc import Iterator

import numpy as np
import pytest
from cases import DTYPES, Arrays, Case, compare, like
from specs import SPECS

from fastlayers import ops

torch = pytest.importorskip("torch")


def random_cases(most: int = 1 << 30) -> Iterator[tuple[str, Case, np.random.Generator]]:
    """Random configurations of all ops, and what drew them."""
    for spec in SPECS.values():
        for random in spec.random:
            for seed in range(min(random.torch, most)):
                rng = np.random.default_rng(seed)
                case = random.make(lambda *choices, rng=rng: choices[rng.integers(len(choices))])
                yield f"{seed}-{case.id}", case, rng


def by_torch(case: Case, arrays: Arrays, got: Arrays) -> Arrays:
    """Give what `Case.run` gives, by PyTorch and its automatic differentiation."""
    spec, more = case.spec, {}
    tensors = {name: torch.tensor(a) for name, a in arrays.items()}
    learnt = [name for name in spec.learnt if name in arrays]
    for name in learnt:
        tensors[name].requires_grad_()
    if spec.torch is None:
        y = getattr(torch.nn.functional, spec.op)(**tensors, **case.options)
    else:
        y, more = spec.torch(torch, tensors, dict(case.options), got)
    y.backward(torch.tensor(like(y.detach().numpy())))
    more = more | {f"d{name}": tensors[name].grad for name in learnt}
    return {"y": y.detach().numpy(), **{name: t.numpy() for name, t in more.items()}}


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case, _ in random_cases()])
def test_agrees_with_torch(case, dtype):
    arrays = case.arrays(dtype)
    got = case.run(ops, arrays)
    want = by_torch(case, arrays, got)
    assert got.keys() >= want.keys()
    compare({name: got[name] for name in want}, want)


@pytest.mark.parametrize("dtype", DTYPES, ids=lambda d: d.__name__)
@pytest.mark.parametrize("spec", [s for s in SPECS.values() if s.nonfinite], ids=lambda s: s.op)
def test_kinks_are_those_of_torch(spec, dtype):
    """Slopes at small integers, where functions of elements have their kinks."""
    case = max(spec.samples, key=lambda case: case.size)
    arrays = case.arrays(dtype, "integers")
    got = case.run(ops, arrays)
    compare(got, by_torch(case, arrays, got))
