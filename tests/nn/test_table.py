import copy
import gc
import pickle
import weakref

import pytest

from fastlayers import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = nn.ReLU()
        self.fc = nn.Linear(2, 2)

    def forward(self, x):
        return self.fc(self.act(x))


def test_what_is_written_into_a_table_is_the_attribute():
    net, new = Net(), nn.Tanh()
    net._modules["act"] = new
    assert net.act is new and next(net.children()) is new
    net._modules.update(act=nn.Identity())
    assert net.act is net._modules["act"] and type(net.act) is nn.Identity
    net._parameters["scale"] = nn.Parameter([1.0])
    assert net.scale is net._parameters["scale"] and "scale" in net.state_dict()
    net._modules |= {"more": new}
    assert net.more is new and net._modules.setdefault("more", None) is new


def test_what_is_taken_out_of_a_table_is_no_attribute():
    net = Net()
    del net._modules["act"]
    assert not hasattr(net, "act")
    layer = net.fc
    assert net._modules.pop("fc") is layer and not hasattr(net, "fc")
    assert net._modules.pop("fc", None) is None
    with pytest.raises(KeyError, match="fc"):
        net._modules.pop("fc")
    with pytest.raises(KeyError):
        net._modules.popitem()
    assert nn.Linear(1, 1)._parameters.popitem()[0] == "bias"
    layer._parameters.clear()
    assert not hasattr(layer, "weight") and not list(layer.parameters())


@pytest.mark.parametrize(
    "copied", [copy.copy, copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))]
)
def test_a_copy_has_tables_of_its_own(copied):
    net = Net()
    act, other = net.act, copied(net)
    other._modules["act"] = nn.Tanh()
    assert type(other.act) is nn.Tanh and net.act is act is net._modules["act"]


def test_modules_are_freed_without_a_garbage_collection():
    gc.disable()
    try:
        net = Net()
        held = weakref.ref(net)
        del net
        assert held() is None
    finally:
        gc.enable()
