import itertools

import numpy as np
import pytest
from parameters import Parameter, parameter, run

from fastlayers.optim import SGD

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}


def expected(p, grads, lr, momentum, dampening, weight_decay, nesterov, maximize):
    p, buffer = p.copy(), None
    for grad in grads:
        d = (-grad if maximize else grad) + weight_decay * p
        buffer = d if buffer is None else momentum * buffer + (1 - dampening) * d
        p -= lr * (d + momentum * buffer if nesterov else buffer if momentum else d)
    return p


OPTIONS = [
    dict(
        zip(("momentum", "dampening", "weight_decay", "nesterov", "maximize"), values, strict=True)
    )
    for values in itertools.product((0, 0.9), (0, 0.3), (0, 0.1), (False, True), (False, True))
    if not values[3] or (values[0] and not values[1])
]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_formula(options, dtype):
    p = parameter(5, 7, dtype=dtype)
    grads = [parameter(5, 7, dtype=dtype, seed=seed).array() for seed in range(1, 6)]
    want = expected(p.array(), grads, lr=0.1, **options)
    data = p.array()
    optimizer = SGD([p], lr=0.1, **options)
    got = run(optimizer, p, grads)
    assert got is data and got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert bool(optimizer.state) == bool(options["momentum"])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (100_003,), (2, 3, 20_000)])
def test_shapes(shape):
    p = parameter(*shape)
    want = p.array() - 0.5 * p.grad
    SGD([p], lr=0.5).step()
    np.testing.assert_allclose(p.array(), want, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("view", [lambda a: a[::2], lambda a: a.T, lambda a: a[:, 1:3]])
def test_not_contiguous(view):
    p, whole = parameter(6, 4), parameter(6, 4, seed=1)
    want = whole.array().copy()
    view(want)[...] -= 0.5 * view(p.grad)
    strided = Parameter(view(whole.array()), view(p.grad))
    optimizer = SGD([strided], lr=0.5, momentum=0.9)
    optimizer.step()
    np.testing.assert_allclose(whole.array(), want, rtol=1e-14)
    optimizer.step()
    view(want)[...] -= 0.5 * 1.9 * view(p.grad)
    np.testing.assert_allclose(whole.array(), want, rtol=1e-13)


def test_broadcast_and_read_only_gradients():
    p = parameter(3, 4)
    p.grad = np.broadcast_to(1.0, (3, 4))
    want = p.array() - 2.0
    SGD([p], lr=1.0).step()
    ones = np.ones((3, 4))
    ones.flags.writeable = False
    p.grad = ones
    SGD([p], lr=1.0).step()
    np.testing.assert_allclose(p.array(), want)


def test_parameters_without_gradient_stay():
    p, q = parameter(3), parameter(3, grad=False)
    before = q.array().copy()
    optimizer = SGD([p, q], lr=1.0, momentum=0.9, weight_decay=1.0)
    optimizer.step()
    np.testing.assert_array_equal(q.array(), before)
    assert list(optimizer.state) == [p]


@pytest.mark.parametrize("name", ["lr", "momentum", "dampening", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, "0.1", None, True])
def test_bad_number(name, value):
    with pytest.raises(
        ValueError, match=f"SGD: {name} must be a finite number >= 0, got {value!r}"
    ):
        SGD([parameter(3)], **{name: value})


@pytest.mark.parametrize("name", ["nesterov", "maximize"])
def test_bad_flag(name):
    with pytest.raises(ValueError, match=f"SGD: {name} must be a bool, got 'no'"):
        SGD([parameter(3)], **{name: "no"})


@pytest.mark.parametrize("options", [{}, {"momentum": 0.9, "dampening": 0.1}])
def test_nesterov_needs_plain_momentum(options):
    with pytest.raises(ValueError, match="SGD: nesterov must have momentum > 0 and dampening 0"):
        SGD([parameter(3)], nesterov=True, **options)


def test_same_bits_on_any_number_of_threads(monkeypatch):
    results = []
    for workers in (1, 2):
        monkeypatch.setattr("fastlayers.runtime.threads.workers_for", lambda _, n=workers: n)
        p = parameter(50_001, dtype=np.float32)
        grads = [p.grad, p.grad * 2]
        results.append(run(SGD([p], lr=0.1, momentum=0.9, weight_decay=0.1), p, grads))
    np.testing.assert_array_equal(*results)
