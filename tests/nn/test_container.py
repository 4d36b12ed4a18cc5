import numpy as np
import pytest

from fastlayers import nn


def layers():
    return [nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)]


def test_sequential_applies_in_order():
    first, relu, last = layers()
    x = np.random.default_rng(0).standard_normal((4, 2)).astype(np.float32)
    expected = last(relu(first(x))).array()
    np.testing.assert_array_equal(nn.Sequential(first, relu, last)(x).array(), expected)


@pytest.mark.parametrize("make", [lambda given: nn.Sequential(*given), nn.ModuleList])
def test_lists(make):
    given = layers()
    modules = make(given)
    assert len(modules) == 3 and list(modules) == given
    assert modules[0] is given[0] and modules[-1] is given[2]
    assert type(modules[1:]) is type(modules) and list(modules[1:]) == given[1:]
    keys = ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(modules.state_dict()) == keys
    assert modules.append(nn.Tanh()) is modules and len(modules.extend(layers())) == 7
    modules[3] = nn.Linear(1, 2)
    assert list(modules.state_dict())[:6] == [*keys, "3.weight", "3.bias"]
    for index in (7, -8):
        with pytest.raises(IndexError, match=rf"{type(modules).__name__}: index .* got {index}"):
            modules[index]


@pytest.mark.parametrize("value", [3, None, nn.ReLU])
@pytest.mark.parametrize(
    "add",
    [
        lambda value: nn.Sequential(nn.ReLU(), value),
        lambda value: nn.Sequential({"name": value}),
        lambda value: nn.Sequential().append(value),
        lambda value: nn.Sequential(nn.ReLU()).__setitem__(0, value),
        lambda value: nn.ModuleList([value]),
    ],
)
def test_members_are_modules(add, value):
    with pytest.raises(TypeError, match=r"(Sequential|ModuleList): .*must be a Module, got"):
        add(value)


def test_sequential_with_names():
    modules = nn.Sequential({"conv": nn.Conv2d(1, 2, 3), "relu": nn.ReLU()})
    assert list(modules.state_dict()) == ["conv.weight", "conv.bias"]
    assert modules.conv is modules[0]
    assert modules[1:].relu is modules.relu


def test_slices_share_parameters():
    modules = nn.Sequential(*layers())
    assert modules[:1][0].weight is modules[0].weight


def test_module_list_registers_with_its_owner():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(layers())

    assert [name for name, _ in Net().named_parameters()] == [
        "blocks.0.weight",
        "blocks.0.bias",
        "blocks.2.weight",
        "blocks.2.bias",
    ]
    with pytest.raises(NotImplementedError, match="ModuleList"):
        Net().blocks(1)


def test_empty_sequential_and_identity_return_their_input():
    x = np.ones(2)
    assert nn.Sequential()(x) is x and nn.Identity()(x) is x


@pytest.mark.parametrize("make", [lambda given: nn.Sequential(*given), nn.ModuleList])
def test_lists_are_edited(make):
    first, relu, last = given = layers()
    modules, tanh = make(given), nn.Tanh()
    assert modules.insert(1, tanh) is modules and list(modules) == [first, tanh, relu, last]
    assert modules.insert(-1, tanh) is modules and modules[3] is tanh and modules[4] is last
    assert modules.pop(3) is tanh and modules.pop(-1) is last
    assert list(dict(modules.named_children())) == ["0", "1", "2"]
    del modules[0]
    assert list(modules) == [tanh, relu] and list(modules._modules) == ["0", "1"]
    modules += [last]
    whole = modules + make([first])
    assert type(whole) is type(modules) and list(whole) == [tanh, relu, last, first]
    del modules[:2]
    assert list(modules) == [last] and list(modules.state_dict()) == ["0.weight", "0.bias"]
    for index in (2, -2):
        with pytest.raises(IndexError, match=rf"index must be in \[-1, 1\], got {index}"):
            modules.insert(index, tanh)
        with pytest.raises(IndexError, match=rf"got {index}"):
            del modules[index]
    with pytest.raises(TypeError, match="module must be a Module, got int"):
        modules.insert(0, 3)
    assert list(modules) == [last]


def test_sequential_is_not_added_to_a_list():
    with pytest.raises(TypeError):
        nn.Sequential() + [nn.ReLU()]


def test_module_dict():
    linear, relu, tanh = nn.Linear(2, 2), nn.ReLU(), nn.Tanh()
    held = nn.ModuleDict({"a": linear, "b": relu})
    assert held["a"] is linear and "b" in held and "c" not in held and len(held) == 2
    held["b"] = tanh
    held.update([("c", relu)])
    held.update(nn.ModuleDict({"d": tanh}))
    assert list(held) == list(held.keys()) == ["a", "b", "c", "d"]
    assert list(held.items()) == [("a", linear), ("b", tanh), ("c", relu), ("d", tanh)]
    assert list(held.values()) == [linear, tanh, relu, tanh]
    assert list(held.state_dict()) == ["a.weight", "a.bias"]
    assert held.pop("d") is tanh
    del held["c"]
    assert repr(held).splitlines()[2] == "  (b): Tanh()"
    with pytest.raises(KeyError, match="ModuleDict: key must be one of .*'a', 'b'.*, got 'c'"):
        held["c"]
    with pytest.raises(TypeError, match="ModuleDict: module must be a Module, got int"):
        held["c"] = 3
    held.clear()
    assert not len(held) and not held.state_dict()


def test_equal_neighbours_of_a_list_are_in_one_line():
    modules = nn.ModuleList([nn.ReLU(), nn.ReLU(), nn.Sequential(nn.Tanh()), nn.ReLU()])
    assert repr(modules) == (
        "ModuleList(\n  (0-1): 2 x ReLU()\n  (2): Sequential(\n    (0): Tanh()\n  )\n"
        "  (3): ReLU()\n)"
    )
    assert repr(nn.ModuleList()) == "ModuleList()"
