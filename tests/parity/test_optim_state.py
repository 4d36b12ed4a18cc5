"""Training that PyTorch began goes on here, from the state of its optimiser."""

import copy

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn, optim

torch = pytest.importorskip("torch")

CASES = [
    ("SGD", {"lr": 0.05, "momentum": 0.9, "weight_decay": 1e-3}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "dampening": 0.3}),
    ("SGD", {"lr": 0.05, "momentum": 0.9, "nesterov": True, "foreach": True}),
    ("SGD", {"lr": 0.1}),
    ("Adam", {"lr": 0.01}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.01, "foreach": False, "maximize": False}),
    ("Adam", {"lr": 0.01, "weight_decay": 0.1, "decoupled_weight_decay": True}),
    ("AdamW", {"lr": 0.01, "amsgrad": True, "fused": True}),
]


def network(module):
    layers = module.nn if module is torch else nn
    return layers.Sequential(
        layers.Conv2d(1, 4, 3), layers.BatchNorm2d(4), layers.ReLU(), layers.MaxPool2d(2),
        layers.Flatten(), layers.Linear(36, 5),
    )  # fmt: skip


def batches(count):
    rng = np.random.default_rng(0)
    return [
        (rng.standard_normal((8, 1, 8, 8)).astype(np.float32), rng.integers(0, 5, 8))
        for _ in range(count)
    ]


def train(model, optimizer, criterion, data, tensor):
    losses = []
    for x, y in data:
        optimizer.zero_grad()
        loss = criterion(model(tensor(x)), tensor(y))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("name, options", CASES)
def test_training_goes_on_from_the_state_of_torch(name, options):
    torch.manual_seed(0)
    theirs, data = network(torch), batches(15)
    other = getattr(torch.optim, name)(theirs.parameters(), **options)
    criterion = torch.nn.CrossEntropyLoss()
    train(theirs, other, criterion, data[:5], torch.tensor)
    ours = network(fl)
    # A state of PyTorch has all options, so those given here do not matter.
    mine = getattr(optim, name)(ours.parameters(), lr=1.0)
    ours.load_state_dict({k: v.numpy().copy() for k, v in theirs.state_dict().items()})
    mine.load_state_dict(copy.deepcopy(other.state_dict()))
    want = train(theirs, other, criterion, data[5:], torch.tensor)
    got = train(ours, mine, nn.CrossEntropyLoss(), data[5:], fl.tensor)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    again = getattr(torch.optim, name)(network(torch).parameters(), lr=1.0)
    state = mine.state_dict()
    for entry in state["state"].values():  # and back
        entry |= {k: torch.tensor(v) for k, v in entry.items() if k != "step"}
    again.load_state_dict(state)
    assert again.param_groups[0]["lr"] == other.param_groups[0]["lr"]


def test_momentum_buffers_of_none():
    parameter = torch.nn.Parameter(torch.ones(2))
    state = torch.optim.SGD([parameter], lr=0.1).state_dict()
    state["state"] = {0: {"momentum_buffer": None}}
    mine = optim.SGD([nn.Parameter(np.ones(2, np.float32))], lr=1.0)
    mine.load_state_dict(state)
    assert not mine.state and mine.param_groups[0]["lr"] == 0.1


def test_states_of_older_versions_and_of_differentiable_steps():
    p = torch.nn.Parameter(torch.ones(2))
    state = torch.optim.AdamW([p]).state_dict()
    mine = optim.AdamW([nn.Parameter(np.ones(2, np.float32))], maximize=True)
    old = {"lr", "betas", "eps", "weight_decay", "params"}
    groups = [{k: v for k, v in state["param_groups"][0].items() if k in old}]
    mine.load_state_dict({"state": {}, "param_groups": groups})
    group = mine.param_groups[0]
    assert (group["maximize"], group["decoupled_weight_decay"]) == (False, True)
    state["param_groups"][0]["differentiable"] = True
    with pytest.raises(ValueError, match="AdamW: differentiable must be False, the only choice"):
        mine.load_state_dict(state)


def test_options_in_tensors():
    p = nn.Parameter(np.ones(2, np.float32))
    adam = optim.Adam([p], lr=torch.tensor(0.5), betas=(torch.tensor(0.5), np.array(0.75)))
    assert adam.param_groups[0]["lr"] == 0.5 and adam.param_groups[0]["betas"] == (0.5, 0.75)
    for lr in (torch.tensor(0.25), np.array(0.25), fl.tensor(0.25), np.float32(0.25)):
        adam.param_groups[0]["lr"] = lr
        p.grad = np.ones(2, np.float32)
        adam.step()


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW"])
def test_repr_is_that_of_torch_without_its_hints(name):
    p, q = torch.nn.Parameter(torch.ones(2)), nn.Parameter(np.ones(2, np.float32))
    theirs, ours = getattr(torch.optim, name)([("a", p)]), getattr(optim, name)([("a", q)])
    hints = ("capturable", "differentiable", "foreach", "fused")
    lines = [line for line in repr(theirs).split("\n") if not line.strip().startswith(hints)]
    assert repr(ours) == "\n".join(lines)
