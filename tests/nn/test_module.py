import copy
import pickle

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn

# PyTorch's state_dict() of the same model
KEYS = {
    "0.weight": (4, 3, 3, 2),
    "0.bias": (4,),
    "1.weight": (4,),
    "1.bias": (4,),
    "1.running_mean": (4,),
    "1.running_var": (4,),
    "1.num_batches_tracked": (),
    "4.weight": (2, 8),
    "4.bias": (2,),
}


def model():
    return nn.Sequential(
        nn.Conv2d(3, 4, (3, 2)), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)
    )


class Tied(nn.Module):
    """Registers in an order of its own, and one layer and one parameter twice."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(2, 2)
        self.scale = nn.Parameter(np.ones(2))
        self.first = nn.Sequential(nn.Linear(2, 2, bias=False), self.last)
        self.first[0].weight = self.last.weight
        self.register_buffer("seen", np.zeros(3))


def names(pairs):
    return [name for name, _ in pairs]


def copied(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


def check_unchanged(module, before):
    after = module.state_dict()
    assert after.keys() == before.keys()
    for key, value in before.items():
        np.testing.assert_array_equal(after[key], value)


def test_names_are_in_order_of_registration_and_unique():
    module = Tied()
    assert names(module.named_modules()) == ["", "last", "first", "first.0"]
    assert names(module.named_children()) == ["last", "first"]
    assert names(module.named_parameters()) == ["scale", "last.weight", "last.bias"]
    assert names(module.named_parameters("net"))[0] == "net.scale"
    assert names(module.named_buffers()) == ["seen"]
    assert len(list(module.parameters())) == 3
    assert [type(m) for m in module.children()] == [nn.Linear, nn.Sequential]


def test_state_has_shared_values_under_each_name():
    assert list(Tied().state_dict()) == [
        "scale",
        "seen",
        "last.weight",
        "last.bias",
        "first.0.weight",
        "first.1.weight",
        "first.1.bias",
    ]


def test_state_keys_and_shapes_are_those_of_torch():
    state = model().state_dict()
    assert {key: value.shape for key, value in state.items()} == KEYS
    assert list(state) == list(KEYS)
    assert state["1.num_batches_tracked"].dtype == np.int64


def test_state_is_the_memory_of_the_parameters():
    module = model()
    state = module.state_dict()
    assert all(type(value) is fl.Tensor and not value.requires_grad for value in state.values())
    assert state["0.weight"].array() is module[0].weight.array()
    assert state["1.running_mean"].array() is module[1].running_mean.array()
    kept = module.state_dict(keep_vars=True)
    assert kept["0.weight"] is module[0].weight and kept["1.running_var"] is module[1].running_var


def test_load_state_copies():
    first, second = model(), model()
    before = copied(first)
    second.load_state_dict(first.state_dict())
    second[0].weight.data[...] = 5
    second[1].num_batches_tracked[...] = 7
    check_unchanged(first, before)


def test_load_state_without_strictness():
    module = model()
    keys = module.load_state_dict({"4.bias": [1, 2], "5.bias": 0}, strict=False)
    assert keys.unexpected_keys == ["5.bias"]
    absent = [key for key in KEYS if key not in ("4.bias", "1.num_batches_tracked")]
    assert keys.missing_keys == absent
    np.testing.assert_array_equal(module[4].bias.array(), [1, 2])


@pytest.mark.parametrize(
    ("error", "key", "value"),
    [
        (ValueError, "4.bias", np.ones(3)),
        (ValueError, "4.bias", np.ones((2, 1))),
        (ValueError, "1.num_batches_tracked", np.ones(2, int)),
        (ValueError, "5.bias", np.ones(2)),
        (ValueError, "4.bias", None),
        (TypeError, "4.bias", np.array(["a", "b"])),
        (TypeError, "4.bias", np.ones(2, complex)),
        (TypeError, "4.bias", np.array([None, None])),
        (TypeError, "1.num_batches_tracked", np.inf),
    ],
)
def test_load_state_changes_nothing_on_errors(error, key, value):
    module, state = model(), copied(model())
    before = copied(module)
    state[key] = value
    if value is None:
        del state[key]
    with pytest.raises(error, match=rf"load_state_dict: .*{key}"):
        module.load_state_dict(state)
    check_unchanged(module, before)


def test_load_state_keeps_dtypes():
    module = model()
    module.load_state_dict(model().double().state_dict())
    assert module[0].weight.dtype == np.float32
    assert module[1].running_var.dtype == np.float32


def test_modes_reach_all_modules():
    module = Tied()
    assert all(m.training for m in module.modules())
    assert module.eval() is module
    assert not any(m.training for m in module.modules())
    module.first.train()
    assert module.last.training and not module.training
    module.train(False)
    assert not module.first.training


@pytest.mark.parametrize("set_to_none", [True, False])
def test_zero_grad(set_to_none):
    module = nn.Linear(2, 2)
    module(np.ones((1, 2), np.float32)).sum().backward()
    module.bias.grad = None
    module.zero_grad(set_to_none)
    assert module.bias.grad is None
    if set_to_none:
        assert module.weight.grad is None
    else:
        np.testing.assert_array_equal(module.weight.grad, np.zeros((2, 2)))


def test_apply_visits_children_first():
    module, seen = Tied(), []
    assert module.apply(seen.append) is module
    assert [type(m) for m in seen] == [nn.Linear, nn.Linear, nn.Linear, nn.Sequential, Tied]


def test_requires_grad():
    module = nn.Linear(2, 2).requires_grad_(False)
    assert not module(np.ones((1, 2), np.float32)).requires_grad
    assert module.requires_grad_()(np.ones((1, 2), np.float32)).requires_grad


def test_conversion_of_dtypes():
    module = model()
    assert module.double() is module
    kinds = {key: value.dtype for key, value in module.state_dict().items()}
    assert kinds.pop("1.num_batches_tracked") == np.int64
    assert set(kinds.values()) == {np.dtype(np.float64)}
    assert module(np.ones((2, 3, 4, 2))).dtype == np.float64
    assert module.float()[0].weight.dtype == np.float32
    assert module.to("cpu") is module
    for error, target in [(RuntimeError, "cuda"), (TypeError, np.float16), (TypeError, int)]:
        with pytest.raises(error, match=r"Module\.to: "):
            module.to(target)


@pytest.mark.parametrize("copy", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(copy):
    module = model().eval()
    before, other = copied(module), copy(module)
    check_unchanged(other, before)
    assert not any(m.training for m in other.modules())
    assert [p.requires_grad for p in other.parameters()] == [True] * 6
    for value in other.state_dict().values():
        value[...] = 7
    check_unchanged(module, before)


@pytest.mark.parametrize(
    ("method", "value"),
    [("register_parameter", np.ones(2)), ("add_module", nn.ReLU), ("register_buffer", "text")],
)
def test_registered_values_have_their_type(method, value):
    module = nn.Module()
    with pytest.raises(TypeError, match="must be"):
        getattr(module, method)("name", value)
    assert not module.state_dict() and not list(module.children())


def test_shared_parameters_stay_shared_by_conversion():
    module = Tied().double()
    assert module.first[0].weight is module.last.weight
    assert module.last.weight.dtype == np.float64


def test_assignment_before_init():
    class Late(nn.Module):
        def __init__(self, value):
            self.value = value
            super().__init__()

    assert Late(3).value == 3
    for value in (nn.Parameter([1.0]), nn.ReLU()):
        with pytest.raises(AttributeError, match=r"Late: super\(\).* before 'value'"):
            Late(value)


@pytest.mark.parametrize("value", [nn.Parameter([1.0]), nn.ReLU(), np.ones(2), 3])
@pytest.mark.parametrize("after", [nn.Parameter([2.0]), nn.Tanh(), 4])
def test_reassignment_and_deletion(value, after):
    module = nn.Module()
    module.thing = value
    fixed = isinstance(value, nn.Parameter | nn.Module)
    if fixed and not isinstance(after, nn.Parameter | nn.Module):
        with pytest.raises(TypeError, match="Module: cannot assign 'int' as (module|parameter)"):
            module.thing = after
        after = value
    for new in (value, after):
        module.thing = new
        assert module.thing is new
        assert names(module.named_parameters()) == ["thing"] * isinstance(new, nn.Parameter)
        assert names(module.named_children()) == ["thing"] * isinstance(new, nn.Module)
    del module.thing
    assert not module.state_dict() and not hasattr(module, "thing")
    with pytest.raises(AttributeError, match="thing"):
        del module.thing


def test_none_keeps_the_place_of_a_parameter():
    module = nn.Linear(2, 2)
    module.bias = None
    assert names(module.named_parameters()) == ["weight"]
    module.bias = nn.Parameter(np.zeros(2, np.float32))
    assert names(module.named_parameters()) == ["weight", "bias"]


def test_buffers_are_arrays():
    module = nn.Module()
    module.register_buffer("count", np.zeros(()))
    for value in (np.float64(3), fl.tensor(3.0), np.array(3.0)):
        module.count = value
        assert float(np.asarray(module.count)) == 3 and list(module.state_dict()) == ["count"]
    module.register_buffer("of_tensor", fl.tensor([1.0]), persistent=False)
    assert list(module.state_dict()) == ["count"]
    assert names(module.named_buffers()) == ["count", "of_tensor"]
    assert module.load_state_dict({"count": 2}).unexpected_keys == []
    module.register_buffer("of_tensor", module.of_tensor)
    assert list(module.state_dict()) == ["count", "of_tensor"]
    del module.count, module.of_tensor
    assert not module.state_dict() and not list(module.buffers())


def test_places_without_values_are_not_listed():
    module = nn.Module()
    module.add_module("norm", nn.BatchNorm2d(3, track_running_stats=False))
    module.add_module("none", None)
    assert [name for name, _ in module.named_modules()] == ["", "norm"]
    assert list(module.buffers()) == [] and module.norm.running_mean is None


def test_forward_must_be_defined():
    with pytest.raises(NotImplementedError, match="Module: a Module must define forward"):
        nn.Module()(1)
    with pytest.raises(AttributeError, match="'Module' object has no attribute 'weight'"):
        _ = nn.Module().weight


def test_repr():
    assert repr(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.Tanh()))) == (
        "Sequential(\n"
        "  (0): Linear(in_features=2, out_features=3, bias=True)\n"
        "  (1): Sequential(\n"
        "    (0): Tanh()\n"
        "  )\n"
        ")"
    )


# As PyTorch prints them
REPRS = {
    nn.Conv2d(3, 6, 5): "Conv2d(3, 6, kernel_size=(5, 5), stride=(1, 1))",
    nn.Conv2d(4, 6, (3, 1), 2, 1, (1, 2), 2, False): (
        "Conv2d(4, 6, kernel_size=(3, 1), stride=(2, 2), padding=(1, 1), dilation=(1, 2), "
        "groups=2, bias=False)"
    ),
    nn.Conv2d(1, 1, 3, padding="same"): (
        "Conv2d(1, 1, kernel_size=(3, 3), stride=(1, 1), padding=same)"
    ),
    nn.MaxPool2d(2): "MaxPool2d(kernel_size=2, stride=2, padding=0, dilation=1, ceil_mode=False)",
    nn.AvgPool2d(2, 1): "AvgPool2d(kernel_size=2, stride=1, padding=0)",
    nn.AdaptiveAvgPool2d((1, 2)): "AdaptiveAvgPool2d(output_size=(1, 2))",
    nn.BatchNorm2d(6): (
        "BatchNorm2d(6, eps=1e-05, momentum=0.1, affine=True, bias=True, track_running_stats=True)"
    ),
    nn.Dropout2d(): "Dropout2d(p=0.5, inplace=False)",
    nn.Flatten(): "Flatten(start_dim=1, end_dim=-1)",
    nn.Identity(3, unused=4): "Identity()",
    nn.ReLU(): "ReLU()",
    nn.ReLU(inplace=True): "ReLU(inplace=True)",
    nn.LeakyReLU(0.2): "LeakyReLU(negative_slope=0.2)",
    nn.GELU("tanh"): "GELU(approximate='tanh')",
    nn.Softmax(1): "Softmax(dim=1)",
    nn.LogSoftmax(-1): "LogSoftmax(dim=-1)",
    nn.CrossEntropyLoss(): "CrossEntropyLoss()",
}


@pytest.mark.parametrize(("module", "text"), REPRS.items(), ids=REPRS.values())
def test_repr_of_layers(module, text):
    assert repr(module) == text


VALUES = {
    "parameter": lambda: nn.Parameter([1.0]),
    "module": nn.ReLU,
    "buffer": lambda: np.ones(2, np.float32),
}


def holding(kind):
    module = nn.Module()
    if kind == "buffer":
        module.register_buffer("thing", VALUES[kind]())
    else:
        module.thing = VALUES[kind]()
    return module


@pytest.mark.parametrize("kind", VALUES)
@pytest.mark.parametrize("value", [np.ones(2, np.float32), fl.tensor([1.0]), 3.0, [1.0], nn.ReLU])
def test_assignment_of_another_kind(kind, value):
    """PyTorch's TypeError: what is registered stays, rather than to be left out of the state."""
    module = holding(kind)
    before = module.thing
    if kind == "buffer" and isinstance(value, np.ndarray | fl.Tensor):
        module.thing = value
        assert names(module.named_buffers()) == ["thing"]
    else:
        given = type(value).__name__
        with pytest.raises(TypeError, match=f"Module: cannot assign '{given}' as {kind} 'thing'"):
            module.thing = value
        assert module.thing is before
    module.thing = None
    assert module.thing is None and not module.state_dict()
    with pytest.raises(TypeError, match="cannot assign 'str' as"):
        module.thing = "text"
    module.thing = before
    assert [*module.parameters(), *module.children(), *module.buffers()] == [before]


