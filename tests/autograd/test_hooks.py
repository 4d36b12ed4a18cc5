import copy

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn
from fastlayers.autograd.tape import _listeners, listen


def leaf(*values):
    return fl.tensor(values or (1.0, 2.0), requires_grad=True)


def test_hooks_of_a_leaf_see_its_whole_gradient_and_may_replace_it():
    x, seen = leaf(), []
    handle = x.register_hook(lambda g: seen.append(g.tolist()))
    x.register_hook(lambda g: g * 10)
    (x * 3 + x).sum().backward()
    assert seen == [[4, 4]] and x.grad.tolist() == [40, 40]
    handle.remove()
    x.sum().backward()
    assert len(seen) == 1 and x.grad.tolist() == [50, 50]


def test_hooks_of_a_result_change_what_flows_on():
    x = leaf()
    y = x * 2
    y.retain_grad()
    with y.register_hook(lambda g: g.clamp(max=0.5)):
        y.sum().backward(retain_graph=True)
    assert y.grad.tolist() == [0.5, 0.5] and x.grad.tolist() == [1, 1]
    x.grad = None
    y.sum().backward()
    assert x.grad.tolist() == [2, 2]


def test_a_hook_may_change_the_gradient_in_place():
    x, y = leaf(), leaf()

    def zero(gradient):
        gradient.mul_(0)

    x.register_hook(zero)
    (x + y).sum().backward()
    assert x.grad.tolist() == [0, 0] and y.grad.tolist() == [1, 1]


def test_what_a_hook_returns_is_copied():
    x, own = leaf(), fl.ones(2)
    x.register_hook(lambda g: own)
    for _ in range(2):
        x.sum().backward()
    assert x.grad.tolist() == [2, 2] and own.tolist() == [1, 1]


def test_hooks_are_called_for_autograd_grad():
    x = leaf()
    x.register_hook(lambda g: g * 2)
    y = x * 3
    y.register_hook(lambda g: g * 5)
    first, second = fl.autograd.grad(y.sum(), [x, y])
    assert first.tolist() == [30, 30] and second.tolist() == [5, 5] and x.grad is None


def test_an_error_in_a_hook_leaves_the_gradients():
    x, y = leaf(), leaf()
    y.register_hook(lambda g: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        (x * y).sum().backward()
    assert x.grad is None and y.grad is None


def test_listeners_are_told_of_what_hooks_give():
    class Listener:
        def __init__(self):
            self.told = []

        def begin(self, leaves):
            return True

        def ready(self, leaf, gradient):
            self.told.append(gradient.tolist())

        def finish(self):
            pass

    before, listener = len(_listeners), Listener()
    listen(listener)
    x, calls = leaf(), []
    x.register_hook(lambda g: calls.append(1) or g * 7)
    (x + x).sum().backward()
    assert listener.told == [[14, 14]] and x.grad.tolist() == [14, 14] and len(calls) == 1
    del listener
    assert len(_listeners) == before


def test_hooks_of_what_waits_for_a_chain():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    kept = []

    def watch(module, args, output):
        output.register_hook(kept.append)

    net[0].register_forward_hook(watch)
    net(np.ones((1, 2), np.float32)).sum().backward()
    assert kept[0].shape == (1, 2)


def test_copies_have_no_hooks():
    x = leaf()
    x.register_hook(lambda g: g * 2)
    other = copy.deepcopy(x)
    other.sum().backward()
    assert other.grad.tolist() == [1, 1]


def test_hooks_are_checked():
    with pytest.raises(RuntimeError, match="register_hook: the tensor must require a gradient"):
        fl.ones(2).register_hook(print)
    with pytest.raises(TypeError, match="register_hook: hook must be callable, got int"):
        leaf().register_hook(1)
    x = leaf()
    x.register_hook(lambda g: g.sum())
    with pytest.raises(RuntimeError, match=r"of float32 and shape \(2,\), got float32 and \(\)"):
        x.sum().backward()
    assert x.grad is None
