import itertools

import numpy as np
import pytest
from parameters import Parameter, run

from fastlayers.optim import SGD, Adam, AdamW

TOLERANCE = {np.float32: 1e-5, np.float64: 1e-12}
NAMES = ("betas", "weight_decay", "amsgrad", "maximize")
OPTIONS = [
    dict(zip(NAMES, values, strict=True))
    for values in itertools.product(((0.9, 0.999), (0, 0.5)), (0, 0.1), (0, 1), (0, 1))
]
BOTH = pytest.mark.parametrize("make", [Adam, AdamW])


def arrays(count, shape=(5, 7), dtype=np.float64):
    return list(np.random.default_rng(0).standard_normal((count, *shape)).astype(dtype))


def expected(p, grads, lr, betas, eps, weight_decay, amsgrad, maximize, decoupled):
    p, mean, square, top = p.copy(), 0, 0, 0
    for t, grad in enumerate(grads, start=1):
        d = -grad if maximize else grad
        if decoupled:
            p *= 1 - lr * weight_decay
        else:
            d = d + weight_decay * p
        mean = betas[0] * mean + (1 - betas[0]) * d
        square = betas[1] * square + (1 - betas[1]) * d * d
        top = np.maximum(top, square) if amsgrad else square
        mean_hat, square_hat = mean / (1 - betas[0] ** t), top / (1 - betas[1] ** t)
        p -= lr * mean_hat / (np.sqrt(square_hat) + eps)
    return p


@BOTH
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_equals_formula(make, options, dtype):
    options = options | {name: bool(options[name]) for name in ("amsgrad", "maximize")}
    start, *grads = arrays(7, dtype=dtype)
    grads = [grad * 2.0**-i for i, grad in enumerate(grads)]  # so that AMSGrad's maximum matters
    want = expected(start, grads, lr=0.1, eps=1e-3, decoupled=make is AdamW, **options)
    p = Parameter(start)
    optimizer = make([p], lr=0.1, eps=1e-3, **options)
    got = run(optimizer, p, grads)
    assert got is start and got.dtype == dtype
    np.testing.assert_allclose(got, want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    names = {"step", "exp_avg", "exp_avg_sq"} | (
        {"max_exp_avg_sq"} if options["amsgrad"] else set()
    )
    assert set(optimizer.state[p]) == names and optimizer.state[p]["step"] == 6


@BOTH
def test_defaults(make):
    group = make([Parameter(np.ones(3))]).param_groups[0]
    want = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "amsgrad": False, "maximize": False}
    assert group.items() >= want.items()
    assert group["weight_decay"] == (0.01 if make is AdamW else 0)


@BOTH
@pytest.mark.parametrize("amsgrad", [False, True])
def test_state_dict_resumes(make, amsgrad):
    start, *grads = arrays(7)
    p, q = Parameter(start), Parameter(start.copy())
    first, second = make([p], amsgrad=amsgrad), make([q], lr=5.0)
    run(first, p, grads[:3])
    state = first.state_dict()
    q.data[...] = p.array()
    run(first, p, grads[3:])
    second.load_state_dict(state)
    np.testing.assert_array_equal(run(second, q, grads[3:]), p.array())


def test_load_converts_to_the_dtype():
    p, q = Parameter(*arrays(2)), Parameter(*arrays(2, dtype=np.float32))
    first, second = Adam([p]), Adam([q])
    first.step()
    second.load_state_dict(first.state_dict())
    assert second.state[q]["exp_avg"].dtype == np.float32
    second.step()


def test_load_refuses_other_state():
    p = Parameter(*arrays(2))
    optimizer, sgd = Adam([p]), SGD([p], momentum=0.9)
    optimizer.step()
    sgd.step()
    before = repr(optimizer.state_dict())
    entry = optimizer.state_dict()["state"][0]
    spoiled = {
        "all options, got no": sgd.state_dict(),
        "step must be an integer >= 1, got 0.5": {0: entry | {"step": 0.5}},
        "exp_avg must have its parameter's shape": {0: entry | {"exp_avg": np.ones(2)}},
        "'exp_avg', 'exp_avg_sq', 'step'": {0: {"step": 1}},
    }
    for message, state in spoiled.items():
        whole = state if "state" in state else optimizer.state_dict() | {"state": state}
        with pytest.raises(ValueError, match=f"Adam: .*{message}"):
            optimizer.load_state_dict(whole)
        assert repr(optimizer.state_dict()) == before


@BOTH
@pytest.mark.parametrize("name", ["lr", "eps", "weight_decay"])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.1, "0.1"])
def test_bad_number(make, name, value):
    message = f"{make.__name__}: {name} must be a finite number >= 0, got"
    with pytest.raises(ValueError, match=message):
        make([Parameter(np.ones(3))], **{name: value})


@BOTH
@pytest.mark.parametrize(
    "betas", [0.9, (0.9,), (0.9, 1.0), (-0.1, 0.9), (float("nan"), 0.9), ("0.9", 0.9)]
)
def test_bad_betas(make, betas):
    with pytest.raises(ValueError, match=r"betas must be two numbers in \[0, 1\), got"):
        make([Parameter(np.ones(3))], betas=betas)


@BOTH
@pytest.mark.parametrize("name", ["amsgrad", "maximize"])
def test_bad_flag(make, name):
    with pytest.raises(ValueError, match=f"{name} must be a bool, got 'no'"):
        make([Parameter(np.ones(3))], **{name: "no"})


@pytest.mark.parametrize("amsgrad", [False, True])
def test_nan_stays(amsgrad):
    p = Parameter(np.ones(3), np.array([1.0, np.nan, 1.0]))
    optimizer = Adam([p], amsgrad=amsgrad)
    run(optimizer, p, [p.grad, np.ones(3)])
    np.testing.assert_array_equal(np.isnan(p.array()), [False, True, False])


@pytest.mark.parametrize("amsgrad", [False, True])
def test_same_bits_on_any_number_of_threads(monkeypatch, amsgrad):
    results = []
    for workers in (1, 2):
        monkeypatch.setattr("fastlayers.runtime.threads.workers_for", lambda _, n=workers: n)
        start, *grads = arrays(3, (50_001,), np.float32)
        p = Parameter(start)
        results.append(run(Adam([p], amsgrad=amsgrad), p, grads))
    np.testing.assert_array_equal(*results)
