import itertools

import numpy as np
import pytest
from parameters import Parameter, run

from fastlayers.optim import SGD, Adadelta

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
NAMES = ("rho", "weight_decay", "maximize")
OPTIONS = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product((0, 0.5, 0.9, 1), (0, 0.1), (False, True))
]


def arrays(count, shape=(5, 7), dtype=np.float64):
    return list(np.random.default_rng(0).standard_normal((count, *shape)).astype(dtype))


def expected(p, grads, lr, rho, eps, weight_decay, maximize):
    p, square, moved = p.copy(), 0, 0
    for grad in grads:
        d = (-grad if maximize else grad) + weight_decay * p
        square = rho * square + (1 - rho) * d * d
        delta = np.sqrt(moved + eps) / np.sqrt(square + eps) * d
        moved = rho * moved + (1 - rho) * delta * delta
        p -= lr * delta
    return p


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_formula(options, dtype):
    start, *grads = arrays(7, dtype=dtype)
    want = expected(start, grads, lr=0.5, eps=1e-3, **options)
    p = Parameter(start)
    optimizer = Adadelta([p], lr=0.5, eps=1e-3, **options)
    got = run(optimizer, p, grads)
    assert got is start and got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert set(optimizer.state[p]) == {"step", "square_avg", "acc_delta"}
    assert optimizer.state[p]["step"] == 6


def test_defaults():
    group = Adadelta([Parameter(np.ones(3))]).param_groups[0]
    del group["params"]
    assert group == {"lr": 1.0, "rho": 0.9, "eps": 1e-6, "weight_decay": 0, "maximize": False}


def test_state_dict_resumes():
    start, *grads = arrays(7)
    p, q = Parameter(start), Parameter(start.copy())
    first, second = Adadelta([p]), Adadelta([q], lr=5.0)
    run(first, p, grads[:3])
    state = first.state_dict()
    q.data[...] = p.array()
    run(first, p, grads[3:])
    second.load_state_dict(state)
    np.testing.assert_array_equal(run(second, q, grads[3:]), p.array())


def test_load_converts_to_the_dtype():
    p, q = Parameter(*arrays(2)), Parameter(*arrays(2, dtype=np.float32))
    first, second = Adadelta([p]), Adadelta([q])
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.state[q]["acc_delta"].dtype == np.float32
    second.step()


def test_load_refuses_other_state():
    p = Parameter(*arrays(2))
    optimizer, sgd = Adadelta([p]), SGD([p], momentum=0.9)
    optimizer.step()
    sgd.step()
    before = repr(optimizer.state_dict())
    entry = optimizer.state_dict()["state"][0]
    spoiled = {
        "all options, got no": sgd.state_dict(),
        "step must be an integer >= 1, got 0.5": {0: entry | {"step": 0.5}},
        "acc_delta must have its parameter's shape": {0: entry | {"acc_delta": np.ones(2)}},
        "'acc_delta', 'square_avg', 'step'": {0: {"step": 1}},
    }
    for message, state in spoiled.items():
        whole = state if "state" in state else optimizer.state_dict() | {"state": state}
        with pytest.raises(ValueError, match=f"Adadelta: .*{message}"):
            optimizer.load_state_dict(whole)
        assert repr(optimizer.state_dict()) == before


@pytest.mark.parametrize("name", ["lr", "rho", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, "0.1"])
def test_bad_number(name, value):
    with pytest.raises(ValueError, match=f"Adadelta: {name} must be a finite number >= 0, got"):
        Adadelta([Parameter(np.ones(3))], **{name: value})


def test_bad_rho_and_flag():
    with pytest.raises(ValueError, match=r"Adadelta: rho must be a number in \[0, 1\], got 1.5"):
        Adadelta([Parameter(np.ones(3))], rho=1.5)
    with pytest.raises(ValueError, match="maximize must be a bool, got 'no'"):
        Adadelta([Parameter(np.ones(3))], maximize="no")


def test_nan_stays():
    p = Parameter(np.ones(3), np.array([1.0, np.nan, 1.0]))
    optimizer = Adadelta([p])
    run(optimizer, p, [p.grad, np.ones(3)])
    np.testing.assert_array_equal(np.isnan(p.array()), [False, True, False])


def test_same_bits_on_any_number_of_threads(monkeypatch):
    results = []
    for workers in (1, 2):
        monkeypatch.setattr("fastlayers.runtime.threads.workers_for", lambda _, n=workers: n)
        start, *grads = arrays(3, (50_001,), np.float32)
        p = Parameter(start)
        results.append(run(Adadelta([p]), p, grads))
    np.testing.assert_array_equal(*results)