REGISTER = {
    "parameter": lambda module, name: module.register_parameter(name, nn.Parameter([1.0])),
    "module": lambda module, name: module.add_module(name, nn.ReLU()),
    "buffer": lambda module, name: module.register_buffer(name, np.ones(1)),
}
ADD = {
    **REGISTER,
    "alias": lambda module, name: module.register_module(name, nn.ReLU()),
    "assigned": lambda module, name: setattr(module, name, nn.Parameter([1.0])),
    "assigned module": lambda module, name: setattr(module, name, nn.ReLU()),
    "sequential": lambda module, name: nn.Sequential({name: nn.ReLU()}),
}


@pytest.mark.parametrize("add", ADD.values(), ids=ADD)
@pytest.mark.parametrize("name", ["a.b", "", ".", "forward", "training", "state_dict"])
def test_names_that_no_value_can_have(add, name):
    module = nn.Linear(2, 2)
    before = copied(module)
    with pytest.raises(KeyError, match=r"a (parameter|module|buffer)'s name must"):
        add(module, name)
    check_unchanged(module, before)
    assert module.training is True


@pytest.mark.parametrize("add", REGISTER.values(), ids=REGISTER)
def test_names_that_are_taken_or_no_text(add):
    for kind in VALUES:
        module = holding(kind)
        if add is REGISTER[kind]:
            add(module, "thing")
        else:
            with pytest.raises(KeyError, match="got 'thing', which already exists"):
                add(module, "thing")
    module = nn.Module()
    module.thing = 3
    with pytest.raises(KeyError, match="got 'thing', which already exists"):
        add(module, "thing")
    with pytest.raises(TypeError, match="name must be a string, got int"):
        add(module, 3)
    with pytest.raises(TypeError, match="Sequential: a module's name must be a string, got int"):
        nn.Sequential({1: nn.ReLU()})


