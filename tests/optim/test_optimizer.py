import subprocess
import sys

import numpy as np
import pytest
from parameters import Parameter, parameter, run

from fastlayers import Tensor, no_grad, zeros_like
from fastlayers.optim import SGD, Adadelta, Adam, Optimizer
from fastlayers.optim.lr_scheduler import StepLR


def test_groups():
    p, q, r = (parameter(3, seed=seed) for seed in range(3))
    want = [a.array() - lr * a.grad for a, lr in ((p, 1.0), (q, 2.0), (r, 3.0))]
    groups = [{"params": p}, {"params": (x for x in [q]), "lr": 2.0}]
    optimizer = SGD(groups, lr=1.0)
    assert "lr" not in groups[0]
    optimizer.add_param_group({"params": [r], "lr": 3.0})
    optimizer.step()
    np.testing.assert_allclose([a.array() for a in (p, q, r)], want, rtol=1e-14)
    optimizer.param_groups[1]["lr"] = 0
    optimizer.step()
    np.testing.assert_allclose(q.array(), want[1], rtol=1e-14)


def test_zero_grad():
    p, q = parameter(3), parameter(3, grad=False)
    optimizer = SGD([p, q])
    optimizer.zero_grad(set_to_none=False)
    np.testing.assert_array_equal(p.grad, np.zeros(3))
    assert q.grad is None
    optimizer.zero_grad()
    assert p.grad is None


def test_closure():
    p = parameter(3, grad=False)
    want = p.array() - 0.5

    def closure():
        p.grad = np.ones(3)
        return 7

    optimizer = SGD([p], lr=0.5)
    assert optimizer.step(closure) == 7 and optimizer.step() is None
    np.testing.assert_allclose(p.array(), want - 0.5)


@pytest.mark.parametrize("options", [{"momentum": 0.9, "dampening": 0.5}, {}])
def test_state_dict_resumes(options):
    grads = [parameter(4, seed=seed).grad for seed in range(6)]
    p, q = parameter(4, seed=9), parameter(4, seed=9)
    first, second = SGD([p], lr=0.1, **options), SGD([q], lr=5.0)
    run(first, p, grads[:3])
    state = first.state_dict()
    q.data[...] = p.array()
    run(first, p, grads[3:])  # must not reach the copy
    second.load_state_dict(state)
    np.testing.assert_array_equal(run(second, q, grads[3:]), p.array())
    assert second.state_dict().keys() == {"state", "param_groups"}
    assert second.state_dict()["param_groups"] == first.state_dict()["param_groups"]


def test_state_dict_numbers_parameters():
    p, q = parameter(2), parameter(3)
    optimizer = SGD([{"params": [p]}, {"params": [q]}], lr=0.1, momentum=0.9)
    p.grad = None
    optimizer.step()
    state = optimizer.state_dict()
    assert [group["params"] for group in state["param_groups"]] == [[0], [1]]
    assert list(state["state"]) == [1] and list(state["state"][1]) == ["momentum_buffer"]
    np.testing.assert_array_equal(state["state"][1]["momentum_buffer"], q.grad)


def without(mapping, key):
    return {k: v for k, v in mapping.items() if k != key}


SPOILED = {
    "'state' and 'param_groups'": lambda s: without(s, "state"),
    r"groups of \[1\] parameters, got \[\]": lambda s: s | {"param_groups": []},
    r"groups of \[1\] parameters, got \[2\]": lambda s: (
        s | {"param_groups": [s["param_groups"][0] | {"params": [0, 1]}]}
    ),
    r"all options, got no \['lr'\]": lambda s: (
        s | {"param_groups": [without(s["param_groups"][0], "lr")]}
    ),
    "lr must be a finite number >= 0, got nan": lambda s: (
        s | {"param_groups": [s["param_groups"][0] | {"lr": float("nan")}]}
    ),
    r"parameters \[4\]": lambda s: s | {"state": {4: {}}},
    r"\['momentum_buffer'\] for a parameter, got \['other'\]": lambda s: (
        s | {"state": {0: {"other": 1}}}
    ),
    r"momentum_buffer must have its parameter's shape \(3,\), got \(2,\)": lambda s: (
        s | {"state": {0: {"momentum_buffer": np.ones(2)}}}
    ),
}


@pytest.mark.parametrize("message", SPOILED)
def test_load_refuses_other_structure(message):
    p = parameter(3)
    optimizer = SGD([p], lr=0.1, momentum=0.9)
    optimizer.step()
    before = repr(optimizer.state_dict())
    with pytest.raises(ValueError, match=f"SGD: .*{message}"):
        optimizer.load_state_dict(SPOILED[message](optimizer.state_dict()))
    assert repr(optimizer.state_dict()) == before


