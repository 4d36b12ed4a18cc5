import numpy as np
import pytest
from numpy.testing import assert_allclose

import fastlayers as fl
from fastlayers import nn
from fastlayers.nn import utils


def parameters(*gradients):
    out = []
    for gradient in gradients:
        p = nn.Parameter(np.zeros(len(gradient or [0]), np.float32))
        p.grad = None if gradient is None else fl.tensor(gradient)
        out.append(p)
    return out


@pytest.mark.parametrize(
    ("norm_type", "expected"), [(2, 13.0), (2.0, 13.0), (1, 19.0), (np.inf, 12.0), ("inf", 12.0)]
)
def test_clip_grad_norm(norm_type, expected):
    ps = parameters([3.0, 4.0], None, [-12.0])
    kept = [p.grad for p in ps]
    total = utils.clip_grad_norm_(iter(ps), 2.0, norm_type)
    assert total.item() == pytest.approx(expected)
    assert_allclose(np.asarray(ps[0].grad), np.array([3, 4]) * 2 / expected, rtol=1e-6)
    assert_allclose(np.asarray(ps[2].grad), [-12 * 2 / expected], rtol=1e-6)
    assert ps[1].grad is None and all(p.grad is k for p, k in zip(ps, kept, strict=True))


def test_clip_grad_norm_leaves_small_gradients():
    (p,) = parameters([3.0, 4.0])
    assert utils.clip_grad_norm_(p, 6.0).item() == 5
    assert np.asarray(p.grad).tolist() == [3, 4]
    assert utils.clip_grad_norm_([], 1.0).item() == 0


def test_clip_grad_norm_tells_of_a_norm_that_is_not_finite():
    (p,) = parameters([np.nan, 4.0])
    with pytest.raises(RuntimeError, match="the norm of the gradients must be finite, got nan"):
        utils.clip_grad_norm_(p, 1.0, error_if_nonfinite=True)
    assert np.asarray(p.grad)[1] == 4
    assert np.isnan(utils.clip_grad_norm_(p, 1.0).item())


def test_clip_grad_value():
    p, q = parameters([3.0, -4.0, 0.5], None)
    utils.clip_grad_value_([p, q], 1)
    assert np.asarray(p.grad).tolist() == [1, -1, 0.5] and q.grad is None


def test_clipped_gradients_are_what_an_optimizer_takes():
    layer = nn.Linear(2, 1, bias=False)
    layer.weight.data.zero_()
    layer(np.full((1, 2), 100, np.float32)).sum().backward()
    utils.clip_grad_norm_(layer.parameters(), 1.0)
    fl.optim.SGD(layer.parameters(), lr=1.0).step()
    assert_allclose(np.asarray(layer.weight.detach()), [[-(0.5**0.5)] * 2], rtol=1e-5)


def test_parameters_as_a_vector():
    layer = nn.Linear(2, 3)
    vector = utils.parameters_to_vector(layer.parameters())
    assert vector.shape == (9,) and vector.requires_grad
    assert_allclose(np.asarray(vector[:6].detach()), np.asarray(layer.weight.detach()).ravel())
    utils.vector_to_parameters(fl.arange(9.0), layer.parameters())
    assert np.asarray(layer.weight.detach()).tolist() == [[0, 1], [2, 3], [4, 5]]
    assert np.asarray(layer.bias.detach()).tolist() == [6, 7, 8]


@pytest.mark.parametrize(
    ("error", "vector", "message"),
    [
        (ValueError, fl.ones(8), r"vec must have shape \(9,\), got \(8,\)"),
        (ValueError, fl.ones(10), r"vec must have shape \(9,\), got \(10,\)"),
        (TypeError, np.ones(9), "vec must be a tensor, got ndarray"),
    ],
)
def test_vectors_are_checked(error, vector, message):
    layer = nn.Linear(2, 3)
    before = np.asarray(layer.weight.detach()).copy()
    with pytest.raises(error, match=f"vector_to_parameters: {message}"):
        utils.vector_to_parameters(vector, layer.parameters())
    np.testing.assert_array_equal(np.asarray(layer.weight.detach()), before)