def test_two_layers_never_share_a_key():
    with pytest.raises(KeyError, match="got 'a.b'"):
        nn.Sequential({"a": nn.Sequential({"b": nn.Linear(2, 2)}), "a.b": nn.Linear(2, 2)})


def test_get_by_dotted_name():
    module = nn.Sequential(model())
    assert module.get_submodule("0.1") is module[0][1] and module.get_submodule("") is module
    assert module.get_parameter("0.1.weight") is module[0][1].weight
    assert module.get_buffer("0.1.running_mean") is module[0][1].running_mean
    for get, target in [
        (module.get_submodule, "0.7"),
        (module.get_submodule, "0.1.weight"),
        (module.get_parameter, "0.1.running_mean"),
        (module.get_parameter, "0.1"),
        (module.get_buffer, "0.1.weight"),
        (module.get_buffer, "0.9.weight"),
    ]:
        with pytest.raises(AttributeError, match="target must name a"):
            get(target)


def test_traversal_options():
    module = Tied()
    assert names(module.named_parameters(recurse=False)) == ["scale"]
    assert len(list(module.parameters(False))) == 1 and len(list(module.buffers(False))) == 1
    every = names(module.named_parameters("net", remove_duplicate=False))
    assert every == ["net.scale", "net.last.weight", "net.last.bias", "net.first.0.weight",
                     "net.first.1.weight", "net.first.1.bias"]  # fmt: skip
    assert names(module.named_modules(remove_duplicate=False))[-1] == "first.1"
    memo = {module.last}
    assert names(module.named_modules(memo, "net")) == ["net", "net.first", "net.first.0"]
    assert module in memo
    assert "0" not in dir(module.first) and "weight" in dir(module.last)