def test_bad_parameters():
    p = parameter(3)
    with pytest.raises(ValueError, match="SGD: params must not be empty"):
        SGD([])
    for repeated in ([p, p], [{"params": [p]}, {"params": [p]}]):
        with pytest.raises(ValueError, match="SGD: params must not repeat a parameter"):
            SGD(repeated)
    for wrong in (p, {p}, {"params": [p]}, 3):
        with pytest.raises(TypeError, match="SGD: params must be an ordered iterable"):
            SGD(wrong)
    for item in (3, np.ones(3), {"params": [p]}):
        with pytest.raises(TypeError, match="SGD: params must hold parameters, got"):
            SGD([p, item])
    for group in (p, {"lr": 1.0}):
        with pytest.raises(TypeError, match="SGD: param_group must be a dict with 'params'"):
            SGD([p]).add_param_group(group)
    with pytest.raises(TypeError, match="SGD: params must be float32 or float64, got int64"):
        SGD([Tensor(np.arange(3))])
    with pytest.raises(ValueError, match="SGD: params must be leaves, got the result of an op"):
        SGD([p * 2])


@pytest.mark.parametrize("make", [SGD, Adam, Adadelta])
def test_step_changes_nothing_on_error(make):
    p, q = parameter(3), parameter(3)
    optimizer = make([{"params": [p]}, {"params": [q]}])
    optimizer.step()
    before = p.array().copy(), repr(optimizer.state_dict())
    op = make.__name__

    def refused(error, message):
        with pytest.raises(error, match=f"{op}: {message}"):
            optimizer.step()
        np.testing.assert_array_equal(p.array(), before[0])
        assert repr(optimizer.state_dict()["state"]) in before[1]

    q.grad = np.ones(3, np.float32)
    refused(ValueError, r"grad must be float64 of shape \(3,\) as its parameter is, got")
    data, q.grad = q.data, np.ones(3)
    for other in (np.ones(4), np.ones((3, 1)), np.ones(())):
        q.data = other
        refused(ValueError, "grad must be float64 of shape .* as its parameter is, got")
    q.data = data
    q.array().flags.writeable = False
    refused(ValueError, "params must be writable")
    q.array().flags.writeable = True
    optimizer.param_groups[1]["lr"] = float("nan")
    refused(ValueError, "lr must be a finite number >= 0, got nan")


def test_momentum_of_replaced_data_is_refused():
    p = parameter(3)
    optimizer = SGD([p], momentum=0.9)
    optimizer.step()
    p.data, p.grad = np.ones(4), np.ones(4)
    with pytest.raises(ValueError, match=r"SGD: momentum_buffer must be float64 of shape \(4,\)"):
        optimizer.step()


