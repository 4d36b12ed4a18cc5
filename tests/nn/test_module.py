import copy
import pickle

import numpy as np
import pytest

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
    return {key: value.copy() for key, value in module.state_dict().items()}


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
    assert module.state_dict()["0.weight"] is module[0].weight.array()
    assert module.state_dict()["1.running_mean"] is module[1].running_mean


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
    assert keys.missing_keys == [key for key in KEYS if key != "4.bias"]
    np.testing.assert_array_equal(module[4].bias.array(), [1, 2])


@pytest.mark.parametrize(
    ("error", "key", "value"),
    [
        (ValueError, "4.bias", np.ones(3)),
        (ValueError, "4.bias", np.ones((2, 1))),
        (ValueError, "1.num_batches_tracked", np.ones(1, int)),
        (ValueError, "5.bias", np.ones(2)),
        (ValueError, "4.bias", None),
        (TypeError, "4.bias", np.array(["a", "b"])),
        (TypeError, "4.bias", np.ones(2, complex)),
        (TypeError, "4.bias", np.array([None, None])),
        (TypeError, "1.num_batches_tracked", 1.5),
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
    for error, target in [(ValueError, "cuda"), (TypeError, np.float16), (TypeError, int)]:
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
    module.count = 3.0
    assert isinstance(module.count, np.ndarray) and list(module.state_dict()) == ["count"]
    del module.count
    assert not module.state_dict()


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
        "BatchNorm2d(6, eps=1e-05, momentum=0.1, affine=True, track_running_stats=True)"
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