def test_state_dict_options():
    module, destination = nn.Linear(2, 2), {"other": 1}
    state = module.state_dict(destination=destination, prefix="net.", keep_vars=True)
    assert state is destination and list(state) == ["other", "net.weight", "net.bias"]
    assert state["net.weight"] is module.weight
    assert repr(module.load_state_dict(module.state_dict())) == "<All keys matched successfully>"


def test_state_errors_are_of_both_kinds():
    for error in (ValueError, RuntimeError):
        with pytest.raises(error, match="must have the keys of Linear"):
            nn.Linear(2, 2).load_state_dict({})
    with pytest.raises(TypeError, match="state_dict must be a mapping, got list"):
        nn.Linear(2, 2).load_state_dict([])


def test_targets_of_to():
    class Device:
        type = "cpu"

    module = nn.Linear(2, 2)
    module(np.ones((1, 2), np.float32)).sum().backward()
    for target, options in [
        (("cpu", np.float64), {}),
        ((), {"dtype": np.float32, "device": "cpu:0"}),
        ((Device(), np.float64, True), {}),
        ((fl.tensor([1.0]),), {"non_blocking": True}),
        ((), {"device": Device(), "dtype": "float64", "memory_format": None}),
    ]:
        assert module.to(*target, **options) is module
    assert module.weight.dtype == np.float64 == np.asarray(module.weight.grad).dtype
    assert module.cpu() is module.to() is module
    for call, error in [
        (module.half, TypeError),
        (module.bfloat16, TypeError),
        (module.cuda, RuntimeError),
        (lambda: module.cuda(1), RuntimeError),
        (lambda: module.to("cuda:1"), RuntimeError),
        (lambda: module.to(device=1), RuntimeError),
        (lambda: module.to("cpu", np.float32, np.float32), TypeError),
    ]:
        with pytest.raises(error, match=r"Module\.to: "):
            call()


def test_a_mean_of_states_is_loaded_with_its_counts_cut():
    first, second = nn.BatchNorm1d(3), nn.BatchNorm1d(3)
    first(np.ones((2, 3), np.float32))
    mean = {k: (v + second.state_dict()[k]) * 0.75 for k, v in first.state_dict().items()}
    assert mean["num_batches_tracked"].item() == 0.75
    second.num_batches_tracked.fill_(9)
    second.load_state_dict(mean)
    assert second.num_batches_tracked.item() == 0
    assert second.num_batches_tracked.dtype == np.int64
