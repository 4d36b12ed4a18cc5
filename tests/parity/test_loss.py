"""Losses against PyTorch, where their targets have gradients too."""

import itertools

import numpy as np
import pytest

import fastlayers as fl
from fastlayers.nn import functional as F

torch = pytest.importorskip("torch")

SHAPES = [(5, 3), (4, 3, 2, 2), (3,), (0, 3)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_cross_entropy_of_class_probabilities(shape, smoothing):
    rng = np.random.default_rng(0)
    for reduction, weighted in itertools.product(["none", "mean", "sum"], [False, True]):
        x, t = rng.standard_normal(shape), rng.random(shape)
        w = rng.random(3) if weighted else None
        theirs = [torch.tensor(v, requires_grad=True) for v in (x, t)]
        ours = [fl.tensor(v, requires_grad=True) for v in (x, t)]
        options = {"reduction": reduction, "label_smoothing": smoothing}
        expected = torch.nn.functional.cross_entropy(
            *theirs, weight=None if w is None else torch.tensor(w), **options
        )
        loss = F.cross_entropy(*ours, weight=w, **options)
        np.testing.assert_allclose(loss.detach(), expected.detach(), atol=1e-12)
        if not loss.numel():
            continue
        expected.sum().backward()
        loss.sum().backward()
        for a, b in zip(ours, theirs, strict=True):
            np.testing.assert_allclose(a.grad, b.grad, atol=1e-12)


def test_class_probabilities_have_no_ignored_class():
    x = fl.tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match="ignore_index must be negative"):
        F.cross_entropy(x, x, ignore_index=1)
    with pytest.raises(ValueError, match="target must have shape"):
        F.cross_entropy(x, x[:1])