def test_import_does_not_load_numba():
    code = "import sys, fastlayers; n = set(sys.modules); import fastlayers.optim; " + (
        "sys.exit('numba' in set(sys.modules) - n)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    assert subprocess.run(command, check=False).returncode == 0


def test_many_parameters_of_any_kind_in_a_group():
    shapes = [(3, 5), (), (0,), (40_001,), (2, 3, 4), (7,), (16_384,), (1,)]
    for make, options in (
        (SGD, {"momentum": 0.9, "dampening": 0.1}),
        (Adam, {"amsgrad": True}),
        (Adadelta, {}),
    ):
        dtypes = [np.float32, np.float64]
        together = [parameter(*s, dtype=d, seed=i) for i, s in enumerate(shapes) for d in dtypes]
        alone = [Parameter(p.array().copy(), p.grad.clone()) for p in together]
        strided = np.zeros((40, 6), np.float32)
        together.append(Parameter(strided[::2, 1:4], np.ones((20, 3), np.float32)))
        alone.append(Parameter(np.zeros((20, 3), np.float32), np.ones((20, 3), np.float32)))
        optimizer = make(together, lr=0.1, **options)
        others = [make([p], lr=0.1, **options) for p in alone]
        for step in range(4):
            hidden = together[step], alone[step]
            grads = [p.grad for p in hidden]
            for p in hidden:
                p.grad = None
            for each in (optimizer, *others):
                each.step()
            for p, grad in zip(hidden, grads, strict=True):
                p.grad = grad
        for p, q in zip(together, alone, strict=True):
            np.testing.assert_array_equal(p.array(), q.array())
        assert strided[1::2].any() == strided[:, 4:].any() == False  # noqa: E712


@pytest.mark.parametrize("make", [SGD, Adam, Adadelta])
def test_replaced_arrays_are_found(make):
    """Data, gradient and state may be other arrays, or of another kind, in each step."""
    options = {"momentum": 0.9} if make is SGD else {}
    p, q = parameter(6, 4), parameter(6, 4)
    first, second = make([p], **options), make([q], **options)
    for seed in range(6):
        grad = parameter(6, 4, seed=seed).grad
        p.grad, q.grad = grad, np.asfortranarray(grad)
        q.data = np.asfortranarray(q.array()) if seed % 2 else np.ascontiguousarray(q.array())
        for name, array in second.state.get(q, {}).items():
            if name != "step":
                wide = np.zeros((6, 8))
                wide[:, ::2] = array
                second.state[q][name] = wide[:, ::2] if seed % 3 else array.copy()
        first.step()
        second.step()
        np.testing.assert_array_equal(p.array(), q.array())
    q.data = [1.0]
    with pytest.raises(ValueError, match=r"grad must be float32 of shape \(1,\)"):
        second.step()


def test_hints_of_pytorch_are_taken_and_not_kept():
    optimizer = Adam([parameter(3)], foreach=True, fused=None, capturable=False)
    assert not {"foreach", "fused", "capturable", "differentiable"} & optimizer.defaults.keys()
    optimizer.add_param_group({"params": [parameter(3)], "differentiable": False})
    for options in ({"capturable": True}, {"differentiable": 0}, {"foreach": "yes"}):
        with pytest.raises(ValueError, match=f"Adam: {next(iter(options))} must be"):
            Adam([parameter(3)], **options)
    with pytest.raises(TypeError):
        SGD([parameter(3)], 0.1, 0.9, 0, 0, False, True)  # by keyword only, as PyTorch's


def test_named_parameters():
    p, q = parameter(3), parameter(3, seed=1)
    optimizer = SGD([("first", p), ("second", q)], lr=0.1)
    group = optimizer.param_groups[0]
    assert group["params"] == [p, q] and group["param_names"] == ["first", "second"]
    other = SGD([("a", p), ("b", q)], lr=0.1)
    other.load_state_dict(without(optimizer.state_dict(), "none"))
    assert other.param_groups[0]["param_names"] == ["first", "second"]
    other = SGD([("a", p), ("b", q)], lr=0.1)
    other.load_state_dict(SGD([p, q], lr=0.2).state_dict())
    assert other.param_groups[0]["param_names"] == ["a", "b"]
    with pytest.raises(ValueError, match="params must have names in all groups or in none"):
        optimizer.add_param_group({"params": [parameter(3, seed=2)]})
    for wrong in ([("first", p), q], [("first", p, 1)]):
        with pytest.raises(ValueError, match="params must all be pairs of a name and a parameter"):
            SGD(wrong)


@pytest.mark.parametrize("step", [3, 3.0, np.float32(3), np.array(3.0, np.float32), np.array([3])])
def test_step_of_any_number_type(step):
    p = parameter(3)
    adam = Adam([p])
    adam.step()
    state = adam.state_dict()
    state["state"][0]["step"] = step
    adam.load_state_dict(state)
    assert adam.state[p]["step"] == 3 and type(adam.state[p]["step"]) is int
    for wrong in (2.5, -1.0, np.array(0.0), np.ones(2), "3"):
        state["state"][0]["step"] = wrong
        with pytest.raises(ValueError, match="Adam: step must be an integer >= 1"):
            adam.load_state_dict(state)


def test_options_in_arrays_of_one_number():
    optimizer = Adam([parameter(3)], lr=np.array(0.5), betas=[np.array([0.5]), 0.75])
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.param_groups[0]["betas"] == (0.5, 0.75)
    optimizer.param_groups[0]["lr"] = np.array(0.25)
    optimizer.step()


def test_repr_shows_groups():
    assert repr(SGD([parameter(3)], lr=0.1)) == (
        "SGD (\nParameter Group 0\n    dampening: 0\n    lr: 0.1\n    maximize: False\n"
        "    momentum: 0\n    nesterov: False\n    weight_decay: 0\n)"
    )


class Momentum(Optimizer):
    """SGD with momentum, as a user writes it."""

    def __init__(self, params, lr=0.1, momentum=0.9):
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["buffer"], state["tags"] = zeros_like(p), ["new"]
                state["buffer"].mul_(group["momentum"]).add_(p.grad)
                p.add_(state["buffer"], alpha=-group["lr"])


def test_an_optimizer_that_a_user_writes():
    p, q = parameter(3), parameter(3)
    own, other = Momentum([p]), SGD([q], lr=0.1, momentum=0.9)
    schedules = StepLR(own, 2, 0.5), StepLR(other, 2, 0.5)
    for _ in range(3):
        for optimizer, schedule in zip((own, other), schedules, strict=True):
            optimizer.step()
            schedule.step()
    np.testing.assert_allclose(p.array(), q.array(), rtol=1e-12)
    again = Momentum([p], lr=3.0)
    again.load_state_dict(own.state_dict())
    assert again.param_groups[0]["lr"] == 0.05 and again.state[p]["tags"] == ["new"]
    assert again.state[p]["buffer"] is not own.state[p]["buffer"]
    np.testing.assert_array_equal(again.state[p]["buffer"].array(), own.state[p]["buffer"].array())


def test_a_step_must_be_defined():
    p = parameter(3)
    before = p.array().copy()
    with pytest.raises(NotImplementedError, match="Optimizer: an Optimizer must define step"):
        Optimizer([p], {"lr": 1.0}).step()
    np.testing.assert_array_equal(p.array(), before)


def test_groups_are_apart_in_the_text():
    text = repr(SGD([{"params": parameter(3)}, {"params": parameter(2), "lr": 2.0}], lr=1.0))
    assert "    weight_decay: 0\n\nParameter Group 1\n" in text
