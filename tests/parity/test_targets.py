"""Gradients that reach a loss's target, against PyTorch's."""

import numpy as np
import pytest

import fastlayers as fl
from fastlayers.nn import functional as F

torch = pytest.importorskip("torch")


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("factors", [(), ("weight",), ("pos_weight",), ("weight", "pos_weight")])
def test_binary_cross_entropy(reduction, factors):
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((5, 3)) * 4, rng.random((5, 3))
    given = {name: rng.random(3) + 0.5 for name in factors}
    ours = [fl.tensor(a, requires_grad=True) for a in (x, t)]
    theirs = [torch.tensor(a, requires_grad=True) for a in (x, t)]
    F.binary_cross_entropy_with_logits(*ours, reduction=reduction, **given).sum().backward()
    torch.nn.functional.binary_cross_entropy_with_logits(
        *theirs, reduction=reduction, **{name: torch.tensor(a) for name, a in given.items()}
    ).sum().backward()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(np.asarray(mine.grad), other.grad.numpy(), rtol=1e-12)
