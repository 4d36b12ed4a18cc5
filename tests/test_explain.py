"""`fl.explain`: which algorithm computes each pass, and why."""

import io

import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 64, 3, padding=1)
        self.conv2 = nn.Conv2d(64, 64, 3, padding=1)
        self.norm = nn.BatchNorm2d(64)

    def forward(self, x):
        return self.norm(self.conv2(nn.functional.relu(self.conv1(x))))


def explained(model, shape, **options):
    file = io.StringIO()
    found = fl.explain(model, shape, file=file, **options)
    assert file.getvalue() == f"{found}\n"
    return found


def test_passes_of_convolutions():
    found = explained(Net(), (2, 3, 12, 12))
    assert [(r.layers, r.direction) for r in found if r.layers.startswith("conv")] == [
        (layer, direction)
        for layer in ("conv1 + relu()", "conv2")
        for direction in ("forward", "backward_input", "backward_weight")
    ]
    line = next(line for line in str(found).splitlines() if line.startswith("conv2 forward"))
    assert "winograd F(" in line and "3x3 at stride 1, 64 channels" in line


def test_linear_maps_and_pools():
    model = nn.Sequential(
        nn.MaxPool2d(2), nn.AvgPool2d(2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 7)
    )
    passes = {}
    for row in explained(model, (4, 3, 16, 16)):
        passes.setdefault(row.layers, []).append(row.direction)
        assert row.algorithm and row.reason
    pools = {name: ["forward", "backward"] for name in "012"}
    assert passes == pools | {"4": ["forward", "backward_input", "backward_weight"]}


def test_model_stays_as_it_is():
    model = Net().eval()
    state = {name: np.array(value) for name, value in model.state_dict().items()}
    fl.manual_seed(3)
    explained(model, (2, 3, 8, 8))
    after = fl.rand(3)
    fl.manual_seed(3)
    assert (after == fl.rand(3)).all() and not model.training
    for name, value in model.state_dict().items():
        assert np.array_equal(state[name], np.array(value))
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize(
    ("arguments", "error", "text"),
    [
        ((3, (1, 2)), TypeError, "explain: model must be a Module, got int"),
        ((Net(), (1, -3, 8, 8)), ValueError, "explain: input_shape must be at least 0, got -3"),
        ((Net(), 3), TypeError, "explain: input_shape must be a sequence of integers, got int 3"),
    ],
)
def test_errors(arguments, error, text):
    with pytest.raises(error, match=text):
        fl.explain(*arguments)


def test_file_must_be_one():
    with pytest.raises(TypeError, match="explain: file must be a text file"):
        fl.explain(Net(), (1, 3, 8, 8), file=3)
