import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn

X = np.ones((1, 2), np.float32)


def values(tensor):
    return np.asarray(tensor.detach())


def test_forward_hooks_see_the_output_and_may_replace_it():
    net, seen = nn.Sequential(nn.Linear(2, 3), nn.ReLU()), []
    before = values(net(X))
    handle = net[0].register_forward_hook(lambda *given: seen.append(given))
    np.testing.assert_array_equal(values(net(X)), before)
    ((module, args, output),) = seen
    assert module is net[0] and args[0] is X
    np.testing.assert_array_equal(values(nn.functional.relu(output)), before)
    handle.remove()
    handle.remove()
    net(X)
    assert len(seen) == 1
    with net[0].register_forward_hook(lambda module, args, output: output * 0 + 2):
        assert values(net(X)).tolist() == [[2, 2, 2]]
    np.testing.assert_array_equal(values(net(X)), before)


def test_forward_pre_hooks_may_replace_the_arguments():
    layer = nn.Identity()
    handle = layer.register_forward_pre_hook(lambda module, args: args[0] * 2)
    assert layer(fl.tensor(1.0)).item() == 2
    layer.register_forward_pre_hook(lambda module, args: None)
    layer.register_forward_pre_hook(lambda module, args: (args[0] + 1,), prepend=True)
    assert layer(fl.tensor(1.0)).item() == 4
    handle.remove()
    assert layer(fl.tensor(1.0)).item() == 2


class Scaled(nn.Module):
    def forward(self, x, scale=1):
        return x * scale


def test_hooks_with_keyword_arguments():
    layer, seen = Scaled(), []
    layer.register_forward_pre_hook(lambda m, args, kwargs: (args, {"scale": 3}), with_kwargs=True)
    layer.register_forward_hook(
        lambda m, args, kwargs, out: seen.append((args, kwargs, out)), with_kwargs=True
    )
    layer.register_forward_pre_hook(lambda m, args, kwargs: None, with_kwargs=True)
    assert layer(2, scale=5) == 6 and seen == [((2,), {"scale": 3}, 6)]
    layer.register_forward_pre_hook(lambda m, args, kwargs: 1, with_kwargs=True)
    with pytest.raises(RuntimeError, match="Scaled: a forward pre-hook with kwargs must return"):
        layer(2)


def test_hooks_are_the_instance_s_own_and_must_be_callable():
    first, second = nn.ReLU(), nn.ReLU()
    first.register_forward_hook(lambda *_: 1)
    assert first(X) == 1 and values(second(X)).tolist() == [[1, 1]]
    with pytest.raises(TypeError, match="ReLU: hook must be callable, got int"):
        first.register_forward_hook(1)


def test_gradients_pass_through_what_a_hook_returns():
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
    net[0].register_forward_hook(lambda module, args, output: output * 0 + 1)
    net(X).sum().backward()
    assert not np.asarray(net[0].weight.grad).any()
