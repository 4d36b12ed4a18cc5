import numpy as np
import pytest

import fastlayers as fl
from fastlayers import nn


def test_a_list_of_parameters():
    first = nn.Parameter(fl.ones(2, 1))
    held = nn.ParameterList([first, fl.zeros(3)])
    assert held[0] is first and type(held[-1]) is nn.Parameter and len(held) == 2
    held.append(nn.Parameter(fl.ones(1))).extend([fl.ones(4)])
    held += [fl.ones(5)]
    assert [p.numel() for p in held] == [2, 3, 1, 4, 5] == [p.numel() for p in held.parameters()]
    assert list(held.state_dict()) == ["0", "1", "2", "3", "4"]
    part = held[:2]
    assert type(part) is nn.ParameterList and part[0] is first and len(part) == 2
    held[-1] = new = nn.Parameter(fl.ones(7))
    assert held[4] is new
    net = nn.Module()
    net.weights = held
    assert next(iter(net.state_dict())) == "weights.0"


def test_text():
    assert repr(nn.ParameterList([fl.ones(2, 3)])) == (
        "ParameterList(\n    (0): Parameter containing: [torch.float32 of size 2x3]\n)"
    )
    assert repr(nn.ParameterList()) == "ParameterList()"


def test_errors():
    held = nn.ParameterList([fl.ones(2)])
    for index in (1, -2):
        with pytest.raises(IndexError, match=r"ParameterList: index must be in \[-1, 1\), got"):
            held[index]
    with pytest.raises(IndexError, match="got 0"):
        nn.ParameterList()[0]
    with pytest.raises(TypeError, match="ParameterList: value must be a tensor, got ndarray"):
        held.append(np.ones(2))
    assert len(held) == 1
