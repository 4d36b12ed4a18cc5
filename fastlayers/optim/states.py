"""Loading an optimiser's state, its own or PyTorch's."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from fastlayers.optim import checks

if TYPE_CHECKING:
    from fastlayers.optim.optimizer import Group, Optimizer, Parameter

__all__ = ["loaded"]

# Options that older states lack, and the values that this implied.
_LATER = {"amsgrad": False, "decoupled_weight_decay": False, "maximize": False, "nesterov": False}


def loaded(
    optimizer: Optimizer, state_dict: Mapping[str, Any]
) -> tuple[list[Group], defaultdict[Parameter, dict[str, Any]]]:
    """The groups and the parameters' state in a state dict, which must fit."""
    op = type(optimizer).__name__
    if not {"state", "param_groups"} <= set(state_dict):
        raise ValueError(
            f"{op}: state_dict must have 'state' and 'param_groups', got {sorted(state_dict)}"
        )
    saved = state_dict["param_groups"]
    expected, given = ([len(g["params"]) for g in gs] for gs in (optimizer.param_groups, saved))
    if expected != given:
        raise ValueError(f"{op}: state_dict must have groups of {expected} parameters, got {given}")
    pairs = zip(optimizer.param_groups, saved, strict=True)
    groups = [_group(optimizer, old, new) for old, new in pairs]
    numbers = chain.from_iterable(group["params"] for group in saved)
    params = dict(zip(numbers, optimizer._params(), strict=True))
    return groups, _state(optimizer, state_dict["state"], params)


def _group(optimizer: Optimizer, old: Group, saved: Mapping[str, Any]) -> Group:
    later = {name: _LATER[name] for name in _LATER.keys() & optimizer.defaults.keys()}
    names = {"param_names": old["param_names"]} if "param_names" in old else {}
    group = names | later | optimizer._options(copy.deepcopy(dict(saved)))
    group["params"] = old["params"]
    if missing := sorted(optimizer.defaults.keys() - group.keys()):
        op = type(optimizer).__name__
        raise ValueError(f"{op}: state_dict must have all options, got no {missing}")
    optimizer._check_options(group)
    return group


def _state(
    optimizer: Optimizer,
    saved: Mapping[int, Mapping[str, Any]],
    params: Mapping[int, Parameter],
) -> defaultdict[Parameter, dict[str, Any]]:
    op = type(optimizer).__name__
    if unknown := [index for index in saved if index not in params]:
        raise ValueError(
            f"{op}: state_dict must have state of the groups' parameters only, "
            f"got parameters {unknown}"
        )
    needed, possible = optimizer._state_names, optimizer._optional_state_names
    state: defaultdict[Parameter, dict[str, Any]] = defaultdict(dict)
    for index, entry in saved.items():
        p = params[index]
        if needed is None:
            state[p] = copy.deepcopy(dict(entry))
            continue
        if "momentum_buffer" in entry and entry["momentum_buffer"] is None:
            continue  # PyTorch's, without momentum
        if not needed <= set(entry) <= needed | possible:
            raise ValueError(
                f"{op}: state_dict must have {sorted(needed)} for a parameter, got {sorted(entry)}"
            )
        state[p] = {name: _value(op, name, value, p) for name, value in entry.items()}
    return state


def _value(op: str, name: str, value: Any, p: Parameter) -> Any:
    if name == "step":
        value = checks.scalar(value)
        if isinstance(value, float) and value.is_integer():  # PyTorch counts in float32
            value = int(value)
        checks.whole_number(op, name, value)
        if value >= 2**53:
            raise ValueError(f"{op}: step must be less than 2**53, got {value!r}")
        return int(value)
    shape = p.array().shape
    if np.shape(value) != shape:
        raise ValueError(
            f"{op}: {name} must have its parameter's shape {shape}, got {np.shape(value)}"
        )
    # `np.array` of a tensor of PyTorch 2.13 warns that its `__array__` takes no `copy`.
    return np.asarray(value).astype(p.dtype, order="C")
