import numpy as np
import pytest
from cases import DTYPES

from fastlayers import ops
from fastlayers.ops.norm.parts import Part
from fastlayers.runtime import backend

BOUNDS = {np.float32: 2e-5, np.float64: 1e-12}


def whole(parts):
    """Mean and ``1 / sqrt(var + eps)`` as each part is told."""
    sums = sum(part.sums() for part in parts)
    squares = sum([part.squares(sums) for part in parts])
    return [part.statistics(squares) for part in parts]


@pytest.mark.parametrize("numpy", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("cuts", [(4,), (1, 1, 6), (7, 8)], ids=str)
def test_statistics_are_those_of_the_whole_batch(monkeypatch, cuts, dtype, numpy):
    monkeypatch.setattr(backend, "NUMPY", numpy)
    x = (np.random.default_rng(0).standard_normal((8, 3, 5, 2)) + 10).astype(dtype)
    running = np.ones((2, 3), dtype)
    expected = ops.batch_norm_statistics(x, *running, True, 0.25, 1e-5)
    arrays = [np.ones((2, 3), dtype) for _ in range(len(cuts) + 1)]
    parts = [
        Part("batch_norm", piece, *own, None, None, 0.25, 1e-5)
        for piece, own in zip(np.split(x, cuts), arrays, strict=True)
    ]
    for found, own in zip(whole(parts), arrays, strict=True):
        np.testing.assert_allclose(found, expected, BOUNDS[dtype])
        np.testing.assert_allclose(own, running, BOUNDS[dtype])


def test_too_few_values_leave_running_statistics_alone():
    mean, var = np.zeros(3), np.ones(3)
    part = Part("batch_norm", np.ones((1, 3)), mean, var, None, None, 0.1, 1e-5)
    with pytest.raises(ValueError, match=r"^batch_norm: input must have more than one .* got 1 in"):
        part.squares(part.sums())
    np.testing.assert_array_equal([mean, var], [[0] * 3, [1] * 3])
