"""Values that an op has saved and that were changed since are an error, never a wrong gradient."""

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import autograd, nn, optim
from fastlayers.autograd import OUTPUT, Tensor, record
from fastlayers.nn import functional as F


def leaf(*shape, seed=0):
    return fl.tensor(np.random.default_rng(seed).uniform(0.5, 2, shape), requires_grad=True)


def by_step(p):
    p.grad = np.ones(p.shape)
    optim.SGD([p], lr=0.1).step()


def by_slow_step(p):
    """Of an array that is not contiguous, whose copy the kernel updates."""
    p.grad = np.asfortranarray(np.ones(p.shape))
    optim.Adam([p], lr=0.1).step()


def without_grad(change):
    def changed(p):
        with fl.no_grad():
            change(p)

    return changed


def load(p):
    module = nn.Module()
    module.p = nn.Parameter(np.zeros(p.shape))
    module.p.data = p.data
    module.load_state_dict({"p": np.ones(p.shape)})


def set_all(t):
    t[...] = 1.0


def set_row(t):
    t[0] = 1.0


def add(t):
    t += 1.0


CHANGES = {
    "step": by_step,
    "slow step": by_slow_step,
    "data[...] =": lambda p: set_all(p.data),
    "data[0] =": lambda p: set_row(p.data),
    "data +=": lambda p: add(p.data),
    "data =": lambda p: setattr(p, "data", np.ones(p.shape)),
    "detach()[...] =": lambda p: set_all(p.detach()),
    "[...] =": without_grad(set_all),
    "+=": without_grad(add),
    "copy_": without_grad(lambda p: p.copy_(fl.ones(p.shape))),
    "row of it": without_grad(lambda p: add(p[0])),
    "load_state_dict": load,
    "init": lambda p: nn.init.ones_(p),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_saved_leaf_that_was_changed(change):
    w, x = leaf(3, 4), leaf(2, 4, seed=1)
    y = F.linear(x, w).sum()
    change(w)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert x.grad is None
    F.linear(x, w).sum().backward()  # all is well from then on
    np.testing.assert_array_equal(x.grad, np.broadcast_to(w.array().sum(0), (2, 4)))


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_values_that_the_gradient_does_not_need_may_change(change):
    w = leaf(3, 4)
    y = (w * 2 + w).sum()
    change(w)
    w.grad = None
    y.backward()
    np.testing.assert_array_equal(w.grad, np.full((3, 4), 3))


@pytest.mark.parametrize("change", [set_all, set_row, add, lambda t: t.mul_(2)])
def test_a_saved_result_that_was_changed(change):
    x = leaf(3, 4)
    middle = x * 1.0
    saved = middle * middle  # has saved its input,
    output = F.tanh(middle * 0.5)  # and tanh its output
    y = saved.sum() + output.sum()
    change(middle)
    with pytest.raises(RuntimeError, match="MulBackward0 has saved must be unchanged"):
        saved.sum().backward()
    change(output)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert x.grad is None


def test_an_op_of_ones_own_names_what_it_saves():
    x, other = leaf(3), leaf(3, seed=1)

    def squared(saved):
        return record(x.array() ** 2, (x, other), lambda dy: (2 * x.array() * dy, dy), saved=saved)

    for saved, bad in (((x,), x), ((OUTPUT,), None), (None, other)):
        y = squared(saved)
        with fl.no_grad():
            add(y if bad is None else bad)
        with pytest.raises(RuntimeError, match="has saved must be unchanged"):
            y.sum().backward()
    y = squared((x,))
    with fl.no_grad():
        add(other)
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, 2 * x.array())


def test_running_statistics_that_training_has_changed():
    norm = nn.BatchNorm1d(3, dtype=np.float64)
    x = leaf(4, 3)
    y = norm.eval()(x).sum()
    norm.train()(x.detach())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()
    assert x.grad is None
    y = norm(x).sum()  # in training the batch's own, which nobody changes
    norm(x.detach())
    y.backward()
    assert x.grad is not None


def test_buffers_that_a_state_was_loaded_into():
    norm = nn.BatchNorm1d(3, dtype=np.float64).eval()
    state, x = {key: value.clone() for key, value in norm.state_dict().items()}, leaf(4, 3)
    y = norm(x).sum()
    norm.load_state_dict(state)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward()


def test_the_tape_counts_changes_as_pytorch_does():
    x = fl.zeros(3)
    shared = x.detach()  # whose memory is counted for from now on
    assert x._version == shared._version == 0
    x[0] = 1.0
    x += 1
    assert x._version == 2
    view = x[1:]
    view.zero_()
    assert x._version == view._version == x.detach()._version == x.data._version == 3
    assert x.clone()._version == 0


def test_a_change_before_the_call_is_no_error():
    w, x = leaf(3, 4), leaf(2, 4, seed=1)
    by_step(w)
    F.linear(x, w).sum().backward()
    assert x.grad is not None


def test_a_step_between_two_passes_is_the_users_mistake():
    """Of two losses that share a network, whose second way back would take the new weights."""
    x, first, second = fl.tensor(np.ones((2, 3))), leaf(4, 3), leaf(1, 4, seed=1)
    hidden = F.relu(F.linear(x, first))
    one, other = F.linear(hidden, second).sum(), (F.linear(hidden, second) ** 2).sum()
    one.backward(retain_graph=True)
    by_step(second)
    with pytest.raises(RuntimeError, match="an optimizer's step"):
        other.backward()


NAMES = {
    "AddBackward0": lambda x: x + x,
    "SubBackward0": lambda x: x - x,
    "MulBackward0": lambda x: x * x,
    "DivBackward0": lambda x: x / x,
    "SumBackward0": lambda x: x.sum(),
    "MeanBackward0": lambda x: x.mean(),
    "ExpBackward0": lambda x: x.exp(),
    "CloneBackward0": lambda x: x.clone(),
    "ReluBackward0": F.relu,
    "TanhBackward0": F.tanh,
    "GeluBackward0": F.gelu,
    "LeakyReluBackward0": F.leaky_relu,
    "LogSoftmaxBackward0": lambda x: F.log_softmax(x, 1),
    "MseLossBackward0": lambda x: F.mse_loss(x, x.detach() + 1),
    "NllLossBackward0": lambda x: F.nll_loss(x, np.array([0, 2])),
    "LinearBackward0": lambda x: F.linear(x, fl.ones(2, 3, dtype=x.dtype)),
}


@pytest.mark.parametrize(("name", "function"), NAMES.items(), ids=NAMES)
def test_names_of_recorded_ops(name, function):
    x = leaf(2, 3)
    y = function(x)
    assert y.grad_fn.name() == name and repr(y.grad_fn) == f"<{name} object>"
    assert x.grad_fn is None and y.detach().grad_fn is None


def test_an_op_gives_a_gradient_for_each_input():
    x, y = leaf(3), leaf(3)
    out = record(x.array() + y.array(), (x, y), lambda dy: (dy,))
    with pytest.raises(ValueError, match="an op of 2 inputs must give as many gradients, got 1"):
        out.sum().backward()


def test_a_leaf_that_no_longer_requires_a_gradient_gets_none():
    x, y = leaf(3), leaf(3)
    z = (x * y).sum()
    x.requires_grad_(False)
    z.backward()
    assert x.grad is None and isinstance(y.grad, Tensor)
    assert autograd.is_grad_enabled()
